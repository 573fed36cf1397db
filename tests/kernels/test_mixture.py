"""Mixtures against the papers' formulas in float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from plugalign.kernels.head import Head
from plugalign.kernels.mixture import Mixture, mix, mix_at, weighted
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.probability_mix import ProbabilityMix

INF, NAN = math.inf, math.nan


def logits(rows=3, vocab=50, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * 4).to(dtype)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(m):
    """z in float64, from the formulas of the papers."""

    def by_row(weight):
        return np.asarray(weight, float)[:, None] if isinstance(weight, torch.Tensor) else weight

    base, p = m.base.double().numpy(), softmax(m.base.double().numpy())
    z = by_row(m.weight) * base
    for term in m.terms:
        each = [x.double().numpy() for _, x in term.inputs()]
        if isinstance(term, Linear):
            weights = np.broadcast_to(np.asarray(term.weights, float), (len(base), len(each)))
            z = z + sum(w[:, None] * x for w, x in zip(weights.T, each, strict=True))
            continue
        if isinstance(term, Damping):
            worst = np.max([softmax(x) for x in each], axis=0)
            # alpha(d) = 1 if the base likes the token more, else exp(lambda d), at least the floor
            alpha = np.maximum(np.exp(term.decay * (p - worst)), term.floor)
            added = np.log(np.where(p >= worst, 1.0, alpha))
        elif isinstance(term, LogSigmoid):
            added = -np.log1p(np.exp(-each[0]))
        elif isinstance(term, Extreme):
            added = (np.min if term.least else np.max)([np.log(softmax(x)) for x in each], axis=0)
        elif isinstance(term, ProbabilityMix):
            # so that p exp(added) is the mixture of the two distributions
            mixed = np.maximum(p + term.alpha * (softmax(each[0]) - p), term.floor)
            added = np.log(mixed / p)
        z = z + by_row(term.weight) * added
    return z if m.mask is None else np.where(m.mask, z, -INF)


EACH = torch.tensor([0.5, 0.0, -2.0])
MASK = (torch.arange(50) % 3 > 0).expand(3, -1)
MIXTURES = {
    "base": Mixture(logits()),
    "dexperts": weighted((logits(), logits(seed=1), logits(seed=2)), (1.0, 2.0, -2.0)),
    "by row": weighted((logits(), logits(seed=1)), torch.tensor([[1.0, 0.5], [1, -2], [0.3, 0]])),
    "bf16": weighted((logits(dtype=torch.bfloat16), logits(seed=1)), torch.tensor([1.0, 3.0])),
    "self-debias": Mixture(logits(), (Damping((logits(seed=1), logits(seed=2)), 50.0, 0.01),)),
    "union": Mixture(logits(), (Extreme((logits(seed=1), logits(seed=2)), weight=0.7),)),
    "intersection": Mixture(
        logits(), (Extreme((logits(), logits(seed=1)), least=True, weight=EACH),), weight=-EACH
    ),
    "probability mix": Mixture(logits(), (ProbabilityMix(logits(seed=1), 3.0, 1e-8, EACH),)),
    "mask": Mixture(logits(), (LogSigmoid(logits(seed=1)),), MASK),
    "all": Mixture(
        logits(),
        (
            Linear((logits(seed=1, dtype=torch.float16),), (-1.0,)),
            Damping((logits(seed=2),), 10.0, 0.1, 0.5),
            Damping((logits(seed=3),), 100.0, 1e-5, EACH),
            LogSigmoid(logits(seed=4), 2.0),
            LogSigmoid(logits(seed=5), EACH),
        ),
        weight=0.5,
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_follow_the_papers(name):
    mixture = MIXTURES[name]
    np.testing.assert_allclose(mix(mixture).double().numpy(), reference(mixture), atol=2e-4)
    row, token = torch.tensor([2, 0, 0, 1]), torch.tensor([49, 0, 7, 7])
    some = mix_at(mixture, row, token)
    if any(term.heavy for term in mixture.terms):
        torch.testing.assert_close(some, mix(mixture)[row, token], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(some, mix(mixture)[row, token])


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_the_base_forbids_stays_forbidden(weight):
    base = logits()
    base[1, 5:] = -INF
    mixture = weighted((base, logits(seed=1)), (weight, 2.0))
    assert torch.equal(mix(mixture) == -INF, base == -INF)
    row, token = torch.tensor([1, 1]), torch.tensor([4, 5])
    assert (mix_at(mixture, row, token) == -INF).tolist() == [False, True]


def test_certainty_shifts_nothing():
    certain = torch.full((3, 50), INF)
    mixture = Mixture(logits(), (LogSigmoid(certain, 3.0),))
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
        Mixture(logits(), (Linear((x,), (2.0,)), Damping((x,), 5.0, 0.1), LogSigmoid(x)))
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
        (lambda: weighted((), ()), "needs the base's logits at least"),
        (lambda: weighted((X, X[:2]), (1, 1)), r"Linear's logits\[0\] must be \(3, 50\) on cpu"),
        (lambda: weighted((X, X.long()), (1, 1)), r"Linear's logits\[0\] must be \(B, V\)"),
        (lambda: weighted((X, X.T.contiguous().T), (1, 1)), r"each row of Linear's logits\[0\]"),
        (lambda: weighted((X,), (1, 2)), r"weights must be 1, one for each, got \[1, 2\]"),
        (lambda: weighted((X,), (NAN,)), "the base's weight must be finite in float32, got nan"),
        (lambda: weighted((X, X), (1, 1e39)), r"finite in float32, got 1e\+39"),
        (lambda: weighted((X, X), torch.tensor([1.0, INF])), "finite in float32, got inf"),
        (lambda: weighted((X,), torch.ones(2)), r"weights must be float32 \(1,\) or \(3, 1\)"),
        (lambda: weighted((X,), torch.ones(1).double()), "got torch.float64"),
        (lambda: weighted((Head(X, X), X), (1, 1)), "the base must be a tensor"),
        (lambda: Mixture(X, (X,)), "made of terms, got Tensor"),
        (lambda: Mixture(X, mask=X), r"mask must be bool \(3, 50\)"),
        (lambda: Mixture(X, mask=MASK[:2]), r"mask must be bool \(3, 50\).*\(2, 50\)"),
        (lambda: Mixture(X, weight=torch.ones(2)), r"a number or float32 \(3,\)"),
        (lambda: Head(X, X[:, 1:]), r"hidden \(B, D\) and weight \(V, D\)"),
        (
            lambda: Head(X, X, X[0]),
            r"a head's bias must be torch.float32 \(3,\) on cpu, got torch.float32 \(50,\)",
        ),
        (lambda: Mixture(X, (Damping((), 1.0, 0.1),)), "at least one biased prompt"),
        (lambda: Mixture(X, (Damping((X,), -1.0, 0.1),)), "not negative, got -1"),
        (lambda: Mixture(X, (Damping((X,), 1.0, 0.0),)), "floor must lie above 0"),
        (lambda: Mixture(X, (Damping((X,), 1.0, 0.1, NAN),)), "Damping's weight must be finite"),
        (lambda: Mixture(X, (Damping((X[:1],), 1.0, 0.1),)), r"biased\[0\] must be \(3, 50\)"),
        (lambda: Mixture(X, (LogSigmoid(X[:, :9]),)), r"LogSigmoid's logits must be \(3, 50\)"),
        (lambda: Mixture(X, (Extreme(()),)), "at least one model"),
        (lambda: Mixture(X, (ProbabilityMix(X, 3.0, 0.0),)), "floor must lie in"),
        (lambda: Mixture(X, (ProbabilityMix(X, INF),)), "alpha must be finite"),
        (lambda: Mixture(X, (LogSigmoid(X, True),)), "weight must be finite in float32, got True"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


TERMS_BY_ROW = {
    "linear": lambda x, w: Linear((x,), w[:, None]),
    "log sigmoid": lambda x, w: LogSigmoid(x, w),
    "damping": lambda x, w: Damping((x,), 50.0, 0.01, w),
    "extreme": lambda x, w: Extreme((x,), weight=w),
    "probability mix": lambda x, w: ProbabilityMix(x, 2.0, weight=w),
}


@pytest.mark.parametrize("kind", TERMS_BY_ROW)
def test_a_row_of_weight_zero_adds_nothing(kind):
    """The row behind a closed gate stays the base's, whatever the sources give there."""
    base, other = logits(), logits(seed=1)
    other[0, 3:7] = torch.tensor([-INF, INF, NAN, 2.0])
    mixture = Mixture(base, (TERMS_BY_ROW[kind](other, torch.tensor([0.0, 1.0, 2.0])),))
    row, token = torch.arange(3).repeat_interleave(50), torch.arange(50).repeat(3)
    for z in (mix(mixture), mix_at(mixture, row, token).view(3, 50)):
        assert torch.equal(z[0], base[0])
        assert z.isfinite().all() and (z[1:] != base[1:]).any(1).all()
