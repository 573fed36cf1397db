# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.projection` in Triton: one program, and one launch, for all of a row.

The search is that of `plugalign.kernels.projection_search`, in float64 and for one row. All 2^J
sets of bounds that may hold are solved for in each round, side by side: there are no rows to wait
for, and none of the sets costs more than another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels import projection_search as search
from plugalign.kernels.calls import BoundedShift
from plugalign.kernels.launch import Launch

REGISTERS = 255  # that a thread can have
NEVER = tl.constexpr(float("-inf"))
INFINITE = tl.constexpr(float("inf"))
ROUNDS, HASTY = tl.constexpr(search.ROUNDS), tl.constexpr(search.HASTY)
CLOSE, ROUNDING = tl.constexpr(search.CLOSE), tl.constexpr(search.ROUNDING)
NATS, GROWTH = tl.constexpr(search.NATS), tl.constexpr(search.GROWTH)
LEFT, JUMP = tl.constexpr(search.LEFT), tl.constexpr(search.JUMP)
LONGER = tl.constexpr(search.LONGER)
FALL, RIDGE = tl.constexpr(search.FALL), tl.constexpr(search.RIDGE)
LEAST_KL, NEGLIGIBLE_KL = tl.constexpr(search.LEAST_KL), tl.constexpr(search.NEGLIGIBLE_KL)
TINIEST = tl.constexpr(search.TINIEST)
SLACK, NORMALISED = tl.constexpr(search.SLACK), tl.constexpr(search.NORMALISED)


@triton.jit
def moments(rho, f, d, multipliers, scale):
    """D, KL, then of f [J, K] and d [K] the means, covariances, and the variance of d."""
    tilted = rho + scale * d + tl.sum(multipliers[:, None] * f, 0)
    top = tl.max(tilted)
    q = tl.exp(tilted - top)
    total = tl.sum(q)
    q = q / total
    slack, mean = tl.sum(f * q[None, :], 1), tl.sum(d * q)
    centred, rest = f - slack[:, None], d - mean
    weighted = centred * q[None, :]
    curvature = tl.sum(weighted[:, None, :] * centred[None, :, :], 2)
    own = tl.arange(0, f.shape[0])[:, None] == tl.arange(0, f.shape[0])[None, :]
    curvature += tl.where(own, RIDGE * (curvature + 1e-2), 0.0)
    cross = tl.sum(weighted * rest[None, :], 1)
    dual = top + tl.log(total)
    kl = tl.sum(multipliers * slack) + scale * mean - dual
    return dual, kl, slack, mean, curvature, cross, tl.sum(q * rest * rest)


@triton.jit
def minima(curvature, linear, cross, J: tl.constexpr):
    """Of each set of bounds [2^J] the multipliers [2^J, J] at the minimum of the quadratic model,
    and how they move with the scale. By Gauss and Jordan."""
    i = tl.arange(0, J)
    inside = ((tl.arange(0, 2**J)[:, None] >> i[None, :]) & 1) != 0
    own = i[:, None] == i[None, :]
    one = tl.where(own, 1.0, 0.0).to(tl.float64)
    matrix = tl.where(
        inside[:, :, None] & inside[:, None, :], curvature[None, :, :], one[None, :, :]
    )
    at = tl.where(inside, -linear[None, :], 0.0)
    along = tl.where(inside, -cross[None, :], 0.0)
    for p in tl.static_range(J):
        row = tl.sum(tl.where((i == p)[None, :, None], matrix, 0.0), 1)
        column = tl.sum(tl.where((i == p)[None, None, :], matrix, 0.0), 2)
        here = (i == p)[None, :]
        pivot = tl.sum(tl.where(here, row, 0.0), 1)
        factor = tl.where(here, 0.0, column / pivot[:, None])
        matrix -= factor[:, :, None] * row[:, None, :]
        at -= factor * tl.sum(tl.where(here, at, 0.0), 1)[:, None]
        along -= factor * tl.sum(tl.where(here, along, 0.0), 1)[:, None]
    diagonal = tl.sum(tl.where(own[None, :, :], matrix, 0.0), 2)
    return at / diagonal, along / diagonal


@triton.jit
def next_scale(scale, kl, spread, budget, reach, low, high):
    """A Newton step towards the scale at which KL meets the budget, at most 1."""
    growth = scale * scale * spread
    growth = tl.where(kl < NEGLIGIBLE_KL, tl.minimum(growth, 2 * kl), growth)
    power = tl.log(budget / kl) * kl / tl.maximum(growth, TINIEST)
    power = tl.minimum(tl.maximum(power, -GROWTH), GROWTH)
    first = tl.minimum(tl.sqrt(2 * budget / spread), 1 / reach * NATS)
    found = tl.where(scale > 0, scale * tl.exp(power), first)
    middle = tl.sqrt(tl.maximum(low, 1e-9 * high) * high)
    outside = (found <= low) | (found >= high)
    found = tl.where(outside & (high <= 1), middle, found)
    return tl.minimum(tl.maximum(found, low), tl.minimum(high, 1.0))


