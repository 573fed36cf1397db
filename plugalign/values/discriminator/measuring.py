"""What a head is worth: by cross-validation while it learns, and on texts that are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold, cross_val_score

from plugalign.evaluation.judging.agreement import agreement
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.evaluation.statistics.auc import auc_difference, auc_of
from plugalign.evaluation.statistics.intervals import wilson
from plugalign.evaluation.statistics.paired import FloatArray, Interval
from plugalign.values.discriminator.head import Calibration, Labels, regression
from plugalign.values.discriminator.sheet import HeldOut

FOLDS = 5

Examples = tuple[Sequence[str], Labels]


def layer_scores(states: FloatArray, conforms: Labels, layers: Sequence[int]) -> dict[int, float]:
    """The cross-validated AUC of a head at each layer; nothing where there is one layer only.

    Args:
        states: ``(n, L, D)``.
    """
    if len(layers) == 1:
        return {}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return {
        layer: float(
            cross_val_score(
                regression(), states[:, i], conforms, cv=folds, scoring="roc_auc"
            ).mean()
        )
        for i, layer in enumerate(layers)
    }


def measured(
    margins: FloatArray, calibration: Calibration, learned: Examples, held_out: Examples
) -> HeldOut:
    """Head and verdict sets on held-out texts, beside TF-IDF that learned from the same.

    Args:
        margins: of the held-out texts, ``(n,)``.
    """
    texts, conforms = held_out
    probabilities, plain = calibration.probabilities(margins), tfidf(learned, texts)
    verdicts = np.array(calibration.verdicts(margins))
    decided = verdicts != "undecided"
    correct = verdicts == np.where(conforms, "conforms", "breaks")
    return HeldOut(
        texts=len(texts),
        auc=auc(probabilities, conforms),
        tfidf=None if plain is None else auc(plain, conforms),
        over_tfidf=None if plain is None else auc_gain(probabilities, plain, conforms),
        coverage=wilson(float((correct | ~decided).mean()), len(texts)),
        decided=wilson(float(decided.mean()), len(texts)),
        correct=wilson(float(correct[decided].mean()), int(decided.sum()))
        if decided.any()
        else None,
    )


def auc(probabilities: FloatArray, conforms: Labels) -> Interval:
    """The chance that a text that conforms has the higher P(v | y), with its interval."""
    return agreement(probabilities, conforms.astype(np.float64)).auc


def auc_gain(probabilities: FloatArray, plain: FloatArray, conforms: Labels) -> Interval:
    """The AUC less that of other scores of the same texts, with the paired interval of DeLong."""
    ours, theirs = auc_of(conforms, probabilities), auc_of(conforms, plain)
    return auc_difference(ours, theirs, paired=True)[0]


def tfidf(learned: Examples, texts: Sequence[str]) -> FloatArray | None:
    """P(v | y) of texts by TF-IDF and a logistic regression; None where those that it learned from
    share too few words."""
    try:
        judge = TfidfJudge.fit(learned[0], learned[1].astype(int).tolist())
    except ValueError:
        return None
    return judge(texts)
