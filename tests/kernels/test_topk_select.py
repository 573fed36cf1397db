"""The k best tokens: the torch reference against a full sort by (value, then smaller id)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.kernels.topk_select import _best, takes_triton, topk_select

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def expected(logits, k):
    """The first k of each row in order: NaNs, then by falling value, then by rising id."""
    x = logits.double().numpy()
    ids = np.broadcast_to(np.arange(x.shape[1]), x.shape)
    order = np.lexsort((ids, -np.nan_to_num(x, nan=0), ~np.isnan(x)))[:, :k]
    return np.take_along_axis(x, order, 1), order


def assert_selects(logits, k):
    values, ids = topk_select(logits, k)
    best, order = expected(logits, k)
    assert values.dtype == torch.float32 and ids.dtype == torch.int64
    assert np.array_equal(ids.numpy(), order)
    assert np.array_equal(values.double().numpy(), best, equal_nan=True)
    assert torch.equal(_best(logits.float(), min(k, logits.shape[1])), ids)


def make_logits(rows, vocab, dtype=torch.float32, spread=4.0):
    generator = torch.Generator().manual_seed(vocab)
    return (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 7, 127, 257, 1000, 32000, 50257, 128256])
def test_equals_a_full_sort(vocab, dtype):
    logits = make_logits(2, vocab, dtype)
    for k in {1, 2, 50, 256, 1024, min(vocab, 3000)}:
        assert_selects(logits, k)


def test_more_than_there_are():
    logits = make_logits(3, 20)
    for k in (20, 21, 5000):
        values, ids = topk_select(logits, k)
        assert values.shape == ids.shape == (3, 20)
        assert_selects(logits, k)


@pytest.mark.parametrize("levels", [1, 2, 30])
def test_of_equal_values_the_smaller_ids_come_first(levels):
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(levels, (4, 3000), generator=generator).float()
    for k in (1, 7, 256, 2999):
        assert_selects(logits, k)


def test_neighbours_crowd_into_few_places():
    logits = torch.full((2, 5000), -10.0)
    logits[0, 1000:3000] = 5 + torch.arange(2000) * 1e-3
    logits[1, 4990:] = 3
    for k in (5, 200, 1500):
        assert_selects(logits, k)


value = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([-INF, INF, NAN, 0.0, -0.0, 1.0, 1e-40, -1e-40, 3e38, -3e38]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_odd_rows(data):
    vocab = data.draw(st.integers(1, 60))
    row = st.lists(value, min_size=vocab, max_size=vocab)
    rows = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    assert_selects(rows.to(data.draw(st.sampled_from(DTYPES))), data.draw(st.integers(1, 64)))


def test_special_values():
    row = torch.tensor([[2.0, -INF, 0.0, -0.0, NAN, INF, -INF, -NAN, 0.0]])
    row[0, 7] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a NaN with a sign
    values, ids = topk_select(row, 9)
    assert ids.tolist() == [[4, 7, 5, 0, 2, 3, 8, 1, 6]]
    assert values[0, :2].isnan().all() and values[0, 2:].tolist() == [INF, 2, 0, 0, 0, -INF, -INF]
    nothing = topk_select(torch.full((2, 300), -INF), 4)
    assert nothing[1].tolist() == [[0, 1, 2, 3]] * 2 and (nothing[0] == -INF).all()
    assert_selects(torch.full((1, 300), NAN), 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_and_other_rows_do_not_matter(dtype):
    logits = make_logits(5, 1001, dtype)
    values, ids = topk_select(logits, 40)
    for poison in (300.0, NAN):
        padded = torch.full((5, 1031), poison, dtype=dtype)
        padded[:, :1001] = logits
        found = topk_select(padded[:, :1001], 40)
        assert torch.equal(found[0], values) and torch.equal(found[1], ids)
    for row in range(5):
        assert torch.equal(topk_select(logits[row : row + 1], 40)[1][0], ids[row])


def test_an_empty_batch():
    values, ids = topk_select(torch.empty(0, 9), 4)
    assert values.shape == ids.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(5)}, r"logits must be \(B, V\).*got \(5,\)"),
        ({"logits": torch.zeros(2, 0)}, "V >= 1"),
        ({"logits": torch.zeros(2, 5, dtype=torch.float64)}, "torch.float64"),
        ({"logits": torch.zeros(5, 2).T}, r"strides \(1, 2\); call .contiguous"),
        ({"k": 0}, "k must be an int of at least 1, got 0"),
        ({"k": 2.0}, "k must be an int of at least 1, got 2.0"),
        ({"backend": "cuda"}, "backend must be .*got 'cuda'"),
        ({"backend": "triton"}, 'needs a CUDA tensor, got one on cpu; take "auto"'),
    ],
)
def test_bad_input(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        topk_select(**({"logits": torch.zeros(2, 5), "k": 3} | change))


def test_what_is_too_large_for_the_kernels(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    wide = torch.zeros(1, 2**18 + 1)
    assert takes_triton("triton", wide[:, 1:], 1024)
    assert takes_triton("triton", wide[:, :300], 5000)
    assert not takes_triton("auto", wide, 4)
    for logits, k in ((wide, 4), (wide[:, :2000], 1025)):
        with pytest.raises(ValueError, match=rf'k <= 1024 .* got k = {k} of .*; take "auto"'):
            topk_select(logits, k, backend="triton")


def test_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from plugalign.kernels.topk_select import topk_select\n"
        "assert topk_select(torch.arange(6.0)[None], 2)[1].tolist() == [[5, 4]]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
