"""What a value discriminator is worth on real text, against bars, beside TF-IDF: by one command.

    python benchmarks/value_discriminator.py --data DATA --causal smollm2 --encoder minilm \\
        --work WORK --out benchmarks/results/discriminator

DATA holds the files that value_discriminator_data.py names. It takes a causal model, an encoder or
both, makes every cell of the page and writes results.json and README.md; with exit code 1 where a
bar is missed. States and what was measured are kept in WORK: the same command goes on where it was
killed, and a work folder of other texts, models or sizes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from results_tools import kept_conditions, once
from sklearn.metrics import roc_auc_score
from value_discriminator_data import DataSet, Labels, Sizes, data_sets
from value_discriminator_page import bars, page

from plugalign.evaluation.run_folder.folder import replace_text, write_json
from plugalign.evaluation.statistics.intervals import wilson
from plugalign.evaluation.statistics.paired import Interval
from plugalign.files.fingerprint import fingerprint, weights_fingerprint
from plugalign.fitting.pooled_states import keep_pooled_states
from plugalign.fitting.progress import say
from plugalign.fitting.value import Parts, fitted
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.explanation import explain
from plugalign.values.discriminator.head import calibrate, fit_head
from plugalign.values.discriminator.loading import load_reader
from plugalign.values.discriminator.measuring import auc
from plugalign.values.discriminator.readers import CausalReader, EncoderReader

Reader = CausalReader | EncoderReader
States = NDArray[np.float64]
LEVEL = 0.9


@dataclass(frozen=True, eq=False)
class Fitted:
    """A data set, its states at a reader's layers ``(n, L, D)``, and the head with 128 labels."""

    data: DataSet
    states: States
    judge: ValueDiscriminator

    def own(self, judge: ValueDiscriminator, layers: Sequence[int]) -> States:
        """The states at the layer that a judge reads, ``(n, D)``."""
        found: States = self.states[:, layers.index(judge.reader.layers[0])]
        return found


def interval(found: Interval) -> dict[str, float]:
    """As JSON has it."""
    return {"value": found.value, "low": found.low, "high": found.high}


def headed(one: Fitted, layers: Sequence[int], sizes: Sizes) -> dict[str, Any]:
    """A head: its AUC beside TF-IDF's; and over splits, at its layer, the coverage of its
    conformal sets, the share of empty ones, and the AUC of a head that learned shuffled labels."""
    sheet, conforms = one.judge.sheet, one.data.conforms
    assert sheet.held_out is not None
    own, covers, shuffled = one.own(one.judge, layers), [], []
    for seed in range(sizes.splits):
        parts = sizes.parts(seed)
        covers.append(covered(own, conforms, parts))
        noise = np.random.default_rng(seed).permutation(conforms)
        head = fit_head(own[parts.learned], noise[parts.learned])
        apart = parts.held_out
        shuffled.append(float(roc_auc_score(noise[apart], head.margins(own[apart]))))
    coverage, empty = np.mean(covers, axis=0)
    tfidf = sheet.held_out.tfidf
    return {
        "auc": interval(sheet.held_out.auc),
        "tfidf": None if tfidf is None else interval(tfidf),
        "layers": sheet.layers,
        "finding": sheet.finding,
        "coverage": float(coverage),
        "empty": float(empty),
        "decided": interval(sheet.held_out.decided),
        "shuffled": float(np.mean(shuffled)),
    }


def covered(own: States, conforms: Labels, parts: Parts) -> tuple[float, float]:
    """The share of held-out texts whose conformal set holds their label, and that of empty sets.

    An empty set is shown as "undecided", but holds no label and does not count here.

    Args:
        own: states at one layer, ``(n, D)``.
    """
    head = fit_head(own[parts.learned], conforms[parts.learned])
    margins = head.margins(own)
    found = calibrate(margins[parts.calibrated], conforms[parts.calibrated], LEVEL)
    apart = margins[parts.held_out]
    may_conform, may_break = apart >= found.conforms_from, apart <= found.breaks_to
    holds = np.where(conforms[parts.held_out], may_conform, may_break)
    return float(holds.mean()), float((~may_conform & ~may_break).mean())


def unseen(
    one: Fitted, judges: Mapping[str, ValueDiscriminator], layers: Sequence[int], sizes: Sizes
) -> dict[str, Any]:
    """The AUC on held-out texts of a value that was not learned, by heads of the others: they read
    the texts behind this value's statement."""
    apart, found = sizes.parts(0).held_out, {}
    for name, judge in judges.items():
        if name != one.data.name:
            margins = judge.head.margins(one.own(judge, layers)[apart])
            scores = judge.calibration.probabilities(margins)
            found[name] = interval(auc(scores, one.data.conforms[apart]))
    return found


