"""The kernel of project against the specification, on a GPU or in the interpreter."""

from __future__ import annotations

import math
import os

import pytest
import torch

from plugalign.kernels.projection import project

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernel, warns of -inf - -inf in lanes that are masked out.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def problem(rows, k, j, strength, slack=0.01, dtype=torch.float64):
    make = torch.Generator().manual_seed(k + j)
    log_rho = (2 * torch.randn(rows, k, generator=make, dtype=torch.float64)).log_softmax(-1)
    delta = strength * torch.randn(rows, k, generator=make, dtype=torch.float64)
    g = torch.rand(rows, j, k, generator=make, dtype=torch.float64)
    log_rho, delta, g = (x.to(dtype) for x in (log_rho, delta, g))
    bounds = (g.double() @ log_rho.double().softmax(-1)[..., None])[..., 0] + slack
    return tuple(x.to(DEVICE) for x in (log_rho, delta, g, bounds))


def near(found, expected):
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("k", "j", "kappa"), [(5, 1, math.inf), (200, 3, 0.02), (256, 4, 0.5), (33, 0, 0.5)]
)
def test_it_is_the_specification(k, j, kappa):
    parts = problem(1, k, j, strength=3.0)
    near(project(*parts, kappa, backend="triton"), project(*parts, kappa, backend="torch"))


@pytest.mark.parametrize(
    ("dtype", "kappa"), [(torch.float64, math.inf), (torch.float32, 0.02), (torch.bfloat16, 0.5)]
)
def test_no_shift_passes_a_bound_or_the_budget(dtype, kappa):
    log_rho, delta, g, bounds = problem(1, 24, 2, 1000.0, slack=0.0, dtype=dtype)
    assert_within(project(log_rho, delta, g, bounds, kappa, backend="triton"), g, bounds, kappa)


@pytest.mark.skipif(not INTERPRETED, reason="what is compiled does not change")
@pytest.mark.parametrize("kappa", [0.02, math.inf])
def test_what_a_search_leaves_unfinished_is_repaired(kappa, monkeypatch):
    from plugalign.kernels import projection_triton

    monkeypatch.setattr(projection_triton, "ROUNDS", 3)
    log_rho, delta, g, bounds = problem(2, 24, 2, 5.0)
    found = project(log_rho, delta, g, bounds, kappa, backend="triton")
    assert bool((found.repair > 0).any())
    assert_within(found, g, bounds, kappa)


def assert_within(found, g, bounds, kappa):
    q = found.log_q.exp()
    assert float(((g.double() @ q[..., None])[..., 0] - bounds).max()) <= 1e-9
    assert float(found.kl.max()) <= kappa + 1e-9
    torch.testing.assert_close(q.sum(-1), torch.ones_like(found.kl))


def test_nothing_changes_without_a_shift_and_what_is_out_stays_out():
    log_rho, delta, g, bounds = problem(2, 12, 2, 3.0)
    assert torch.equal(project(log_rho, 0 * delta, g, bounds, backend="triton").log_q, log_rho)
    log_rho[:, 3] = -math.inf
    bounds = (g @ log_rho.softmax(-1)[..., None])[..., 0]
    found = project(log_rho, delta, g, bounds, 0.3, backend="triton")
    assert bool((found.log_q[:, 3] == -math.inf).all())
    assert bool(found.log_q[:, :3].isfinite().all())
    near(found, project(log_rho, delta, g, bounds, 0.3, backend="torch"))


def test_more_than_the_kernel_holds():
    for k, j in ((257, 1), (5, 5)):
        parts = problem(1, k, j, 1.0)
        with pytest.raises(ValueError, match="at most 4 bounds and 256 candidates"):
            project(*parts, backend="triton")
        assert project(*parts).log_q.shape == (1, k)
