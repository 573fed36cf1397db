"""A controller tried on a small model: what its calls make, and how two of them are compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.algebra.controller import Controller
from plugalign.generation.request import special_tokens
from plugalign.generation.scoring import left_padded, tokenized
from plugalign.generation.wrap import Steered, wrap

TOKENS = 4  # new ones in each call
CLOSE = 1e-3  # of log-probabilities
ROUNDING = 1e-5


def hold(holds: bool, otherwise: str) -> None:
    """An assertion that ``python -O`` leaves in.

    Raises:
        AssertionError: if it does not hold.
    """
    if not holds:
        raise AssertionError(otherwise)


@dataclass(frozen=True)
class Generated:
    """What a call generated.

    Attributes:
        texts: the new token ids of each row, up to its end token.
        scores: of each row the log-probabilities of every token at these places, ``(T_i, V)``; None
            where there are none.
    """

    texts: list[list[int]]
    scores: list[Tensor] | None

    def row(self, row: int) -> Generated:
        """One row of it."""
        return Generated([self.texts[row]], None if self.scores is None else [self.scores[row]])

    def check(self, other: Generated, what: str, within: float = CLOSE) -> None:
        """That another call made the same.

        Raises:
            AssertionError: with what differs.
        """
        hold(self.texts == other.texts, f"{what}: {self.texts} and {other.texts}")
        if self.scores is None or other.scores is None:
            return
        for row, (mine, theirs) in enumerate(zip(self.scores, other.scores, strict=True)):
            error = distance(mine, theirs)
            hold(error <= within, f"{what}: the scores of row {row} differ by {error:g}")


@dataclass(frozen=True)
class Case:
    """A controller with what it is tried on."""

    controller: Controller
    model: Any
    tokenizer: Any
    prompts: tuple[str, ...]

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """The prompts, left-padded.

        Raises:
            ValueError: if all of them have one length, or one has none.
        """
        rows = tokenized(self.prompts, self.tokenizer)
        lengths = [len(row) for row in rows]
        if len(set(lengths)) < 2 or 0 in lengths:
            raise ValueError(
                "check_controller needs prompts of different numbers of tokens, none of 0; got "
                f"{lengths}"
            )
        pad, _ = special_tokens(self.model.generation_config, self.tokenizer)
        batch = left_padded(rows, [[] for _ in rows], pad or 0, self.model.device)
        return {"input_ids": batch.ids, "attention_mask": batch.mask}

    @cached_property
    def steered(self) -> Steered:
        return wrap(self.model, self.tokenizer, self.controller)

    @cached_property
    def greedy(self) -> Generated:
        return self.generate(self.steered)

    def acts_on(self, *surfaces: str) -> bool:
        """Whether any part acts on one of these surfaces."""
        return any(p.overrides(s) for _, p in self.controller.parts() for s in surfaces)

    def generate(
        self, model: Any, batch: dict[str, Tensor] | None = None, **options: Any
    ) -> Generated:
        """What ``model.generate`` makes of the prompts, after the same seed each time. Answers that
        are revised, and beams, have no scores."""
        batch = self.batch if batch is None else batch
        pad, ends = special_tokens(self.model.generation_config, self.tokenizer)
        options = {"do_sample": False, "pad_token_id": pad, "max_new_tokens": TOKENS} | options
        scored = not self.acts_on("revise") and options.get("num_beams", 1) == 1
        torch.manual_seed(0)
        output = model.generate(
            **batch, return_dict_in_generate=True, output_scores=scored, **options
        )
        new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
        texts = [_until(row, ends) for row in new]
        if not scored:
            return Generated(texts, None)
        scores = torch.stack(output.scores, 1).float().log_softmax(-1)
        return Generated(texts, [row[: len(text)] for row, text in zip(scores, texts, strict=True)])

    def decides_like(self, other: Controller, what: str) -> None:
        """That another controller steers the same way.

        Raises:
            AssertionError: with what differs.
        """
        self.generate(wrap(self.model, self.tokenizer, other)).check(self.greedy, what)

    @contextmanager
    def may_refuse(self, what: str) -> Iterator[None]:
        """A block that may raise a ValueError, if it says whose limits these are.

        Raises:
            AssertionError: if it does not.
        """
        try:
            yield
        except ValueError as error:
            plan, parts = self.steered.plan, [part for _, part in self.controller.parts()]
            names = [type(each).__name__ for each in (*parts, *plan.gates, *plan.masks)]
            names += [name for part in parts for name in (part.display_name, part.name) if name]
            names += [source.name for source in plan.sources.values()]
            if not any(name in str(error) for name in names):
                said = f"{what} is refused without the name of the controller: {error}"
                raise AssertionError(said) from error


class Stateless(LogitsProcessor):  # type: ignore[misc]
    """The controller as a processor that remembers nothing from step to step."""

    def __init__(self, case: Case, mask: Tensor):
        self._steered, self._mask = case.steered, mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See `SteeringProcessor`."""
        return self._steered.processor(self._mask)(input_ids, scores)


def _until(row: list[int], ends: Sequence[int]) -> list[int]:
    """A row's tokens up to its first end token, with it."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: stop + 1]


def distance(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference of log-probabilities; infinite where only one is possible."""
    possible = torch.isfinite(mine)
    if mine.shape != theirs.shape or not torch.equal(possible, torch.isfinite(theirs)):
        return float("inf")
    return float((mine - theirs)[possible].abs().max()) if bool(possible.any()) else 0.0


class State:
    """What a call must leave of a model as it was."""

    def __init__(self, model: Any):
        self._model = model
        self._weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._rest = _rest(model)

    def check(self, when: str) -> None:
        """That the model is still in this state, bit for bit.

        Raises:
            AssertionError: naming what is not.
        """
        weights, rest = self._model.state_dict(), _rest(self._model)
        same = weights.keys() == self._weights.keys() and all(
            torch.equal(tensor, weights[name]) for name, tensor in self._weights.items()
        )
        hold(same, f"{when} has changed its weights")
        for what, before in self._rest.items():
            hold(before == rest[what], f"{when} has changed its {what}")


def _rest(model: Any) -> dict[str, Any]:
    """What is no weight, by name."""
    hooks = {
        name: [list(module._forward_pre_hooks), list(module._forward_hooks), module.training]
        for name, module in model.named_modules()
    }
    return {
        "hooks or modules": hooks,
        "config": copy.deepcopy(model.config.to_dict()),
        "generation_config": copy.deepcopy(model.generation_config.to_dict()),
    }
