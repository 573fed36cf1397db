"""What one controller declares for every step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import Shift
from plugalign.algebra.supports import Support


@dataclass(frozen=True)
class Steering:
    """The shifts that are added and the supports that are intersected."""

    shifts: tuple[Shift, ...] = ()
    supports: tuple[Support, ...] = ()

    def scaled(self, weight: float) -> Steering:
        """All shifts times ``weight``; 0 is the identity, so it drops the supports too."""
        if weight == 0:
            return Steering()
        shifts = tuple(replace(s, weight=s.weight * weight) for s in self.shifts)
        return Steering(shifts, self.supports)

    def behind(self, gate: Gate) -> Steering:
        """The same where ``gate`` is open, and nothing elsewhere."""
        return self._gated(lambda gates: (*gates, gate))

    def _gated(self, change: Callable[[tuple[Gate, ...]], tuple[Gate, ...]]) -> Steering:
        """The same behind other gates."""
        return Steering(
            tuple(replace(s, gates=change(s.gates)) for s in self.shifts),
            tuple(replace(s, gates=change(s.gates)) for s in self.supports),
        )


def bind_gates(declared: Iterable[Steering], model: Any, tokenizer: Any) -> list[Steering]:
    """The declarations of one model's controllers with their gates bound to it.

    A gate is bound once, as are gates that are equal, so that all parts that share it stand behind
    one bound gate: a step asks it once, and reads together what stands behind it.

    Raises:
        ValueError: from a gate that cannot work with this model or tokenizer.
    """
    found, bound = list(declared), dict[Hashable, Gate]()

    def bind(gate: Gate) -> Gate:
        key = _key(gate)
        if key not in bound:
            bound[key] = gate.bound(model, tokenizer)
        return bound[key]

    return [each._gated(lambda gates: tuple(map(bind, gates))) for each in found]


def _key(gate: Gate) -> Hashable:
    """Equal for equal gates; one without a hash equals itself alone."""
    try:
        hash(gate)
    except TypeError:
        return id(gate)
    return gate
