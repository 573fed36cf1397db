"""The search for an I-projection's multipliers: Newton's method on the dual, along the scale.

All distributions considered are ``rho e^(c . f)``: f are J functions ``b_j - g_j``, one for each
bound, and the shift; c are the J multipliers, at least 0, and the scale s in [0, 1] of the shift.
For given s the multipliers minimise the dual

    D(c) = log E_rho[e^(c . f)],    gradient  E_q[f],    curvature  Cov_q[f]

which is convex and smooth. Each round evaluates all of this once, for all rows. A step goes to the
minimum of the quadratic model of D over multipliers of at least 0, so it falls, and as much of it
is taken as lets D fall enough (Armijo; projected Newton methods: Bertsekas 1982). The model's
minimum is exact: where several bounds say the same the curvature is singular, and Newton steps that
are merely cut off at 0 lead nowhere.

A large shift leaves nearly all mass on one candidate, and no curvature. So s rises from 0, at first
to where the shift moves few nats, and stops at 1 or where KL(q || rho), which grows with s, meets
the budget; log KL is almost linear in log s. Once the multipliers are near their minimum both move
together, the multipliers along the curve of their minima.

It is NumPy on the host, because the arrays are so small that what a call costs is most of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

ROUNDS = 200  # what is unfinished then is left to the repair
HASTY = 25  # rounds in which the scale moves before the multipliers are found exactly
CLOSE = 1e-13  # of an expectation to its bound, in widths of g, and of the KL to its budget in nats
ROUNDING = 3e-16  # of sums of shifts, relative
NATS = 12.0  # that the first scale, or the first step, may move a candidate
GROWTH = 1.0  # of log s in a round
LEFT = 0.1  # nats that twice D has still to fall where the scale may move
JUMP = 5.0  # nats from a distribution to the next where the scale moves
LONGER = 4.0  # may the next step be, after one that was cut short
FALL = 1e-4  # Armijo's share of the fall that the gradient promises
LEAST_KL, NEGLIGIBLE_KL = 1e-16, 1e-9  # nats; rounding may be all of a KL below
RIDGE, TINIEST = 1e-13, 1e-300
SLACK = 1e-10  # above a bound or the budget that rounding may leave
NORMALISED = 1e-13  # a logarithm of a sum of probabilities that is 0 but for rounding


@dataclass(frozen=True, eq=False)
class Family:
    """The distributions ``rho e^(c . f)``.

    Attributes:
        rho: log rho ``(R, K)``.
        parts: f ``(R, J + 1, K)``; the first J have a width of 1, the last a mean of 0 under rho.
        budget: of KL(q || rho) in nats ``(R,)``.
        reach: the most of the last part ``(R,)``.
    """

    rho: Floats
    parts: Floats
    budget: Floats
    reach: Floats

    def log_q(self, c: Floats) -> Floats:
        """Their logarithms ``(R, K)`` for c ``(R, J + 1)``."""
        tilted = self.rho + (c[:, None] @ self.parts)[:, 0]
        centred = tilted - tilted.max(-1, keepdims=True)
        log_q: Floats = centred - np.log(np.exp(centred).sum(-1, keepdims=True))
        return log_q

    def moments(self, c: Floats) -> Moments:
        """What the search reads at c ``(R, J + 1)``."""
        tilted = self.rho + (c[:, None] @ self.parts)[:, 0]
        top = tilted.max(-1, keepdims=True)
        q = np.exp(tilted - top)
        total = q.sum(-1, keepdims=True)
        q /= total
        mean = self.parts @ q[:, :, None]
        centred = self.parts - mean
        covariance = (centred * q[:, None]) @ centred.swapaxes(1, 2)
        dual, mean = (top + np.log(total))[:, 0], mean[:, :, 0]
        return Moments(dual, mean, covariance, (c * mean).sum(-1) - dual)

    def rounding(self, c: Floats) -> Floats:
        """What rounding may make of c . f ``(R,)``, in nats."""
        nats: Floats = CLOSE + ROUNDING * (c[:, :-1].sum(-1) + c[:, -1] * self.reach)
        return nats


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a distribution q of the family.

    Attributes:
        dual: D ``(R,)``.
        mean: E_q[f] ``(R, J + 1)``.
        covariance: of f ``(R, J + 1, J + 1)``.
        kl: KL(q || rho) in nats ``(R,)``.
    """

    dual: Floats
    mean: Floats
    covariance: Floats
    kl: Floats

    @property
    def slack(self) -> Floats:
        """What each bound leaves ``(R, J)``, below 0 where it is exceeded."""
        return self.mean[:, :-1]


