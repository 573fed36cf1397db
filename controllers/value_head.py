"""A linear head on the base's middle layer that says how far a text conforms to a value.

Behind the statement v the base's first layers read the text, and the head reads the mean of their
states over its tokens::

    log-odds of P(v | x) = w . mean_i h_i + b

Since that is linear, a token adds ``w . h`` to a sum, which is kept beside the keys and values: a
longer text costs its new tokens, and K candidates one forward that attends as a tree. The text is
all that the base has read, prompt and answer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.adapters.truncated import truncated
from plugalign.algebra.identity import Identity
from plugalign.algebra.sources import Candidates, CandidateValues, Context, Source, Step
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.readers.candidates import best_candidates
from plugalign.engine.readers.positions import position_ids
from plugalign.engine.readers.prefix_cache import PrefixCache
from plugalign.engine.readers.tree_attention import tree_attention_for
from plugalign.generation.tokens import token_ids

FRONT = "Statement: {statement}\nText: "  # stands before a text


@dataclass(frozen=True, eq=False)
class ValueHead:
    """What a value discriminator learned on one model. Heads of equal content are equal.

    Args:
        statement: the value.
        layer: how many of the model's layers read.
        weights: w, ``(D,)``.
        offset: b.
        fitted_for: the model whose states it reads, None for any of this width.

    Raises:
        ValueError: for an empty statement or weights of another shape.
    """

    statement: str
    layer: int
    weights: Tensor
    offset: float
    fitted_for: Identity | None = None

    def __post_init__(self) -> None:
        if not self.statement.strip():
            raise ValueError(f"a value needs a statement, got {self.statement!r}")
        if self.weights.ndim != 1:
            raise ValueError(f"a head's weights are (D,), got {tuple(self.weights.shape)}")

    @property
    def _content(self) -> tuple[Hashable, ...]:
        weights = tuple(self.weights.tolist())
        return self.statement, self.layer, weights, self.offset, self.fitted_for

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ValueHead) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def bound(self, model: Any, tokenizer: Any) -> BoundHead:
        """The head with the layers of one model.

        Raises:
            ValueError: if it was fitted on another model, or the model has no such layer.
        """
        if self.fitted_for is not None:
            self.fitted_for.check(model, tokenizer, needs="weights", what="the value's head")
        config = model.config.get_text_config()
        if not 1 <= self.layer <= config.num_hidden_layers:
            raise ValueError(
                f"the value's head reads layer {self.layer}, but the model has "
                f"{config.num_hidden_layers}"
            )
        if config.hidden_size != len(self.weights):
            raise ValueError(
                f"the value's head reads {len(self.weights)} hidden units, but the model has "
                f"{config.hidden_size}; fit it on this model"
            )
        (front,) = token_ids(tokenizer, [FRONT.format(statement=self.statement)])
        start = tokenizer.bos_token_id
        begins = start is not None and front[:1] == [start]
        context = Context(tuple(front), start if begins else None)
        weights = self.weights.float().to(model.device)
        return BoundHead(truncated(model, self.layer), context, weights, self.offset)


@dataclass(frozen=True, eq=False)
class BoundHead:
    """A head with the layers that it reads.

    Attributes:
        backbone: they. context: the statement before the text. weights: ``(D,)``, float32.
    """

    backbone: Any
    context: Context
    weights: Tensor
    offset: float

    def read(self, states: Tensor) -> Tensor:
        """``w . h`` of states ``(..., D)``, float32 ``(...)``."""
        return states.float() @ self.weights


@dataclass(frozen=True, eq=False)
class ValueOfText(Source):
    """The log-odds that the text so far conforms, float32 ``(R,)``."""

    name: str = "the value of the text"
    head: BoundHead | None = None

    @property
    def key(self) -> Hashable:
        return ("value", id(self.head))

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        assert self.head is not None
        return ((self.head.backbone, len(self.head.context.ids)),)

    def reader(self, base: Any) -> ValueReader:
        assert self.head is not None
        return ValueReader(self.head)


@dataclass(frozen=True, eq=False)
class ValueOfCandidates(CandidateValues):
    """The same of the text that each of the base's ``k`` best tokens would make.

    Args:
        model: a `BoundHead`.
        breaks: whether it is the log-odds that the text breaks the value.
    """

    breaks: bool = False

    @property
    def key(self) -> Hashable:
        return ("value candidates", id(self.model), self.k, self.breaks)

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        return ((self.model.backbone, len(self.model.context.ids)),)

    def reader(self, base: Any) -> CandidateValueReader:
        return CandidateValueReader(self)


class Sums:
    """What the head has added up over the texts of a call, beside keys and values."""

    def __init__(self, head: BoundHead):
        self.head = head
        self.prefix = PrefixCache(head.backbone)

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums and numbers of tokens of texts ``(R, T)``, both float32 ``(R,)``, and the mask of
        what the cache holds ``(R, W + T)``."""
        head, layout = self.head, context_layout([self.head.context], pad=0)
        text = layout.order(head.context, ids, mask) >= layout.width  # else statement
        ids, mask = layout.rows(head.context, ids, mask)
        start = self.prefix.align(ids, mask, spare=0)
        values = self.prefix.values[:, :start]
        if start < ids.shape[1]:
            output = head.backbone(
                input_ids=ids[:, start:],
                attention_mask=mask,
                position_ids=position_ids(mask)[:, start:],
                past_key_values=self.prefix.cache,
                use_cache=True,
            )
            values = torch.cat([values, head.read(output.last_hidden_state)], dim=1)
        self.prefix.commit(ids, mask, values)
        own = text & mask.bool()
        # What a padded column holds may be no number.
        total = values.masked_fill(~own, 0).sum(1)
        return total, own.sum(1).float(), mask


class ValueReader:
    """Reads `ValueOfText`."""

    def __init__(self, head: BoundHead):
        self._head, self._sums = head, Sums(head)

    @torch.no_grad()
    def read(self, step: Step) -> Tensor:
        total, count, _ = self._sums.read(step.ids, step.mask)
        return total / count.clamp(min=1) + self._head.offset

    def forget(self) -> None:
        self._sums = Sums(self._head)


class CandidateValueReader:
    """Reads `ValueOfCandidates`."""

    def __init__(self, source: ValueOfCandidates):
        self._source = source
        self.forget()

    @torch.no_grad()
    def read(self, step: Step) -> Candidates:
        head, ids = self._source.model, best_candidates(step.base, self._source.k)
        total, count, mask = self._sums.read(step.ids, step.mask)
        place = mask.long().sum(-1, keepdim=True)
        added = head.read(self._tree.read(ids, place, self._sums.prefix.cache, mask))
        odds = (total[:, None] + added) / (count[:, None] + 1) + head.offset
        return Candidates(ids, -odds if self._source.breaks else odds)

    def forget(self) -> None:
        self._sums = Sums(self._source.model)
        self._tree = tree_attention_for(self._source.model.backbone)
