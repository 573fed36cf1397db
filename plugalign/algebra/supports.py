"""Supports: which tokens of the base stay possible. Several supports intersect."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from plugalign.algebra.gates import Gate
from plugalign.algebra.sources import Source, Step
from plugalign.kernels import steer
from plugalign.kernels.truncation import Truncation


@dataclass(frozen=True)
class Support:
    """A set of tokens for each row and step, as a mask. Where all supports together leave a row
    nothing, the base's best token stays.

    Attributes:
        gates: it holds for rows where all of them are open.
    """

    gates: tuple[Gate, ...] = field(default=(), kw_only=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that `mask` reads."""
        return ()

    @property
    def unsteered(self) -> RankSupport | None:
        """What a set that follows the controllers would be if they changed nothing; None where
        that is not given by rank. `plugalign compare` has the base within it beside the method."""
        return None

    @abstractmethod
    def mask(self, step: Step) -> Tensor:
        """Bool ``(R, V)``: the tokens that stay possible."""


@dataclass(frozen=True)
class RankSupport(Support):
    """The base's best tokens, by a truncation that the kernels fuse without a mask."""

    @property
    @abstractmethod
    def truncation(self) -> Truncation:
        """The set as a truncation of the base's distribution."""

    @property
    def unsteered(self) -> RankSupport:
        return self

    def mask(self, step: Step) -> Tensor:
        return steer.kept(step.base, self.truncation)


@dataclass(frozen=True)
class TopP(RankSupport):
    """The smallest set of most probable tokens whose mass reaches ``p``."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"top-p must lie in [0, 1], got {self.p}")

    @property
    def truncation(self) -> Truncation:
        return Truncation(top_p=self.p)


@dataclass(frozen=True)
class TopK(RankSupport):
    """The ``k`` most probable tokens."""

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"top-k must be at least 1, got {self.k!r}")

    @property
    def truncation(self) -> Truncation:
        return Truncation(top_k=self.k)


@dataclass(frozen=True)
class MinP(RankSupport):
    """Tokens at least ``p`` times as probable as the most probable one."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"min-p must lie in [0, 1], got {self.p}")

    @property
    def truncation(self) -> Truncation:
        return Truncation(min_p=self.p)


def intersection(supports: list[RankSupport]) -> Truncation:
    """The truncation that keeps what all supports keep: of each kind the narrowest."""
    cuts = [support.truncation for support in supports]
    return Truncation(
        top_p=min((cut.top_p for cut in cuts), default=1.0),
        top_k=min((cut.top_k for cut in cuts if cut.top_k), default=0),
        min_p=max((cut.min_p for cut in cuts), default=0.0),
        joint=True,
    )
