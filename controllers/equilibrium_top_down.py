"""What an equilibrium starts from at a step: the candidates, rho, and the principles' bounds.

Over the base's k best tokens t, of which the supports leave some, rho is the distribution under the
top-down controllers and ``b_j = E_rho[g_j] + epsilon_j`` the bound of principle j, where ``g_j(t)``
is how probable t violates it.

Where a principle has a controller of its own, stage j takes its shift delta_j within the bounds of
the principles above it, and then its own bound is fixed (a lexicographic order)::

    rho_j = argmin KL(q || rho_{j-1} e^delta_j)  subject to  E_q[g_i] <= b_i for all i < j

The last of these is rho. All of this is float64.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor

from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source, Step
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import RankSupport, Support, TopK, intersection
from plugalign.controllers.principles_scorers import Probability
from plugalign.engine.readers.candidates import best_candidates
from plugalign.kernels import steer
from plugalign.kernels.mixture import mix_at
from plugalign.kernels.projection import project_in_order


@dataclass(frozen=True, eq=False)
class BoundPrinciple:
    """A principle for one model.

    Attributes:
        name: of the principle.
        scores: how probable a candidate keeps it, or violates it.
        violated: whether ``scores`` is of the violation.
        epsilon: how much ``E_q[g]`` may lie above the reference's.
        stage: what steers for it, within the bounds of those above.
    """

    name: str
    scores: Probability
    violated: bool
    epsilon: float
    stage: Steering

    def g(self, step: Step, ids: Tensor) -> Tensor:
        """How probable each candidate violates it, float64 ``(R, K)``."""
        found = self.scores.at(step, ids)
        return found if self.violated else 1 - found


@dataclass(frozen=True, eq=False)
class TopDown:
    """What principles and controllers decide before any preference.

    Attributes:
        reference: the controllers that no bound holds.
        principles: J of them, the highest first; at least one.
        features: F scorers of what the preferences weigh.
        k: how many of the base's best tokens are candidates.
    """

    reference: Steering
    principles: tuple[BoundPrinciple, ...]
    features: tuple[Probability, ...]
    k: int

    @property
    def shifts(self) -> tuple[Shift, ...]:
        """Those of all top-down controllers, whose plain sum is steered by where no stage binds."""
        stages = chain.from_iterable(p.stage.shifts for p in self.principles)
        return (*self.reference.shifts, *stages)

    @property
    def supports(self) -> tuple[Support, ...]:
        stages = chain.from_iterable(p.stage.supports for p in self.principles)
        return (*self.reference.supports, *stages)

    @property
    def binds_a_stage(self) -> bool:
        """Whether a principle's own controller stands below another principle."""
        return any(p.stage.shifts for p in self.principles[1:])

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is read of a step."""
        declared: list[Shift | Support] = [*self.shifts, *self.supports]
        gates = chain.from_iterable(each.gates for each in declared)
        scorers = (*(p.scores for p in self.principles), *self.features)
        read = chain(declared, gates, scorers)
        return tuple(chain.from_iterable(each.sources for each in read))


@dataclass(frozen=True, eq=False)
class Situation:
    """The candidates of a step, R rows of K.

    Attributes:
        ids: the candidates, int64 ``(R, K)``.
        scores: under the plain sum of the top-down controllers, ``(R, K)``, not normalised; -inf
            where a support leaves a candidate out.
        log_rho: log rho ``(R, K)``: of the scores, unless a bound holds a stage.
        g: how far each violates each principle, ``(R, J, K)``.
        bounds: b ``(R, J)``.
        phi: the features ``(R, F, K)``.
        broken: rows, bool ``(R,)``, of which a model gave numbers that are not finite.
    """

    ids: Tensor
    scores: Tensor
    log_rho: Tensor
    g: Tensor
    bounds: Tensor
    phi: Tensor
    broken: Tensor


@dataclass(frozen=True, eq=False)
class Situations(Source):
    """The `Situation` of each step."""

    name: str = "the candidates of the equilibrium"
    top_down: TopDown = field(kw_only=True)
    multi_position: ClassVar[bool] = True  # where all that it reads is, which is declared too

    @property
    def key(self) -> Hashable:
        return ("situations", id(self.top_down))

    def reader(self, base: object) -> SituationReader:
        return SituationReader(self.top_down)


class SituationReader:
    """Reads what `TopDown` needs of a step."""

    def __init__(self, top_down: TopDown):
        self._top_down = top_down

    def read(self, step: Step) -> Situation:
        """The step's candidates, read by the principles' and the features' scorers."""
        top_down, ids = self._top_down, best_candidates(step.base, self._top_down.k)
        stages = self._stages(step, ids)
        g = _side_by_side((p.g(step, ids) for p in top_down.principles), ids)
        phi = _side_by_side((f.at(step, ids) for f in top_down.features), ids)
        finite = [x.isfinite().all(-1).all(-1) for x in (g, phi)]
        broken = ~(stages[-1].logsumexp(-1).isfinite() & finite[0] & finite[1])
        stages = [z.masked_fill(broken[:, None], 0.0) for z in stages]
        g, phi = (x.masked_fill(broken[:, None, None], 0.0) for x in (g, phi))
        log_rho, bounds = self._bounded([z.log_softmax(-1) for z in stages], g)
        return Situation(ids, stages[-1], log_rho, g, bounds, phi, broken)

    def _stages(self, step: Step, ids: Tensor) -> list[Tensor]:
        """Of each principle, the scores ``(R, K)`` under the reference and the principles' own
        controllers up to this one's."""
        row = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
        narrower = [s for s in self._top_down.supports if not self._holds_all(s)]
        allowed = allowed_by(narrower, step).gather(-1, ids) if narrower else ids >= 0
        found, shifts = list[Tensor](), list(self._top_down.reference.shifts)
        for principle in self._top_down.principles:
            shifts += principle.stage.shifts
            if found and not principle.stage.shifts:
                found.append(found[-1])
                continue
            z = mix_at(step.alone(shifts), row, ids.flatten()).view(ids.shape).double()
            found.append(z.masked_fill(~allowed, -math.inf))
        return found

    def _holds_all(self, support: Support) -> bool:
        """Whether all candidates are among the best tokens that a support leaves."""
        return isinstance(support, TopK) and support.k >= self._top_down.k

    def _bounded(self, stages: Sequence[Tensor], g: Tensor) -> tuple[Tensor, Tensor]:
        """log rho ``(R, K)`` and the bounds ``(R, J)``, from log-probabilities ``(R, K)`` of each
        stage without any bound."""
        shifts: list[Tensor | None] = [None]
        for j, principle in enumerate(self._top_down.principles[1:], start=1):
            added = (stages[j] - stages[j - 1]).where(stages[j].isfinite(), stages[0].new_zeros(()))
            shifts.append(added if principle.stage.shifts else None)
        slack = g.new_tensor([each.epsilon for each in self._top_down.principles])
        found, bounds = project_in_order(stages[0], shifts, g, slack)
        return found[-1], bounds

    def forget(self) -> None:
        """Nothing is kept."""


def allowed_by(supports: Sequence[Support], step: Step) -> Tensor:
    """The tokens that supports leave together, bool ``(R, V)``; the base's best one in a row that
    they leave none."""
    allowed = steer.kept(step.base, intersection([s for s in supports if _is_truncation(s)]))
    for support in supports:
        if _is_truncation(support):
            continue
        weight = torch.ones(len(step.base), device=step.base.device)
        for gate in support.gates:
            weight = weight * gate.open(step)
        if bool((weight > 0).any()):
            allowed = allowed & (support.mask(step) | (weight == 0)[:, None])
    best = step.base.argmax(-1, keepdim=True)
    emptied = ~allowed.any(-1, keepdim=True)
    return allowed.scatter(-1, best, allowed.gather(-1, best) | emptied)


def _is_truncation(support: Support) -> TypeGuard[RankSupport]:
    return isinstance(support, RankSupport) and not support.gates


def _side_by_side(scores: Iterable[Tensor], ids: Tensor) -> Tensor:
    """Scores ``(R, K)`` of N scorers, ``(R, N, K)``."""
    found = list(scores)
    if not found:
        return torch.zeros(len(ids), 0, ids.shape[1], dtype=torch.float64, device=ids.device)
    return torch.stack(found, 1)
