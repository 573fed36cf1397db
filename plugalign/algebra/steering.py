"""What one controller declares for every step."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        return Steering(
            tuple(replace(s, gates=(*s.gates, gate)) for s in self.shifts),
            tuple(replace(s, gates=(*s.gates, gate)) for s in self.supports),
        )
