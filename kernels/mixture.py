"""What one step adds up: several models' logits and the shifts' formulas, as data.

    z(t) = sum_k w_k x_k(t) + sum_decays w log max(exp(-decay * d(t)), floor)
                            + sum_attributes w logsigmoid(a(t))

x_0 is the base model. d(t) = max(0, max_k p_k(t) - p_0(t)) is how much more probable the worst
biased prompt makes a token (self-debiasing, Schick et al. 2021, equations 3 to 5), and a(t) is the
logit of P(a | x, t) (FUDGE, Yang and Klein 2021, equation 2). A normaliser of x_k adds the same to
every token of a row, so it never matters and none is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.kernels.backend import check_logits
from plugalign.kernels.head import Head
from plugalign.kernels.row_lse import row_lse

Logits = Tensor | Head

NEVER = -math.inf
MOST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Decay:
    """Self-debiasing: tokens that a biased prompt favours lose probability.

    Attributes:
        biased: logits ``(B, V)`` of the base behind each biased prompt.
        decay: strength lambda, not negative.
        floor: no token loses more than this factor, in (0, 1].
    """

    biased: tuple[Logits, ...]
    decay: float
    floor: float
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class AttributeLogits:
    """Logits ``(B, V)`` of P(a | x, t) for every token; +inf is certainty, which shifts nothing."""

    logits: Logits
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Mixture:
    """The terms of a step's scores z ``(B, V)``.

    Attributes:
        sources: logits ``(B, V)`` in float32, float16 or bfloat16, each row contiguous, any row
            stride; the first is the base, a tensor. A token at -inf in the base stays at -inf.
            The others, and what decays and attributes hold, may be heads yet to be evaluated.
        weights: one number for each source, or float32 ``(B, K)`` or ``(K,)``.

    Raises:
        ValueError: for tensors that do not fit each other, or a number out of its range.
    """

    sources: tuple[Logits, ...]
    weights: Sequence[float] | Tensor
    decays: tuple[Decay, ...] = ()
    attributes: tuple[AttributeLogits, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must hold at least the base's logits, got none")
        if not isinstance(self.sources[0], Tensor):
            raise ValueError(
                "sources[0], the base, must be a tensor: its truncation reads all of it"
            )
        for name, logits in self.inputs():
            _check_logits(name, logits, self.base)
        _check_weights(self.weights, len(self.sources), self.base)
        for decay in self.decays:
            _check_decay(decay)
        for attribute in self.attributes:
            _check_finite("an attribute's weight", attribute.weight)

    @property
    def base(self) -> Tensor:
        base = self.sources[0]
        assert isinstance(base, Tensor)
        return base

    @property
    def is_base(self) -> bool:
        """Whether z is known to be the base's logits."""
        more = self.decays or self.attributes or isinstance(self.weights, Tensor)
        return not more and list(self.weights) == [1]

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        """Every ``(B, V)`` input with its name."""
        for k, source in enumerate(self.sources):
            yield f"sources[{k}]", source
        for d, decay in enumerate(self.decays):
            for k, biased in enumerate(decay.biased):
                yield f"decays[{d}].biased[{k}]", biased
        for a, attribute in enumerate(self.attributes):
            yield f"attributes[{a}].logits", attribute.logits

    def row_weights(self) -> Tensor:
        """The sources' weights as float32 ``(B, K)``, perhaps with a row stride of 0."""
        weights = self.weights
        if not isinstance(weights, Tensor):
            weights = torch.tensor(list(weights), dtype=torch.float32, device=self.base.device)
        return weights.expand(len(self.base), len(self.sources))


def mix(mixture: Mixture) -> Tensor:
    """The scores z, float32 ``(B, V)``; the base itself where nothing is added to it."""
    if mixture.is_base:
        return mixture.base.float()
    weights = mixture.row_weights()
    z = mixture.base.float() * weights[:, :1]
    for k, source in enumerate(mixture.sources[1:], 1):
        z += full(source).float() * weights[:, k, None]
    if mixture.decays:
        own = mixture.base.float().softmax(-1)
        for decay in mixture.decays:
            z += _decayed(own, (full(x).float().softmax(-1) for x in decay.biased), decay)
    for attribute in mixture.attributes:
        z += logsigmoid(full(attribute.logits).float()) * attribute.weight
    # Zero times -inf is no number, so what the base forbids is set and not computed.
    return z.masked_fill_(mixture.base == NEVER, NEVER)


