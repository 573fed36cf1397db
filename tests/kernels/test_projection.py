"""The I-projection against SLSQP, and what it promises for any shift."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from plugalign.kernels import projection_search
from plugalign.kernels.projection import project, project_in_order


def problem(rows=6, k=12, j=2, strength=2.0, slack=0.0, seed=0):
    make = torch.Generator().manual_seed(seed)
    log_rho = (2 * torch.randn(rows, k, generator=make, dtype=torch.float64)).log_softmax(-1)
    delta = strength * torch.randn(rows, k, generator=make, dtype=torch.float64)
    g = torch.rand(rows, j, k, generator=make, dtype=torch.float64)
    bounds = (g @ log_rho.exp()[..., None])[..., 0] + slack
    return log_rho, delta, g, bounds


def slsqp(log_rho, delta, g, bounds, kappa):
    """The minimum of KL(q || rho e^delta), found by a general solver over q itself, from several
    starts: near a minimum its line search may end for rounding alone, and says that it failed."""
    rho, d, g, b = (x.numpy() for x in (log_rho.exp(), delta, g, bounds))
    target = np.log(rho) + d
    target = target - np.logaddexp.reduce(target)

    def log(q):
        return np.log(np.clip(q, 1e-300, None))

    limits = [
        {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones_like(q)},
        {"type": "ineq", "fun": lambda q: b - g @ q, "jac": lambda q: -g},
    ]
    if math.isfinite(kappa):
        limits.append(
            {
                "type": "ineq",
                "fun": lambda q: kappa - (q * (log(q) - np.log(rho))).sum(),
                "jac": lambda q: -(log(q) - np.log(rho) + 1),
            }
        )
    found = [
        minimize(
            lambda q: (q * (log(q) - target)).sum(),
            (1 - share) * rho + share / len(rho),
            jac=lambda q: log(q) - target + 1,
            bounds=[(1e-12, 1)] * len(rho),
            constraints=limits,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        for share in (0.0, 0.1, 0.3, 0.6, 1.0)
    ]
    ended = [one.fun for one in found if one.success]
    assert ended, [one.message for one in found]
    return min(ended)


def duality_gap(found, log_rho, delta, g, bounds, kappa):
    """What q has above the Lagrangian's dual at its multipliers, so at most above the minimum, in
    nats for each nat of shift."""
    scale, multipliers = found.scale, found.multipliers
    tilt = scale[:, None] * delta - (multipliers[:, None] @ g)[:, 0]
    least = (log_rho + tilt).logsumexp(-1) + (multipliers * bounds).sum(-1)
    dual = (log_rho + delta).logsumexp(-1) - least / scale
    spent = torch.where(scale < 1, (1 / scale - 1) * kappa, 0.0)
    gap = kl_to_target(found.log_q, log_rho, delta) - (dual - spent)
    return gap / delta.abs().amax(-1).clamp(min=1)


def kl_to_target(log_q, log_rho, delta):
    target = (log_rho + delta).log_softmax(-1)
    return (log_q.exp() * (log_q - target)).sum(-1)


@pytest.mark.parametrize("kappa", [math.inf, 0.05, 0.5])
@pytest.mark.parametrize("j", [1, 2, 4])
def test_it_finds_the_minimum(j, kappa):
    parts = problem(rows=3, j=j, slack=0.01, seed=j)
    found = project(*parts, kappa)
    got = kl_to_target(found.log_q, *parts[:2])
    for row in range(len(got)):
        want = slsqp(*(part[row] for part in parts), kappa)
        assert float(got[row]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("seed", "row", "kappa"),
    [(15, 3, math.inf), (19, 4, math.inf), (23, 0, math.inf), (29, 5, math.inf), (29, 5, 0.5)],
)
def test_it_finds_the_minimum_where_four_bounds_nearly_agree(seed, row, kappa):
    parts = [part[row : row + 1] for part in problem(j=4, slack=0.01, seed=seed)]
    found = project(*parts, kappa)
    want = slsqp(*(part[0] for part in parts), kappa)
    assert float(kl_to_target(found.log_q, *parts[:2])) == pytest.approx(want, abs=1e-6)
    assert not found.repair.any()


@pytest.mark.parametrize("kappa", [0.001, 0.02, 0.5, math.inf])
@pytest.mark.parametrize("strength", [0.1, 3.0, 30.0, 1000.0])
def test_no_distribution_within_the_bounds_is_nearer(strength, kappa):
    """By duality, which needs no other solver: 576 rows."""
    for j, k, slack in product((1, 2, 3, 4), (2, 12, 256), (0.0, 0.01)):
        parts = problem(rows=6, k=k, j=j, strength=strength, slack=slack, seed=k + j)
        found = project(*parts, kappa)
        gap = duality_gap(found, *parts, kappa)
        assert float(gap.min()) >= -1e-11 and float(gap.max()) <= 1e-9
        assert not found.repair.any()


def test_bounds_that_say_the_same_do_not_stop_it():
    log_rho, delta, g, _ = problem(rows=20, k=9, j=4, strength=5.0)
    g[:, 1], g[:, 2], g[:, 3] = g[:, 0], 1 - g[:, 0], 0.3
    bounds = (g @ log_rho.exp()[..., None])[..., 0] + torch.tensor([0.01, 0.02, 0.0, 0.0])
    found = project(log_rho, delta, g, bounds)
    assert float(duality_gap(found, log_rho, delta, g, bounds, math.inf).max()) <= 1e-9
    assert float((found.expected - bounds).max()) <= 1e-12
    assert not found.multipliers[:, 3].any()


@pytest.mark.parametrize("kappa", [math.inf, 0.02])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_no_shift_passes_a_bound_or_the_budget(strength, dtype, kappa):
    log_rho, delta, g, _ = problem(rows=25, k=40, j=3, strength=strength)
    log_rho, delta, g = log_rho.to(dtype), delta.to(dtype), g.to(dtype)
    bounds = (g.double() @ log_rho.double().softmax(-1)[..., None])[..., 0]
    found = project(log_rho, delta, g, bounds, kappa)
    q = found.log_q.exp()
    excess = (g.double() @ q[..., None])[..., 0] - bounds
    assert float(excess.max()) <= 1e-9
    kl = (q * (found.log_q - log_rho.double().log_softmax(-1))).sum(-1)
    assert float(kl.max()) <= kappa + 1e-9
    torch.testing.assert_close(q.sum(-1), torch.ones(25, dtype=torch.float64))


@pytest.mark.parametrize("kappa", [math.inf, 0.02])
def test_what_a_search_leaves_unfinished_is_repaired(kappa, monkeypatch):
    monkeypatch.setattr(projection_search, "ROUNDS", 2)
    parts = problem(rows=20, slack=0.01, strength=5.0)
    found = project(*parts, kappa)
    assert bool((found.repair > 0).any())
    assert float((found.expected - parts[-1]).max()) <= 1e-9
    assert float(found.kl.max()) <= kappa + 1e-9


def test_without_a_shift_it_is_the_reference():
    log_rho, delta, g, bounds = problem(j=3)
    found = project(log_rho, 0 * delta, g, bounds, 0.1)
    assert torch.equal(found.log_q, log_rho)
    assert not found.multipliers.any() and not found.repair.any()


def test_without_limits_it_is_the_plain_sum():
    log_rho, delta, g, bounds = problem(strength=5.0)
    found = project(log_rho, delta, g, bounds + 1.0)
    torch.testing.assert_close(found.log_q, (log_rho + delta).log_softmax(-1))
    assert (found.scale == 1).all() and not found.multipliers.any()


def test_multipliers_act_only_where_a_bound_binds():
    parts = problem(rows=50, k=30, j=3, slack=0.02, strength=3.0)
    found, bounds = project(*parts), parts[-1]
    slackness = found.multipliers * (found.expected - bounds)
    assert float(slackness[found.repair == 0].abs().max()) <= 1e-9
    assert bool((found.multipliers > 0).any()) and bool((found.multipliers == 0).any())


def test_a_candidate_that_is_out_stays_out():
    log_rho, delta, g, _ = problem()
    log_rho[:, 3] = -math.inf
    bounds = (g @ log_rho.softmax(-1)[..., None])[..., 0]
    found = project(log_rho, delta, g, bounds, 0.3)
    assert bool((found.log_q[:, 3] == -math.inf).all())
    assert bool(found.log_q[:, :3].isfinite().all())


def test_no_budget_is_the_reference_alone():
    log_rho, delta, g, bounds = problem()
    assert torch.equal(project(log_rho, delta, g, bounds, 0.0).log_q, log_rho)


def test_a_budget_needs_no_bound():
    log_rho, delta, g, bounds = problem(strength=3.0)
    found = project(log_rho, delta, g[:, :0], bounds[:, :0], torch.linspace(0.1, 9, 6))
    want = (log_rho + found.scale[:, None] * delta).log_softmax(-1)
    torch.testing.assert_close(found.log_q, want)
    assert float(found.scale[0]) < 1 and float(found.scale[-1]) == 1


def ordered(slack, rows=12, k=20, j=3):
    log_rho, _, g, _ = problem(rows=rows, k=k, j=j)
    make = torch.Generator().manual_seed(5)
    shifts = 4 * torch.randn(rows, j + 1, k, generator=make, dtype=torch.float64)
    return log_rho, shifts, g, torch.full((j,), slack, dtype=torch.float64)


@pytest.mark.parametrize("slack", [0.0, 0.02])
def test_a_lower_principle_never_raises_a_higher_one_above_its_bound(slack):
    log_rho, shifts, g, slacks = ordered(slack)
    stages, bounds = project_in_order(log_rho, shifts[:, :3].unbind(1), g, slacks)
    last = project(stages[-1], shifts[:, 3], g, bounds, 0.3).log_q
    expected = torch.stack([(g @ q.exp()[..., None])[..., 0] for q in (*stages, last)], 1)
    for i in range(3):
        rise = expected[:, i + 1 :, i] - expected[:, i, i, None]
        assert float(rise.max()) <= slack + 1e-9
    fewer, above = project_in_order(log_rho, shifts[:, :2].unbind(1), g[:, :2], slacks[:2])
    assert torch.equal(above, bounds[:, :2])
    assert torch.equal(fewer[1], stages[1])


def test_one_projection_lets_a_lower_bound_raise_a_higher_one_up_to_its_bound():
    """Why there is an order: the candidate without either violation is unlikely."""
    log_rho = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
    g = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    delta = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    bounds = torch.tensor([[0.4, 0.4]], dtype=torch.float64)
    one, both = project(log_rho, delta, g[:, :1], bounds[:, :1]), project(log_rho, delta, g, bounds)
    assert float(one.expected[0, 0]) + 0.2 < float(both.expected[0, 0]) <= 0.4 + 1e-9


def test_stages_without_shifts_only_fix_bounds():
    log_rho, delta, g, _ = problem(j=2, strength=4.0)
    slack = torch.tensor([0.01, 0.02], dtype=torch.float64)
    for shifts in ([None, None], [0 * delta, 0 * delta]):
        stages, bounds = project_in_order(log_rho, shifts, g, slack)
        assert all(torch.equal(each, log_rho) for each in stages)
        torch.testing.assert_close(bounds, (g @ log_rho.exp()[..., None])[..., 0] + slack)


def test_stages_that_do_not_fit_are_refused():
    log_rho, shifts, g, slacks = ordered(0.0)
    with pytest.raises(ValueError, match=r"a shift for each of J principles .* got 4 and"):
        project_in_order(log_rho, shifts.unbind(1), g, slacks)
    with pytest.raises(ValueError, match=r"slack must be finite and at least 0, got -0\.1"):
        project_in_order(log_rho, [None] * 3, g, slacks - 0.1)


def test_rows_do_not_hang_together():
    parts = problem(rows=8, j=2, strength=4.0)
    together = project(*parts, 0.2).log_q
    for row in range(8):
        alone = project(*(part[row : row + 1] for part in parts), 0.2).log_q
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p[0][0], *p[1:]), r"log_rho must be \(R, K\)"),
        (lambda p: (p[0], p[1][:, 1:], *p[2:]), r"delta must be \(6, 12\), got \(6, 11\)"),
        (lambda p: (*p[:2], p[2][:, 0], p[3]), r"g must be \(R, J, K\)"),
        (lambda p: (*p[:3], p[3][:, :1]), r"bounds must be \(6, 2\), got \(6, 1\)"),
        (lambda p: (*p[:3], p[3] - 0.1), "a bound lies 0.1 below what the reference itself"),
        (lambda p: (p[0], p[1] * math.nan, *p[2:]), "delta must be finite"),
        (lambda p: (p[0] - math.inf, *p[1:]), "each row of log_rho needs a candidate"),
        (lambda p: (*p, -0.5), "the KL budget must be at least 0 nats, got -0.5"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        project(*change(problem()))
