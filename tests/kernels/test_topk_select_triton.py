"""The kernels of topk_select against the torch reference, on a GPU or in the interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import each_level

from plugalign.kernels.launch import load_bound
from plugalign.kernels.topk_select import topk_select

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def make_logits(rows, vocab, dtype=torch.float32, stride=None, poison=300.0):
    """Logits in rows of ``stride`` whose padding would come first."""
    generator = torch.Generator().manual_seed(vocab)
    buffer = torch.full((rows, stride or vocab), poison, dtype=dtype)
    buffer[:, :vocab] = (torch.randn(rows, vocab, generator=generator) * 4).to(dtype)
    return buffer.to(DEVICE)[:, :vocab]


def run(logits, k, **choices):
    """The results of the planned launches, from memory that starts as rubbish."""
    from plugalign.kernels.topk_select_triton import plan

    values = torch.full((len(logits), k), 77.0, device=DEVICE)
    ids = torch.full((len(logits), k), -77, device=DEVICE)
    launches = plan(logits, values, ids, **choices)
    scratch = {name: x for launch in launches for name, x in launch.arguments.items()}
    for name in ("tops", "chosen", "low", "places"):
        scratch[name].fill_(2**30)
    for launch in launches:
        launch.run()
    for name in ("chosen", "places"):  # exactly k are chosen, and none beyond
        assert (scratch[name][:, k:] == 2**30).all()
    return values, ids


def assert_equal(found, expected):
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].nan_to_num(7.5), expected[0].nan_to_num(7.5))


def assert_equal_to_the_reference(logits, k, **choices):
    expected = topk_select(logits, k, backend="torch")
    assert_equal(run(logits, expected[0].shape[1], **choices), expected)


@each_level(vocab=[1, 2, 7, 127, 257, 1000], dtype=DTYPES)
def test_small_vocabularies(vocab, dtype):
    for k in sorted({min(vocab, 3), min(vocab, 50)}):
        assert_equal_to_the_reference(make_logits(1, vocab, dtype), k, tile=256, parts=2)
    found = topk_select(make_logits(2, vocab, dtype), 5, backend="triton")
    assert_equal(found, topk_select(make_logits(2, vocab, dtype), 5, backend="torch"))


@each_level(vocab=[32000, 50257, 128256, 2**18], dtype=DTYPES)
def test_real_vocabularies(vocab, dtype):
    tile = 2**15 if INTERPRETED else 2**11
    assert_equal_to_the_reference(make_logits(2, vocab, dtype), 50, tile=tile, parts=2)


@pytest.mark.parametrize("k", [200, 1024])
def test_large_k(k):
    tile = 2**15 if INTERPRETED else 2**11
    assert_equal_to_the_reference(make_logits(1, 50257, torch.bfloat16), k, tile=tile)


def test_all_there_is():
    for vocab in (16, 33, 130):
        assert_equal_to_the_reference(make_logits(2, vocab), vocab, tile=64)


@pytest.mark.parametrize(
    ("stride", "bound"), [(1031, 1001), (1040, 1008), (1008, 1008), (1001, 1001)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_taken(stride, bound, dtype):
    for poison in (300.0, NAN):
        logits = make_logits(2, 1001, dtype, stride, poison)
        assert load_bound(logits) == bound
        assert_equal_to_the_reference(logits, 12, tile=512, parts=2)


def test_tiles_parts_and_groups_change_nothing():
    logits = make_logits(2, 1503, torch.bfloat16)
    first = run(logits, 16)
    for tile, parts, size in ((64, 1, 8), (256, 5, 64), (512, 128, 16), (4096, 1, 32)):
        assert_equal(run(logits, 16, tile=tile, parts=parts, size=size), first)


def test_a_row_does_not_see_its_batch():
    logits = make_logits(3, 700)
    values, ids = run(logits, 9)
    for row in range(3):
        one = slice(row, row + 1)
        assert_equal(run(logits[one], 9), (values[one], ids[one]))


@pytest.mark.parametrize("levels", [1, 2, 9])
def test_of_equal_values_the_smaller_ids_come_first(levels):
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(levels, (2, 3000), generator=generator).to(torch.bfloat16).to(DEVICE)
    for k in (1, 60):
        assert_equal_to_the_reference(logits, k, tile=1024, parts=2)


def test_neighbours_crowd_into_few_groups():
    logits = torch.full((2, 3000), -10.0, device=DEVICE)
    logits[0, 1000:2000] = 5 + torch.arange(1000, device=DEVICE) * 1e-3
    logits[1, 2990:] = 3
    for k in (5, 60):
        assert_equal_to_the_reference(logits, k, tile=1024)


def test_special_rows():
    logits = make_logits(6, 600)
    logits[0] = -INF
    logits[1, 5:] = -INF
    logits[2, [411, 20]], logits[2, [0, 300]] = INF, NAN
    logits[3] = NAN
    logits[4] = torch.tensor([0.0, -0.0], device=DEVICE).repeat(300)
    logits[5, 100] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a signed NaN
    for k in (3, 40):
        assert_equal_to_the_reference(logits, k, tile=128, parts=3)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_odd_rows(data):
    special = st.sampled_from([-INF, INF, NAN, 0.0, -0.0, 1.0, 1.0, 3e4, -3e4])
    vocab = data.draw(st.integers(1, 70))
    # The interpreter, unlike a GPU, turns subnormal bfloat16 into other numbers.
    entry = st.one_of(st.floats(-20, 20, width=32, allow_subnormal=False), special)
    row = st.lists(entry, min_size=vocab, max_size=vocab)
    rows = data.draw(st.lists(row, min_size=1, max_size=2))
    logits = torch.tensor(rows, device=DEVICE).to(data.draw(st.sampled_from(DTYPES)))
    k = data.draw(st.integers(1, vocab))
    assert_equal_to_the_reference(logits, k, tile=64, parts=data.draw(st.integers(1, 2)))


def test_an_empty_batch():
    assert topk_select(make_logits(0, 9), 3, backend="triton")[1].shape == (0, 3)


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_on_new_logits():
    logits = make_logits(4, 50257, torch.bfloat16)
    topk_select(logits, 100, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = topk_select(logits, 100, backend="triton")
    for shift in (1, 77):
        logits.copy_(logits.roll(shift, 1))
        graph.replay()
        assert_equal(found, topk_select(logits, 100, backend="torch"))
