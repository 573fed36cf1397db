"""Pictures (SVG) of `equilibrium_results`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from plugalign.evaluation.report.charts import Axis
from plugalign.evaluation.run_folder.folder import replace_text

INK, SOFT, WARM, PAPER = "#1f6f78", "#b9b6ae", "#a8442a", "#fbfaf7"
FONT = "12px ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif"
NAMES, PANEL, ROW, TOP, BOTTOM = 170, 300, 24, 30, 46  # pixels
Figure = Mapping[str, float]
Series = tuple[str, str, Sequence[tuple[float, Figure]]]  # name, colour, points


def draw(results: Mapping[str, Any], out: Path) -> None:
    """crowds.svg, bounds.svg, adversary.svg, budget.svg and learning.svg."""
    told = {
        f"judged {kind}, change": {n: row[kind]["change"] for n, row in results["judged"].items()}
        for kind in ("positivity", "toxicity")
    }
    certified = {n: row["principles"] for n, row in results["certificates"].items()}
    bound = {
        f"E_q - E_rho of '{name}', a token": {
            n: row[name]["change"] for n, row in certified.items()
        }
        for name in next(iter(certified.values()))
    }
    write(out / "crowds.svg", forest(only(told, adversary=False)))
    write(out / "bounds.svg", forest(only(bound, adversary=False)))
    write(out / "adversary.svg", forest(only(told, adversary=True)))
    lines = {"E_q - E_rho of what no principle sees": budget(results["search"])}
    write(out / "budget.svg", curves("kappa, nats a token", lines, log=True))
    write(out / "learning.svg", curves("pairs", learning(results["lessons"])))


def only(panels: Mapping[str, Mapping[str, Figure]], *, adversary: bool) -> dict[str, Any]:
    """The rows of the crowds, or those of the adversary, without the reference itself."""
    return {
        title: {
            name: figure
            for name, figure in figures.items()
            if name != "top_down" and name.startswith("adversary") == adversary
        }
        for title, figures in panels.items()
    }


def budget(search: Mapping[str, Any]) -> list[Series]:
    """What the worst theta does to what no principle sees, by budget, beside Pinsker's bound."""
    found = {float(k): told for k, told in search["by_budget"].items() if k != "None"}

    def line(value: Mapping[float, float]) -> list[tuple[float, Figure]]:
        return [(k, exactly(v)) for k, v in value.items()]

    free = search["by_budget"]["None"]["unwritten"]
    return [
        ("sqrt(kappa / 2)", SOFT, line({k: math.sqrt(k / 2) for k in found})),
        ("largest at a token", INK, line({k: told["most_change"] for k, told in found.items()})),
        ("mean", "#23262b", line({k: told["unwritten"] for k, told in found.items()})),
        ("mean without a budget", WARM, line(dict.fromkeys(found, free))),
    ]


def learning(lessons: Mapping[str, Any]) -> dict[str, list[Series]]:
    """Theta of each crowd as pairs come in, with two standard errors."""
    panels: dict[str, list[Series]] = {}
    for (crowd, history), colour in zip(lessons.items(), (INK, WARM), strict=True):
        for feature in history[0]["theta"]:
            seen, points = 0, list[tuple[float, Figure]]()
            for lesson in history:
                seen += lesson["pairs"]
                theta = lesson["theta"][feature]
                reach = 2 * lesson["standard_error"][feature]
                points.append((seen, {"value": theta, "low": theta - reach, "high": theta + reach}))
            panels.setdefault(f"theta of '{feature}'", []).append((crowd, colour, points))
    return panels


def exactly(value: float) -> Figure:
    """A figure without an interval."""
    return {"value": value, "low": value, "high": value}


# ------------------------------------------------------------------ charts


