"""Formulas of reweighting against plain float64 NumPy, ties and edges included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.kernels import reweighting

VOCABULARIES = (1, 2, 7, 127, 1500)


def rows(vocab, seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, vocab, generator=generator) * 3
    return reweighting.log_probs((x.round() if ties else x) + 0.0)


def reference_support(row, top_p, top_k, min_p):
    p = np.exp(row)
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    keep, before = set(), 0.0
    for rank, i in enumerate(order):
        if rank and ((top_p < 1 and before >= top_p) or (top_k and rank >= top_k)):
            break
        if p[i] >= min_p * p.max() * (1 - 1e-6):
            keep.add(i)
        before += p[i]
    return keep


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("top_p", "top_k", "min_p"),
    [(0.9, 0, 0), (0.0, 0, 0), (1.0, 5, 0), (1.0, 10**6, 0), (1.0, 0, 0.1), (0.7, 3, 0.05)],
)
def test_support(vocab, ties, top_p, top_k, min_p):
    log_p = rows(vocab, vocab, ties)
    mask = reweighting.support_mask(log_p, top_p=top_p, top_k=top_k, min_p=min_p)
    for row, kept in zip(log_p.double().numpy(), mask, strict=True):
        assert set(kept.nonzero()[:, 0].tolist()) == reference_support(row, top_p, top_k, min_p)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(1, 50),
)
@settings(max_examples=200, deadline=None)
def test_support_with_ties_everywhere(values, top_p, top_k):
    log_p = reweighting.log_probs(torch.tensor([values]))
    p = log_p[0].double().exp().numpy()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ranked = reweighting.top_p_mask(log_p, top_p)[0][order]
    count = int(ranked.sum())
    assert ranked[:count].all(), "the kept tokens are the best ones, ties by smaller id"
    assert p[order[:count]].sum() >= top_p - 1e-5
    assert count == 1 or p[order[: count - 1]].sum() < top_p + 1e-5
    ids = reweighting.top_k_ids(log_p, top_k)[0].tolist()
    assert ids == sorted(order[:top_k])


def test_a_nucleus_wider_than_the_head_is_found_by_sorting():
    log_p = reweighting.log_probs(torch.randn(2, 5000) * 0.01)
    mask = reweighting.top_p_mask(log_p, 0.9)
    for row, kept in zip(log_p.double().numpy(), mask, strict=True):
        want = reference_support(row, 0.9, 0, 0)
        assert abs(int(kept.sum()) - len(want)) <= 1  # float32 mass at the boundary
        assert len(want ^ set(kept.nonzero()[:, 0].tolist())) <= 1


def test_impossible_tokens_are_never_in_a_support():
    log_p = reweighting.log_probs(torch.tensor([[0.0, float("-inf"), 1.0]]))
    mask = reweighting.support_mask(log_p, top_k=3)
    assert mask.tolist() == [[True, False, True]]


def test_bias_decay_follows_the_paper():
    log_p, biased = rows(50, 1), [torch.randn(4, 50), torch.randn(4, 50) * 4]
    got = reweighting.bias_decay(log_p, biased, decay=50.0, floor=0.01)
    p = np.exp(log_p.double().numpy())
    each = [np.exp(b.double().numpy()) for b in biased]
    worst = np.maximum(*[e / e.sum(-1, keepdims=True) for e in each])
    alpha = np.where(p >= worst, 1.0, np.maximum(np.exp(-50.0 * (worst - p)), 0.01))
    np.testing.assert_allclose(got.numpy(), np.log(alpha), atol=1e-4)


def test_adaptive_alpha_follows_its_three_cases():
    sensitivity = torch.tensor([0.2, -0.9, 0.05])
    log_p = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).log()
    alpha = reweighting.adaptive_alpha(
        log_p, sensitivity, top_p=0.7, low=-0.1, high=0.15, floor=0.6
    )
    # b = .8 * .2 = .16 -> .84; b = -.72 -> max(.28, .6); b = .04 -> inside the band
    torch.testing.assert_close(alpha[:, 0], torch.tensor([0.84, 0.6, 1.0]))


def test_combine_normalises_and_falls_back_where_nothing_is_left():
    log_p, shift = rows(20, 2), torch.randn(4, 20) * 100
    mask = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[1] = False
    out, empty = reweighting.combine(log_p, [shift, -0.5 * shift], mask)
    assert empty.tolist() == [False, True, False, False]
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(4))
    assert out[1].argmax() == log_p[1].argmax() and out[1].exp().max() == 1
    keep = mask[0].numpy()
    want = np.where(keep, (log_p + 0.5 * shift)[0].double().numpy(), -np.inf)
    want = want - want.max() - np.log(np.exp(want - want.max()).sum())
    np.testing.assert_allclose(out[0].numpy()[keep], want[keep], rtol=1e-4, atol=1e-4)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=30), st.floats(-100, 100))
@settings(max_examples=200, deadline=None)
def test_probabilities_sum_to_one_for_any_finite_logits(values, weight):
    log_p = reweighting.log_probs(torch.tensor([values]))
    other = torch.tensor([values[::-1]])
    shift = weight * reweighting.log_linear([other, log_p], [1.0, -1.0])
    mask = reweighting.support_mask(log_p, top_p=0.9)
    out, _ = reweighting.combine(log_p, [shift], mask)
    assert not out.isnan().any()
    assert float(out.exp().sum()) == pytest.approx(1.0, abs=1e-4)
