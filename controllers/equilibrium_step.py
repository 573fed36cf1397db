"""One step of equilibrium alignment: the nearest q to what is preferred, within the bounds.

    q = argmin KL(q || rho e^delta)  subject to  E_q[g_j] <= b_j for all j,  KL(q || rho) <= kappa

with ``delta(t) = theta . phi(t)``; rho, g and b are those of
`plugalign.controllers.equilibrium_top_down`. ``log q - log rho`` is what is added to the top-down
controllers' shifts. It is found in float64; only the sum is in the engine's float32.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source, Step
from plugalign.controllers.equilibrium_top_down import Situation, Situations
from plugalign.kernels.projection import Projection, project
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight


@dataclass(frozen=True, eq=False)
class Balance:
    """What a step has decided.

    Attributes:
        situation: what it started from.
        found: the projection.
        log_q: of the candidates ``(R, K)``; -inf where a support leaves one out, NaN in broken
            rows.
    """

    situation: Situation
    found: Projection
    log_q: Tensor


@dataclass(frozen=True, eq=False)
class Balances(Source):
    """The `Balance` of each step, which is found once.

    Attributes:
        situations: what it starts from.
        theta: the weights of the features, float64 ``(F,)``, or ``(R, F)`` of each row.
        kappa: the KL budget in nats.
    """

    name: str = "the equilibrium"
    situations: Situations = field(kw_only=True)
    theta: Tensor = field(kw_only=True)
    kappa: float = field(kw_only=True)
    multi_position: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        return ("balances", id(self.theta), self.situations.key)

    def reader(self, base: object) -> BalanceReader:
        return BalanceReader(self)


class BalanceReader:
    """Projects a step's `Situation`."""

    def __init__(self, source: Balances):
        self._source = source

    def read(self, step: Step) -> Balance:
        """The step's balance."""
        source = self._source
        at: Situation = step.read(source.situations)
        delta = (source.theta[..., None].to(at.phi.device) * at.phi).sum(-2)
        found = project(at.log_rho, delta, at.g, at.bounds, source.kappa)
        return Balance(at, found, found.log_q.masked_fill(at.broken[:, None], math.nan))

    def forget(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, eq=False)
class EquilibriumShift(Shift):
    """``log q - log rho`` of the candidates. Other tokens are not shifted, so the declaration comes
    with the supports of the top-down controllers and ``TopK(k)``."""

    balances: Balances
    compares_probabilities: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[Source, ...]:
        situations = self.balances.situations
        return (self.balances, situations, *situations.top_down.sources)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        balance: Balance = step.read(self.balances)
        ids, log_q, scores = balance.situation.ids, balance.log_q, balance.situation.scores
        here, nowhere = log_q.isfinite() | log_q.isnan(), log_q.new_zeros(())
        # What the scores are is taken away, and log q put there: at logits of a hundred the sum of
        # a score and log q - log rho would be rounded to 1e-5.
        total = -scores.logsumexp(-1, keepdim=True).float()
        without = total.repeat(1, step.base.shape[1])
        without.scatter_(-1, ids, torch.where(here, -scores, total.double()).float())
        wanted = torch.zeros_like(without).scatter_(-1, ids, log_q.where(here, nowhere).float())
        weights = weight[:, None].expand(-1, 2) if isinstance(weight, Tensor) else (weight,) * 2
        yield Linear((without, wanted), weights)

    def certificate(self, step: Step, weight: Weight) -> Mapping[str, Tensor]:
        """What holds of q at this prefix, by name ``(R,)``: "kl" from rho in nats, the "scale" s of
        delta, the "repair" tau, how many bounds are "active", the largest "excess" of a bound, and
        of each principle "expected.NAME", "bound.NAME" and "multiplier.NAME".

        It is of the equilibrium alone, at weight 1: what is added to it in a sum, and what a call's
        temperature and top-p make of it, is not in it.
        """
        balance: Balance = step.read(self.balances)
        at, found = balance.situation, balance.found
        certificate = {
            "kl": found.kl,
            "scale": found.scale,
            "repair": found.repair,
            "active": (found.multipliers > 0).sum(-1).double(),
            "excess": (found.expected - at.bounds).amax(-1),
        }
        for j, principle in enumerate(self.balances.situations.top_down.principles):
            certificate[f"expected.{principle.name}"] = found.expected[:, j]
            certificate[f"bound.{principle.name}"] = at.bounds[:, j]
            certificate[f"multiplier.{principle.name}"] = found.multipliers[:, j]
        return certificate