@dataclass(frozen=True, eq=False)
class Newton:
    """Where the bounds that hold or are exceeded are met, to first order.

    Attributes:
        free: which bounds these are, ``(R, J)``.
        to_bounds: how the multipliers get there, ``(R, J)``.
        along: how they move with s, ``(R, J)``.
        kl: KL(q || rho) there ``(R,)``.
        spread: how it grows with s^2 / 2, the variance of the shift that bounds leave ``(R,)``.
        left: twice what D falls on the way, ``(R,)``.
    """

    free: Truths
    to_bounds: Floats
    along: Floats
    kl: Floats
    spread: Floats
    left: Floats


class Search:
    """Where each row is, the step that it tries next, and how much of it.

    Attributes:
        at: c ``(R, J + 1)``, at first those of rho.
        done: which rows have been found ``(R,)``.
    """

    def __init__(self, family: Family):
        rows = len(family.rho)
        self.family = family
        self.at: Floats = np.zeros(family.parts.shape[:2])
        self.done: Truths = np.zeros(rows, bool)
        self._step, self._share = np.zeros_like(self.at), np.ones(rows)
        self._dual, self._slope = np.full(rows, math.inf), np.zeros(rows)
        self._fixed: Truths = np.ones(rows, bool)
        self._low, self._high = np.zeros(rows), np.full(rows, 2.0)  # between these lies the scale

    def run(self) -> Floats:
        """c ``(R, J + 1)`` of the projection."""
        with np.errstate(all="ignore"):
            for turn in range(ROUNDS):
                tried = self.at + self._share[:, None] * self._step
                found, rounding = self.family.moments(tried), self.family.rounding(tried)
                taken = self._judge(tried, found, rounding)
                met = taken & self._meets(found, rounding)
                self._end(found, met, rounding)
                if self.done.all():
                    break
                self._aim(found, taken & ~self.done, met, careful=turn >= HASTY)
        return self.at

    def _judge(self, tried: Floats, found: Moments, rounding: Floats) -> Truths:
        """Which rows ``(R,)`` take the step; of the others' less is tried next.

        Where the scale stays, D must fall enough. Where it moves D is another function, and what D
        has above its tangent, the KL of the old distribution from the new, must not be too much.
        """
        straight = self._share * self._slope
        fallen = found.dual <= self._dual + FALL * straight + rounding
        near = found.dual <= self._dual + straight + JUMP
        taken: Truths = np.where(self._fixed, fallen, near)
        if taken.all():
            self.at = tried
            return taken
        self.at = np.where(taken[:, None], tried, self.at)
        lowest = self._slope / (self._slope - (found.mean * self._step).sum(-1))  # of a parabola
        within = np.sqrt(JUMP / (found.dual - self._dual - straight))  # KL grows with the square
        less = np.nan_to_num(np.where(self._fixed, lowest, within)).clip(0.1, 0.5)
        self._share = np.where(taken, self._share, less * self._share)
        return taken

    def _meets(self, found: Moments, rounding: Floats) -> Truths:
        """In which rows ``(R,)`` the multipliers are those of the scale."""
        off = np.where(self.at[:, :-1] > 0, np.abs(found.slack), -found.slack)
        result: Truths = np.all(off <= rounding[:, None], axis=-1)
        return result

    def _end(self, found: Moments, met: Truths, rounding: Floats) -> None:
        """Which rows are done, and between which scales the others lie."""
        scale, above = self.at[:, -1], found.kl - self.family.budget
        self._low = np.where(met & (above <= 0), scale, self._low)
        self._high = np.where(met & (above > 0), scale, self._high)
        narrow = self._high - self._low <= ROUNDING * self._high
        whole = (scale == 1) & (above <= 0)
        ended = whole | narrow | (np.abs(above) <= rounding)
        self.done = np.where(met & ended, True, self.done)

    def _aim(self, found: Moments, going: Truths, met: Truths, careful: bool) -> None:
        """The next step of the rows that are ``going``."""
        multipliers, newton = self.at[:, :-1], newton_step(found, self.at)
        moving = going & (met if careful else newton.left <= np.minimum(LEFT, self.family.budget))
        scale = self.at[:, -1]
        further = np.where(moving, self._scale(newton) - scale, 0.0)
        pull = found.slack + found.covariance[:, :-1, -1] * further[:, None]
        target = multipliers + newton.to_bounds + newton.along * further[:, None]
        target = model_minimum(target, newton.free, found, multipliers, pull, going)
        step = np.concatenate([target - multipliers, further[:, None]], 1)
        self._step = np.where(going[:, None], step, self._step * ~self.done[:, None])
        self._fixed = np.where(going, further == 0, self._fixed)
        self._dual = np.where(going, found.dual, self._dual)
        self._slope = np.where(going, (found.mean * step).sum(-1), self._slope)
        most = (NATS + 4 * multipliers.sum(-1)) / np.abs(step[:, :-1]).sum(-1)
        share = np.minimum(1.0, LONGER * self._share)
        share = np.where(self._fixed, np.fmin(most, share), share)
        self._share = np.where(going, share, self._share)

    def _scale(self, newton: Newton) -> Floats:
        """A Newton step ``(R,)`` towards the scale at which KL meets the budget, at most 1."""
        scale, budget, kl = self.at[:, -1], self.family.budget, newton.kl
        growth = scale**2 * newton.spread  # of KL with log s
        growth = np.where(kl < NEGLIGIBLE_KL, np.minimum(growth, 2 * kl), growth)
        power = np.log(budget / kl) * kl / np.maximum(growth, TINIEST)
        found = scale * np.exp(np.clip(power, -GROWTH, GROWTH))
        first = np.minimum(np.sqrt(2 * budget / newton.spread), NATS / self.family.reach)
        found = np.where(scale > 0, found, first)
        middle = np.sqrt(np.maximum(self._low, 1e-9 * self._high) * self._high)
        outside = (found <= self._low) | (found >= self._high)
        found = np.where(outside & (self._high <= 1), middle, found)
        return np.clip(found, self._low, np.minimum(self._high, 1.0))


