"""The torch reference of the hot path against float64 NumPy written from the formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from scipy import stats

from plugalign.kernels import steer
from plugalign.kernels.gumbel import gumbel_noise
from plugalign.kernels.mixture import Mixture, weighted
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.probability_mix import ProbabilityMix
from plugalign.kernels.truncation import Truncation

INF, NAN = math.inf, math.nan
NUCLEUS = Truncation(0.9)
VOCABULARIES = (1, 2, 7, 127, 257, 1000, 32000, 50257, 128256)
CUTS = {
    "all": Truncation(),
    "top-p": Truncation(0.9),
    "top-p 0": Truncation(0.0),
    "top-k": Truncation(top_k=5),
    "min-p": Truncation(min_p=0.1),
    "joint": Truncation(0.8, 5, 0.01, joint=True),
    "chained": Truncation(0.8, 5),
}


def logits(rows, vocab, seed=0, dtype=torch.float32, stride=None):
    """Rows whose padding would win every draw."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.full((rows, stride or vocab), 300.0, dtype=dtype)
    buffer[:, :vocab] = (torch.randn(rows, vocab, generator=generator) * 3).to(dtype)
    return buffer[:, :vocab]


def address(rows, seed=2**40 + 7, step=17):
    index = torch.arange(rows)
    return {"seed": seed, "prompt": index + 2**31 - 1, "sample": index * 5, "step": step}


def log_softmax(x):
    top = x.max(initial=-INF)
    return x - top - np.log(np.exp(x - top).sum()) if np.isfinite(top) else x


def kept(x, cut):
    """The kept places of one row of float64 scores, by walking down the order."""
    log_p = log_softmax(x)
    order = np.lexsort((np.arange(len(x)), -x))
    order = order[: cut.top_k] if cut.top_k else order
    mass = np.exp(log_p[order])
    whole = 1.0 if cut.joint else mass.sum()
    inside = (np.cumsum(mass) - mass < cut.top_p * whole) | (cut.top_p == 1)
    inside[0] = True
    inside &= mass >= cut.min_p * mass[0] * (1 - 1e-6)
    return np.sort(order[inside & (x[order] > -INF)])


def reference_z(m, row):
    """The formulas of the papers in float64."""

    def at(x):
        return x[row].double().numpy()

    z = m.weight * at(m.base)
    log_p = log_softmax(at(m.base))
    for term in m.terms:
        match term:
            case Linear():
                z = z + sum(w * at(x) for w, x in zip(term.weights, term.logits, strict=True))
            case Damping():
                worst = np.exp(np.max([log_softmax(at(b)) for b in term.biased], axis=0))
                excess = np.maximum(worst - np.exp(log_p), 0)
                z = z + term.weight * np.log(np.maximum(np.exp(-term.decay * excess), term.floor))
            case LogSigmoid():
                z = z - term.weight * np.log1p(np.exp(-at(term.logits)))
            case Extreme():
                each = [log_softmax(at(x)) for x in term.logits]
                z = z + term.weight * (np.min if term.least else np.max)(each, axis=0)
            case ProbabilityMix():
                p, q = np.exp(log_p), np.exp(log_softmax(at(term.expert)))
                mixed = np.maximum(p + term.alpha * (q - p), term.floor)
                z = z + term.weight * (np.log(mixed) - log_p)
    return z if m.mask is None else np.where(at(m.mask), z, -INF)


def reference_sample(m, call, before, after, temperature):
    tokens = []
    for row in range(len(m.base)):
        z, own = reference_z(m, row), float(temperature[row])
        places = kept(m.base[row].double().numpy(), before)
        if own > 0:
            hidden = np.full(len(z), -INF)
            hidden[places] = z[places] / own
            places = kept(hidden, after)
        noise = gumbel_noise(
            torch.from_numpy(places),
            call["step"],
            call["prompt"][row],
            call["sample"][row],
            call["seed"],
        )
        scores = z[places] + own * noise.double().numpy()
        possible = scores.size and scores.max() > -INF
        tokens.append(int(places[scores.argmax()]) if possible else -1)
    return tokens


