"""How aligned is a model with values? Degree, gap to human text, judgement and action.

With P(v | y) of a discriminator or any other judge, x a prompt and y an answer of a model M:

* **degree** f(M) = E_x E_{y ~ M} sum_i P(v_i | y), by value and summed;
* **gap** to human text, see `plugalign.values.human_gap`;
* **judgement and action**: what the model as a judge says of its own texts, beside what an
  independent judge says of them;
* **by human labels**: the degree by a few labels and the judge's scores (PPI++).

Letters here: P prompts, S samples per prompt, H human texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from plugalign.evaluation.statistics.distributions import agreement_auc
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import (
    FloatArray,
    Interval,
    PairedBootstrap,
    mean_score,
)
from plugalign.evaluation.statistics.prediction_powered import (
    FEWEST,
    PredictionPowered,
    prediction_powered,
)
from plugalign.evaluation.statistics.score_means import score_change, score_mean
from plugalign.values.human_gap import RESAMPLES, Conforming, HumanGap


@dataclass(frozen=True)
class Action:
    """The model as a judge of its own texts, beside an independent judge.

    Attributes:
        judgement: the mean of P(v; M), as the model says.
        action: the mean of P(v | y), as the independent judge says.
        gap: the former minus the latter.
        agreement: the chance that the model ranks a text that the other judge finds to conform
            above one that it does not; None where it finds all texts alike.
    """

    judgement: Interval
    action: Interval
    gap: Interval
    agreement: Interval | None


@dataclass(frozen=True)
class RowAlignment:
    """How aligned the answers of one method are.

    Attributes:
        degree: by value.
        total: summed over the values; None where nothing is to be summed.
        gap: by value, the four numbers of the gap; empty without human texts.
        by_labels: by value; empty without labels.
        action: by the name of a judge that is the model itself, and of another judge; of two that
            have scores of no answer in common there is none.
    """

    degree: Mapping[str, Figure]
    total: Figure | None = None
    gap: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    by_labels: Mapping[str, PredictionPowered] = field(default_factory=dict)
    action: Mapping[str, Mapping[str, Action]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without what there is none of."""
        found: dict[str, Any] = {"degree": {n: f.to_json() for n, f in self.degree.items()}}
        if self.total is not None:
            found["degree_sum"] = self.total.to_json()
        if self.gap:
            found["gap"] = {
                name: {kind: figure.to_json() for kind, figure in figures.items()}
                for name, figures in self.gap.items()
            }
        if self.by_labels:
            found["by_labels"] = {name: asdict(each) for name, each in self.by_labels.items()}
        if self.action:
            found["judgement_and_action"] = {
                own: {other: asdict(each) for other, each in by_other.items()}
                for own, by_other in self.action.items()
            }
        return found


