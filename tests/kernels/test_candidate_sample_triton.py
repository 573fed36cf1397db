"""The kernel of candidate_sample against the torch reference, on a GPU or in the interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import each_level

from plugalign.kernels.calls import CandidateDraw
from plugalign.kernels.candidate_sample import candidate_sample

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernel, warns of inf - inf, a row without answer's logarithms.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def make_call(rows, count, dtype=torch.float32, seed=2**40 + 7, stride=None, poison=300.0):
    """Candidates in rows of ``stride`` whose padding would win every draw."""
    generator = torch.Generator().manual_seed(count)

    def padded(given, filler):
        buffer = torch.full((rows, stride or count), filler, dtype=given.dtype)
        buffer[:, :count] = given
        return buffer.to(DEVICE)[:, :count]

    ids = [torch.randperm(50257, generator=generator)[:count] for _ in range(rows)]
    values, added = torch.randn(2, rows, count, generator=generator) * 2
    numbers = torch.tensor([[1, 0.6, 2.5, 0], [1, 2, -0.5, 1], [1, 0.9, 0.4, 0.8]], device=DEVICE)
    return {
        "values": padded(values.to(dtype), poison),
        "ids": padded(torch.stack(ids) if ids else torch.empty(0, count, dtype=torch.int64), 5),
        "added": padded(added.to(dtype), poison),
        "seed": seed,
        "prompt": torch.arange(rows, device=DEVICE) + 2**31 - 1,
        "sample": torch.arange(rows, device=DEVICE) * 5,
        "step": torch.full((rows,), 17, device=DEVICE),
        "temperature": numbers[0, :rows].clone(),
        "weight": numbers[1, :rows].clone(),
        "top_p": numbers[2, :rows].clone(),
    }


def run(call):
    """The kernel's results without approximations, from memory that starts as rubbish."""
    from plugalign.kernels.candidate_sample_triton import plan

    tokens = torch.full((len(call["values"]),), -77, device=DEVICE)
    log_p = torch.full(call["values"].shape, 77.0, device=DEVICE)
    for launch in plan(CandidateDraw(**call), tokens, log_p, fast=False):
        launch.run()
    return tokens, log_p


def assert_equal_to_the_reference(call):
    tokens, log_p = run(call)
    expected = candidate_sample(**call, backend="torch")
    assert torch.equal(tokens, expected[0])
    assert torch.allclose(log_p, expected[1], rtol=1e-6, atol=4e-6, equal_nan=True)
    return tokens


@each_level(count=[1, 2, 7, 50, 127, 256, 1000, 1024], dtype=DTYPES)
def test_counts_and_dtypes(count, dtype):
    assert_equal_to_the_reference(make_call(4, count, dtype))


def test_the_public_function_takes_the_kernel():
    call = make_call(4, 60)
    found, expected = candidate_sample(**call, backend="triton"), run(call)
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], rtol=0, atol=4e-6)


@pytest.mark.parametrize("stride", [33, 37, 48])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_drawn(stride, dtype):
    plain = run(make_call(4, 33, dtype))
    for poison in (300.0, INF, NAN):
        call = make_call(4, 33, dtype, stride=stride, poison=poison)
        assert torch.equal(assert_equal_to_the_reference(call), plain[0])


def test_rows_of_different_strides():
    call, wide = make_call(4, 20), make_call(4, 20, stride=31)
    assert torch.equal(run(call | {"ids": wide["ids"]})[0], run(call)[0])
    assert torch.equal(run(call | {"added": wide["added"]})[1], run(call)[1])


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_seeds_of_all_sizes(seed):
    assert_equal_to_the_reference(make_call(4, 40, seed=seed))


@pytest.mark.parametrize("top_p", [0.0, 0.01, 0.3, 0.8, 1.0])
def test_many_draws_from_a_nucleus(top_p):
    rows = 24
    one = make_call(1, 25)
    call = one | {"prompt": torch.arange(rows, device=DEVICE)}
    for name, value in one.items():
        if name not in ("seed", "prompt"):
            call[name] = value.expand(rows, *value.shape[1:]).contiguous()
    call["top_p"].fill_(top_p)
    call["temperature"].fill_(4.0)
    drawn = len(set(assert_equal_to_the_reference(call).tolist()))
    assert drawn == 1 if top_p < 0.1 else drawn > 1


def test_a_row_does_not_see_its_batch():
    call = make_call(4, 70)
    tokens, log_p = run(call)
    for row in range(4):
        one = {name: call[name][row : row + 1] for name in call if name != "seed"}
        found = run(one | {"seed": call["seed"]})
        assert torch.equal(found[0], tokens[row : row + 1])
        assert torch.equal(found[1][0], log_p[row])


def test_ties_empty_slots_and_rows_without_an_answer():
    for top_p in (1.0, 0.5, 0.0):
        call = make_call(4, 30) | {"top_p": torch.full((4,), top_p, device=DEVICE)}
        call["values"][0] = -INF
        call["added"][1, 3] = NAN
        call["values"][2, 2:], call["added"][2, 2:] = -INF, NAN
        call["weight"][3] = 0
        call["values"][3], call["added"][3] = 2.0, NAN
        tokens = assert_equal_to_the_reference(call)
        assert tokens[:2].tolist() == [-1, -1]
        assert tokens[2] in call["ids"][2, :2]
        assert tokens[3] == call["ids"][3].min()  # a greedy row of equal scores
    call["values"][3, [4, 9]] = INF
    assert assert_equal_to_the_reference(call)[3] == call["ids"][3, [4, 9]].min()


def test_a_temperature_that_is_no_number_ends():
    call = make_call(4, 30)
    call["temperature"].fill_(NAN)
    assert run(call)[0].tolist() == [-1] * 4


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_odd_rows(data):
    special = st.sampled_from([-INF, 0.0, 1.0, 1.0, 88.0, -3e4])
    count = data.draw(st.integers(1, 20))
    entry = st.one_of(st.floats(-20, 20, width=32), special)
    row = st.lists(entry, min_size=count, max_size=count)
    call = make_call(1, count, seed=data.draw(st.integers(0, 2**64 - 1)))
    call["values"] = torch.tensor([data.draw(row)], device=DEVICE)
    call["top_p"].fill_(data.draw(st.sampled_from([0.0, 0.37, 0.83, 1.0])))
    assert_equal_to_the_reference(call)


def test_an_empty_batch():
    tokens, log_p = candidate_sample(**make_call(0, 9), backend="triton")
    assert tokens.shape == (0,) and log_p.shape == (0, 9)


def test_more_candidates_than_the_kernel_holds():
    with pytest.raises(ValueError, match="at most 1024 candidates, got 1025"):
        candidate_sample(**make_call(2, 1025), backend="triton")
    assert len(candidate_sample(**make_call(2, 1025), backend="auto")[0]) == 2


@pytest.mark.skipif(INTERPRETED, reason="the GPU's own logarithm")
def test_fast_noise_draws_the_same_tokens():
    call, different = make_call(4, 200), 0
    for step in range(64):
        now = call | {"step": step}
        pair = [candidate_sample(**now, backend=backend)[0] for backend in ("triton", "torch")]
        different += int((pair[0] != pair[1]).sum())
    assert different <= 1


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_new_steps():
    call = make_call(4, 200)
    candidate_sample(**call, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, _ = candidate_sample(**call, backend="triton")
    for step in (3, 4):
        call["step"].fill_(step)
        graph.replay()
        assert torch.equal(tokens, candidate_sample(**call, backend="triton")[0])
