"""The bars of benchmarks/value_discriminator.py, and the page of its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.discriminator.sheet import ranged

TITLE = "What a value discriminator is worth on real text, against bars, beside TF-IDF."


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach."""

    name: str
    value: float
    low: float
    high: float = 1.0

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def bars(found: dict[str, Any], model: str) -> list[Bar]:
    """What the heads of a model must reach."""
    one = found[model]
    coverage = float(np.mean([one[name]["head"]["coverage"] for name in one]))
    listed = [
        Bar("jigsaw AUC", one["jigsaw"]["head"]["auc"]["value"], 0.84),
        Bar("paradetox AUC", one["paradetox"]["head"]["auc"]["value"], 0.86),
        Bar("coverage at 90 %", coverage, 0.87),
    ]
    listed += [
        Bar(f"{name}, shuffled labels", one[name]["head"]["shuffled"], 0.42, 0.58) for name in one
    ]
    if "occlusion" in one["paradetox"]:
        hit = one["paradetox"]["occlusion"]["hit"]["value"]
        listed.append(Bar("top word removed by a human", hit, 0.85))
    return listed


def page(found: dict[str, Any], checked: dict[str, list[Bar]], learned: int, sizes: str) -> str:
    """README.md.

    Args:
        found: what was measured, by model and data set. checked: its bars, by model.
        learned: how many labels teach a head. sizes: that and all else it depends on, in words.
    """
    lines = ["# Value discriminators", "", TITLE, ""]
    lines += [
        f"Made by `benchmarks/value_discriminator.py`. {sizes}",
        "",
    ]
    for model, by_set in found.items():
        names = list(by_set)
        lines += [f"## {model}", "", "| AUC | " + " | ".join(names) + " |"]
        lines.append("|---" * (len(names) + 1) + "|")
        table = {
            f"head, {learned} labels": [_cell(by_set[n]["head"]["auc"]) for n in names],
            "TF-IDF, the same labels": [_cell(by_set[n]["head"]["tfidf"]) for n in names],
            "no label: statement against negation": [
                _cell(by_set[n].get("without labels")) for n in names
            ],
        }
        table |= {
            f"unseen: the head of {other}": [_cell(by_set[n]["unseen"].get(other)) for n in names]
            for other in names
        }
        table["coverage at 90 %"] = [f"{by_set[n]['head']['coverage']:.3f}" for n in names]
        table["texts with a single verdict"] = [_cell(by_set[n]["head"]["decided"]) for n in names]
        table["shuffled labels"] = [f"{by_set[n]['head']['shuffled']:.3f}" for n in names]
        lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]
        lines.append("")
        for name in names:
            if "occlusion" in by_set[name]:
                o = by_set[name]["occlusion"]
                lines += [
                    f"Of {o['texts']} texts of {name} that break the value and are found to, the "
                    f"top word is one that the human rewrite removed in {_cell(o['hit'])} (a "
                    f"random word: {o['random word']:.2f}); without it {_cell(o['turned'])} are "
                    f"found to conform.",
                    "",
                ]
        lines += ["| bar | figure | wanted | |", "|---|---|---|---|"]
        lines += [
            f"| {b.name} | {b.value:.3f} | {b.low} to {b.high} | {'yes' if b.passed else 'NO'} |"
            for b in checked[model]
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return ranged(Interval(found["value"], found["low"], found["high"]))
