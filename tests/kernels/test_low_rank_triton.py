"""The kernels of low_rank against the torch twin, on a GPU or in the interpreter
(test_interpreted.py)."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise

from plugalign.kernels.low_rank import low_rank_hidden, low_rank_logits

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernels, warns of what infinities and NaNs do in a product.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def in_rows_of(x, stride, poison=NAN):
    """``x`` as a view of rows of ``stride`` entries, and the whole of them."""
    buffer = torch.full((len(x), max(stride, x.shape[1])), poison, dtype=x.dtype, device=DEVICE)
    buffer[:, : x.shape[1]] = x
    return buffer[:, : x.shape[1]], buffer


def make_call(rows, vocab, depth=40, rank=5, dtype=torch.float32):
    return {
        "x": (normal(rows, vocab) * 4).to(dtype),
        "hidden": normal(rows, depth, seed=1).to(dtype),
        "left": normal(vocab, rank, seed=2),
        "right": normal(depth, rank, seed=3) / depth**0.5,
        "center": normal(depth, seed=4),
        "share": normal(rows, seed=5),
    }


def run(call, **choices):
    """The launches on a copy of ``x``, with coefficients that start as rubbish."""
    from plugalign.kernels.low_rank_triton import plan

    call = call | {"x": copy_of(call["x"])}
    read, sweep = plan(**call, number=0.5, **choices)
    read.arguments["coefficients"].fill_(NAN)
    read.run()
    sweep.run()
    return call["x"]


def copy_of(x):
    """``x`` with its own memory and the same strides, padding included."""
    return x.clone() if x.is_contiguous() else in_rows_of(x, x.stride(0))[0]


def twin(call):
    shift = {name: call[name] for name in ("hidden", "left", "right", "center")}
    return low_rank_logits(copy_of(call["x"]), **shift, share=call["share"] * 0.5, backend="torch")


def assert_close(found, expected):
    """Equal but for the order of float32 sums, which may round a bfloat16 the other way."""
    scale = 1 + float(expected.float().nan_to_num(0, 0, 0).abs().amax()) if len(expected) else 1.0
    eps = torch.finfo(found.dtype).eps
    close = torch.isclose(
        found.float(), expected.float(), rtol=eps, atol=2e-6 * scale, equal_nan=True
    )
    assert bool(close.all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "stride"), [(1, 1), (2, 5), (7, 16), (127, 127), (257, 272), (1000, 1003)]
)
def test_small_vocabularies(vocab, stride, dtype):
    call = make_call(3, vocab, dtype=dtype)
    expected = twin(call)
    for poison in (300.0, NAN):
        call["x"], buffer = in_rows_of(call["x"], stride, poison)
        before = buffer[:, vocab:].clone()
        low_rank_logits(
            call["x"],
            call["hidden"],
            call["left"],
            call["right"],
            center=call["center"],
            share=call["share"] * 0.5,
            backend="triton",
        )
        assert_close(call["x"], expected)
        assert torch.equal(buffer[:, vocab:].nan_to_num(7.0), before.nan_to_num(7.0))
        call["x"] = make_call(3, vocab, dtype=dtype)["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [32000, 50257, 128256])
def test_real_vocabularies(vocab, dtype):
    call = make_call(2, vocab, dtype=dtype)
    assert_close(run(call, columns=2**13 if INTERPRETED else 64), twin(call))


@pytest.mark.parametrize("rank", [1, 16, 17, 128])
def test_ranks_and_layouts_of_the_factors(rank):
    call = make_call(2, 130, depth=530, rank=rank)
    expected = twin(call)
    assert_close(run(call), expected)
    for name in ("left", "right"):
        call[name] = call[name].T.contiguous().T
    assert_close(run(call), expected)
    for name in ("left", "right"):
        call[name] = in_rows_of(call[name], rank + 3)[0]
    assert_close(run(call), expected)


def test_tiles_parts_and_the_batch_change_the_rounding_alone():
    call = make_call(33, 150, depth=1100)
    expected = twin(call)
    assert_close(run(call), expected)
    for columns, parts in ((16, 1), (128, 2), (256, 9)):
        few = call | {name: call[name][5:9] for name in ("x", "hidden", "share")}
        assert_close(run(few, columns=columns, parts=parts), expected[5:9])


@pairwise(row=[(5, 5), (200, 208), (333, 350)], rank=[1, 4, 40], dtype=DTYPES)
def test_hidden_states(row, rank, dtype):
    width, stride = row
    left, right = normal(width, rank, seed=1), normal(width, rank, seed=2) / width
    share, center = normal(3, seed=4), normal(width, seed=3).to(dtype)
    for choice in ({}, {"center": center, "share": share}):
        hidden, buffer = in_rows_of(normal(3, width).to(dtype), stride)
        expected = low_rank_hidden(hidden.clone(), left, right, **choice, backend="torch")
        assert low_rank_hidden(hidden, left, right, **choice, backend="triton") is hidden
        assert_close(hidden, expected)
        assert buffer[:, width:].isnan().all()


def test_infinities_and_nans_stay_where_they_were():
    call = make_call(5, 200) | {"center": None}
    call["hidden"][1, 3], call["hidden"][4, 2] = NAN, INF
    call["x"][0, :40], call["x"][2], call["x"][3, 7:9] = -INF, -INF, normal(2) / 0
    assert_close(run(call), twin(call))
    hidden = call["hidden"].clone()
    expected = low_rank_hidden(hidden.clone(), call["right"], call["right"], backend="torch")
    found = low_rank_hidden(hidden, call["right"], call["right"], backend="triton")
    assert torch.allclose(found, expected, equal_nan=True, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 9])
def test_the_padding_of_a_nan_row_is_left_alone(rank):
    basis = normal(50, rank)
    hidden, buffer = in_rows_of(torch.full((2, 50), NAN, device=DEVICE), 64, 300.0)
    low_rank_hidden(hidden, basis, basis, backend="triton")
    assert hidden.isnan().all() and (buffer[:, 50:] == 300).all()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape(data):
    rows, vocab, depth = (data.draw(st.integers(1, most)) for most in (18, 90, 300))
    rank, dtype = data.draw(st.integers(1, 40)), data.draw(st.sampled_from(DTYPES))
    call = make_call(rows, vocab, depth, rank, dtype)
    call["x"], _ = in_rows_of(call["x"], vocab + data.draw(st.integers(0, 20)))
    if data.draw(st.booleans()):
        call["left"] = call["left"].to(torch.bfloat16)
    assert_close(run(call, columns=data.draw(st.sampled_from([16, 64]))), twin(call))


def test_an_empty_batch():
    call = make_call(0, 9)
    assert run(call).shape == (0, 9)
    assert low_rank_hidden(
        call["hidden"], call["right"], call["right"], backend="triton"
    ).shape == (
        0,
        40,
    )


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_new_states():
    call = make_call(4, 50257, depth=1024, rank=40)
    share = call["share"] * 0.5

    def shift(x):
        factors = call["left"], call["right"]
        return low_rank_logits(x, call["hidden"], *factors, share=share, backend="triton")

    shift(call["x"].clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        shifted = shift(call["x"].clone())
    for seed in (8, 9):
        call["hidden"].copy_(normal(4, 1024, seed=seed))
        graph.replay()
        assert torch.equal(shifted, shift(call["x"].clone()))
