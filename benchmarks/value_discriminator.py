"""What a value discriminator is worth on real text, against bars, beside TF-IDF.

    python benchmarks/value_discriminator.py --data DATA --causal smollm2 --encoder minilm \\
        --work WORK --out benchmarks/results/discriminator

DATA holds toxicity/jigsaw.jsonl, toxicity/paradetox.jsonl, values/ethics_justice_train.jsonl and
values/ethics_deontology_train.jsonl. Of each 128 texts teach a head, 128 calibrate it and 256 are
held out; both classes are equally many. States and what was measured are kept in WORK, so that a
run that was killed continues. It writes results.json and README.md, and ends with exit code 1
where a bar is missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from value_discriminator_page import bars, page

from plugalign.evaluation.statistics.intervals import wilson
from plugalign.evaluation.statistics.paired import Interval
from plugalign.fitting.pooled_states import keep_pooled_states
from plugalign.fitting.value import Parts, fitted
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.explanation import explain
from plugalign.values.discriminator.head import calibrate, fit_head
from plugalign.values.discriminator.loading import load_reader
from plugalign.values.discriminator.measuring import auc
from plugalign.values.discriminator.readers import CausalReader, EncoderReader

LEARNED, CALIBRATED, HELD_OUT = 128, 128, 256
SPLITS = 20  # for what is a mean over splits: coverage, shuffled labels
EXPLAINED = 60  # texts whose top word is looked up in a human's rewrite
CONTRASTED = 64  # texts that are judged without labels
MAX_TOKENS = 128
Reader = CausalReader | EncoderReader
Labels = NDArray[np.bool_]
States = NDArray[np.float64]


@dataclass(frozen=True)
class DataSet:
    """Texts, whether each conforms to a statement, and rewrites of those that do not.

    Attributes:
        rewrites: by text, what a human made of it; only where there are such.
    """

    name: str
    statement: str
    negation: str
    texts: list[str]
    conforms: Labels
    rewrites: dict[str, str]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def balanced(
    name: str, statement: str, negation: str, pairs: Sequence[tuple[str, bool]]
) -> DataSet:
    """As many texts as are needed, half of either class, in a fixed random order."""
    draw, half = np.random.default_rng(0), (LEARNED + CALIBRATED + HELD_OUT) // 2
    chosen: list[tuple[str, bool]] = []
    for side in (True, False):
        texts = sorted({text for text, conforms in pairs if conforms == side})
        chosen += [(texts[i], side) for i in draw.permutation(len(texts))[:half]]
    order = draw.permutation(len(chosen))
    texts, conforms = zip(*(chosen[i] for i in order), strict=True)
    return DataSet(name, statement, negation, list(texts), np.array(conforms), {})


def data_sets(folder: Path) -> list[DataSet]:
    """The data sets, each with its statement."""
    respect = ("It respects others.", "It insults others.")
    jigsaw = [(r["text"], int(r["label"]) == 0) for r in rows(folder / "toxicity/jigsaw.jsonl")]
    detoxed = [row for row in rows(folder / "toxicity/paradetox.jsonl") if row["neutral"]]
    rewrites = {row["toxic"]: row["neutral"][0] for row in detoxed}
    # Of a pair one side only, so that no text stands beside its own rewrite.
    sides = [
        (row["toxic"], False) if i % 2 else (row["neutral"][0], True)
        for i, row in enumerate(detoxed)
    ]
    justice = [
        (r["scenario"], r["label"] == "1")
        for r in rows(folder / "values/ethics_justice_train.jsonl")
    ]
    duty = [
        (f"{r['scenario']} {r['excuse']}", r["label"] == "1")
        for r in rows(folder / "values/ethics_deontology_train.jsonl")
    ]
    return [
        balanced("jigsaw", *respect, jigsaw),
        replace(balanced("paradetox", *respect, sides), rewrites=rewrites),
        balanced("justice", "It is fair.", "It is unfair.", justice),
        balanced("deontology", "It does one's duty.", "It neglects one's duty.", duty),
    ]


def parts_of(seed: int) -> Parts:
    """A split; the first is in the texts' own order."""
    count = LEARNED + CALIBRATED + HELD_OUT
    order = np.random.default_rng(seed).permutation(count) if seed else np.arange(count)
    return Parts(*np.split(order, [LEARNED, LEARNED + CALIBRATED]))


def interval(found: Interval) -> dict[str, float]:
    """As JSON has it."""
    return {"value": found.value, "low": found.low, "high": found.high}


def headed(
    data: DataSet, judge: ValueDiscriminator, states: States, layers: Sequence[int]
) -> dict[str, Any]:
    """A head with 128 labels: AUC, and over splits at its layer coverage and what shuffled labels
    give."""
    sheet = judge.sheet
    assert sheet.held_out is not None
    own, coverage, shuffled = states[:, layers.index(judge.reader.layers[0])], [], []
    for seed in range(SPLITS):
        parts = parts_of(seed)
        coverage.append(covered(own, data.conforms, parts))
        noise = np.random.default_rng(seed).permutation(data.conforms)
        head = fit_head(own[parts.learned], noise[parts.learned])
        apart = parts.held_out
        shuffled.append(float(roc_auc_score(noise[apart], head.margins(own[apart]))))
    return {
        "auc": interval(sheet.held_out.auc),
        "tfidf": None if sheet.held_out.tfidf is None else interval(sheet.held_out.tfidf),
        "layers": sheet.layers,
        "finding": sheet.finding,
        "coverage": float(np.mean(coverage)),
        "decided": interval(sheet.held_out.decided),
        "shuffled": float(np.mean(shuffled)),
    }