def mix_at(mixture: Mixture, row: Tensor, token: Tensor) -> Tensor:
    """z at some entries, float32 ``(N,)`` for int64 ``row`` and ``token`` ``(N,)``.

    ``mix(mixture)[row, token]``, bit for bit where no head and no probability is evaluated; whole
    rows are read of those sources alone whose probabilities enter.
    """
    weights = mixture.row_weights()[row]
    base = mixture.base[row, token].float()
    z = base * weights[:, 0]
    for k, source in enumerate(mixture.sources[1:], 1):
        z += _at(source, row, token) * weights[:, k]
    if mixture.decays:
        own = (base - _lse(mixture.base)[row]).exp_()
        for decay in mixture.decays:
            logits = map(full, decay.biased)
            each = ((_at(x, row, token) - _lse(x)[row]).exp_() for x in logits)
            z += _decayed(own, each, decay)
    for attribute in mixture.attributes:
        z += logsigmoid(_at(attribute.logits, row, token)) * attribute.weight
    return z.masked_fill_(base == NEVER, NEVER)


def full(logits: Logits) -> Tensor:
    """All logits ``(B, V)``."""
    return logits.full() if isinstance(logits, Head) else logits


def _at(logits: Logits, row: Tensor, token: Tensor) -> Tensor:
    return logits.at(row, token) if isinstance(logits, Head) else logits[row, token].float()


def _lse(logits: Tensor) -> Tensor:
    return row_lse(logits, backend="torch")


def _decayed(own: Tensor, biased: Iterable[Tensor], decay: Decay) -> Tensor:
    """The weighted shift, from the probabilities of the base and behind the biased prompts."""
    worst = torch.zeros_like(own)
    for p in biased:
        torch.maximum(worst, p, out=worst)
    excess = worst.sub_(own).clamp_min_(0.0)
    return excess.mul_(-decay.decay).clamp_min_(math.log(decay.floor)).mul_(decay.weight)


def _check_logits(name: str, logits: Logits, base: Tensor) -> None:
    if isinstance(logits, Tensor):
        check_logits(logits, name)
    if tuple(logits.shape) != tuple(base.shape) or logits.device != base.device:
        raise ValueError(
            f"{name} must be {tuple(base.shape)} on {base.device} like the base, got "
            f"{tuple(logits.shape)} on {logits.device}"
        )


def _check_weights(weights: Sequence[float] | Tensor, count: int, base: Tensor) -> None:
    if isinstance(weights, Tensor):
        shapes = ((count,), (len(base), count))
        fits = tuple(weights.shape) in shapes and weights.dtype == torch.float32
        if not fits or weights.device != base.device:
            raise ValueError(
                f"weights must be float32 {shapes[0]} or {shapes[1]} on {base.device}, got "
                f"{weights.dtype} {tuple(weights.shape)} on {weights.device}"
            )
        # Values on a GPU stay unread: reading them would wait for the device.
        known = weights.flatten().tolist() if weights.is_cpu else []
    else:
        known = list(weights)
        if len(known) != count:
            raise ValueError(f"weights must be {count}, one for each source, got {known}")
    for weight in known:
        _check_finite("weights", weight)


def _check_decay(decay: Decay) -> None:
    if not decay.biased:
        raise ValueError("a decay needs the logits of at least one biased prompt, got none")
    if not 0 <= decay.decay < math.inf:
        raise ValueError(f"decay must be finite and not negative, got {decay.decay}")
    if not 0 < decay.floor <= 1:
        raise ValueError(f"floor must lie above 0 and not above 1, got {decay.floor}")
    _check_finite("a decay's weight", decay.weight)


def _check_finite(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise ValueError(f"{name} must be numbers that are finite in float32, got {value!r}")