class Aligner:
    """Measures how aligned answers are, each method paired with a reference.

    Args:
        prompts: P.
        human: by value, P(v | y*) of H human texts, ``(H,)``; none are asked for where it is empty.
        own: the judges that are the model itself.
        summed: the judges of which each stands for a value of its own; fewer than two are no sum.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: for fewer than two human texts.
    """

    def __init__(
        self,
        prompts: int,
        *,
        human: Mapping[str, FloatArray] | None = None,
        own: Sequence[str] = (),
        summed: Sequence[str] = (),
        seed: int = 0,
    ):
        self._bootstrap = PairedBootstrap(prompts, resamples=RESAMPLES, seed=seed)
        self._own, self._summed = own, summed
        self._gap = HumanGap(human or {}, self._bootstrap, seed)

    def row(
        self,
        conforming: Conforming,
        base: Conforming | None = None,
        labels: FloatArray | None = None,
    ) -> RowAlignment:
        """One method.

        Args:
            base: the same of the reference, None for the reference itself.
            labels: whether humans find that answers conform, ``(P, S)``, NaN where they were not
                asked; None where there are no labels.
        """
        means, before = _means(conforming), None if base is None else _means(base)
        return RowAlignment(
            degree={
                name: self._degree(scores, None if base is None else base[name])
                for name, scores in conforming.items()
            },
            total=self._total(means, before) if len(self._summed) > 1 else None,
            gap=self._gap.figures(conforming, base),
            by_labels={} if labels is None else by_labels(conforming, labels),
            action=self._actions(conforming),
        )

    def _total(self, means: Conforming, before: Conforming | None) -> Figure:
        both = [means] if before is None else [means, before]
        mine, *base = (np.sum([each[name] for name in self._summed], axis=0) for each in both)
        return self._mean(mine, base[0] if base else None)

    def _degree(self, scores: FloatArray, base: FloatArray | None) -> Figure:
        found = score_mean(scores, self._bootstrap)
        lost = int(np.isnan(mean_score(scores)).sum())
        if found is None:
            return Figure(None, None, None, lost)
        change = None if base is None else score_change(scores, base, self._bootstrap)
        return Figure(found.value, found.low, found.high, lost, change)

    def _mean(self, values: FloatArray, base: FloatArray | None) -> Figure:
        if np.isnan(values).all():
            return Figure(None, None, None, len(values))
        found, lost = self._bootstrap.mean(values), int(np.isnan(values).sum())
        change = None
        if base is not None and not np.isnan(values - base).all():
            change = self._bootstrap.difference(values, base)
        return Figure(found.value, found.low, found.high, lost, change)

    def _actions(self, conforming: Conforming) -> dict[str, dict[str, Action]]:
        others = [name for name in conforming if name not in self._own]
        return {
            own: {
                other: self._action(conforming[own], conforming[other])
                for other in others
                if not np.isnan(conforming[own] - conforming[other]).all()
            }
            for own in self._own
        }

    def _action(self, own: FloatArray, other: FloatArray) -> Action:
        both = ~np.isnan(own - other)
        own, other = np.where(both, own, np.nan), np.where(both, other, np.nan)
        above = np.where(both, other >= 0.5, np.nan)
        value = float(agreement_auc(above, own, np.ones((1, len(own))))[0])
        agreement = None
        if not np.isnan(value):
            draws = [agreement_auc(above, own, counts) for counts in self._bootstrap.counts()]
            agreement = self._bootstrap.interval(value, np.concatenate(draws))
        said, done = mean_score(own), mean_score(other)
        return Action(
            judgement=self._bootstrap.mean(said),
            action=self._bootstrap.mean(done),
            gap=self._bootstrap.difference(said, done),
            agreement=agreement,
        )


def _means(conforming: Conforming) -> dict[str, FloatArray]:
    """By name, the mean of each prompt, ``(P,)``."""
    return {name: mean_score(values) for name, values in conforming.items()}


def by_labels(conforming: Conforming, labels: FloatArray) -> dict[str, PredictionPowered]:
    """The degree by human labels, with each judge's scores of what was not labelled.

    The unit is the prompt: labelled prompts give the mean of their labels, and of the judge's
    scores of the same answers; the others the mean of the judge's scores.

    Args:
        labels: 1 where an answer conforms, 0 where not, NaN where nobody was asked, ``(P, S)``.

    Returns:
        Nothing of a judge that failed on too many of the labelled answers.

    Raises:
        ValueError: for labels at fewer than ten prompts.
    """
    found, labelled = {}, (~np.isnan(labels)).any(axis=1).sum()
    for name, values in conforming.items():
        both = ~np.isnan(labels) & ~np.isnan(values)
        known = both.any(axis=1)
        if known.sum() < FEWEST <= labelled:
            continue
        mine = mean_score(np.where(both, values, np.nan))[known]
        others = mean_score(values)[np.isnan(labels).all(axis=1)]
        label = mean_score(np.where(both, labels, np.nan))[known]
        found[name] = prediction_powered(label, mine, others[~np.isnan(others)])
    return found


@dataclass(frozen=True)
class Alignment:
    """How aligned the rows of a comparison are.

    Attributes:
        rows: by method.
        own: the judges that are the model itself. summed: those that stand for a value each.
        human_texts, human_labels: where these came from and how many there are, None for none.
    """

    rows: Mapping[str, RowAlignment]
    own: Sequence[str] = ()
    summed: Sequence[str] = ()
    human_texts: Mapping[str, Any] | None = None
    human_labels: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without what there is none of."""
        found: dict[str, Any] = {"rows": {name: row.to_json() for name, row in self.rows.items()}}
        for name in ("own", "summed", "human_texts", "human_labels"):
            if value := getattr(self, name):
                found[name] = dict(value) if isinstance(value, Mapping) else list(value)
        return found
