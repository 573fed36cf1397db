"""The I-projection of a shifted distribution on bounds of expectations, inside a budget of KL.

    q = argmin KL(q || rho e^delta)   subject to   E_q[g_j] <= b_j for all j,  KL(q || rho) <= kappa

over K candidates of each row. By the Lagrangian (Csiszar 1975, "I-divergence geometry of
probability distributions and minimization problems")

    log q = log rho + s delta - sum_j lambda_j g_j + const,   0 <= s <= 1,   lambda_j >= 0

so the bounds act as a sum of shifts. s is 1 unless the budget binds.
`plugalign.kernels.projection_search` finds s and lambda. What rounding or an unfinished search
leaves above a bound is taken away by

    q' = (1 - tau) q + tau rho

with the smallest tau that satisfies every bound and the budget (KL is convex, so it falls by
1 - tau at least). There is one, because rho satisfies them: ``b_j >= E_rho[g_j]``, ``kappa >= 0``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plugalign.kernels.backend import Backend, use_triton
from plugalign.kernels.calls import BoundedShift
from plugalign.kernels.projection_search import (
    NORMALISED,
    SLACK,
    TINIEST,
    Family,
    Floats,
    Search,
)

MOST_CANDIDATES, MOST_BOUNDS = 1024, 8
KERNEL_CANDIDATES, KERNEL_BOUNDS = 256, 4  # what one program of the kernel holds


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
    log_rho: Tensor,
    delta: Tensor,
    g: Tensor,
    bounds: Tensor,
    kappa: Tensor | float = math.inf,
    *,
    backend: Backend = "auto",
) -> Projection:
    """Projects ``rho e^delta`` on the bounds, row by row, in float64 and without gradients.

    Where nothing is shifted, ``log_q`` is ``log_rho`` bit for bit, if that is normalised.

    Args:
        log_rho: log-probabilities of the candidates ``(R, K)``, normalised over them or not; -inf
            leaves a candidate out.
        delta: the shift ``(R, K)``, finite.
        g: of each candidate ``(R, J, K)``, finite; how far it violates a principle, for instance.
        bounds: ``(R, J)``, none below the expectation of g under rho.
        kappa: the budget in nats, a number or ``(R,)``; infinity for none.
        backend: "torch" is the specification, which computes on the host; "auto" takes Triton for
            CUDA tensors with at most 256 candidates and 4 bounds.

    Raises:
        ValueError: for shapes that do not fit, a row without a candidate, values that are not
            finite, a bound that rho itself exceeds, or a negative budget. The kernel reads no
            values beforehand, which would wait for the device: such rows become NaN there, and
            bounds that rho exceeds are lifted.
    """
    _check_shapes(log_rho, delta, g, bounds)
    if _takes_triton(backend, g):
        from plugalign.kernels.projection_triton import project_triton

        nats = torch.as_tensor(kappa, dtype=torch.float64, device=g.device).expand(len(g))
        given = (log_rho, delta, g, bounds, nats)
        return Projection(**project_triton(BoundedShift(*(x.contiguous() for x in given))))
    budget = _on_host(torch.as_tensor(kappa, dtype=torch.float64)) + np.zeros(len(log_rho))
    rho, shift, scores = _log_normalised(_on_host(log_rho)), _on_host(delta), _on_host(g)
    lifted = _check_values(rho, shift, scores, _on_host(bounds), budget)
    found = _projected(rho, shift, scores, lifted, budget)
    return Projection(*(torch.from_numpy(x).to(log_rho.device) for x in found))


def project_in_order(
    log_rho: Tensor, shifts: Sequence[Tensor | None], g: Tensor, slack: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Stages in the order of their priority: the shift of each principle, within the bounds above.

    Stage i projects its shift, from what stage i - 1 found, on the bounds of the principles above
    it; then its own bound is fixed::

        q_i = argmin KL(q || q_(i-1) e^delta_i)  subject to  E_q[g_j] <= b_j for all j < i
        b_i = E_(q_i)[g_i] + slack_i

    So a principle below never raises the expectation of one above by more than that one's slack,
    and changes no bound above.

    Args:
        log_rho: log-probabilities ``(R, K)`` before any stage, normalised.
        shifts: of each of the J principles ``(R, K)``, finite; None for one that only binds others.
        g: how far each candidate violates each principle, ``(R, J, K)``.
        slack: at least 0, ``(J,)`` or ``(R, J)``.

    Returns:
        log q of each stage ``(R, K)``, and the bounds ``(R, J)``, float64.

    Raises:
        ValueError: as `project`, or for a slack that is negative or not finite.
    """
    if g.ndim != 3 or len(shifts) != g.shape[1]:
        raise ValueError(
            f"there must be a shift for each of J principles with g (R, J, K), got {len(shifts)} "
            f"and {tuple(g.shape)}"
        )
    if not bool(((slack >= 0) & slack.isfinite()).all()):
        raise ValueError(f"slack must be finite and at least 0, got {float(slack.min()):g}")
    slack = slack.to(g.device, torch.float64).expand(g.shape[:2])
    at, stages = log_rho, list[Tensor]()
    bounds = g.new_empty(g.shape[:2], dtype=torch.float64)
    for i, shift in enumerate(shifts):
        if shift is not None:
            at = project(at, shift, g[:, :i], bounds[:, :i]).log_q
        stages.append(at)
        bounds[:, i] = (g[:, i].double() * at.exp()).sum(-1) + slack[:, i]
    return stages, bounds


