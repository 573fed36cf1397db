"""Generating the answers of every method: coupled, timed side by side, kept as they come.

A unit of work is one method on one batch of (prompt, sample) rows. For each batch all methods
run in turn, so that a drift of the computer's speed hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from plugalign.evaluation.comparison.decoding import Decoding
from plugalign.evaluation.comparison.prompts import Row, left_padded
from plugalign.evaluation.comparison.revising import Revisions
from plugalign.evaluation.run_folder.journal import Journal
from plugalign.evaluation.run_folder.records import Generated, Key
from plugalign.sampling import CoupledSampler

WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Generator:
    """Continues encoded prompts under any method.

    Args:
        methods: by name, something with ``generate``: the plain model or a steered one.
        encoded: token ids of every prompt.
        ends: the tokens that end an answer.
        revisions: by the name of a method that rewrites finished answers, where that is noted.
    """

    methods: Mapping[str, Any]
    tokenizer: Any
    encoded: Sequence[Sequence[int]]
    decoding: Decoding
    ends: Sequence[int] = ()
    revisions: Mapping[str, Revisions] = field(default_factory=dict)

    def units(self, batches: Sequence[Sequence[Row]]) -> list[list[Key]]:
        """The answers of one method to one batch, in the order of work."""
        return [[(method, *row) for row in batch] for batch in batches for method in self.methods]

    def run(
        self,
        batches: Sequence[Sequence[Row]],
        journal: Journal[Generated],
        say: Callable[[str], object] = lambda line: None,
    ) -> Iterator[None]:
        """Works off the units that the journal lacks; yields after each.

        Args:
            say: gets a line about the warm-up, which takes a while for a large model.
        """
        missing = journal.missing
        if missing:
            say(f"warming up {len(self.methods)} methods")
            self._warm_up(batches[0])
        methods = list(self.methods)
        for number in missing:
            batch, method = divmod(number, len(methods))
            journal.append(self._unit(methods[method], batch, batches[batch]))
            yield

    def _warm_up(self, batch: Sequence[Row]) -> None:
        """A few tokens from every method, so that no first call's cost falls on one of them."""
        for method in self.methods:
            self._generate(method, batch, min(WARM_UP_TOKENS, self.decoding.max_new_tokens))

    def _unit(self, method: str, number: int, batch: Sequence[Row]) -> list[Generated]:
        revisions = self.revisions.get(method, Revisions())
        revisions.clear()
        answers, seconds = self._generate(method, batch, self.decoding.max_new_tokens)
        records = []
        for row, ((prompt, sample), answer) in enumerate(zip(batch, answers, strict=True)):
            kept = revisions.kept(row, self._pad)
            tokens = answer if kept is None else self._cut(kept)
            records.append(
                Generated(
                    method=method,
                    prompt=prompt,
                    sample=sample,
                    text=self._text(tokens),
                    tokens=tuple(tokens),
                    batch=number,
                    seconds=round(seconds / len(batch), 9),
                    revised=revisions.of_row(row, lambda ids: self._text(self._cut(ids))),
                    revisions=revisions.counts(),
                )
            )
        return records

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _cut(self, ids: Sequence[int]) -> list[int]:
        """An answer up to and including its end token, without padding."""
        return generated(list(ids), self.ends, self._pad)

    @cached_property
    def _pad(self) -> int:
        """The id that fills shorter answers: the tokenizer's, else what ends an answer."""
        pad = self.tokenizer.pad_token_id
        return int((*self.ends, 0)[0] if pad is None else pad)

    def _generate(
        self, method: str, batch: Sequence[Row], new_tokens: int
    ) -> tuple[list[list[int]], float]:
        """Answers up to and including the end token, and the seconds they took together."""
        model = self.methods[method]
        ids, mask = left_padded([self.encoded[prompt] for prompt, _ in batch], self._pad)
        now = _clock(model.device)
        start = now()
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            logits_processor=self._samplers(batch),
            pad_token_id=self._pad,
            **({"eos_token_id": list(self.ends)} if self.ends else {}),
            **self.decoding.options(new_tokens),
        )
        seconds = now() - start
        answers = output[:, ids.shape[1] :].tolist()
        return [self._cut(row) for row in answers], seconds

    def _samplers(self, batch: Sequence[Row]) -> list[Any]:
        """What draws the tokens of a batch with addressed noise; nothing where none is drawn."""
        chosen = self.decoding
        if not chosen.draws:
            return []
        prompts, samples = zip(*batch, strict=True)
        return [
            CoupledSampler(
                chosen.seed,
                prompts,
                samples,
                temperature=chosen.temperature,
                top_p=chosen.top_p,
                top_k=chosen.top_k,
            )
        ]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer."""
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        return []
    return list(end) if isinstance(end, (list, tuple)) else [end]


def generated(tokens: list[int], ends: Sequence[int], pad: int) -> list[int]:
    """The tokens that were generated: up to and including the first end token, no padding."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    last = max((i for i, token in enumerate(tokens) if token != pad), default=-1)
    return tokens[: last + 1]


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, after the device has finished what it was given."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