def mixture(rows, vocab, dtype=torch.float32, stride=None, kind="dexperts"):
    x = [logits(rows, vocab, seed, dtype, stride) for seed in range(4)]
    if kind == "dexperts":
        return weighted(x[:3], (1.0, 2.0, -2.0))
    if kind == "probabilities":
        mask = torch.arange(vocab) % 7 != 3
        terms = (Extreme((x[1], x[2]), least=True, weight=0.5), ProbabilityMix(x[3], 3.0))
        return Mixture(x[0], terms, mask.expand(rows, -1), weight=0.5)
    damping, attribute = Damping((x[1], x[2]), 20.0, 0.01), LogSigmoid(x[3], 1.5)
    return Mixture(x[0], (Linear((x[2],), (-0.5,)), damping, attribute))


@pairwise(before=list(CUTS), after=list(CUTS), kind=["dexperts", "all terms", "probabilities"])
def test_tokens_are_those_of_the_formulas(kind, before, after):
    m, call = mixture(4, 300, kind=kind), address(4)
    temperature = torch.tensor([1.0, 0.0, 0.6, 2.5])
    cuts = {"before": CUTS[before], "after": CUTS[after]}
    tokens = steer.sample(m, **call, temperature=temperature, **cuts)
    assert tokens.tolist() == reference_sample(m, call, *cuts.values(), temperature)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_vocabulary_dtype_and_stride(vocab, dtype):
    m, call = mixture(2, vocab, dtype, stride=vocab + 3), address(2)
    for cut in (Truncation(), Truncation(0.9)):
        temperature = torch.tensor([1.0, 0.0])
        tokens = steer.sample(m, **call, temperature=temperature, before=cut)
        assert tokens.tolist() == reference_sample(m, call, cut, Truncation(), temperature)


@pytest.mark.parametrize("kind", ["dexperts", "all terms", "probabilities"])
@pytest.mark.parametrize("before", ["all", "top-p", "top-k", "min-p", "joint"])
def test_scores_are_log_probabilities_on_the_support(kind, before):
    m = mixture(3, 300, kind=kind)
    got = steer.scores(m, before=CUTS[before]).double().numpy()
    for row in range(3):
        want, places = np.full(300, -INF), kept(m.base[row].double().numpy(), CUTS[before])
        z = reference_z(m, row)[places]
        want[places] = log_softmax(z)
        if z.max() == -INF:  # a row without an answer
            want[:] = NAN
        np.testing.assert_allclose(got[row], want, atol=1e-4)


@given(
    values=st.lists(st.sampled_from([-INF, -2.0, 0.0, 0.0, 1.0]), min_size=1, max_size=30),
    weight=st.floats(-4, 4, width=32),
    top_p=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    top_k=st.integers(0, 40),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=150, deadline=None)
def test_ties_and_impossible_tokens(values, weight, top_p, top_k, seed):
    base = torch.tensor([values])
    m = weighted((base, torch.arange(len(values))[None] % 3 * 1.0), (1.0, weight))
    cut, call = Truncation(top_p, top_k, joint=True), address(1, seed)
    token = int(steer.sample(m, **call, before=cut))
    if max(values) == -INF:
        assert token == -1
        return
    assert base[0, token] > -INF
    p = base[0].double().softmax(0)
    above = [i for i, x in enumerate(values) if (-x, i) < (-values[token], token)]
    assert not above or (p[above].sum() < top_p + 1e-9 and (not top_k or len(above) < top_k))
    greedy = int(steer.sample(m, **call, before=cut, temperature=0.0))
    scores = steer.scores(m, before=cut)[0]
    assert scores[greedy] == scores.max()


DRAWS = 100_000


@pytest.mark.parametrize("case", ["mixture", "before", "after", "composed"])
def test_draws_have_the_right_distribution(case):
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(1, 40, generator=generator) * 2 for _ in range(3)]
    big = [x.expand(DRAWS, 40) for x in rows]

    def made(rows):
        if case != "composed":
            return weighted(rows, (1.0, 0.5, -0.5))
        damping = Damping(tuple(rows[1:]), 20.0, 0.01, 0.5)
        return Mixture(rows[0], (Linear((rows[1],), (0.5,)), damping, LogSigmoid(rows[2], 0.7)))

    m, cuts = made(big), {}
    if case == "before":
        cuts = {"before": Truncation(0.9)}
    if case == "after":
        cuts = {"before": Truncation(0.95), "after": Truncation(0.9, 10)}
    call = address(DRAWS) | {"prompt": torch.arange(DRAWS), "sample": torch.zeros(DRAWS).long()}
    drawn = steer.sample(m, **call, temperature=1.3, **cuts)
    z, hidden = reference_z(made(rows), 0) / 1.3, np.full(40, -INF)
    places = kept(rows[0][0].double().numpy(), cuts.get("before", Truncation()))
    hidden[places] = z[places]
    places = kept(hidden, cuts.get("after", Truncation()))
    expected = np.exp(log_softmax(z[places])) * DRAWS
    seen = np.bincount(drawn.numpy(), minlength=40)
    assert seen[places].sum() == DRAWS
    assert (expected >= 5).all()
    assert stats.chisquare(seen[places], expected).pvalue > 1e-3