def _takes_triton(backend: Backend, g: Tensor) -> bool:
    if not use_triton(backend, g):
        return False
    fits = g.shape[1] <= KERNEL_BOUNDS and g.shape[2] <= KERNEL_CANDIDATES
    if backend == "triton" and not fits:
        raise ValueError(
            f'backend="triton" takes at most {KERNEL_BOUNDS} bounds and {KERNEL_CANDIDATES} '
            f'candidates, got {g.shape[1]} and {g.shape[2]}; take "auto" or "torch"'
        )
    return fits


def _projected(
    rho: Floats, shift: Floats, g: Floats, bounds: Floats, budget: Floats
) -> tuple[Floats, ...]:
    """The fields of a `Projection`."""
    possible = rho > -math.inf
    most = np.where(possible[:, None], g, -math.inf).max(-1)
    width = most - np.where(possible[:, None], g, math.inf).min(-1)
    varies = width > 0  # a bound on what does not vary always holds
    divisor = np.where(varies, width, 1.0)
    parts = np.ones((g.shape[0], g.shape[1] + 1, g.shape[2]))
    np.divide(bounds[..., None] - g, divisor[..., None], parts[:, :-1], where=varies[..., None])
    parts[:, -1] = shift - (np.exp(rho) * shift).sum(-1, keepdims=True)
    reach = np.where(possible, parts[:, -1], 0.0).max(-1)
    family = Family(rho, parts, budget, np.maximum(reach, TINIEST))
    c = Search(family).run()
    moved = (c[:, :-1] > 0).any(-1) | (c[:, -1] * reach > 0)
    log_q = np.where(moved[:, None], family.log_q(c), rho)
    log_q, tau, expected, kl = _repaired(log_q, rho, g, bounds, budget)
    return log_q, c[:, -1].copy(), c[:, :-1] / divisor, tau, expected, kl


def _repaired(
    log_q: Floats, rho: Floats, g: Floats, bounds: Floats, budget: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Mixes rho in where a bound or the budget is exceeded, by as little as will do."""
    expected, kl = _expected(g, log_q), _kl(log_q, rho)
    excess, over = expected - bounds, kl > budget + SLACK
    tau = np.where(over, 1 - budget / np.maximum(kl, TINIEST), 0.0)
    if over.any() or (excess > SLACK).any():
        rise = np.maximum(expected - _expected(g, rho), TINIEST)
        share = np.where(excess > SLACK, excess / rise, 0.0)
        tau = np.concatenate([share, tau[:, None]], 1).max(-1).clip(0, 1)
        with np.errstate(divide="ignore"):
            mixed = np.logaddexp(np.log1p(-tau)[:, None] + log_q, np.log(tau)[:, None] + rho)
        log_q = np.where((tau > 0)[:, None], mixed, log_q)
        expected, kl = _expected(g, log_q), _kl(log_q, rho)
    return log_q, tau, expected, kl


def _expected(g: Floats, log_q: Floats) -> Floats:
    """E_q[g] ``(R, J)``."""
    mean: Floats = (g @ np.exp(log_q)[..., None])[..., 0]
    return mean


def _kl(log_q: Floats, log_rho: Floats) -> Floats:
    """KL(q || rho) ``(R,)`` in nats."""
    possible = log_rho > -math.inf
    difference = np.subtract(log_q, log_rho, np.zeros_like(log_q), where=possible)
    kl: Floats = (np.exp(log_q) * difference).sum(-1).clip(min=0)
    return kl


def _log_normalised(log_rho: Floats) -> Floats:
    """The same ``(R, K)`` where that is normalised but for rounding."""
    with np.errstate(all="ignore"):
        top = log_rho.max(-1, keepdims=True)
        total = top + np.log(np.exp(log_rho - top).sum(-1, keepdims=True))
        rho: Floats = np.where(np.abs(total) <= NORMALISED, log_rho, log_rho - total)
    return rho


def _on_host(x: Tensor) -> Floats:
    found: Floats = x.detach().to("cpu", torch.float64).numpy()
    return found


def _check_shapes(log_rho: Tensor, delta: Tensor, g: Tensor, bounds: Tensor) -> None:
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


def _check_values(rho: Floats, shift: Floats, g: Floats, bounds: Floats, budget: Floats) -> Floats:
    """The bounds, lifted onto what rho expects where rounding has that above them."""
    if np.isnan(rho).any():
        raise ValueError("each row of log_rho needs a candidate, and no NaN or +inf")
    for name, value in (("delta", shift), ("g", g), ("bounds", bounds)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite")
    if not (budget >= 0).all():
        raise ValueError(f"the KL budget must be at least 0 nats, got {budget.min():g}")
    reference = _expected(g, rho)
    if not (reference <= bounds + SLACK * (1 + np.abs(bounds))).all():
        worst = (reference - bounds).max()
        raise ValueError(f"a bound lies {worst:g} below what the reference itself expects")
    lifted: Floats = np.maximum(bounds, reference)
    return lifted
