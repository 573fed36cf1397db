"""Truncations against plain float64 NumPy, with ties, edges and the GPU's operations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise

from plugalign.kernels.truncation import Truncation, _mask_by_topk, kept_entries, kept_mask

VOCABULARIES = (1, 2, 7, 127, 257, 1500)
CUTS = (
    Truncation(0.9),
    Truncation(0.0),
    Truncation(0.5),
    Truncation(0.999),
    Truncation(top_k=1),
    Truncation(top_k=5),
    Truncation(top_k=10**6),
    Truncation(min_p=0.1),
    Truncation(min_p=1.0),
    Truncation(0.7, 3, 0.05),
    Truncation(0.7, 3, 0.05, joint=True),
    Truncation(0.6, 9, 0.3),
    Truncation(),
)


def reference(row, cut):
    """The kept places of one float64 row, by walking down the order."""
    p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    first = order[: cut.top_k or None]
    goal = cut.top_p * (1.0 if cut.joint else p[first].sum())
    keep, mass = set(), 0.0
    for i in first:
        if keep and cut.top_p < 1 and mass >= goal:
            break
        keep.add(i)
        mass += p[i]
    return {i for i in keep if p[i] > 0 and p[i] >= cut.min_p * p.max() * (1 - 1e-6)}


def places(mask):
    return [set(row.nonzero()[:, 0].tolist()) for row in mask]


@pairwise(vocab=VOCABULARIES, cut=CUTS, ties=[False, True], find=[kept_mask, _mask_by_topk])
def test_truncations_keep_what_the_walk_keeps(vocab, cut, ties, find):
    x = torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    x = x.round() if ties else x
    assert places(find(x, cut)) == [reference(row, cut) for row in x.double().numpy()]


@given(
    st.lists(st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 50),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_truncations_of_ties_and_impossible_tokens(values, top_p, top_k, joint):
    if max(values) == -math.inf:
        values[0] = 0.0
    cut, x = Truncation(top_p, top_k, joint=joint), torch.tensor([values])
    p = x[0].double().softmax(0).numpy()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ranked = kept_mask(x, cut)[0][order]
    count = int(ranked.sum())
    assert ranked[:count].all(), "the kept tokens are the best ones, ties by smaller id"
    assert count <= (top_k or len(values)) and p[order[count - 1]] > 0
    whole = 1.0 if joint else p[order[: top_k or None]].sum()
    assert count == 1 or p[order[: count - 1]].sum() < top_p * whole + 1e-5
    reached = p[order[:count]].sum() >= top_p * whole - 1e-5
    assert reached or count == top_k
    assert torch.equal(_mask_by_topk(x, cut), kept_mask(x, cut))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_flat_distribution_has_a_wide_nucleus(dtype):
    x = (torch.randn(2, 5000) * 0.01).to(dtype)
    for row, kept in zip(x.double().numpy(), kept_mask(x, Truncation(0.9)), strict=True):
        want = reference(row, Truncation(0.9))
        assert len(want ^ set(kept.nonzero()[:, 0].tolist())) <= 1  # float32 mass at the boundary


def test_padded_rows_and_large_vocabularies():
    buffer = torch.full((2, 128320), 300.0)
    buffer[:, :128256] = torch.randn(2, 128256) * 4
    x = buffer[:, :128256]
    row, token = kept_entries(x, Truncation(0.9))
    for r in range(2):
        assert set(token[row == r].tolist()) == reference(x[r].double().numpy(), Truncation(0.9))


@pytest.mark.parametrize("find", [kept_mask, _mask_by_topk])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_row_without_an_answer_keeps_nothing(cut, find):
    x = torch.zeros(4, 9)
    x[0], x[1, 3], x[2, 4] = -math.inf, math.nan, math.inf
    kept = find(x, cut)
    assert not kept[:3].any() and kept[3].any()


def test_no_rows_keep_no_entries():
    assert [len(part) for part in kept_entries(torch.empty(0, 5), Truncation(0.9))] == [0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 1.5}, r"top_p must lie in \[0, 1\], got 1.5"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\], got -0.1"),
        ({"top_p": math.nan}, r"top_p must lie in \[0, 1\], got nan"),
        ({"top_k": -1}, r"top_k must be an int, 0 \(keep all\) or more, got -1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Truncation(**values)
