"""The vocabulary: what a controller is, and how controllers add up.

A controller aligns a language model while it decodes and may act in four places. ``prompt``
rewrites the text before it is tokenised, ``attach`` changes the model around one ``generate``
call and undoes it, ``steer`` changes the next-token distribution, ``revise`` works on finished
answers. A subclass overrides what it needs; the rest does nothing.

``steer`` is *declared, not executed*: it returns a `Steering`, data that says which sources are
needed (`Source`), by which formula they change the log-probabilities (`Shift`) and which tokens
stay possible (`Support`). An engine sees the declarations of all controllers before it runs a
forward, so it can share sources, put prompts into one batch and fuse the formulas. The meaning
is always the same sum on the intersection of the supports::

    log p'(t | x) = log p(t | x) + sum_i w_i * delta_i(t) + const

Hence composition is commutative and associative: ``a + b`` and ``b + a`` are one controller.
Letters: B batch, T time, V vocabulary, D hidden, K candidates or sources, P prefix.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from plugalign.saving import Saveable

if TYPE_CHECKING:
    from plugalign.revision import Answers, Revision

# --------------------------------------------------------------------------- sources


@dataclass(frozen=True, eq=False)
class Source:
    """Gives next-token logits ``(B, V)`` for a prefix. Sources with equal keys share a forward."""

    name: str

    @property
    def key(self) -> Hashable:
        return id(self)


@dataclass(frozen=True, eq=False)
class BaseLogits(Source):
    """The base model's own next-token log-probabilities at this step. Costs nothing."""

    name: str = "base"

    @property
    def key(self) -> Hashable:
        return "base"


@dataclass(frozen=True, eq=False)
class ModelLogits(Source):
    """Another causal language model with the same tokenizer, run beside the base.

    Args:
        model: a Hugging Face causal language model.
        identity: equal identities are one model, also when it was loaded twice.
    """

    model: Any = None
    identity: Hashable = None

    @property
    def key(self) -> Hashable:
        return ("model", id(self.model) if self.identity is None else self.identity)


@dataclass(frozen=True, eq=False)
class PromptedLogits(Source):
    """The base model under another prompt: ``prefix`` token ids stand in front of the row's ids.

    Args:
        start_token: the token with which ``prefix`` begins where the model wants every text to
            begin with it; the row's own is then hidden.
    """

    prefix: tuple[int, ...] = ()
    start_token: int | None = None

    @property
    def key(self) -> Hashable:
        return ("prompt", self.prefix, self.start_token)


@dataclass(frozen=True, eq=False)
class PrefixedLogits(Source):
    """The base model behind trained keys and values.

    Args:
        keys_values: per layer keys and values, ``(layers, 2, H_kv, P, D_head)``.
    """

    keys_values: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def key(self) -> Hashable:
        return ("prefix", id(self.keys_values))


@dataclass(frozen=True, eq=False)
class CandidateScores(Source):
    """A causal classifier that scores candidates ``(B, K)``: a logit of P(a | x, t) for each.

    Args:
        model: a module with ``backbone`` (a Hugging Face causal model without a head) and
            ``head`` (hidden to one logit), see `plugalign.controllers.fudge.Predictor`.
    """

    model: Any = None

    @property
    def key(self) -> Hashable:
        return ("candidates", id(self.model))


# --------------------------------------------------------------------------- shifts


