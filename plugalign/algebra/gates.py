"""Gates: whether a controller acts, for each row and step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from plugalign.algebra.sources import Logits, Source, Step


class Gate(ABC):
    """A weight for each row and step. Where it is 0 for all rows, sources that are needed behind
    the gate alone are not read: they cost no forward.

    Attributes:
        name: identifies the gate in the config.json of a saved controller; one without cannot be
            saved.
    """

    name: ClassVar[str] = ""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that `open` reads."""
        return ()

    @abstractmethod
    def open(self, step: Step) -> Tensor:
        """The weight of each row, float32 ``(R,)``, finite and not negative: 0 is closed, 1 is
        open, other numbers scale what is behind the gate."""

    def bound(self, model: object, tokenizer: object) -> Gate:
        """This gate for one base model and its tokenizer, as a plan reads it. A plan asks once for
        all that is behind the gate.

        Raises:
            ValueError: if the gate cannot work with them.
        """
        return self

    def config(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        return {}

    @classmethod
    def build(cls, config: dict[str, Any]) -> Self:
        """The inverse of `config`."""
        return cls(**config)


@dataclass(frozen=True)
class FirstSteps(Gate):
    """Open for the first ``count`` tokens of an answer.

    Raises:
        ValueError: for a count below 1.
    """

    count: int
    name: ClassVar[str] = "first_steps"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(
                f"FirstSteps needs a number of steps of at least 1, got {self.count!r}"
            )

    def open(self, step: Step) -> Tensor:
        return (step.number < self.count).float()

    def config(self) -> dict[str, Any]:
        return {"count": self.count}


@dataclass(frozen=True)
class Uncertain(Gate):
    """Open where the base's best token has a probability below ``p`` (nudging, Fei et al. 2025).

    Raises:
        ValueError: for ``p`` outside (0, 1].
    """

    p: float
    name: ClassVar[str] = "uncertain"

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not 0 < self.p <= 1:
            raise ValueError(f"Uncertain needs a probability in (0, 1], got {self.p}")

    @property
    def sources(self) -> tuple[Source, ...]:
        return (Logits(),)

    def open(self, step: Step) -> Tensor:
        best = step.base.float().softmax(-1).amax(-1)
        return (best < self.p).float()

    def config(self) -> dict[str, Any]:
        return {"p": self.p}
