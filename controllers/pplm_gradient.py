"""How PPLM moves what a model remembers of a text: the gradients, and their reader.

Offsets of keys and values are in order of layers, the keys' before the values'. They start at zero
at every step, so that what is read is a function of the prefix.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import DynamicCache

from plugalign.algebra.sources import Source, Step
from plugalign.engine.readers.heads import contiguous_head_input
from plugalign.engine.readers.positions import position_ids
from plugalign.engine.readers.prefix_cache import PrefixCache

Variant = Literal["paper", "released"]
SMALL = 1e-15  # added to norms, so that what has no gradient stays where it is
Past = list[tuple[Tensor, Tensor]]  # keys and values (R, H_kv, C, D_head) of each layer


@dataclass(frozen=True, eq=False)
class Perturbed(Source):
    """``log p_D(t | x) - log p(t | x)`` of the base, float32 ``(R, V)``.

    Attributes: see `PPLM`; ``bag`` are token ids.
    """

    bag: tuple[int, ...]
    discriminator: nn.Linear | None
    label: int
    stepsize: float
    iterations: int
    gamma: float
    kl: float
    window: int
    horizon: int
    variant: Variant

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        return ((None, self.horizon if self.discriminator is not None else 0),)

    def reader(self, base: Any) -> Perturber:
        return Perturber(self, base)


class Perturber:
    """Reads `Perturbed`, beside keys and values of the texts so far that are never changed.

    Args:
        model: the base. Neither its weights nor their gradients are touched.

    Attributes:
        embedding: of its tokens, ``(V, D)``.
    """

    def __init__(self, source: Perturbed, model: Any):
        self._source, self._model = source, model
        self.embedding: Tensor = model.get_input_embeddings().weight
        self._accepts = inspect.signature(model.forward).parameters
        self._prefix = PrefixCache(model)

    def forget(self) -> None:
        """See `plugalign.algebra.sources.Reader`."""
        self._prefix = PrefixCache(self._model)

    def read(self, step: Step) -> Tensor:
        """See `plugalign.algebra.sources.Reader`."""
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference have no gradient
            device = self._model.device
            text = self._texts(step.ids.to(device, copy=True), step.mask.to(device, copy=True))
            offsets = [torch.zeros_like(x, dtype=_wide(x)) for pair in text.past for x in pair]
            if not offsets or 0 in offsets[0].shape:
                return torch.zeros_like(step.base, dtype=torch.float32)
            for _ in range(self._source.iterations):
                moves = text.moves(offsets)
                offsets = [x + move for x, move in zip(offsets, moves, strict=True)]
            log_p, _ = text.next(offsets)
            return gap(log_p, text.log_p).float().to(step.base.device)

    def _texts(self, ids: Tensor, mask: Tensor) -> Text:
        """The texts ``(R, T)`` as they are, by what is new in them."""
        start = self._prefix.align(ids, mask)
        cache: Any = self._prefix.cache
        log_p, states = self.forward(
            cache, mask, position_ids(mask)[:, start:], input_ids=ids[:, start:]
        )
        if start:
            states = torch.cat([self._prefix.values, states], 1)
        self._prefix.commit(ids, mask, states)
        whole = [(layer.keys, layer.values) for layer in cache.layers]
        return Text(self._source, self, ids, mask, whole, log_p, states)

    def forward(
        self, cache: Any, mask: Tensor, place: Tensor, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(R, V)`` behind the last column, and states ``(R, n, D)``, of columns
        at places ``(R, n)`` that follow what a cache holds; ``(R, n, 0)`` without discriminator."""
        logits, states = self._run(cache, mask, place, 1, inputs)
        logits = logits[:, -1].to(_wide(logits))
        return torch.log_softmax(logits, -1), states.to(logits.dtype)

    def last_state(self, cache: Any, mask: Tensor, place: Tensor, **inputs: Any) -> Tensor:
        """The state ``(R, D)`` of the last column alone: its logits are not computed, where the
        model can do without."""
        nothing = torch.empty(0, dtype=torch.long, device=mask.device)
        states = self._run(cache, mask, place, nothing, inputs)[1][:, -1]
        return states.to(_wide(states))

    def _run(
        self, cache: Any, mask: Tensor, place: Tensor, keep: int | Tensor, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The base's logits, at least those that are kept, and states."""
        wanted = self._source.discriminator is not None
        if "position_ids" in self._accepts:
            inputs["position_ids"] = place
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = keep
        with contiguous_head_input(self._model):
            output = self._model(
                past_key_values=cache,
                attention_mask=mask,
                use_cache=True,
                output_hidden_states=wanted,
                **inputs,
            )
        logits = output.logits
        return logits, output.hidden_states[-1] if wanted else logits.new_empty(*place.shape, 0)


class Text:
    """Texts of one step, and what the base makes of them with offsets to what it remembers.

    Args:
        ids, mask: ``(R, T)``. whole: keys and values of all columns, and of an attached prefix's.
        log_p: log-probabilities ``(R, V)`` of the next token.
        states: ``(R, T, D)``, or ``(R, T, 0)`` without discriminator.

    Attributes:
        past: keys and values of all columns but the last, ``(R, H_kv, C, D_head)``.
        shown: which of these columns may move, ``(R, C)``.
    """

    def __init__(
        self,
        source: Perturbed,
        reader: Perturber,
        ids: Tensor,
        mask: Tensor,
        whole: Past,
        log_p: Tensor,
        states: Tensor,
    ):
        self._source, self._reader, self._whole = source, reader, whole
        self._last, self.log_p, self._states = ids[:, -1:], log_p, states
        self._count = mask.sum(-1, keepdim=True)
        self.past = [(keys[..., :-1, :], values[..., :-1, :]) for keys, values in whole]
        extra = whole[0][0].shape[-2] - ids.shape[1] if whole else 0
        self._mask = torch.cat([mask.new_ones(len(mask), extra), mask], 1)
        self._place, self._own = position_ids(self._mask)[:, -1:], mask[:, :-1]
        self.shown = in_window(self._mask[:, :-1], source.window, source.variant)

    def moves(self, offsets: list[Tensor]) -> list[Tensor]:
        """``- stepsize * grad / ||grad||^gamma`` for each offset, with the norm of a layer's keys
        and values together, for each row."""
        grads, found = self.gradients(offsets), list[Tensor]()
        for pair in zip(grads[::2], grads[1::2], strict=True):
            squares = [grad.square().sum((1, 2, 3), keepdim=True) for grad in pair]
            norm = (squares[0] + squares[1]).sqrt() + SMALL
            found += [-self._source.stepsize * grad / norm**self._source.gamma for grad in pair]
        return found

    def gradients(self, offsets: list[Tensor]) -> list[Tensor]:
        """Of the loss, by the offsets of the columns that may move."""
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in offsets]
            grads = torch.autograd.grad(self.loss(leaves).sum(), leaves)
        shown = self.shown[:, None, :, None]
        return [grad * shown.to(grad) for grad in grads]

    def loss(self, offsets: list[Tensor]) -> Tensor:
        """What the offsets shall lower, ``(R,)``."""
        source = self._source
        log_p, state = self.next(offsets)
        loss = source.kl * (log_p.exp() * gap(log_p, self.log_p)).sum(-1)
        if source.bag:
            loss = loss - log_p[:, list(source.bag)].logsumexp(-1)
        if source.discriminator is not None:
            loss = loss + self._class_loss(source.discriminator, log_p, state)
        return loss

    def next(self, offsets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(R, V)`` of the next token, and the state ``(R, D)`` in front of it,
        if what stands before the last token is moved."""
        moved = [x + o for (x, o) in zip(_flat(self.past), offsets, strict=True)]
        moved = [x.to(like.dtype) for x, like in zip(moved, _flat(self.past), strict=True)]
        cache = _cache(list(zip(moved[::2], moved[1::2], strict=True)))
        log_p, states = self._reader.forward(cache, self._mask, self._place, input_ids=self._last)
        return log_p, states[:, -1]

    def _class_loss(self, head: nn.Linear, log_p: Tensor, state: Tensor) -> Tensor:
        """The cross-entropy ``(R,)`` of the wanted class, from the mean of the texts' states: of
        their tokens but the last as they were, of the last, and of what is expected to come."""
        total = (self._states[:, :-1] * self._own[..., None]).sum(1)
        total = total + (state.detach() if self._source.variant == "released" else state)
        table = self._reader.embedding
        cache, mask = _cache(self._whole), self._mask
        for i in range(1, self._source.horizon + 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            expected = (log_p.exp().to(table.dtype) @ table)[:, None]
            given = cache, mask, self._place + i
            if i < self._source.horizon:
                log_p, states = self._reader.forward(*given, inputs_embeds=expected)
                total = total + states[:, -1]
            else:
                total = total + self._reader.last_state(*given, inputs_embeds=expected)
        mean = total / (self._count + self._source.horizon)
        bias = None if head.bias is None else head.bias.to(mean)
        scores = linear(mean, head.weight.to(mean), bias)
        label = torch.full((len(mean),), self._source.label, device=mean.device)
        return cross_entropy(scores, label, reduction="none")


def in_window(mask: Tensor, window: int, variant: Variant) -> Tensor:
    """Which columns of a mask ``(R, C)`` may move, bool: all that are no padding, or so many of
    them: the most recent ones in the paper, the oldest ones in the released code."""
    shown = mask.bool()
    if window == 0:
        return shown
    oldest = mask.cumsum(-1)
    place = oldest if variant == "released" else oldest[:, -1:] - oldest + 1
    return shown & (place <= window)


def gap(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``log_p - log_q``, and 0 where both are -inf."""
    return (log_p - log_q).masked_fill(log_q == -math.inf, 0.0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _flat(past: Past) -> list[Tensor]:
    return [x for pair in past for x in pair]


def _cache(past: Past) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past):
        cache.update(keys, values, layer)
    return cache
