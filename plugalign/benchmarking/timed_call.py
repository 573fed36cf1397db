"""``generate`` as the bench calls it: so many tokens a row, sampled with top-p 0.9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.benchmarking.failures import FAILURES, reason
from plugalign.benchmarking.floors import now
from plugalign.benchmarking.memory import freed
from plugalign.benchmarking.stopwatch import PARTS, timed
from plugalign.engine.acceleration.packed import AFTER
from plugalign.engine.acceleration.traced_step import PROOFS, Recorder
from plugalign.engine.speculative.drafts import Speculation
from plugalign.generation.explanation import REPLAYED
from plugalign.generation.wrap import wrap

CAPTURES: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
# Steps before one is recorded on a CPU: in a process that goes on they are soon behind it, and
# here every method would have to be warmed up for so long.
SOON = 1


@dataclass(frozen=True)
class Generation:
    """``generate`` of a model, steered or not."""

    generator: Any
    base: Any
    pad: int
    steered: bool
    speculation: Speculation | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of generate

    def __call__(self, prompts: dict[str, Tensor], new_tokens: int) -> Any:
        drafted = {} if self.speculation is None else {"speculation": self.speculation}
        return self.generator.generate(**prompts, **drafted, **self._options(new_tokens))

    def drafting(self, draft: str, tokens: int) -> Generation:
        """The same with a draft, where one can be verified."""
        prompts, speculation = random_prompts(self.base, 1, 2), Speculation(draft, tokens)
        try:
            replace(self, speculation=speculation)(prompts, 2)
        except ValueError:
            return self
        return replace(self, speculation=speculation)

    def behind(self, cache: str, compiled: bool) -> Generation:
        """The same with a cache of this kind."""
        options: dict[str, Any] = {"cache_implementation": cache}
        if cache == "static":
            options["disable_compile"] = not compiled
        return replace(self, options=self.options | options)

    def capturing(self, capture: str) -> Generation:
        """The same with ``capture``, one of `CAPTURES`."""
        return replace(self, options=self.options | {"capture": CAPTURES[capture]})

    @property
    def acts_beyond_steps(self) -> bool:
        """Whether a controller does more than change the distribution of the next token."""
        parts = self.generator.controller.parts() if self.steered else []
        surfaces = ("prompt", "attach", "revise")
        return any(w != 0 and part.overrides(s) for w, part in parts for s in surfaces)

    @property
    def drafts(self) -> dict[str, Any]:
        """What drafts, as fields of a `Cost`; nothing where nothing does."""
        speculation = self.speculation
        if speculation is None:
            return {}
        return {"draft": speculation.draft, "draft_tokens": speculation.tokens}

    def acceptance(self) -> float | None:
        """The part of the drafted tokens that stayed since the last call, None without drafts."""
        speculation = self.speculation
        if speculation is None or not speculation.drafted:
            return None
        part, speculation.drafted, speculation.accepted = speculation.acceptance, 0, 0
        return part

    def parts(self, prompts: dict[str, Tensor], new_tokens: int) -> dict[str, Any]:
        """The path of a call and where its time goes, as fields of a `Cost`."""
        if not self.steered:
            return {"path": "generate", **dict.fromkeys(f"{part}_ms" for part in PARTS)}
        explained = self.generator.explain(**prompts, **self._options(new_tokens))
        loop = explained.startswith("the owned loop")
        with timed(self.base, loop) as watch:
            self(prompts, new_tokens)
        times = {f"{part}_ms": 1000 * t / new_tokens for part, t in watch.seconds.items()}
        path = "graph" if REPLAYED in explained else "loop"
        return {"path": path if loop else "processor", **times}

    def _options(self, new_tokens: int) -> dict[str, Any]:
        return {
            "max_new_tokens": new_tokens,
            "min_new_tokens": new_tokens,
            "do_sample": True,
            "top_p": 0.9,
            "top_k": 0,
            "pad_token_id": self.pad,
            **self.options,
        }


def generation(controller: Controller | None, model: Any, tokenizer: Any) -> Generation:
    """``call(prompts, new_tokens)``: the model under a controller, or its plain ``generate``."""
    steered: Any = model if controller is None else wrap(model, tokenizer, controller)
    if controller is not None:
        steered.split_models.recorder = Recorder(patience=SOON)
    pad = model.generation_config.pad_token_id
    pad = pad if pad is not None else tokenizer.pad_token_id or 0
    return Generation(steered, model, pad, controller is not None)


def warming_rounds(new_tokens: int, device: torch.device) -> int:
    """Rounds until nothing is set up any more: one on a GPU, on a CPU until steps are recorded,
    those before a call packs its weights and those behind."""
    needed, steps = SOON + PROOFS + 1, new_tokens - 1
    if device.type == "cuda" or steps < 1:
        return 1
    kinds = min(steps, AFTER - 1), steps - (AFTER - 1)
    return max(-(-needed // count) for count in kinds if count > 0)


@dataclass
class Rounds:
    """Seconds of calls by round, and why some calls could not be made."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def interleaved(
    calls: Mapping[str, Generation],
    prompts: dict[str, Tensor],
    new_tokens: int,
    rounds: int,
    warming: Mapping[str, int],
) -> Rounds:
    """Times calls in turn. One that fails is not made again, and the others go on.

    Args:
        warming: rounds of each call in front of the first that counts.
    """
    found = Rounds({name: [] for name in calls})
    for turn in range(1 - max(warming.values()), rounds + 1):
        for name, call in calls.items():
            if name in found.failed or turn <= -warming[name]:
                continue
            if turn == 1:
                call.acceptance()  # of the rounds that do not count
            torch.manual_seed(abs(turn))
            start = now(call.base.device)
            try:
                call(prompts, new_tokens)
                seconds = now(call.base.device) - start
            except FAILURES as error:
                found.failed[name] = reason(error)
                freed()
            else:
                found.seconds[name] += [seconds] if turn > 0 else []
    return found


@dataclass(frozen=True)
class Around:
    """The token ids of a chat in front of what the user says, and behind it; none of a text."""

    front: Sequence[int] = ()
    behind: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.front) + len(self.behind)


def random_prompts(
    model: Any, batch: int, length: int, around: Around | None = None
) -> dict[str, Tensor]:
    """Token ids ``(batch, T)`` without padding, of which ``length`` are drawn for each row; the low
    ids, often special, are left out.

    Args:
        around: what stands around them in a chat.
    """
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(vocab // 10, vocab, (batch, length), generator=generator)
    if around is not None:
        sides = (torch.tensor(list(x), dtype=torch.long) for x in (around.front, around.behind))
        front, behind = (side.expand(batch, -1) for side in sides)
        ids = torch.cat([front, ids, behind], 1)
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
