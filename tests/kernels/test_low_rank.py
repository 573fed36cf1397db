"""Low-rank shifts: the torch twin against float64 NumPy, written from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.kernels.low_rank import low_rank_hidden, low_rank_logits

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(width, rank):
    return torch.linalg.qr(normal(width, rank, seed=width).double())[0].float()


def exact_shift(x, hidden, left, right, center, share):
    """``x - share * left right^T (h - center)`` of every row, in float64."""
    x, hidden, left, right = (t.double().numpy() for t in (x, hidden, left, right))
    center = np.zeros(hidden.shape[1]) if center is None else center.double().numpy()
    share = np.broadcast_to(np.asarray(share, dtype=np.float64), len(x))
    rows = [
        row - amount * left @ (right.T @ (h - center))
        for row, h, amount in zip(x, hidden, share, strict=True)
    ]
    return np.stack(rows) if rows else x


def assert_rounded(found, exact, scale=1.0):
    """``found`` is ``exact`` but for the rounding of its type, and of a float32 sum."""
    allowed = torch.finfo(found.dtype).eps * np.abs(exact) + 2e-6 * scale
    assert (np.abs(found.double().numpy() - exact) <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 7, 127, 257, 1000, 32000, 50257, 128256])
def test_logits_equal_float64(vocab, dtype):
    hidden, left, right = normal(3, 40), normal(vocab, 5, seed=1), normal(40, 5, seed=2) / 6
    center, share = normal(40, seed=3), torch.tensor([1.0, 0.25, -2.0])
    logits = (normal(3, vocab, seed=4) * 4).to(dtype)
    expected = exact_shift(logits, hidden, left, right, center, share)
    found = low_rank_logits(logits, hidden, left, right, center=center, share=share)
    assert found is logits
    assert_rounded(found, expected, scale=8)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_inlp_equals_the_head_on_the_projected_state(alpha):
    head, hidden, basis = normal(300, 24).double(), normal(4, 24, seed=1), orthonormal(24, 6)
    state, u = hidden.double().numpy(), basis.double().numpy()
    projected = alpha * state + (1 - alpha) * state @ (np.eye(24) - u @ u.T)  # A-INLP, section 4.2
    logits = (hidden.double() @ head.T).float()
    left = (head @ basis.double()).float()
    low_rank_logits(logits, hidden, left, basis, share=1 - alpha)
    assert_rounded(logits, projected @ head.numpy().T, scale=20)
    low_rank_hidden(hidden, basis, basis, share=1 - alpha)
    assert_rounded(hidden, projected, scale=4)


def test_leace_leaves_no_correlation_with_the_concept():
    concept = np.eye(3)[np.arange(600) % 3]
    noise = normal(600, 10).double().numpy() @ normal(10, 10, seed=1).double().numpy()
    states = noise + concept @ normal(3, 10, seed=2).double().numpy() * 3 + 50
    centred = states - states.mean(0)
    # Theorem 4.3: r(x) = x - W^+ P W (x - E x), W the whitening, P onto the span of W Cov(x, z).
    values, vectors = np.linalg.eigh(centred.T @ centred / 600)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    cross = centred.T @ (concept - concept.mean(0)) / 600
    u = np.linalg.svd(whitening @ cross)[0][:, :2]
    left, right, mean = np.linalg.inv(whitening) @ u, whitening @ u, states.mean(0)
    tensors = [torch.from_numpy(x).float() for x in (states, left, right, mean)]
    erased = low_rank_hidden(tensors[0], tensors[1], tensors[2], center=tensors[3])
    after = (erased.double().numpy() - mean).T @ (concept - concept.mean(0)) / 600
    assert np.abs(cross).max() > 0.3 and np.abs(after).max() < 1e-5
    again = low_rank_hidden(erased.clone(), *tensors[1:3], center=tensors[3])
    assert torch.allclose(again, erased, atol=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_dtype_and_layout(data):
    rows, width, depth = (data.draw(st.integers(low, 40)) for low in (0, 1, 1))
    rank, kind = data.draw(st.integers(1, 128)), st.sampled_from(DTYPES)
    dtypes = [data.draw(kind) for _ in range(5)]
    buffer = normal(rows, width + data.draw(st.integers(0, 9))).to(dtypes[0])
    padding, x = buffer[:, width:].clone(), buffer[:, :width]
    hidden, center = normal(rows, depth, seed=1).to(dtypes[1]), normal(depth, seed=2).to(dtypes[2])
    left, right = normal(rank, width, seed=3).T.to(dtypes[3]), normal(depth, rank, seed=4)
    right = (right / depth**0.5).to(dtypes[4])
    share = data.draw(st.sampled_from([0.0, 1.0, torch.tensor(0.7), torch.linspace(0, 1, rows)]))
    middle = data.draw(st.sampled_from([None, center]))
    expected = exact_shift(x, hidden, left, right, middle, share)
    low_rank_logits(x, hidden, left, right, center=middle, share=share)
    assert_rounded(x, expected, scale=12 * rank**0.5)
    assert torch.equal(buffer[:, width:], padding)


def test_infinities_and_nans_stay_where_they_were():
    hidden, left, right = normal(4, 16), normal(90, 4, seed=1), normal(16, 4, seed=2)
    hidden[1, 3] = NAN
    logits = normal(4, 90, seed=3)
    logits[0, :40], logits[2] = -INF, -INF
    logits[3, 7], logits[3, 8] = NAN, INF
    before = logits.clone()
    for dtype in DTYPES:
        found = low_rank_logits(before.to(dtype), hidden, left, right)
        assert found[1].isnan().all()
        rest = [0, 2, 3]
        assert torch.equal(found[rest].isneginf(), before[rest].isneginf())
        assert torch.equal(found[rest].isnan(), before[rest].isnan())
        assert found[3, 8] == INF


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_share_is_the_identity(dtype):
    logits = normal(2, 70000).to(dtype)
    before = logits.clone()
    low_rank_logits(logits, normal(2, 9), normal(70000, 2), normal(9, 2), share=0.0)
    assert torch.equal(logits, before)


def call(**changes):
    arguments = {
        "logits": torch.zeros(2, 6),
        "hidden": torch.zeros(2, 4),
        "left": torch.zeros(6, 3),
        "right": torch.zeros(4, 3),
        "center": torch.zeros(4),
        "share": 1.0,
    }
    return low_rank_logits(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(6)}, r"logits must be \(B, V\).*got \(6,\)"),
        ({"logits": torch.zeros(6, 2).T}, "each row of logits must be contiguous"),
        ({"logits": torch.zeros(1, 6).expand(2, 6)}, r"logits is written in place.*\(0, 1\)"),
        ({"hidden": torch.zeros(2, 4, dtype=torch.int32)}, "hidden must be .*torch.int32"),
        ({"hidden": torch.zeros(3, 4)}, r"hidden must be \(2, 4\).*got \(3, 4\)"),
        ({"left": torch.zeros(7, 3)}, r"left must be \(6, 3\).*got \(7, 3\)"),
        (
            {"left": torch.zeros(6, 129)},
            r"left must have 1 to 128 directions, got shape \(6, 129\)",
        ),
        ({"left": torch.zeros(6, 0)}, "1 to 128 directions"),
        ({"left": torch.tensor(1.0)}, "1 to 128 directions"),
        ({"right": torch.zeros(4, 2)}, r"right must be \(4, 3\).*got \(4, 2\)"),
        ({"right": torch.zeros(4, 3).double()}, "right must be .*torch.float64"),
        ({"right": torch.zeros(4, 3, device="meta")}, "right must be .* on cpu, got .* on meta"),
        ({"center": torch.zeros(5)}, r"center must be \(4,\).*got \(5,\)"),
        ({"share": NAN}, "share must be finite, got nan"),
        ({"share": torch.tensor([1.0, INF])}, "share must be finite"),
        ({"share": torch.zeros(3)}, r"share must be a number or torch.float32 of shape \(2,\)"),
        ({"share": torch.zeros(2).double()}, "share must be .*torch.float64"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_bad_hidden_states():
    basis = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"left must be \(4, 1\).*got \(5, 1\)"):
        low_rank_hidden(torch.zeros(2, 4), torch.zeros(5, 1), basis)
    with pytest.raises(ValueError, match="hidden is written in place"):
        low_rank_hidden(torch.zeros(4).expand(2, 4), basis, basis)
    assert low_rank_hidden(torch.zeros(0, 4), basis, basis).shape == (0, 4)
