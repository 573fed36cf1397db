"""The kernel of group_lora against the torch reference, on a GPU or in the interpreter
(test_interpreted.py)."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise

from plugalign.kernels.group_lora import group_lora

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernel, warns of what infinities and NaNs do in a product.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def in_rows_of(x, stride, poison=NAN):
    """``x`` as a view of rows of ``stride`` entries, and the whole of them."""
    shape = (*x.shape[:-1], max(stride, x.shape[-1]))
    buffer = torch.full(shape, poison, dtype=x.dtype, device=DEVICE)
    buffer[..., : x.shape[-1]] = x
    return buffer[..., : x.shape[-1]], buffer


def make_call(groups, each, depth, width, rank, dtype=torch.float32, time=()):
    rows = (groups + 1) * each
    return {
        "y": normal(rows, *time, width).to(dtype),
        "x": normal(rows, *time, depth, seed=1).to(dtype),
        "a": (normal(groups, depth, rank, seed=2) / depth**0.5).to(dtype),
        "b": (normal(groups, rank, width, seed=3) / rank**0.5).to(dtype),
    }


def assert_equal_to_the_reference(call, scaling=1.5):
    expected = group_lora(**call | {"y": call["y"].clone()}, scaling=scaling, backend="torch")
    found = group_lora(**call, scaling=scaling, backend="triton")
    assert found is call["y"]
    # Sums in another order round the product with `a`, or the result, the other way.
    eps = torch.finfo(found.dtype).eps
    scale = float(expected.float().abs().amax()) if expected.numel() else 0.0
    close = torch.isclose(found.float(), expected.float(), rtol=eps, atol=(eps + 2e-6) * scale)
    assert bool(close.all())


@pairwise(size=[(1, 1), (2, 1), (3, 4), (2, 17)], time=[(), (1,), (5,)], dtype=DTYPES)
def test_groups_and_rows(size, time, dtype):
    groups, each = size
    call = make_call(groups, each, 72, 90, 8, dtype, time)
    base = call["y"][:each].clone()
    assert_equal_to_the_reference(call)
    assert torch.equal(call["y"][:each], base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 7, 16, 33, 256])
def test_ranks_and_layouts_of_the_adapters(rank, dtype):
    call = make_call(2, 3, 200, 70, rank, dtype)
    assert_equal_to_the_reference(call)
    for name in ("a", "b"):  # as PEFT keeps them: A is (r, i) and B is (o, r)
        call[name] = call[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_equal_to_the_reference(call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "stride"), [(1, 1), (50, 64), (64, 64), (63, 70), (127, 128)])
def test_padding_is_left_alone(width, stride, dtype):
    for poison in (300.0, NAN):
        call = make_call(2, 2, width, width, 4, dtype)
        call["y"], buffer = in_rows_of(call["y"], stride, poison)
        call["x"], _ = in_rows_of(call["x"], stride, poison)
        before = buffer[:, width:].clone()
        assert_equal_to_the_reference(call)
        assert torch.equal(buffer[:, width:].nan_to_num(7.0), before.nan_to_num(7.0))


def test_padding_that_is_the_next_group_is_not_written():
    from plugalign.kernels.group_lora_triton import plan

    # One row a group: the stride from row to row says nothing of where the next group begins.
    y = torch.zeros(192, device=DEVICE).as_strided((2, 1, 50), (50, 64, 1))
    call = make_call(2, 1, 20, 50, 4)
    (launch,) = plan(y, call["x"][1:, None], call["a"], call["b"], 1.0, None)
    assert launch.arguments["bound"] == 50


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans_stay_in_their_row(dtype):
    call = make_call(1, 4, 20, 50, 1, dtype)
    call["x"][5, 3], call["x"][6, 2], call["y"][7, 9] = NAN, INF, -INF
    expected = group_lora(**call | {"y": call["y"].clone()}, backend="torch")
    found = group_lora(**call, backend="triton")
    for of in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(of(found), of(expected))
    assert found[5].isnan().all() and not found[[0, 1, 2, 3, 4, 6, 7]].isnan().any()


def test_the_padding_of_a_nan_row_is_left_alone():
    call = make_call(2, 2, 20, 50, 4)
    call["y"], buffer = in_rows_of(call["y"], 64, 300.0)
    call["x"].fill_(NAN)
    group_lora(**call, backend="triton")
    assert call["y"][2:].isnan().all() and (buffer[:, 50:] == 300).all()


def test_the_first_product_is_rounded_as_the_reference_rounds_it():
    call = make_call(1, 1, 2, 3, 1, torch.bfloat16)
    call["x"][:], call["a"][:] = 1.0, torch.tensor([[1.0], [2.0**-9]], device=DEVICE)
    call["y"][:], call["b"][:] = -512.0, 512.0
    assert (group_lora(**call, backend="triton")[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaling_for_each_group(dtype):
    call = make_call(3, 2, 40, 50, 8, dtype)
    assert_equal_to_the_reference(call, scaling=torch.tensor([0.5, -1.0, 0.0], device=DEVICE))


def test_columns_change_nothing():
    from plugalign.kernels.group_lora_triton import plan

    call = make_call(2, 3, 40, 300, 8)
    call = {name: value[3:] if name in "xy" else value for name, value in call.items()}
    results = []
    for columns in (None, 16, 128, 512):
        y = call["y"].view(2, 3, 300).clone()
        x = call["x"].view(2, 3, 40)
        (launch,) = plan(y, x, call["a"], call["b"], 0.5, None, columns=columns)
        launch.run()
        results.append(y)
    assert all(torch.allclose(y, results[0], rtol=0, atol=1e-6) for y in results)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape(data):
    groups, each, depth, width, rank = (
        data.draw(st.integers(low, most))
        for low, most in ((1, 3), (0, 5), (1, 150), (1, 100), (1, 40))
    )
    call = make_call(groups, each, depth, width, rank, data.draw(st.sampled_from(DTYPES)))
    for name in ("y", "x"):
        call[name], _ = in_rows_of(call[name], data.draw(st.integers(0, 170)))
    assert_equal_to_the_reference(call, scaling=data.draw(st.floats(-2, 2, width=32)))


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_new_rows():
    call = make_call(2, 4, 1024, 1024, 16, torch.bfloat16)
    call["y"].zero_()
    group_lora(**call, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = group_lora(**call | {"y": torch.zeros_like(call["y"])}, backend="triton")
    for seed in (8, 9):
        call["x"].copy_(normal(12, 1024, seed=seed))
        graph.replay()
        again = group_lora(**call | {"y": torch.zeros_like(call["y"])}, backend="triton")
        assert torch.equal(found, again)