@triton.jit
def searched(rho, f, d, budget, reach, J: tl.constexpr):
    """The multipliers [J] and the scale."""
    zero = tl.full((), 0.0, tl.float64)
    one = tl.full((), 1.0, tl.float64)
    multipliers, step = tl.zeros((J,), tl.float64), tl.zeros((J,), tl.float64)
    scale, further, share, slope = zero, zero, one, zero
    dual, low, high = zero + INFINITE, zero, one + one
    sets, i = tl.arange(0, 2**J), tl.arange(0, J)
    turn, done = 0, False
    while (turn < ROUNDS) & (not done):
        tried, tried_scale = multipliers + share * step, scale + share * further
        new_dual, kl, slack, mean, curvature, cross, variance = moments(
            rho, f, d, tried, tried_scale
        )
        rounding = (tl.sum(tried) + tried_scale * reach) * ROUNDING + CLOSE
        straight = dual + share * slope
        fallen = new_dual <= dual + share * slope * FALL + rounding
        near = new_dual <= straight + JUMP
        if tl.where(further == 0, fallen, near):
            multipliers, scale, dual = tried, tried_scale, new_dual
            off = tl.max(tl.where(multipliers > 0, tl.abs(slack), -slack))
            met, above = off <= rounding, kl - budget
            low = tl.where(met & (above <= 0), scale, low)
            high = tl.where(met & (above > 0), scale, high)
            ended = (tl.abs(above) <= rounding) | (high - low <= high * ROUNDING)
            done = met & (ended | ((scale == 1) & (above <= 0)))

            linear = slack - tl.sum(curvature * multipliers[None, :], 1)
            at, along = minima(curvature, linear, cross, J)
            free = (multipliers > 0) | (slack < -0.1 * CLOSE)
            mine = (sets == tl.sum(tl.where(free, 1 << i, 0)))[:, None]
            to_bounds = tl.sum(tl.where(mine, at, 0.0), 0) - multipliers
            drift = slack - linear + cross * scale  # of KL, with each multiplier
            met_kl = tl.maximum(kl + tl.sum(drift * to_bounds), LEAST_KL)
            taken_up = tl.sum(cross * tl.sum(tl.where(mine, along, 0.0), 0))
            spread = tl.maximum(variance + taken_up, TINIEST)
            left = -tl.sum(slack * to_bounds)
            moving = tl.where(turn >= HASTY, met, left <= tl.minimum(budget, LEFT))
            goal = next_scale(scale, met_kl, spread, budget, reach, low, high)
            further = tl.where(moving, goal - scale, 0.0)

            x = at + further * along
            value = tl.sum((linear + further * cross)[None, :] * x, 1)
            value = tl.where((tl.min(x, 1) >= 0) & (value <= 0), value, 0.0)
            best = (sets == tl.argmin(value, 0))[:, None]
            target = tl.maximum(tl.sum(tl.where(best & (x > 0), x, 0.0), 0), 0.0)
            step = target - multipliers
            slope = tl.sum(slack * step) + mean * further
            most = (4 * tl.sum(multipliers) + NATS) / tl.maximum(tl.sum(tl.abs(step)), TINIEST)
            share = tl.minimum(share * LONGER, 1.0)
            share = tl.where(further == 0, tl.minimum(most, share), share)
        else:
            new_slope = tl.sum(slack * step) + mean * further
            lowest = slope / (slope - new_slope)
            less = tl.where(further == 0, lowest, tl.sqrt(1 / ((new_dual - straight) / JUMP)))
            less = tl.where(less == less, less, 0.0)
            share *= tl.minimum(tl.maximum(less, 0.1), 0.5)
        turn += 1
    return multipliers, scale


@triton.jit
def divergence(log_q, rho):
    return tl.maximum(tl.sum(tl.where(rho > NEVER, tl.exp(log_q) * (log_q - rho), 0.0)), 0.0)


@triton.jit
def repaired(log_q, rho, g, bound, budget):
    """log q [K] with as much of rho as bounds and budget need, and its share."""
    expected = tl.sum(g * tl.exp(log_q)[None, :], 1)
    rise = tl.maximum(expected - tl.sum(g * tl.exp(rho)[None, :], 1), TINIEST)
    excess = expected - bound
    tau = tl.max(tl.where(excess > SLACK, excess / rise, 0.0))
    kl = divergence(log_q, rho)
    over = 1 - budget / tl.maximum(kl, TINIEST)
    tau = tl.minimum(tl.where(kl > budget + SLACK, tl.maximum(tau, over), tau), 1.0)
    if tau > 0:
        one, other = tl.log(1 - tau) + log_q, tl.log(tau) + rho
        top = tl.maximum(one, other)
        mixed = top + tl.log(tl.exp(one - top) + tl.exp(other - top))
        log_q = tl.where(top > NEVER, mixed, NEVER)
    return log_q, tau


