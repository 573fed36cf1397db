"""The Triton kernels against the torch reference, token for token and score for score.

They run on a GPU, or in Triton's interpreter when TRITON_INTERPRET=1 stands before Triton is
imported; test_interpreted.py runs this file so.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import each_level

from plugalign.kernels.gumbel import gumbel_noise, sample
from plugalign.kernels.launch import load_bound

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def make_call(rows, vocab, dtype=torch.float32, seed=2**40 + 7, stride=None, poison=300.0):
    """Logits in rows of ``stride`` whose padding would win every draw, and the other arguments."""
    generator = torch.Generator().manual_seed(vocab)
    buffer = torch.full((rows, stride or vocab), poison, dtype=dtype)
    buffer[:, :vocab] = (torch.randn(rows, vocab, generator=generator) * 4).to(dtype)
    return {
        "logits": buffer.to(DEVICE)[:, :vocab],
        "seed": seed,
        "prompt": torch.arange(rows, device=DEVICE) + 2**31 - 1,
        "sample": torch.arange(rows, device=DEVICE) * 5,
        "step": torch.full((rows,), 17, device=DEVICE),
        "temperature": torch.tensor([1.0, 0.0, 0.6, 2.5], device=DEVICE)[:rows].clone(),
    }


def run(call, **choices):
    """Tokens and, by row, the best score of all parts, from memory that starts as rubbish."""
    from plugalign.kernels.gumbel_triton import plan

    tokens = torch.full((len(call["logits"]),), -77, device=DEVICE)
    sweep, merge = plan(**call, tokens=tokens, fast=False, **choices)
    sweep.arguments["part_score"].fill_(NAN)
    sweep.arguments["part_token"].fill_(-77)
    sweep.run()
    merge.run()
    return tokens, sweep.arguments["part_score"].amax(-1)


def assert_equal_to_the_reference(call, **choices):
    tokens, scores = run(call, **choices)
    expected = sample(**call, backend="torch")
    assert torch.equal(tokens, expected)
    noise = gumbel_noise(tokens, call["step"], call["prompt"], call["sample"], call["seed"])
    logit = call["logits"].float().gather(1, tokens[:, None])[:, 0]
    assert torch.equal(scores, logit + call["temperature"] * noise)


@each_level(vocab=[1, 2, 7, 127, 257, 1000], dtype=DTYPES)
def test_small_vocabularies(vocab, dtype):
    assert_equal_to_the_reference(make_call(4, vocab, dtype), tile=256, parts=3)
    assert torch.equal(sample(**make_call(4, vocab), backend="triton"), run(make_call(4, vocab))[0])


@each_level(vocab=[32000, 50257, 128256], dtype=DTYPES)
def test_real_vocabularies(vocab, dtype):
    tile = 2**15 if INTERPRETED else 2**11
    assert_equal_to_the_reference(make_call(2, vocab, dtype), tile=tile, parts=2)


@pytest.mark.parametrize(
    ("stride", "bound"), [(1031, 1001), (1040, 1008), (1008, 1008), (1001, 1001)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_drawn(stride, bound, dtype):
    for poison in (300.0, INF, NAN):
        call = make_call(2, 1001, dtype, stride=stride, poison=poison)
        assert load_bound(call["logits"]) == bound
        assert_equal_to_the_reference(call, tile=256, parts=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_begin_anywhere(dtype):
    for first in (1, 4, 8):
        call = make_call(3, 700 + first, dtype, stride=720)
        assert_equal_to_the_reference(
            call | {"logits": call["logits"][:, first:]}, tile=128, parts=2
        )


def test_the_last_row_may_end_its_storage():
    whole = make_call(3, 1001, stride=1008)
    short = torch.empty(2 * 1008 + 1001, device=DEVICE).as_strided((3, 1001), (1008, 1))
    short.copy_(whole["logits"])
    assert load_bound(short) == 1001
    assert torch.equal(run(whole | {"logits": short})[0], run(whole)[0])


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_seeds_of_all_sizes(seed):
    assert_equal_to_the_reference(make_call(4, 300, seed=seed), tile=128)


def test_tiles_and_parts_change_nothing():
    call = make_call(4, 2003, torch.bfloat16)
    tokens, scores = run(call)
    for tile, parts in ((64, 1), (256, 5), (512, 128), (4096, 1)):
        other = run(call, tile=tile, parts=parts)
        assert torch.equal(other[0], tokens) and torch.equal(other[1], scores)


def test_a_row_does_not_see_its_batch():
    call = make_call(4, 700)
    tokens, _ = run(call)
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in call.items() if name != "seed"}
        assert torch.equal(run(one | {"seed": call["seed"]})[0], tokens[row : row + 1])


def test_ties_infinities_and_rows_without_an_answer():
    call = make_call(4, 600) | {"temperature": torch.zeros(4, device=DEVICE)}
    call["logits"][0] = -INF
    call["logits"][1, [599, 37, 400]] = 50.0
    call["logits"][2, 300] = NAN
    call["logits"][3, [411, 20]] = INF
    for temperature in (0.0, 1.0):
        for parts in (1, 5):
            tokens, _ = run(
                call | {"temperature": call["temperature"] + temperature}, tile=64, parts=parts
            )
            drawn = [37] if temperature == 0 else [37, 400, 599]
            assert tokens[1] in drawn and tokens[[0, 2, 3]].tolist() == [-1, -1, 20]
            expected = sample(**(call | {"temperature": temperature}), backend="torch")
            assert torch.equal(tokens, expected)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_odd_rows(data):
    special = st.sampled_from([-INF, 0.0, 1.0, 1.0, 88.0, 3e4, -3e4])
    vocab = data.draw(st.integers(1, 70))
    entry = st.one_of(st.floats(-20, 20, width=32), special)
    rows = data.draw(
        st.lists(st.lists(entry, min_size=vocab, max_size=vocab), min_size=1, max_size=3)
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    call = make_call(len(rows), vocab, seed=data.draw(st.integers(0, 2**64 - 1)))
    call["logits"] = torch.tensor(rows, device=DEVICE).to(dtype)
    tokens, _ = run(call, tile=32, parts=data.draw(st.integers(1, 3)))
    assert torch.equal(tokens, sample(**call, backend="torch"))


def test_an_empty_batch():
    assert sample(**make_call(0, 9), backend="triton").shape == (0,)


@pytest.mark.skipif(INTERPRETED, reason="the GPU's own logarithm")
def test_fast_noise_draws_the_same_tokens():
    call, different = make_call(4, 50257), 0
    for step in range(64):
        now = call | {"step": step}
        pair = [sample(**now, backend=backend) for backend in ("triton", "torch")]
        different += int((pair[0] != pair[1]).sum())
    assert different <= 1


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_new_steps():
    call = make_call(4, 50257)
    sample(**call, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample(**call, backend="triton")
    for step in (3, 4):
        call["step"].fill_(step)
        graph.replay()
        assert torch.equal(tokens, sample(**call, backend="triton"))