def without_labels(reader: Reader, data: DataSet, sizes: Sizes) -> dict[str, float]:
    """The AUC of the statement against its negation."""
    apart = sizes.parts(0).held_out[: sizes.contrasted]
    contrast = ValueContrast(data.statement, data.negation, reader)
    scores = contrast.conforms([data.texts[i] for i in apart])
    return interval(auc(scores, data.conforms[apart]))


def occluded(data: DataSet, judge: ValueDiscriminator, sizes: Sizes) -> dict[str, Any]:
    """Of held-out texts that break the value and are found to: whether the top word is one that a
    human removed, how often a random word is, and whether the judgement turns without it."""
    broken = [data.texts[i] for i in sizes.parts(0).held_out if not data.conforms[i]]
    hits, chance, turned = [], [], []
    for text in broken[: sizes.explained]:
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


def measure(reader: Reader, sets: Sequence[DataSet], work: Path, sizes: Sizes) -> dict[str, Any]:
    """All of one model, by data set."""
    work.mkdir(parents=True, exist_ok=True)
    texts = fingerprint([(each.name, each.statement, each.negation, each.texts) for each in sets])
    conditions = {"weights": weights_fingerprint(reader.model), "texts": texts, **asdict(sizes)}
    kept_conditions(work, conditions)
    heads: dict[str, Fitted] = {}
    for data in sets:
        say(f"{reader.model_name}: states of {data.name}")
        path = work / f"{data.name}.states"
        states = keep_pooled_states(reader, data.texts, data.statement, path)
        parts = sizes.parts(0)
        judge = fitted(reader, states, data.texts, data.conforms, parts, data.statement, LEVEL)
        heads[data.name] = Fitted(data, states, judge)
    judges = {name: each.judge for name, each in heads.items()}
    found: dict[str, Any] = {}
    for name, one in heads.items():
        cells: dict[str, Callable[[], Any]] = {
            "head": partial(headed, one, reader.layers, sizes),
            "unseen": partial(unseen, one, judges, reader.layers, sizes),
            "without labels": partial(without_labels, reader, one.data, sizes),
        }
        if one.data.rewrites:
            cells["occlusion"] = partial(occluded, one.data, one.judge, sizes)
        found[name] = {}
        for cell, make in cells.items():
            say(f"{reader.model_name}: {name}, {cell}")
            found[name][cell] = once(work / f"{name} {cell}.json", make)
    return found


def main(
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")],
    work: Annotated[Path, typer.Option(help="Folder for states and what was measured; kept.")],
    out: Annotated[Path, typer.Option(help="Where results.json and README.md go.")],
    causal: Annotated[str | None, typer.Option(help="A causal language model.")] = None,
    encoder: Annotated[str | None, typer.Option(help="A sentence encoder.")] = None,
    learned: Annotated[int, typer.Option(help="Labels that teach a head.")] = 128,
    calibrated: Annotated[int, typer.Option(help="Labels that calibrate it.")] = 64,
    held_out: Annotated[int, typer.Option(help="Texts that measure it.")] = 160,
    contrasted: Annotated[int, typer.Option(help="Of these judged without labels too.")] = 40,
    explained: Annotated[int, typer.Option(help="Of these whose words are left out.")] = 40,
    splits: Annotated[int, typer.Option(help="For coverage and shuffled labels.")] = 20,
    max_tokens: Annotated[int, typer.Option(help="Of a text.")] = 96,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measures value discriminators on real text."""
    torch.set_num_threads(threads)
    sizes = Sizes(learned, calibrated, held_out, contrasted, explained, splits, max_tokens)
    sets = data_sets(data, sizes.texts)
    kinds: dict[Literal["causal", "encoder"], str | None] = {"causal": causal, "encoder": encoder}
    named = {kind: name for kind, name in kinds.items() if name is not None}
    if not named:
        raise ValueError("no model is given; name one with --causal, --encoder or both")
    models = {}
    for kind, name in named.items():
        reader = load_reader(kind, name, max_tokens=max_tokens)
        models[reader.model_name] = measure(reader, sets, work / reader.model_name, sizes)
    found = {"sizes": asdict(sizes), "models": models}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", found)
    replace_text(out / "README.md", page(found))
    missed = [bar.said for model in models for bar in bars(models[model]) if not bar.passed]
    say("missed: " + "; ".join(missed) if missed else f"every bar holds; the page is in {out}")
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