@triton.jit(do_not_specialize=["count", "bounded"])
def solve(
    log_rho,
    delta,
    g,
    bounds,
    budget,
    count,
    bounded,
    log_q,
    scale,
    multipliers,
    repair,
    expected,
    kl,
    J: tl.constexpr,
    K: tl.constexpr,
):
    """One row of a projection on ``bounded`` bounds, at most J. Grid: (R,)."""
    row = tl.program_id(0).to(tl.int64)
    lane, i = tl.arange(0, K), tl.arange(0, J)
    real, bound_there = lane < count, i < bounded
    rho = tl.load(log_rho + row * count + lane, mask=real, other=NEVER).to(tl.float64)
    top = tl.max(rho)
    total = top + tl.log(tl.sum(tl.exp(rho - top)))
    rho = tl.where(tl.abs(total) <= NORMALISED, rho, rho - total)
    p = tl.exp(rho)
    shift = tl.load(delta + row * count + lane, mask=real, other=0.0).to(tl.float64)
    place = (row * bounded + i)[:, None] * count + lane[None, :]
    there = bound_there[:, None] & real[None, :]
    score = tl.load(g + place, mask=there, other=0.0).to(tl.float64)
    bound = tl.load(bounds + row * bounded + i, mask=bound_there, other=0.0).to(tl.float64)
    bound = tl.maximum(bound, tl.sum(score * p[None, :], 1))
    most_kl = tl.load(budget + row).to(tl.float64)

    possible = (rho > NEVER)[None, :]
    width = tl.max(tl.where(possible, score, NEVER), 1)
    width -= tl.min(tl.where(possible, score, INFINITE), 1)
    varies = width > 0
    width = tl.where(varies, width, 1.0)
    f = tl.where(varies[:, None], (bound[:, None] - score) / width[:, None], 1.0)
    d = shift - tl.sum(p * shift)
    reach = tl.max(tl.where(rho > NEVER, d, 0.0))
    found, s = searched(rho, f, d, most_kl, tl.maximum(reach, TINIEST), J)

    tilted = rho + s * d + tl.sum(found[:, None] * f, 0)
    top = tl.max(tilted)
    moved = (tl.max(found) > 0) | (s * reach > 0)
    q = tilted - (top + tl.log(tl.sum(tl.exp(tilted - top))))
    q, tau = repaired(tl.where(moved, q, rho), rho, score, bound, most_kl)
    mean = tl.sum(score * tl.exp(q)[None, :], 1)
    tl.store(log_q + row * count + lane, q, mask=real)
    tl.store(scale + row, s)
    tl.store(multipliers + row * bounded + i, found / width, mask=bound_there)
    tl.store(repair + row, tau)
    tl.store(expected + row * bounded + i, mean, mask=bound_there)
    tl.store(kl + row, divergence(q, rho))


def project_triton(call: BoundedShift) -> dict[str, Tensor]:
    """The fields of a `plugalign.kernels.projection.Projection`."""
    found = fields(call)
    with torch.cuda.device_of(call.log_rho):  # type: ignore[no-untyped-call]
        for launch in plan(call, found):
            launch.run()
    return found


def fields(call: BoundedShift) -> dict[str, Tensor]:
    """Memory for what a call finds."""
    sizes = {
        "log_q": call.log_rho.shape,
        "scale": call.budget.shape,
        "multipliers": call.bounds.shape,
        "repair": call.budget.shape,
        "expected": call.bounds.shape,
        "kl": call.budget.shape,
    }
    return {name: call.budget.new_empty(size) for name, size in sizes.items()}


def plan(
    call: BoundedShift, found: dict[str, Tensor], *, nvidia: bool | None = None
) -> list[Launch]:
    """The launch that writes all `fields`.

    Args:
        nvidia: whether it is for a GPU of NVIDIA, whose assembler needs to hear that all registers
            are the program's; from the tensors by default.
    """
    if nvidia is None:
        nvidia = call.log_rho.device.type == "cuda" and torch.version.hip is None
    (rows, count), bounded = call.log_rho.shape, call.g.shape[1]
    lanes = max(32, triton.next_power_of_2(count))
    chosen = {
        **vars(call),
        **found,
        "count": count,
        "bounded": bounded,
        "J": max(2, triton.next_power_of_2(bounded)),
        "K": lanes,
    }
    warps, registers = max(2, lanes // 64), REGISTERS if nvidia else None
    return [Launch(solve, (rows,), chosen, warps, registers=registers)]
