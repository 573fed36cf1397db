"""What turns states into verdicts: a logistic head, Platt's scaling, and verdict sets.

The head gives each state a margin ``m = w . h + b``, which is larger the more the text conforms.
On texts that it was not fitted on, Platt (1999) scales margins to probabilities::

    P(v | y) = sigmoid(a m + c)

and split-conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2023, section 2) finds from
where on a text may conform, and up to where it may break the value, one class at a time: of texts
of either class at least the wanted share keeps its label in the set, whatever the head is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from plugalign.evaluation.statistics.paired import FloatArray

Verdict = Literal["conforms", "breaks", "undecided"]
Labels = NDArray[np.bool_]
PENALTY = 0.01  # scikit-learn's C on states of unit variance: many more units than texts


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head on states.

    Args:
        weights: ``(D,)``.
        offset: added to every margin.
    """

    weights: FloatArray
    offset: float

    def margins(self, states: FloatArray) -> FloatArray:
        """The margins ``(n,)`` of states ``(n, D)``; above 0 a text rather conforms."""
        found: FloatArray = states @ self.weights + self.offset
        return found


def fit_head(states: FloatArray, conforms: Labels) -> Head:
    """A head by `regression`.

    Args:
        states: ``(n, D)``.
        conforms: whether each text conforms, ``(n,)``.

    Raises:
        ValueError: if one class is missing.
    """
    if conforms.all() or not conforms.any():
        raise ValueError("a head needs texts that conform and texts that break the value")
    fitted = regression().fit(states, conforms)
    scaler, linear = fitted.named_steps["scale"], fitted.named_steps["linear"]
    weights = linear.coef_[0] / scaler.scale_
    return Head(weights, float(linear.intercept_[0] - scaler.mean_ @ weights))


def regression() -> Pipeline:
    """Logistic regression on standardised states; both classes weigh the same."""
    linear = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
    return Pipeline([("scale", StandardScaler()), ("linear", linear)])


@dataclass(frozen=True)
class Calibration:
    """What margins mean.

    Attributes:
        slope, shift: a and c of Platt's scaling.
        conforms_from: the margin from which on a text may conform.
        breaks_to: the margin up to which it may break the value.
        level: the share of texts of either class whose label their verdict set holds.
    """

    slope: float
    shift: float
    conforms_from: float
    breaks_to: float
    level: float

    def probabilities(self, margins: FloatArray) -> FloatArray:
        """P(v | y), ``(n,)``."""
        return np.asarray(expit(self.slope * margins + self.shift), dtype=np.float64)

    def verdicts(self, margins: FloatArray) -> list[Verdict]:
        """The only label that each text may have; "undecided" where it may have both, or neither
        is likely."""
        may_conform, may_break = margins >= self.conforms_from, margins <= self.breaks_to
        single = {(True, False): "conforms", (False, True): "breaks"}
        pairs = zip(may_conform.tolist(), may_break.tolist(), strict=True)
        return [single.get(pair, "undecided") for pair in pairs]  # type: ignore[misc]


def calibrate(margins: FloatArray, conforms: Labels, level: float) -> Calibration:
    """Platt's scaling and the bounds of verdict sets, from texts that the head was not fitted on.

    Args:
        margins: ``(n,)``. conforms: ``(n,)``.
        level: the coverage, in (0, 1).

    Raises:
        ValueError: for a level outside (0, 1), or too few texts of a class for it.
    """
    fewest = fewest_for(level)
    for count, name in ((conforms.sum(), "conform"), ((~conforms).sum(), "break the value")):
        if count < fewest:
            raise ValueError(
                f"level {level:g} needs {fewest} texts to calibrate that {name}, got {count}; "
                f"give more labelled texts or a lower level"
            )
    slope, shift = _platt(margins, conforms)
    return Calibration(
        slope=slope,
        shift=shift,
        conforms_from=-_bound(-margins[conforms], level),
        breaks_to=_bound(margins[~conforms], level),
        level=level,
    )


def fewest_for(level: float) -> int:
    """The fewest texts of a class from which a verdict set of that coverage can be had.

    Raises:
        ValueError: for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level:g}")
    return math.ceil(round(level / (1 - level), 9))


def _bound(strangeness: FloatArray, level: float) -> float:
    """The ``ceil((n + 1) level)``-th smallest of n numbers: a new one is larger with probability
    ``1 - level`` at most."""
    rank = math.ceil(round((strangeness.size + 1) * level, 9))
    return float(np.sort(strangeness)[rank - 1])


def _platt(margins: FloatArray, conforms: Labels) -> tuple[float, float]:
    """Slope and shift of the most likely sigmoid for Platt's smoothed targets, by which no text is
    wholly of its class: each counts as both, by the target."""
    positive, negative = int(conforms.sum()), int((~conforms).sum())
    target = np.where(conforms, (positive + 1) / (positive + 2), 1 / (negative + 2))
    scale = float(margins.std()) or 1.0
    regression = LogisticRegression(C=1e6, max_iter=1000)
    both = np.concatenate([margins, margins])[:, None] / scale
    labels = np.repeat([True, False], len(margins))
    regression.fit(both, labels, sample_weight=np.concatenate([target, 1 - target]))
    return float(regression.coef_[0, 0]) / scale, float(regression.intercept_[0])
