"""The owned decoding loop: greedy decoding and sampling with little around the forwards.

transformers prepares a call as always (configuration, cache, processors, stopping criteria) and
hands it over through its ``custom_generate`` hook; here the models run, one fused draw chooses the
tokens without sorting a vocabulary. What the loop does not do takes the processor path
(`plugalign.routing` decides), which follows the same plan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from plugalign.choosing import Choice
from plugalign.kernels import steer
from plugalign.naming import Running
from plugalign.rows import BaseRows
from plugalign.run import Run
from plugalign.sources import SourceRunner
from plugalign.step import Step
from plugalign.stopping import Stopping

ROOM = 64  # columns by which a mask grows


class Loop:
    """One ``generate`` call; an argument for ``custom_generate``.

    Args:
        run: the call's state.
        streamer: gets the tokens as they come; transformers has given it the prompts.
    """

    def __init__(self, run: Run, streamer: Any = None):
        self._run, self._streamer = run, streamer

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> Any:
        """What ``generate`` returns, from arguments as transformers prepares them.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
        """
        config, cache = generation_config, inputs["past_key_values"]
        whole, copies = bool(config.return_dict_in_generate), config.num_return_sequences or 1
        choice = Choice.of(logits_processor, input_ids, config)
        stopping = Stopping(
            stopping_criteria, input_ids, config._pad_token_tensor, self._streamer is not None
        )
        base = BaseRows(
            model, *self._run.riding(cache), cache=cache, split=self._run.splits.of(model),
            copies=copies, pad_token_id=self._run.pad,
        )  # fmt: skip
        decoder = Decoder(self._run, base, self._run.streams(copies), choice, stopping)
        decoder.logits = () if whole and config.output_logits else None
        mask = inputs.get("attention_mask")
        with self._run.watching(base.split is None), decoder:
            ids = decoder.decode(
                input_ids, torch.ones_like(input_ids) if mask is None else mask, self._streamer
            )
        if not whole:
            return ids
        base.own_cache(len(ids))
        return GenerateDecoderOnlyOutput(
            sequences=ids, scores=decoder.scores, logits=decoder.logits, past_key_values=cache
        )


class Decoder:
    """The loop itself, and what it keeps between two steps.

    Attributes:
        scores, logits: per step the processed scores and the base's logits ``(R, V)``, or None
            where they are not wanted.
    """

    def __init__(
        self,
        run: Run,
        base: BaseRows,
        sources: SourceRunner,
        choice: Choice,
        stopping: Stopping,
    ):
        self._run, self._base, self._sources = run, base, sources
        self._choice, self._stopping = choice, stopping
        self.scores: tuple[Tensor, ...] | None = () if choice.want_scores else None
        self.logits: tuple[Tensor, ...] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # the error's traceback would keep all caches
            self._base.forget()
            self._sources.forget()

    def decode(self, ids: Tensor, mask: Tensor, streamer: Any = None) -> Tensor:
        """The prompts ``(R, T)`` with what follows them ``(R, T')``; ``mask`` ``(R, T)``."""
        room = torch.ones(len(ids), ROOM, dtype=mask.dtype, device=mask.device)
        done = False
        while not done:
            if mask.shape[1] < ids.shape[1]:
                mask = torch.cat([mask, room], dim=1)
            tokens = self._next(ids, mask[:, : ids.shape[1]])
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            if self._run.trace is not None:
                self._run.trace.chosen(ids)
            done = self._stopping(ids, tokens, self.scores)
            if (column := self._stopping.failed(ids, done)) is not None:
                self._blame(ids[:, :column], mask[:, :column])
        if streamer is not None:
            streamer.end()
        return self._cut(ids, self._stopping.surplus(ids))

    def _next(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The tokens ``(R,)`` that follow ``ids`` ``(R, T)``."""
        step = self._read(ids, mask)
        tokens, scores = self._choice.tokens(ids, step.mixture(), self._run.plan.truncation)
        if not self._stopping.deferred and bool((tokens < 0).any()):
            self._refuse(step)
        if self.scores is not None and scores is not None:
            self.scores += (scores,)
        if self._run.trace is not None:
            truncation = self._run.plan.truncation
            self._run.record(step, steer.scores(step.mixture(), before=truncation))
        return self._stopping.padded(tokens, ids.shape[1])

    def _read(self, ids: Tensor, mask: Tensor) -> Step:
        """Runs the base and all sources on what they have not read."""
        with Running(f"the base model at {self._sources.where(ids)}"):
            logits, hidden, known = self._base.read(ids, mask)
        if self.logits is not None:
            self.logits += (logits.float(),)
        if hidden is None:  # watched, and asked for before a processor runs the base too
            hidden = self._base.own_rows(self._run.hidden(), len(ids))
        base = self._choice.base(ids, logits)
        return Step(self._run.plan, self._sources, ids, mask, base, known, hidden)

    def _refuse(self, step: Step) -> None:
        step.check()
        raise FloatingPointError(f"no token is possible at {self._sources.where(step.ids)}")

    def _blame(self, ids: Tensor, mask: Tensor) -> None:
        """Repeats a step that failed some steps ago, to find out why."""
        self._base, self._sources = self._base.afresh(), self._run.streams()
        self._refuse(self._read(ids, mask))

    def _cut(self, ids: Tensor, surplus: int) -> Tensor:
        """Forgets the last steps, in what was recorded and in the cache too."""
        if not surplus:
            return ids
        self._base.cache.crop(-surplus)
        self.scores = self.scores and self.scores[:-surplus]
        self.logits = self.logits and self.logits[:-surplus]
        return ids[:, :-surplus]