def forest(panels: Mapping[str, Mapping[str, Figure]]) -> ElementTree.Element:
    """Figures with intervals, a row each and a panel of each kind."""
    rows = list(next(iter(panels.values())))
    height = TOP + ROW * len(rows)
    svg = _svg(NAMES + PANEL * len(panels) + 20, height + BOTTOM)
    for place, name in enumerate(rows):
        _text(svg, NAMES - 14, TOP + ROW * place + 16, name.replace("_", " "), "end")
    for number, (title, figures) in enumerate(panels.items()):
        left = NAMES + PANEL * number
        axis = _axis(figures.values(), left + 10, left + PANEL - 20)
        _text(svg, left + PANEL / 2, height + 40, title, "middle")
        for x, label in axis.ticks(4):
            _line(svg, x, TOP, x, height, "#e6e3dc")
            _text(svg, x, height + 18, label, "middle")
        _line(svg, axis.place(0), TOP, axis.place(0), height, "#23262b")
        for place, (name, figure) in enumerate(figures.items()):
            colour = WARM if name.endswith("free") or name == "base" else INK
            y = TOP + ROW * place + 12
            _line(svg, axis.place(figure["low"]), y, axis.place(figure["high"]), y, colour)
            _dot(svg, axis.place(figure["value"]), y, colour)
    return svg


def curves(x_label: str, panels: Mapping[str, Sequence[Series]], log: bool = False) -> Any:
    """Lines with whiskers, in panels side by side."""
    height, width = 240, PANEL + 190
    svg = _svg(width * len(panels) + 20, TOP + height + BOTTOM)
    figures = [f for several in panels.values() for _, _, points in several for _, f in points]
    y_axis = _axis(figures, TOP + height, TOP)
    for number, (title, several) in enumerate(panels.items()):
        left = width * number + 50
        xs = [x for _, _, points in several for x, _ in points]
        low = min(xs) / 1.2 if log else 0.0
        x_axis = Axis(low, max(xs) * (1.2 if log else 1.05), left, left + PANEL, log=log)
        for y, label in y_axis.ticks(5):
            _line(svg, left, y, left + PANEL, y, "#e6e3dc")
            _text(svg, left - 8, y + 4, label, "end")
        for x, label in x_axis.ticks(5):
            _text(svg, x, TOP + height + 18, label, "middle")
        _line(svg, left, y_axis.place(0), left + PANEL, y_axis.place(0), "#23262b")
        _text(svg, left, TOP - 12, title, "start")
        _text(svg, left + PANEL / 2, TOP + height + 38, x_label, "middle")
        free = float("inf")  # the lowest place that a label may have
        for name, colour, points in sorted(several, key=lambda one: one[2][-1][1]["value"]):
            _curve(svg, [(x_axis.place(x), figure) for x, figure in points], y_axis, colour)
            x, last = points[-1]
            free = min(y_axis.place(last["value"]) + 4, free - 15)
            _text(svg, x_axis.place(x) + 8, free, name, "start")
    return svg


def _curve(
    svg: ElementTree.Element,
    points: Sequence[tuple[float, Figure]],
    axis: Axis,
    colour: str,
) -> None:
    path = " ".join(f"{x:.1f},{axis.place(figure['value']):.1f}" for x, figure in points)
    ElementTree.SubElement(svg, "polyline", points=path, style=f"fill: none; stroke: {colour}")
    for x, figure in points:
        _line(svg, x, axis.place(figure["low"]), x, axis.place(figure["high"]), colour)
        _dot(svg, x, axis.place(figure["value"]), colour)


def _axis(figures: Any, start: float, end: float) -> Axis:
    """An axis with 0 and all figures on it."""
    numbers = [0.0, *(f[which] for f in figures for which in ("low", "high"))]
    margin = 0.06 * (max(numbers) - min(numbers)) or 0.5
    return Axis(min(numbers) - margin, max(numbers) + margin, start, end)


def _svg(width: float, height: float) -> ElementTree.Element:
    return ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        style=f"background: {PAPER}; font: {FONT}; fill: #23262b",
    )


def _line(svg: Any, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
    places = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ElementTree.SubElement(svg, "line", places, stroke=colour)


def _dot(svg: ElementTree.Element, x: float, y: float, colour: str) -> None:
    ElementTree.SubElement(svg, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4", fill=colour)


def _text(svg: ElementTree.Element, x: float, y: float, text: str, anchor: str) -> None:
    places = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ElementTree.SubElement(svg, "text", places).text = text


def write(path: Path, svg: ElementTree.Element) -> None:
    """Writes a picture."""
    replace_text(path, ElementTree.tostring(svg, encoding="unicode") + "\n")