@dataclass(frozen=True, eq=False)
class Shift:
    """A formula for ``delta(t)``, added to the base's log-probabilities with a weight."""

    weight: float = field(default=1.0, kw_only=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What must run before the formula can be evaluated."""
        return ()

    @property
    def needs_hidden(self) -> bool:
        """Whether the formula reads the base's last hidden state ``(B, D)``."""
        return False


@dataclass(frozen=True, eq=False)
class LogLinear(Shift):
    """``delta = sum_k c_k z_k`` over sources (DExperts, proxy tuning, contrastive decoding)."""

    terms: tuple[tuple[float, Source], ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(source for _, source in self.terms)


@dataclass(frozen=True, eq=False)
class BiasDecay(Shift):
    """``delta = log max(exp(-decay * max(0, max_k p_k - p)), floor)`` (self-debiasing)."""

    biased: tuple[Source, ...]
    decay: float
    floor: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.biased


@dataclass(frozen=True)
class Adaptive:
    """A-INLP's strength per step, from the sensitivity of the base's top tokens.

    ``b = sum of p(t) * sensitivity(t) over the base's top-p set``; the kept share ``alpha`` is 1
    where ``low <= b <= high``, else ``max(1 - |b|, floor)``. The shift is scaled by ``1 - alpha``.
    """

    sensitivity: Tensor  # (V,)
    top_p: float = 0.7
    low: float = -0.1
    high: float = 0.15
    floor: float = 0.6


@dataclass(frozen=True, eq=False)
class LowRank(Shift):
    """``delta = -(1 - alpha) * left @ (right^T (h - center))``: a projection of the hidden state
    carried to the logits, never a second pass of the head.

    Args:
        left: ``(V, r)``, the output embedding times the removed directions.
        right: ``(D, r)``.
        center: ``(D,)`` or None.
        alpha: the share of the original hidden state that is kept, or an `Adaptive` rule.
    """

    left: Tensor
    right: Tensor
    center: Tensor | None = None
    alpha: float | Adaptive = 0.0

    @property
    def needs_hidden(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Attribute(Shift):
    """``delta(t) = log P(a | x, t) = logsigmoid(score)`` of the candidates in a top-k support.

    Outside the ``k`` best tokens of the base the shift is not defined, so the declaration must
    come with ``TopK(k)`` or smaller.
    """

    scores: CandidateScores
    k: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.scores,)


@dataclass(frozen=True, eq=False)
class HeadAttribute(Shift):
    """``delta(t) = logsigmoid(left_t . (right^T h) + bias_t + w . h + b)``: a head on the base's
    own hidden state that scores every next token without a forward of its own.

    Args:
        left: ``(V, r)``. right: ``(D, r)``. token_bias: ``(V,)``. state: ``(D,)``.
    """

    left: Tensor
    right: Tensor
    token_bias: Tensor
    state: Tensor
    offset: float

    @property
    def needs_hidden(self) -> bool:
        return True


# --------------------------------------------------------------------------- supports


@dataclass(frozen=True, order=True)
class Support:
    """Which tokens of the base stay possible. Several supports intersect."""


@dataclass(frozen=True, order=True)
class TopP(Support):
    """The smallest set of most probable tokens whose mass reaches ``p``."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"top-p must lie in [0, 1], got {self.p}")


@dataclass(frozen=True, order=True)
class TopK(Support):
    """The ``k`` most probable tokens."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top-k must be at least 1, got {self.k}")


@dataclass(frozen=True, order=True)
class MinP(Support):
    """Tokens at least ``p`` times as probable as the most probable one."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"min-p must lie in [0, 1], got {self.p}")


@dataclass(frozen=True)
class Steering:
    """What a controller asks of each step: shifts to add, supports to intersect."""

    shifts: tuple[Shift, ...] = ()
    supports: tuple[Support, ...] = ()

    def scaled(self, weight: float) -> Steering:
        """All shifts times ``weight``. Zero is the identity, so it drops the supports too."""
        if weight == 0:
            return Steering()
        shifts = tuple(replace(s, weight=s.weight * weight) for s in self.shifts)
        return Steering(shifts, self.supports)


# --------------------------------------------------------------------------- controllers


class Controller(Saveable):
    """Base class of all controllers: configuration plus learned tensors, immutable while decoding.

    A subclass sets ``name`` (the key in its saved config.json) and overrides the surfaces it
    needs. See CONTRIBUTING.md for a walk through a new controller.
    """

    name: ClassVar[str] = ""

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses a model or tokenizer that this controller cannot work with, before any work.

        Raises:
            ValueError: naming what does not fit.
        """

    def prompt(self, text: str) -> str:
        """Rewrites the prompt before it is tokenised."""
        return text

    @contextmanager
    def attach(self, model: Any) -> Iterator[int]:
        """Changes ``model`` for one ``generate`` call and undoes it, whatever happens.

        Yields:
            The number of cache positions it puts in front of the prompt (0 for most).
        """
        yield 0

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """Declares how the next-token distribution changes, bound to this model.

        Raises:
            ValueError: if the controller cannot work with this model or tokenizer.
        """
        return Steering()

    def revise(self, answers: Answers) -> Revision:
        """Rewrites finished answers; the revision holds ids ``(B, T')`` without the prompts."""
        from plugalign.revision import Revision

        return Revision(answers.ids)

    def overrides(self, surface: str) -> bool:
        """Whether this controller acts on ``surface`` (prompt, attach, steer or revise)."""
        return getattr(type(self), surface) is not getattr(Controller, surface)

    def parts(self) -> tuple[tuple[float, Controller], ...]:
        """The weighted controllers this one is made of: itself, unless it is a sum."""
        return ((1.0, self),)

    def __add__(self, other: Controller) -> Controller:
        if not isinstance(other, Controller):
            return NotImplemented
        return Composition(*self.parts(), *other.parts())

    def __mul__(self, weight: float) -> Controller:
        if not isinstance(weight, (int, float)):
            return NotImplemented
        if not math.isfinite(weight):
            raise ValueError(f"a controller's weight must be finite, got {weight}")
        return Composition(*((weight * w, part) for w, part in self.parts()))

    __rmul__ = __mul__

    def processor(self, model: Any, tokenizer: Any, attention_mask: Tensor | None = None) -> Any:
        """This controller as a plain ``LogitsProcessor`` for ``model.generate``.

        Args:
            attention_mask: the mask ``(B, T)`` that goes to ``generate``. Needed with left
                padding when the pad token is also the end token; else it is inferred.
        """
        from plugalign.wrapping import wrap

        return wrap(model, tokenizer, self).processor(attention_mask=attention_mask)


class Composition(Controller):
    """A weighted sum of controllers, kept in one canonical order so that sums commute."""

    name = "composition"

    def __init__(self, *parts: tuple[float, Controller]):
        weights: dict[int, float] = {}
        members = {id(controller): controller for _, controller in parts}
        for weight, controller in parts:
            weights[id(controller)] = weights.get(id(controller), 0.0) + weight
        order = sorted(members, key=lambda i: (type(members[i]).__name__, i))
        self._parts = tuple((weights[i], members[i]) for i in order)
        for weight, controller in self._parts:
            whole = [s for s in ("prompt", "attach", "revise") if controller.overrides(s)]
            if whole and weight not in (0.0, 1.0):
                raise ValueError(
                    f"{type(controller).__name__} acts on {' and '.join(whole)}, which is all or "
                    f"nothing; its weight must be 0 or 1, got {weight:g}"
                )

    def parts(self) -> tuple[tuple[float, Controller], ...]:
        return self._parts

    def config(self) -> dict[str, Any]:
        return {"weights": [weight for weight, _ in self._parts]}

    def saved_parts(self) -> dict[str, Saveable]:
        return {f"part_{i}": controller for i, (_, controller) in enumerate(self._parts)}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        weights = config["weights"]
        return cls(*((w, parts[f"part_{i}"]) for i, w in enumerate(weights)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return " + ".join(f"{w:g} * {c!r}" if w != 1 else repr(c) for w, c in self._parts)