@pytest.mark.parametrize("cuts", [{}, {"before": Truncation(0.9)}, {"after": Truncation(0.9, 20)}])
def test_a_row_does_not_depend_on_its_batch(cuts):
    m, call = mixture(64, 3000), address(64)
    together = steer.sample(m, **call, **cuts)
    for row in (0, 31, 63):
        one = slice(row, row + 1)
        alone = weighted([x[one] for _, x in m.inputs()], (1.0, 2.0, -2.0))
        mine = call | {"prompt": call["prompt"][one], "sample": call["sample"][one]}
        assert torch.equal(steer.sample(alone, **mine, **cuts), together[one])


@pytest.mark.parametrize("before", ["all", "top-p", "top-k"])
@pytest.mark.parametrize("after", ["all", "top-p", "chained"])
def test_rows_without_an_answer(before, after):
    base, other = logits(5, 50), logits(5, 50, 1)
    base[0], base[1, 3], base[2, 4] = -INF, NAN, INF
    other[3, base[3].argmax()] = NAN
    m = weighted((base, other), (1.0, 1.0))
    got = steer.sample(m, **address(5), before=CUTS[before], after=CUTS[after])
    assert got.tolist()[:4] == [-1] * 4 and got[4] >= 0
    scores = steer.scores(m, before=CUTS[before])
    assert scores[:4].isnan().all()
    assert not scores[4].isnan().any()


def test_what_is_cut_off_may_be_no_number():
    base, other = logits(1, 50), logits(1, 50, 1)
    other[0, base[0].argmin()] = NAN
    m = weighted((base, other), (1.0, 1.0))
    assert steer.sample(m, **address(1), before=Truncation(0.9)) >= 0
    assert steer.sample(m, **address(1)) == -1


def test_a_source_that_forbids_all_that_is_kept_leaves_no_answer():
    base, other = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[-INF, 0.0, 0.0]])
    m = weighted((base, other), (1.0, 1.0))
    assert steer.sample(m, **address(1), before=Truncation(top_k=1)).tolist() == [-1]
    assert steer.scores(m, before=Truncation(top_k=1)).isnan().all()


@pytest.mark.parametrize("cuts", [{}, {"before": NUCLEUS, "after": NUCLEUS}])
def test_no_rows_draw_no_tokens(cuts):
    m = mixture(0, 9)
    assert steer.sample(m, **address(0), **cuts).shape == (0,)
    assert steer.scores(m, before=NUCLEUS).shape == (0, 9)


def test_explain_says_why_torch_computes():
    m = mixture(2, 50)
    assert steer.explain(m) == "torch, because it runs on cpu"
    assert steer.explain(m, backend="torch") == 'torch, because of backend="torch"'
    everything = Truncation()
    assert steer.unfused(everything, everything) is None
    assert "top-k" in steer.unfused(CUTS["chained"], everything)
    assert "1024" in steer.unfused(everything, Truncation(0.5, 1025))
    assert "min-p" in steer.unfused(everything, Truncation(0.5, 10, 0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"seed must be an int in \[0, 2\*\*64\), got -1"),
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0"),
        ({"temperature": torch.tensor([1.0, NAN])}, "not negative, got nan"),
        ({"prompt": torch.zeros(3).long()}, r"prompt must be .* of shape \(2,\)"),
        ({"step": torch.zeros(2)}, "step must be a number or torch.int64"),
        ({"backend": "cuda"}, 'backend must be "auto", "triton" or "torch"'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        steer.sample(mixture(2, 50), **(address(2) | changes))
