"""The bars of benchmarks/value_discriminator.py, and the page of its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.discriminator.sheet import ranged

HEAD = """# Value discriminators

What a value discriminator is worth on real text, against bars, beside TF-IDF. Every cell is from
one run of one command, and this page is drawn from `results.json`:

```console
$ python benchmarks/value_discriminator.py --data data --causal smollm2 --encoder minilm \\
      --work work --out benchmarks/results/discriminator
```

`smollm2` is SmolLM2-135M-Instruct in float32, `minilm` all-MiniLM-L6-v2; it takes some four minutes
of one core. Of each data set {learned} labelled texts teach a head, {calibrated} calibrate it and
{held_out} are held out, in all as many of either class; at most the first {max_tokens} tokens of a
text are read. Judged without labels are {contrasted} of the held-out texts, and words are left out
of at most {explained} that break the value. Brackets are 95 % intervals over the held-out texts;
coverage and shuffled labels are means over {splits} splits of the same texts. Bars are of the
figures, not of the ends of their intervals.

*Coverage* is that of the conformal sets. A set that holds neither label is shown as "undecided"
like one that holds both, but does not cover here; in a discriminator's own data sheet it does, so
the coverage that is stated there is higher by the share of *empty sets*.
"""


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

    @property
    def missed_by(self) -> float:
        """How far it is from what it must reach."""
        return max(self.low - self.value, self.value - self.high, 0.0)

    @property
    def said(self) -> str:
        return f"{self.name} {self.value:.3f}, missed by {self.missed_by:.3f}"


def bars(by_set: Mapping[str, Any]) -> list[Bar]:
    """What the heads of a model must reach.

    Args:
        by_set: what was measured of it, by data set.
    """
    heads = {name: cells["head"] for name, cells in by_set.items()}
    coverage = float(np.mean([head["coverage"] for head in heads.values()]))
    hit = by_set["paradetox"]["occlusion"]["hit"]["value"]
    return [
        Bar("jigsaw AUC", heads["jigsaw"]["auc"]["value"], 0.84),
        Bar("paradetox AUC", heads["paradetox"]["auc"]["value"], 0.86),
        Bar("coverage at 90 %, mean of the four", coverage, 0.87),
        *(
            Bar(f"{name}, AUC of shuffled labels", head["shuffled"], 0.42, 0.58)
            for name, head in heads.items()
        ),
        Bar("top word removed by a human", hit, 0.85),
    ]


def page(found: Mapping[str, Any]) -> str:
    """README.md.

    Args:
        found: results.json.
    """
    lines = [HEAD.format(**found["sizes"])]
    for model, by_set in found["models"].items():
        lines += [f"## {model}", "", *_table(by_set, found["sizes"]["learned"]), ""]
        lines += [*_words(by_set), "| bar | figure | wanted | |", "|---|---|---|---|"]
        for bar in bars(by_set):
            verdict = "holds" if bar.passed else f"**missed by {bar.missed_by:.3f}**"
            lines.append(f"| {bar.name} | {bar.value:.3f} | {bar.low} to {bar.high} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def _table(by_set: Mapping[str, Any], learned: int) -> Iterator[str]:
    heads = [cells["head"] for cells in by_set.values()]
    rows = {
        f"head, {learned} labels": [_cell(head["auc"]) for head in heads],
        "TF-IDF, the same labels": [_cell(head["tfidf"]) for head in heads],
        "no label: statement against negation": [
            _cell(cells["without labels"]) for cells in by_set.values()
        ],
        **{
            f"unseen: the head of {other}": [
                _cell(cells["unseen"].get(other)) for cells in by_set.values()
            ]
            for other in by_set
        },
        "AUC of shuffled labels": [f"{head['shuffled']:.3f}" for head in heads],
        "coverage at 90 %": [f"{head['coverage']:.3f}" for head in heads],
        "empty sets": [f"{head['empty']:.3f}" for head in heads],
        "texts with a single verdict": [_cell(head["decided"]) for head in heads],
    }
    yield "| AUC | " + " | ".join(by_set) + " |"
    yield "|---" * (len(by_set) + 1) + "|"
    yield from (f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())


def _words(by_set: Mapping[str, Any]) -> Iterator[str]:
    """What leaving words out shows."""
    for name, cells in by_set.items():
        if "occlusion" in cells:
            o = cells["occlusion"]
            yield (
                f"Of {o['texts']} texts of {name} that break the value and are found to, the top "
                f"word is one that the human rewrite removed in {_cell(o['hit'])} (a random word: "
                f"{o['random word']:.2f}); without it {_cell(o['turned'])} are found to conform."
            )
            yield ""


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return ranged(Interval(found["value"], found["low"], found["high"]))
