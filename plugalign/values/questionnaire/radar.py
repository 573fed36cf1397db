"""The picture of profiles that were measured: one axis a dimension, one line a respondent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.instrument import Instrument

RADIUS, MARGIN, TOP = 190, 90, 60  # pixels; the margin holds the labels, and less of it above
CENTRE = RADIUS + MARGIN
STEP = 0.5  # centred scales end at a multiple of it


@dataclass(frozen=True)
class Spoke:
    """An axis: where it ends, and where its label stands."""

    name: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Line:
    """One respondent: the corners of its line, and the ends of each interval."""

    name: str
    points: tuple[tuple[float, float], ...]
    whiskers: tuple[tuple[float, float, float, float], ...]

    @property
    def path(self) -> str:
        """For an SVG polygon."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Radar:
    """A radar chart in pixels; ``rings`` are (radius, label), and nothing stands above ``top``."""

    size: int
    top: int
    centre: int
    spokes: tuple[Spoke, ...]
    rings: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


def radar(instrument: Instrument, profiles: Sequence[Profile]) -> Radar | None:
    """The picture of those profiles that were measured; None where none was."""
    drawn = [profile for profile in profiles if profile.measured]
    if not drawn:
        return None
    low, high = _ends(instrument, drawn)
    lines = []
    for profile in drawn:
        figures = list(profile.dimensions.values())
        places = [
            [
                _place(i, len(figures), (end - low) / (high - low))
                for end in (f.value, f.low, f.high)
            ]
            for i, f in enumerate(figures)
        ]
        points = tuple(point for point, _, _ in places)
        lines.append(Line(profile.name, points, tuple(first + last for _, first, last in places)))
    steps = 4 if instrument.centre else instrument.levels - 1
    rings = tuple(
        (RADIUS * step / steps, f"{low + (high - low) * step / steps:g}")
        for step in range(1, steps + 1)
    )
    spokes = tuple(_spoke(i, instrument.dimensions) for i in range(len(instrument.dimensions)))
    return Radar(2 * CENTRE, TOP, CENTRE, spokes, rings, tuple(lines))


def _ends(instrument: Instrument, profiles: Sequence[Profile]) -> tuple[float, float]:
    """The scale's ends; centred scores have none, so there it is the farthest that is drawn."""
    if not instrument.centre:
        return 0.0, float(instrument.levels - 1)
    far = max(abs(e) for p in profiles for f in p.dimensions.values() for e in (f.low, f.high))
    far = STEP * max(1, math.ceil(far / STEP))
    return -far, far


def _place(number: int, of: int, part: float) -> tuple[float, float]:
    """A point on an axis, which begin at the top and go round to the right."""
    angle = 2 * math.pi * number / of
    radius = RADIUS * min(max(part, 0.0), 1.0)
    return CENTRE + radius * math.sin(angle), CENTRE - radius * math.cos(angle)


def _spoke(number: int, names: Sequence[str]) -> Spoke:
    x, y = _place(number, len(names), 1.0)
    across, down = (x - CENTRE) / RADIUS, (y - CENTRE) / RADIUS
    anchor = "middle" if abs(across) < 0.1 else "start" if across > 0 else "end"
    return Spoke(names[number], x, y, x + 12 * across, y + 14 * down + 4, anchor)
