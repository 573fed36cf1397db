"""How toxic the texts are that guides learn from, by the judges that score what guides do.

Of each label of each data set at most 1,000 texts are drawn with a fixed seed; the folders are
those of results_tools.py::

    python benchmarks/guide_texts.py --data DATA --judges WORK/judges --out guides.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from results_tools import GUIDES

from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.judging.load import load_judges
from plugalign.evaluation.run_folder.folder import write_json
from plugalign.evaluation.statistics.intervals import wilson
from plugalign.fitting.data import DESIRED, UNDESIRED, load_data

PAIR: Mapping[str, Any] = {"desired": "neutral", "undesired": "toxic"}
DRAWN, SEED, TOXIC = 1000, 0, 0.5


def drawn(texts: Sequence[str]) -> list[str]:
    """At most 1,000 of the texts, without those that are there twice."""
    different = sorted({*texts})
    order = np.random.default_rng(SEED).permutation(len(different))[:DRAWN]
    return [different[i] for i in order]


def toxic_share(judge: Judge, texts: Sequence[str]) -> dict[str, float]:
    """The share of texts with a score of .5 or more, its Wilson interval, and the mean score."""
    scores = judge(texts)
    found = wilson(float((scores >= TOXIC).mean()), len(scores))
    shares = {"share": found.value, "low": found.low, "high": found.high}
    rounded = {name: round(value, 4) for name, value in shares.items()}
    return {"texts": len(scores), **rounded, "mean": round(float(scores.mean()), 4)}


def measured(data: Path, judges: Mapping[str, Judge]) -> dict[str, Any]:
    """By data set, label and judge."""
    found: dict[str, Any] = {}
    for path in GUIDES:
        columns = PAIR if path == GUIDES[0] else {}
        labelled = load_data(data / path, **columns).binary()
        sides = zip((DESIRED, UNDESIRED), map(drawn, labelled), strict=True)
        found[Path(path).stem] = {
            label: {name: toxic_share(judge, texts) for name, judge in judges.items()}
            for label, texts in sides
        }
    return found


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table of what was measured."""
    yield "| data | label | judge | toxic | mean score |"
    yield "|---|---|---|---|---|"
    for data, labels in found.items():
        for label, judges in labels.items():
            for judge, each in judges.items():
                share = f"{each['share']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"
                yield f"| {data} | {label} | {judge} | {share} | {each['mean']:.2f} |"


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data, see results_tools.py.")],
    judges: Annotated[Path, typer.Option(help="Folder with a folder for each judge.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> None:
    """Writes what was measured and prints the table."""
    found = measured(data, load_judges({path.name: path for path in sorted(judges.iterdir())}))
    write_json(out, found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    typer.run(main)
