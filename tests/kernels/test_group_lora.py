"""Grouped LoRA: the torch reference against float64 NumPy and models with merged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.kernels.group_lora import group_lora

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_call(groups, each, depth, width, rank, time=(), dtype=torch.float32):
    rows = (groups + 1) * each
    return {
        "y": normal(rows, *time, width, dtype=dtype),
        "x": normal(rows, *time, depth, seed=1, dtype=dtype),
        "a": (normal(groups, depth, rank, seed=2) / depth**0.5).to(dtype),
        "b": (normal(groups, rank, width, seed=3) / rank**0.5).to(dtype),
    }


def exact_sum(y, x, a, b, scaling):
    """``W_0 x + scaling * B A x`` of each group (Hu et al. 2021, equation 3), in float64."""
    y, x, a, b = (t.double().numpy().copy() for t in (y, x, a, b))
    scaling = np.broadcast_to(np.asarray(scaling, dtype=np.float64), len(a))
    each = len(y) // (len(a) + 1)
    for g in range(len(a)):
        rows = slice((g + 1) * each, (g + 2) * each)
        for place in np.ndindex(y[rows].shape[:-1]):
            y[rows][place] += scaling[g] * b[g].T @ (a[g].T @ x[rows][place])
    return y


def assert_rounded(found, exact):
    """``found`` is ``exact`` but for roundings of its type, of the product with ``a`` too."""
    eps = torch.finfo(found.dtype).eps
    allowed = eps * np.abs(exact) + (3 * eps + 2e-6) * max(1.0, np.abs(exact).max(initial=0))
    assert (np.abs(found.double().numpy() - exact) <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [(), (1,), (7,)])
@pytest.mark.parametrize("scaling", [2.0, torch.tensor([0.5, -1.0, 0.0])])
def test_equals_float64(scaling, time, dtype):
    call = make_call(3, 4, 33, 50, 6, time, dtype)
    expected = exact_sum(**call, scaling=scaling)
    base = call["y"][:4].clone()
    found = group_lora(**call, scaling=scaling)
    assert found is call["y"]
    assert_rounded(found, expected)
    assert torch.equal(found[:4], base)


def test_equals_models_with_merged_weights():
    weight, scaling = normal(48, 32, seed=5) / 6, 16 / 8
    call = make_call(2, 5, 32, 48, 8, (3,))
    call["y"] = call["x"] @ weight.T
    found = group_lora(**call, scaling=scaling).view(3, 5, 3, 48)
    x = call["x"].view(3, 5, 3, 32)
    for group, model in enumerate(found):
        merged = weight.double()
        if group:
            change = call["a"][group - 1].double() @ call["b"][group - 1].double()
            merged = merged + scaling * change.T
        expected = x[group].double() @ merged.T
        assert torch.allclose(model.double(), expected, rtol=0, atol=5e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_dtype_and_layout(data):
    groups, each, depth, width, rank = (
        data.draw(st.integers(low, most))
        for low, most in ((1, 4), (0, 5), (1, 40), (1, 40), (1, 70))
    )
    time = data.draw(st.sampled_from([(), (1,), (3,)]))
    call = make_call(groups, each, depth, width, rank, time, data.draw(st.sampled_from(DTYPES)))
    if data.draw(st.booleans()):  # as PEFT keeps them: A is (r, i) and B is (o, r)
        for name in ("a", "b"):
            call[name] = call[name].transpose(1, 2).contiguous().transpose(1, 2)
    buffers = {name: torch.full((*call[name].shape[:-1], 50), NAN) for name in ("y", "x")}
    for name, buffer in buffers.items():
        view = buffer.to(call[name].dtype)[..., : call[name].shape[-1]]
        call[name] = view.copy_(call[name])
    scaling = data.draw(st.sampled_from([1.0, -0.25, torch.tensor(3.0)]))
    expected = exact_sum(**call, scaling=scaling)
    assert_rounded(group_lora(**call, scaling=scaling), expected)


def test_the_last_token_of_a_longer_text():
    call = make_call(2, 3, 20, 30, 4, (6,))
    call = call | {name: call[name][:, -1:] for name in ("y", "x")}
    expected = exact_sum(**call, scaling=1.5)
    assert_rounded(group_lora(**call, scaling=1.5), expected)


def test_no_scaling_and_no_rows():
    call = make_call(2, 3, 8, 8, 4)
    before = call["y"].clone()
    assert torch.equal(group_lora(**call, scaling=0.0), before)
    assert group_lora(**make_call(2, 0, 8, 8, 4)).shape == (0, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.zeros(6)}, r"y and x must be \(rows, width\).*got \(6,\)"),
        ({"x": torch.zeros(5, 4)}, r"got \(6, 5\) and \(5, 4\)"),
        ({"x": torch.zeros(6, 1, 4)}, r"got \(6, 5\) and \(6, 1, 4\)"),
        ({"x": torch.zeros(6, 4).half()}, "torch.float32, torch.float16, torch.float32"),
        ({"b": torch.zeros(2, 3, 5, device="meta")}, "one device, got cpu, cpu, cpu and meta"),
        ({"y": torch.zeros(5, 6).T}, "each row of y must be contiguous"),
        ({"x": torch.zeros(4, 6).T}, "each row of x must be contiguous"),
        ({"y": torch.zeros(5).expand(6, 5)}, "y is written in place and its rows overlap"),
        ({"a": torch.zeros(4, 3)}, r"a must be \(G, i, r\).*got \(4, 3\)"),
        ({"a": torch.zeros(0, 4, 3)}, r"a must be \(G, i, r\)"),
        ({"a": torch.zeros(2, 4, 257)}, "r between 1 and 256"),
        ({"a": torch.zeros(2, 5, 3)}, r"a and b must be \(2, 4, 3\) and \(2, 3, 5\)"),
        ({"b": torch.zeros(2, 3, 6)}, r"got \(2, 4, 3\) and \(2, 3, 6\)"),
        ({"y": torch.zeros(7, 5), "x": torch.zeros(7, 4)}, "multiple of 3, got 7"),
        ({"scaling": NAN}, "scaling must be finite, got nan"),
        ({"scaling": torch.tensor([1.0, NAN])}, "scaling must be finite"),
        ({"scaling": torch.zeros(3)}, r"scaling must be a number or torch.float32 of shape \(2,\)"),
        ({"backend": "gpu"}, "backend must be"),
    ],
)
def test_bad_input(changes, message):
    call = {
        "y": torch.zeros(6, 5),
        "x": torch.zeros(6, 4),
        "a": torch.zeros(2, 4, 3),
        "b": torch.zeros(2, 3, 5),
    }
    with pytest.raises(ValueError, match=message):
        group_lora(**(call | changes))


def test_rows_and_times_that_are_not_evenly_spaced():
    call = make_call(2, 3, 20, 30, 4, (6,))
    with pytest.raises(ValueError, match=r"rows and times of x must be evenly spaced"):
        group_lora(call["y"][:, :4].contiguous(), call["x"][:, :4], call["a"], call["b"])
