"""Where things stand in the report's charts; how they look is the template's matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 52
FLOOR = 0.06  # of the height, below zero
MARK = 6  # radius of a point
CHARACTER, LINE = 7.4, 16  # about the size of a label's letters
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A method in the scatter plot, in pixels: its place, its whiskers, its label."""

    name: str
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Scatter:
    """Points, and the ticks of both axes with their pixels."""

    points: list[Point]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, by their logarithm where they differ much."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        value, low, high = (self._scaled(v) for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, about)
        return [(self.place(v), f"{v:g}") for v in values]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


def scatter(figures: Sequence[tuple[str, Estimate, Estimate]]) -> Scatter:
    """Lays out methods by (name, horizontal figure, vertical figure)."""
    x_axis = _x_axis([x for _, x, _ in figures])
    top = max(y.high for _, _, y in figures)
    top = min(1.0, top * 1.08) or 1.0
    y_axis = Axis(-FLOOR * top, top, HEIGHT - BOTTOM, TOP)  # a point at zero stands off the axis
    places = [(x_axis.place(x.value), y_axis.place(y.value)) for _, x, y in figures]
    taken = [_box(x - MARK, y - MARK, 2 * MARK, 2 * MARK) for x, y in places]
    points = []
    for (name, x, y), (px, py) in zip(figures, places, strict=True):
        label_x, label_y, anchor, box = _label(name, px, py, taken)
        taken.append(box)
        points.append(
            Point(
                name,
                px,
                py,
                x_axis.place(x.low),
                x_axis.place(x.high),
                y_axis.place(y.high),
                y_axis.place(y.low),
                label_x,
                label_y,
                anchor,
            )
        )
    return Scatter(points, x_axis.ticks(8), y_axis.ticks(5))


def _x_axis(figures: Sequence[Estimate]) -> Axis:
    low, high = min(f.low for f in figures), max(f.high for f in figures)
    log = low > 0 and high / low > 4
    if log:
        return Axis(low / 1.15, high * 1.15, LEFT, WIDTH - RIGHT, log=True)
    margin = 0.08 * (high - low) or 0.5
    return Axis(low - margin, high + margin, LEFT, WIDTH - RIGHT)


Box = tuple[float, float, float, float]


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x, y, x + width, y + height


def _label(name: str, x: float, y: float, taken: list[Box]) -> tuple[float, float, str, Box]:
    """Text position, anchor and box of a label: the first place around the point that is free."""
    width, gap = CHARACTER * len(name), MARK + 5
    choices = [
        (x + gap, y + dy, "start", _box(x + gap, y + dy - LINE + 4, width, LINE))
        for dy in (-gap, 2 * gap - 4, 5, -2.4 * gap, 3.4 * gap)
    ] + [
        (x - gap, y + dy, "end", _box(x - gap - width, y + dy - LINE + 4, width, LINE))
        for dy in (-gap, 2 * gap - 4, 5, -2.4 * gap, 3.4 * gap)
    ]
    inside = [c for c in choices if _within(c[3])]
    clashes = [sum(_area(c[3], box) for box in taken) for c in inside]
    return inside[clashes.index(min(clashes))] if inside else choices[0]


def _within(box: Box) -> bool:
    return box[0] > LEFT and box[1] > 0 and box[2] < WIDTH and box[3] <= HEIGHT - BOTTOM


def _area(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in [low, high], some ``about`` of them."""
    rough = (high - low) / about
    scale: float = 10.0 ** math.floor(math.log10(rough))
    step = next(s * scale for s in STEPS if s * scale >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [v for v in values if low <= v <= high]