def newton_step(found: Moments, at: Floats) -> Newton:
    """The linear system of a step at c ``(R, J + 1)``."""
    covariance, slack = found.covariance, found.slack
    curvature, cross = covariance[:, :-1, :-1], covariance[:, :-1, -1]
    free = (at[:, :-1] > 0) | (slack < -0.1 * CLOSE)
    matrix = curvature * (free[:, :, None] & free[:, None, :])
    _diagonal(matrix)[...] += np.where(free, _ridge(curvature), 1.0)
    sides = np.stack([slack, cross], -1) * free[:, :, None]
    solved = np.linalg.solve(matrix, -sides)
    to_bounds, along = solved[..., 0], solved[..., 1]
    drift = (covariance @ at[:, :, None])[:, :-1, 0]  # of KL, with each multiplier
    return Newton(
        free=free,
        to_bounds=to_bounds,
        along=along,
        kl=np.maximum(found.kl + (drift * to_bounds).sum(-1), LEAST_KL),
        spread=np.maximum(covariance[:, -1, -1] + (cross * along).sum(-1), TINIEST),
        left=-(slack * to_bounds).sum(-1),
    )


def model_minimum(
    target: Floats, free: Truths, found: Moments, at: Floats, pull: Floats, going: Truths
) -> Floats:
    """Multipliers ``(R, J)`` of at least 0 that minimise the quadratic model of D.

    Args:
        target: of the bounds that are ``free``, found as if no multiplier could fall below 0.
        at: the multipliers now, where ``pull`` is the model's gradient.
    """
    curvature = found.covariance[:, :-1, :-1]
    target = target * free
    slope = pull + (curvature @ (target - at)[:, :, None])[..., 0]
    wrong = going & ((target < 0) | (~free & (slope < -CLOSE))).any(-1)
    if wrong.any():
        target[wrong] = best_of_sets(curvature[wrong], at[wrong], pull[wrong])
    return np.maximum(target, 0.0)


def best_of_sets(curvature: Floats, at: Floats, pull: Floats) -> Floats:
    """The same, as the best minimum of all 2^J sets of multipliers that may differ from 0."""
    rows, count = at.shape
    full = curvature.copy()
    _diagonal(full)[...] += _ridge(curvature)
    linear = pull - (full @ at[:, :, None])[..., 0]
    sets = np.array(list(product((False, True), repeat=count)))
    matrix = np.where(sets[:, :, None] & sets[:, None, :], full[:, None], np.eye(count))
    side = np.where(sets, -linear[:, None], 0.0)
    x = np.linalg.solve(matrix, side[..., None])[..., 0]
    value = np.where((x >= 0).all(-1), -(x * side).sum(-1), math.inf)
    best: Floats = x[np.arange(rows), np.nan_to_num(value, nan=math.inf).argmin(-1)]
    return best


def _ridge(curvature: Floats) -> Floats:
    """What makes the model's minimum unique ``(R, J)``."""
    return RIDGE * (_diagonal(curvature) + 1e-2)


def _diagonal(matrix: Floats) -> Floats:
    """A view of the diagonals ``(..., J)``."""
    view: Floats = np.einsum("...ii->...i", matrix)
    return view
