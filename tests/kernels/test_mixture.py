"""Mixtures against the papers' formulas in float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from plugalign.kernels.head import Head
from plugalign.kernels.mixture import AttributeLogits, Decay, Mixture, mix, mix_at

INF, NAN = math.inf, math.nan


def logits(rows=3, vocab=50, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * 4).to(dtype)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(m):
    """z in float64, from the formulas of the papers."""
    values = [x.double().numpy() for x in m.sources]
    weights = np.broadcast_to(np.asarray(m.weights, float), (len(values[0]), len(values)))
    z = sum(w[:, None] * x for w, x in zip(weights.T, values, strict=True))
    for d in m.decays:
        worst = np.max([softmax(x.double().numpy()) for x in d.biased], axis=0)
        p = softmax(values[0])
        # alpha(d) = 1 if the base likes the token more, else exp(lambda d), at least the floor
        alpha = np.where(p >= worst, 1.0, np.maximum(np.exp(d.decay * (p - worst)), d.floor))
        z = z + d.weight * np.log(alpha)
    for a in m.attributes:
        z = z - a.weight * np.log1p(np.exp(-a.logits.double().numpy()))
    return z


MIXTURES = {
    "base": Mixture((logits(),), (1.0,)),
    "dexperts": Mixture((logits(), logits(seed=1), logits(seed=2)), (1.0, 2.0, -2.0)),
    "by row": Mixture((logits(), logits(seed=1)), torch.tensor([[1.0, 0.5], [1, -2], [0.3, 0]])),
    "bf16": Mixture((logits(dtype=torch.bfloat16), logits(seed=1)), torch.tensor([1.0, 3.0])),
    "self-debias": Mixture(
        (logits(),), (1.0,), (Decay((logits(seed=1), logits(seed=2)), 50.0, 0.01),)
    ),
    "all": Mixture(
        (logits(), logits(seed=1, dtype=torch.float16)),
        (0.5, -1.0),
        (Decay((logits(seed=2),), 10.0, 0.1, 0.5), Decay((logits(seed=3),), 100.0, 1e-5)),
        (AttributeLogits(logits(seed=4), 2.0), AttributeLogits(logits(seed=5), -0.5)),
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_follow_the_papers(name):
    mixture = MIXTURES[name]
    np.testing.assert_allclose(mix(mixture).double().numpy(), reference(mixture), atol=2e-4)
    row, token = torch.tensor([2, 0, 0, 1]), torch.tensor([49, 0, 7, 7])
    some = mix_at(mixture, row, token)
    if mixture.decays:
        torch.testing.assert_close(some, mix(mixture)[row, token], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(some, mix(mixture)[row, token])


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_the_base_forbids_stays_forbidden(weight):
    base = logits()
    base[1, 5:] = -INF
    mixture = Mixture((base, logits(seed=1)), (weight, 2.0))
    assert torch.equal(mix(mixture) == -INF, base == -INF)
    row, token = torch.tensor([1, 1]), torch.tensor([4, 5])
    assert (mix_at(mixture, row, token) == -INF).tolist() == [False, True]


def test_certainty_shifts_nothing():
    certain = torch.full((3, 50), INF)
    mixture = Mixture((logits(),), (1.0,), attributes=(AttributeLogits(certain, 3.0),))
    assert torch.equal(mix(mixture), logits())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_gives_what_its_logits_give(bias, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, generator=generator).to(dtype)
    weight = torch.randn(50, 8, generator=generator).to(dtype)
    offset = torch.randn(50, generator=generator).to(dtype) if bias else None
    head = Head(hidden, weight, offset)
    want = hidden.double() @ weight.double().T + (0 if offset is None else offset.double())
    row, token = torch.tensor([2, 0, 0, 1]), torch.tensor([49, 0, 7, 7])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(head.at(row, token).double(), want[row, token], **close)
    late, early = (
        Mixture((logits(), x), (1.0, 2.0), (Decay((x,), 5.0, 0.1),), (AttributeLogits(x),))
        for x in (head, want.float())
    )
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.3}
    torch.testing.assert_close(mix(late), mix(early), **close)
    torch.testing.assert_close(mix_at(late, row, token), mix(early)[row, token], **close)


def test_a_head_reads_entries_in_pieces(monkeypatch):
    monkeypatch.setattr("plugalign.kernels.head.CHUNK", 16)
    hidden, weight = torch.randn(2, 8), torch.randn(30, 8)
    row, token = torch.arange(7) // 4, torch.arange(7) % 30
    want = (hidden @ weight.T)[row, token]
    torch.testing.assert_close(Head(hidden, weight).at(row, token), want)
    row, token = torch.arange(60) // 30, torch.arange(60) % 30  # so many that all are computed
    torch.testing.assert_close(Head(hidden, weight).at(row, token), (hidden @ weight.T).flatten())


X = logits()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture((), ()), "sources must hold at least the base's logits"),
        (lambda: Mixture((X, X[:2]), (1, 1)), r"sources\[1\] must be \(3, 50\) on cpu"),
        (lambda: Mixture((X, X.long()), (1, 1)), r"sources\[1\] must be \(B, V\)"),
        (lambda: Mixture((X, X.T.contiguous().T), (1, 1)), r"each row of sources\[1\] must be"),
        (lambda: Mixture((X,), (1, 2)), r"weights must be 1, one for each source, got \[1, 2\]"),
        (
            lambda: Mixture((X,), (NAN,)),
            "weights must be numbers that are finite in float32, got nan",
        ),
        (lambda: Mixture((X,), (1e39,)), r"finite in float32, got 1e\+39"),
        (lambda: Mixture((X, X), torch.tensor([1.0, INF])), "finite in float32, got inf"),
        (lambda: Mixture((X,), torch.ones(2)), r"weights must be float32 \(1,\) or \(3, 1\)"),
        (lambda: Mixture((X,), torch.ones(1).double()), "got torch.float64"),
        (lambda: Mixture((Head(X, X), X), (1, 1)), "the base, must be a tensor"),
        (lambda: Head(X, X[:, 1:]), r"hidden \(B, D\) and weight \(V, D\)"),
        (
            lambda: Head(X, X, X[0]),
            r"a head's bias must be torch.float32 \(3,\) on cpu, got torch.float32 \(50,\)",
        ),
        (lambda: Mixture((X,), (1,), (Decay((), 1.0, 0.1),)), "at least one biased prompt"),
        (lambda: Mixture((X,), (1,), (Decay((X,), -1.0, 0.1),)), "not negative, got -1"),
        (lambda: Mixture((X,), (1,), (Decay((X,), 1.0, 0.0),)), "floor must lie above 0"),
        (lambda: Mixture((X,), (1,), (Decay((X,), 1.0, 0.1, NAN),)), "a decay's weight must be"),
        (
            lambda: Mixture((X,), (1,), (Decay((X[:1],), 1.0, 0.1),)),
            r"decays\[0\].biased\[0\] must be \(3, 50\)",
        ),
        (
            lambda: Mixture((X,), (1,), attributes=(AttributeLogits(X[:, :9]),)),
            r"attributes\[0\].logits must be \(3, 50\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