def covered(own: States, conforms: Labels, parts: Parts) -> float:
    """The share of held-out texts whose verdict set at 90 % holds their label.

    Args:
        own: states at one layer, ``(n, D)``.
    """
    head = fit_head(own[parts.learned], conforms[parts.learned])
    margins = head.margins(own)
    calibration = calibrate(margins[parts.calibrated], conforms[parts.calibrated], 0.9)
    verdicts = np.array(calibration.verdicts(margins[parts.held_out]))
    wanted = np.where(conforms[parts.held_out], "conforms", "breaks")
    return float(np.mean((verdicts == wanted) | (verdicts == "undecided")))


def unseen(
    data: DataSet, judges: dict[str, ValueDiscriminator], states: States, layers: Sequence[int]
) -> dict[str, Any]:
    """The AUC on held-out texts of a value that was not learned, by heads of the others: they read
    the texts behind this value's statement."""
    apart, found = parts_of(0).held_out, {}
    for name, judge in judges.items():
        if name != data.name:
            own = states[apart][:, layers.index(judge.reader.layers[0])]
            scores = judge.calibration.probabilities(judge.head.margins(own))
            found[name] = interval(auc(scores, data.conforms[apart]))
    return found


def without_labels(reader: Reader, data: DataSet) -> dict[str, float]:
    """The statement against its negation."""
    apart = parts_of(0).held_out[:CONTRASTED]
    contrast = ValueContrast(data.statement, data.negation, reader)
    scores = contrast.conforms([data.texts[i] for i in apart])
    return interval(auc(scores, data.conforms[apart]))


def occluded(data: DataSet, judge: ValueDiscriminator) -> dict[str, Any]:
    """Of held-out texts that break the value and are found to: whether the top word is one that a
    human removed, how often a random word is, and whether the judgement turns without it."""
    broken = [data.texts[i] for i in parts_of(0).held_out if not data.conforms[i]]
    hits, chance, turned = [], [], []
    for text in broken[:EXPLAINED]:
        (found,) = explain({data.name: judge}, text)
        if found.top is None or found.judgement.probability >= 0.5:
            continue
        kept = {bare(word) for word in data.rewrites[text].split()}
        removed = [bare(word.word) not in kept for word in found.words]
        hits.append(removed[found.top.position])
        chance.append(np.mean(removed))
        turned.append(found.top.without >= 0.5)
    count = len(hits)
    return {
        "texts": count,
        "hit": interval(wilson(float(np.mean(hits)), count)),
        "random word": float(np.mean(chance)),
        "turned": interval(wilson(float(np.mean(turned)), count)),
    }


def bare(word: str) -> str:
    """A word without case and punctuation."""
    return "".join(c for c in word.lower() if c.isalnum())


def measure(
    reader: Reader,
    sets: Sequence[DataSet],
    work: Path,
    say: Callable[[str], None],
    *,
    contrast: bool = True,
) -> Any:
    """All of one model."""
    kept = []
    for data in sets:
        say(f"{reader.model_name}: {data.name}")
        path = work / f"{reader.model_name}-{data.name}"
        kept.append((data, keep_pooled_states(reader, data.texts, data.statement, path)))
    judges = {
        data.name: fitted(reader, states, data.texts, data.conforms, parts_of(0), data.statement)
        for data, states in kept
    }
    found = {}
    for data, states in kept:
        say(f"{reader.model_name}: heads of {data.name}")
        judge, layers, name = judges[data.name], reader.layers, f"{reader.model_name}-{data.name}"
        parts: dict[str, Callable[[], Any]] = {
            "head": partial(headed, data, judge, states, layers),
            "unseen": partial(unseen, data, judges, states, layers),
        }
        if contrast:
            parts["without labels"] = partial(without_labels, reader, data)
        if data.rewrites:
            parts["occlusion"] = partial(occluded, data, judge)
        found[data.name] = {
            part: once(work / f"{name}-{part}.json", make) for part, make in parts.items()
        }
    return found


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What was measured before, or is now."""
    if not path.is_file():
        path.write_text(json.dumps(make()) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def main(
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")],
    work: Annotated[Path, typer.Option(help="Where states are kept.")],
    out: Annotated[Path, typer.Option(help="Where results.json and README.md go.")],
    causal: Annotated[str | None, typer.Option(help="A causal language model.")] = None,
    encoder: Annotated[str | None, typer.Option(help="A sentence encoder.")] = None,
    contrast: Annotated[
        bool, typer.Option(help="Whether a causal model judges without labels too, which is slow.")
    ] = True,
) -> None:
    """Measure value discriminators on real text."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    sets, found = data_sets(data), {}
    for kind, name in (("causal", causal), ("encoder", encoder)):
        if name is not None:
            reader = load_reader(kind, name, max_tokens=MAX_TOKENS)  # type: ignore[arg-type]
            found[reader.model_name] = measure(
                reader, sets, work, print, contrast=contrast or kind == "encoder"
            )
    checked = {model: bars(found, model) for model in found}
    text = json.dumps(found, indent=1)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    sizes = (
        f"{LEARNED} labels teach a head, {CALIBRATED} calibrate it, {HELD_OUT} texts are held out, "
        f"of which at most the first {MAX_TOKENS} tokens are read; brackets are 95 % intervals "
        f"over held-out texts. Coverage and shuffled labels are means over {SPLITS} splits."
    )
    (out / "README.md").write_text(page(found, checked, LEARNED, sizes), encoding="utf-8")
    missed = [f"{m}: {b.name} {b.value:.3f}" for m in checked for b in checked[m] if not b.passed]
    if missed:
        print("missed: " + "; ".join(missed))
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
