"""The I-projection of a shifted distribution on bounds of expectations, inside a budget of KL.

    q = argmin KL(q || rho e^delta)   subject to   E_q[g_j] <= b_j for all j,  KL(q || rho) <= kappa

over K candidates of each row. By the Lagrangian (Csiszar 1975, "I-divergence geometry of
probability distributions and minimization problems")

    log q = log rho + s delta - sum_j lambda_j g_j + const,   0 <= s <= 1,   lambda_j >= 0

so the bounds act as a sum of shifts. s is 1 unless the budget binds. For given s each lambda_j is
the root of a decreasing function; they are found in turn, by Newton steps that fall back on
bisection. What rounding or an unfinished search leaves above a bound is taken away by

    q' = (1 - tau) q + tau rho

with the smallest tau that satisfies every bound and the budget (KL is convex, so it falls by
1 - tau at least). There is one, because rho satisfies them: ``b_j >= E_rho[g_j]``, ``kappa >= 0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CANDIDATES = 1024
MOST_BOUNDS = 8
ROUNDS, STEPS, DOUBLINGS, SCALES = 12, 40, 20, 30  # more is left to the repair
CLOSE = 1e-12  # of an expectation to its bound
NEAR = 1e-11  # of the KL to its budget, in nats
SLACK = 1e-10  # above a bound or the budget that rounding may leave
SHORT = 1e-14  # of an interval, relative
RIDGE, TINIEST = 1e-12, 1e-300


@dataclass(frozen=True, eq=False)
class Projection:
    """What became of each row.

    Attributes:
        log_q: float64 ``(R, K)``.
        scale: s, float64 ``(R,)``; below 1 where the KL budget binds.
        multipliers: lambda, float64 ``(R, J)``; above 0 where a bound binds.
        repair: tau, float64 ``(R,)``.
        expected: E_q[g], float64 ``(R, J)``.
        kl: KL(q || rho) in nats, float64 ``(R,)``.
    """

    log_q: Tensor
    scale: Tensor
    multipliers: Tensor
    repair: Tensor
    expected: Tensor
    kl: Tensor


def project(
    log_rho: Tensor, delta: Tensor, g: Tensor, bounds: Tensor, kappa: Tensor | float = math.inf
) -> Projection:
    """Projects ``rho e^delta`` on the bounds, row by row.

    Args:
        log_rho: log-probabilities of the candidates ``(R, K)``, normalised over them or not; -inf
            leaves a candidate out.
        delta: the shift ``(R, K)``, finite.
        g: of each candidate ``(R, J, K)``, finite; how far it violates a principle, for instance.
        bounds: ``(R, J)``, none below the expectation of g under rho.
        kappa: the budget in nats, a number or ``(R,)``; infinity for none.

    Raises:
        ValueError: for shapes that do not fit, a row without a candidate, values that are not
            finite, a bound that rho itself exceeds, or a negative budget.
    """
    rho, shift, g, bounds, budget = _checked(log_rho, delta, g, bounds, kappa)
    solver = _Solver(rho, shift, g, bounds)
    scale = torch.ones_like(budget)
    multipliers = solver.multipliers(scale, torch.zeros_like(bounds))
    over = solver.kl(scale, multipliers) > budget
    if bool(over.any()):
        scale, multipliers = solver.within(budget, multipliers, over)
    return _repaired(solver, scale, multipliers, budget)


class _Solver:
    """The family ``rho exp(s delta - lambda g)``, row by row."""

    def __init__(self, rho: Tensor, shift: Tensor, g: Tensor, bounds: Tensor):
        self.rho, self.shift, self.g, self.bounds = rho, shift, g, bounds

    def log_q(self, scale: Tensor, multipliers: Tensor) -> Tensor:
        tilt = scale[:, None] * self.shift - (multipliers[:, None] @ self.g)[:, 0]
        return (self.rho + tilt).log_softmax(-1)

    def expected(self, log_q: Tensor) -> Tensor:
        return (self.g @ log_q.exp()[..., None])[..., 0]

    def kl(self, scale: Tensor, multipliers: Tensor) -> Tensor:
        return _kl(self.log_q(scale, multipliers), self.rho)

    def multipliers(self, scale: Tensor, start: Tensor) -> Tensor:
        """lambda ``(R, J)`` for given s, from multipliers near them: Newton steps of all bounds
        together where they come nearer, and else each bound by itself."""
        found, left = start, self.residual(scale, start)
        for _ in range(ROUNDS):
            if bool((left <= CLOSE).all()):
                break
            before = found
            step = self._newton(scale, found)
            remaining = self.residual(scale, step)
            better = remaining < 0.5 * left
            found, left = torch.where(better[:, None], step, found), left.where(~better, remaining)
            if not bool((better | (left <= CLOSE)).all()):
                swept = self._swept(scale, found)
                found = torch.where((better | (left <= CLOSE))[:, None], found, swept)
                left = self.residual(scale, found)
            if bool((found == before).all()):
                break
        return found

    def residual(self, scale: Tensor, multipliers: Tensor) -> Tensor:
        """How far ``(R,)`` lambda is from the conditions of Karush, Kuhn and Tucker."""
        excess = self.expected(self.log_q(scale, multipliers)) - self.bounds
        return torch.where(multipliers > 0, excess.abs(), excess.clamp(min=0)).amax(-1)

    def _newton(self, scale: Tensor, multipliers: Tensor) -> Tensor:
        """One Newton step ``(R, J)`` on the dual, whose curvature is the covariance of g."""
        q = self.log_q(scale, multipliers).exp()
        mean = (self.g @ q[..., None])[..., 0]
        excess, centred = mean - self.bounds, self.g - mean[..., None]
        binding = (multipliers > 0) | (excess > 0)
        pairs = binding[:, :, None] & binding[:, None, :]
        curvature = ((centred * q[:, None]) @ centred.mT).where(
            pairs, torch.zeros_like(q[:1, :1, None])
        )
        scaled = RIDGE * curvature.diagonal(dim1=1, dim2=2).clamp(min=TINIEST)
        filled = torch.where(binding, scaled, torch.ones_like(scaled))
        step, _ = torch.linalg.solve_ex(curvature + filled.diag_embed(), excess * binding)
        moved = (multipliers + step).clamp(min=0)
        return torch.where(moved.isfinite().all(-1, keepdim=True), moved, multipliers)

    def _swept(self, scale: Tensor, multipliers: Tensor) -> Tensor:
        """Each bound by itself, the others as they are."""
        found = multipliers.clone()
        for j in range(found.shape[1]):
            found[:, j] = self._root(scale, found, j)
        return found

    def _root(self, scale: Tensor, multipliers: Tensor, j: int) -> Tensor:
        """The lambda_j ``(R,)`` at which E[g_j] meets its bound, or 0 where it is below it there:
        Newton steps that fall back on bisection."""
        rest = multipliers.clone()
        rest[:, j] = 0
        fixed = self.rho + scale[:, None] * self.shift - (rest[:, None] @ self.g)[:, 0]
        g, bound = self.g[:, j], self.bounds[:, j]

        def excess(value: Tensor) -> tuple[Tensor, Tensor]:
            q = (fixed - value[:, None] * g).softmax(-1)
            mean = (q * g).sum(-1)
            return mean - bound, (q * (g - mean[:, None]) ** 2).sum(-1)

        low = torch.zeros_like(bound)
        needed = excess(low)[0] > 0
        if not bool(needed.any()):
            return low
        high = torch.where(needed, multipliers[:, j].clamp(min=1.0), low)
        for _ in range(DOUBLINGS):
            short = needed & (excess(high)[0] > 0)
            if not bool(short.any()):
                break
            low, high = torch.where(short, high, low), torch.where(short, 4 * high, high)
        at = torch.where(needed, multipliers[:, j].clamp(low, high), low)
        for _ in range(STEPS):
            value, slope = excess(at)
            low, high = torch.where(value > 0, at, low), torch.where(value > 0, high, at)
            near = (value <= 0) & (value >= -CLOSE)
            if bool((~needed | near | (high - low <= SHORT * high)).all()):
                break
            newton = at + value / slope.clamp(min=TINIEST)
            inside = (newton > low) & (newton < high)
            at = torch.where(needed, torch.where(inside, newton, (low + high) / 2), at)
        return torch.where(needed, high, torch.zeros_like(high))

    def within(self, budget: Tensor, multipliers: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
        """s and lambda at which KL(q || rho) meets the budget, in the rows that are ``over`` it.
        KL grows with s: false position (Illinois) between 0 and 1."""
        low, high = torch.zeros_like(budget), torch.ones_like(budget)
        below, above = -budget, self.kl(high, multipliers) - budget
        found, side = multipliers, torch.zeros_like(budget)
        for turn in range(SCALES):
            middle = high - above * (high - low) / (above - below).clamp(min=TINIEST)
            if turn % 2:  # a shift of many nats leaves a tiny s, which false position nears slowly
                middle = (low.clamp(min=1e-6) * high).sqrt().clamp(low, high)
            middle = torch.where(over, middle, high)
            found = self.multipliers(middle, found)
            left = self.kl(middle, found) - budget
            if bool((~over | (left.abs() <= NEAR) | (high - low <= SHORT)).all()):
                break
            up, down = over & (left <= 0), over & (left > 0)
            above = torch.where(up & (side < 0), above / 2, torch.where(down, left, above))
            below = torch.where(down & (side > 0), below / 2, torch.where(up, left, below))
            low, high = torch.where(up, middle, low), torch.where(down, middle, high)
            side = torch.where(up, -torch.ones_like(side), torch.where(down, 1.0, side))
        return torch.where(over, middle, high), found


def _repaired(solver: _Solver, scale: Tensor, multipliers: Tensor, budget: Tensor) -> Projection:
    """Mixes rho in where a bound or the budget is exceeded, by as little as will do."""
    log_q = solver.log_q(scale, multipliers)
    expected, reference = solver.expected(log_q), solver.expected(solver.rho)
    excess = expected - solver.bounds
    share = (excess / (expected - reference)).where(excess > SLACK, torch.zeros_like(excess))
    kl = _kl(log_q, solver.rho)
    over = (1 - budget / kl).where(kl > budget + SLACK, torch.zeros_like(kl))
    tau = torch.cat([share, over[:, None]], dim=1).amax(1).clamp(0, 1)
    mixed = torch.logaddexp((-tau).log1p()[:, None] + log_q, tau.log()[:, None] + solver.rho)
    log_q = torch.where((tau > 0)[:, None], mixed, log_q)
    return Projection(
        log_q, scale, multipliers, tau, solver.expected(log_q), _kl(log_q, solver.rho)
    )


def _kl(log_q: Tensor, log_rho: Tensor) -> Tensor:
    """KL(q || rho) ``(R,)`` in nats."""
    difference = (log_q - log_rho).where(log_q > -math.inf, torch.zeros_like(log_q))
    return (log_q.exp() * difference).sum(-1).clamp(min=0)


def _checked(
    log_rho: Tensor, delta: Tensor, g: Tensor, bounds: Tensor, kappa: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments as float64, with rho normalised and references lifted onto their bounds."""
    if log_rho.ndim != 2 or not 0 < log_rho.shape[1] <= MOST_CANDIDATES:
        raise ValueError(
            f"log_rho must be (R, K) with 1 to {MOST_CANDIDATES} candidates, got "
            f"{tuple(log_rho.shape)}"
        )
    rows, candidates = log_rho.shape
    if g.ndim != 3 or (g.shape[0], g.shape[2]) != (rows, candidates) or g.shape[1] > MOST_BOUNDS:
        raise ValueError(
            f"g must be (R, J, K) = ({rows}, at most {MOST_BOUNDS}, {candidates}), got "
            f"{tuple(g.shape)}"
        )
    for name, value, shape in (
        ("delta", delta, (rows, candidates)),
        ("bounds", bounds, g.shape[:2]),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(value.shape)}")
    rho = log_rho.double().log_softmax(-1)
    if not bool(rho.exp().sum(-1).isfinite().all()):
        raise ValueError("each row of log_rho needs a candidate, and no NaN or +inf")
    shift, g, bounds = delta.double(), g.double(), bounds.double()
    for name, value in (("delta", shift), ("g", g), ("bounds", bounds)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite")
    budget = torch.as_tensor(kappa, dtype=torch.float64, device=rho.device).expand(rows)
    if not bool((budget >= 0).all()):
        raise ValueError(f"the KL budget must be at least 0 nats, got {float(budget.min())}")
    reference = (g @ rho.exp()[..., None])[..., 0]
    if not bool((reference <= bounds + SLACK * (1 + bounds.abs())).all()):
        worst = float((reference - bounds).max())
        raise ValueError(f"a bound lies {worst:g} below what the reference itself expects")
    return rho, shift, g, torch.maximum(bounds, reference), budget
