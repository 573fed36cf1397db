"""The picture of a tuning: every setting's judged figure against its perplexity, as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from plugalign.evaluation.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Estimate,
    Point,
    scatter,
)
from plugalign.evaluation.run_folder.folder import replace_text

COLOURS = {"base": "#6d7079", "other": "#b9b6ae", "efficient": "#1f6f78", "chosen": "#a8442a"}
FONT = "ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif"
Figure = Mapping[str, Any]


def write_picture(
    path: Path,
    points: Sequence[tuple[str, Figure, Figure, str]],
    metric: Mapping[str, Any],
    outside: str | None = None,
) -> None:
    """Writes the picture; of no points, an empty one.

    Args:
        points: name, perplexity and judged figure (as in summary.json), and a kind of `COLOURS`;
            the efficient ones are joined by a line.
        metric: as in summary.json.
        outside: the model of the perplexity, where it is an outside one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    under = "" if outside is None else f" under {outside}"
    picture = _picture(points, metric, f"perplexity{under}")
    replace_text(path, ElementTree.tostring(picture, encoding="unicode") + "\n")


def _picture(
    points: Sequence[tuple[str, Figure, Figure, str]], metric: Mapping[str, Any], x_label: str
) -> ElementTree.Element:
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 -20 {WIDTH} {HEIGHT + 20}",
        style=f"background: #fbfaf7; font: 12px {FONT}; fill: #23262b",
    )
    floor = HEIGHT - BOTTOM
    _line(svg, LEFT, floor, WIDTH - RIGHT, floor, "#23262b")
    _text(svg, WIDTH - RIGHT, HEIGHT - 8, x_label, "end")
    _text(svg, LEFT, TOP - 24, metric["name"].replace("_", " "), "start")
    if not points:
        return svg
    chart = scatter([(name, _estimate(x), _estimate(y)) for name, x, y, _ in points])
    for y, label in chart.y_ticks:
        _line(svg, LEFT, y, WIDTH - RIGHT, y, "#e6e3dc")
        _text(svg, LEFT - 10, y + 4, label, "end")
    for x, label in chart.x_ticks:
        _line(svg, x, floor, x, floor + 5, "#23262b")
        _text(svg, x, floor + 21, label, "middle")
    placed = list(zip(chart.points, [kind for *_, kind in points], strict=True))
    _front(svg, [point for point, kind in placed if kind in ("efficient", "chosen")])
    for point, kind in placed:
        _point(svg, point, COLOURS[kind])
    return svg


def _front(svg: ElementTree.Element, points: Sequence[Point]) -> None:
    """The line through the efficient points."""
    ordered = sorted(points, key=lambda point: point.x)
    ElementTree.SubElement(
        svg,
        "polyline",
        points=" ".join(f"{point.x:.1f},{point.y:.1f}" for point in ordered),
        style=f"fill: none; stroke: {COLOURS['efficient']}; stroke-dasharray: 4 4",
    )


def _point(svg: ElementTree.Element, point: Point, colour: str) -> None:
    """A point with its whiskers and its label."""
    _line(svg, point.left, point.y, point.right, point.y, colour)
    _line(svg, point.x, point.top, point.x, point.bottom, colour)
    circle = {"cx": f"{point.x:.1f}", "cy": f"{point.y:.1f}", "r": "5.5", "fill": colour}
    ElementTree.SubElement(svg, "circle", circle)
    _text(svg, point.label_x, point.label_y, point.name, point.anchor)


def _line(
    svg: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, colour: str
) -> None:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ElementTree.SubElement(svg, "line", {k: f"{v:.1f}" for k, v in places.items()}, stroke=colour)


def _text(svg: ElementTree.Element, x: float, y: float, text: str, anchor: str) -> None:
    places = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ElementTree.SubElement(svg, "text", places).text = text


def _estimate(figure: Figure) -> Estimate:
    return Estimate(figure["value"], figure["low"], figure["high"])
