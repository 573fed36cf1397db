"""Fits a judge and measures it on texts that it has not seen: ``plugalign fit judge``.

A judge must not learn from the data that the controllers learn from, or it rewards what they share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plugalign.evaluation.judging.agreement import Agreement, agreement
from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.files.folders import check_folder
from plugalign.files.replacing import sync
from plugalign.files.shown import printable
from plugalign.fitting.data import Labelled
from plugalign.fitting.progress import say

HELD_OUT, MOST_HELD_OUT = 0.1, 5000  # of each class
FEWEST = 20  # different texts of each class, of which two are held out
REPORT = "held_out.json"


@dataclass(frozen=True)
class FittedJudge:
    """A judge that was fitted, and what it does on the texts that were held out.

    Args:
        trained_on: the number of texts.
        seed: which texts were held out.
        held_out: how far its scores agree with the labels of the other texts, 1 for toxic.
    """

    out: Path
    trained_on: int
    seed: int
    held_out: Agreement

    def describe(self) -> str:
        """One line that says how good it is and how to use it."""
        auc = self.held_out.auc
        return (
            f"on {self.held_out.texts} held-out texts: AUC {auc.value:.3f} "
            f"[{auc.low:.3f}, {auc.high:.3f}], calls {self.held_out.toxic:.0%} toxic where the "
            f"labels call {self.held_out.reference_toxic:.0%}; in {self.out}, use it as "
            f"--judge {self.out.resolve().name}={self.out}"
        )


def fit_judge(
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    encoder: str | None = None,
    seed: int = 0,
    minutes: float | None = None,
) -> FittedJudge:
    """Fits a judge on nine tenths of the texts, measures it on the rest, and saves it in ``out``.

    Equal texts are on the same side of the split. ``out`` gets the judge, which
    `plugalign.evaluation.judging.load.load_judge` reads, and held_out.json.

    Args:
        data: texts and labels; what is not desired is toxic.
        desired: the label of the desired class, see `Labelled.binary`.
        encoder: a folder or hub id to tune as a text classifier; by default the judge is TF-IDF
            and a logistic regression (`TfidfJudge`), which takes seconds.
        seed: equal seeds give equal judges.
        minutes: what tuning an encoder may take; None is no bound.

    Raises:
        ValueError: ``out`` is not empty, a class is missing or has too few texts.
    """
    check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{printable(str(out))} is not empty; name another folder or remove it")
    clean, toxic = data.binary(desired)
    texts, labels = [*clean, *toxic], [0] * len(clean) + [1] * len(toxic)
    held = _held_out(texts, labels, seed)
    inside = [i for i, text in enumerate(texts) if text not in held]
    outside = [i for i, text in enumerate(texts) if text in held]
    with _finished(out) as folder:
        learnt = [texts[i] for i in inside], [labels[i] for i in inside]
        judge = _fit(*learnt, folder, encoder, seed, minutes)
        scores = judge([texts[i] for i in outside])
        found = agreement(scores, np.array([labels[i] for i in outside]), seed=seed)
        report = {"trained_on": len(inside), "seed": seed, "held_out": asdict(found)}
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return FittedJudge(out, len(inside), seed, found)


def _fit(
    texts: Sequence[str],
    labels: Sequence[int],
    folder: Path,
    encoder: str | None,
    seed: int,
    minutes: float | None,
) -> Judge:
    if encoder is not None:
        from plugalign.fitting.judge_encoder import tune_encoder

        tuned = tune_encoder(texts, labels, encoder, folder, seed=seed, minutes=minutes)
        return Judge("encoder", tuned)
    say(f"counting the words and characters of {len(texts)} texts")
    fitted = TfidfJudge.fit(texts, labels)
    fitted.save(folder)
    return Judge("tfidf", fitted)


def _held_out(texts: Sequence[str], labels: Sequence[int], seed: int) -> set[str]:
    """A tenth of the different texts of each class, up to `MOST_HELD_OUT`."""
    held: set[str] = set()
    for label, name in enumerate(("desired", "undesired")):
        different = {text for text, y in zip(texts, labels, strict=True) if y == label}
        if len(different) < FEWEST:
            raise ValueError(
                f"a judge needs {FEWEST} different texts of each class; {len(different)} are {name}"
            )
        order = sorted(different, key=lambda text: _hash(f"{seed} {text}"))
        held |= set(order[: min(MOST_HELD_OUT, max(2, round(HELD_OUT * len(order))))])
    return held


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@contextmanager
def _finished(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name once it is complete."""
    folder = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)  # of a fit that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
        sync(folder)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
