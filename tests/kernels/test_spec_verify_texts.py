"""Speculative decoding by spec_verify: whole texts have the target's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from plugalign.kernels import spec_verify as module
from plugalign.kernels.gumbel import gumbel_noise, sample
from plugalign.kernels.spec_verify import spec_verify

INF = float("inf")
RUNS, STATES = 200_000, 8
FEW = 5_000  # runs, where each is compared and no distribution is


def make_model(seed, spread=0.9):
    """Scores ``(STATES + 1, STATES)`` of the next token behind each token, and at the start."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STATES + 1, STATES, generator=generator) * spread


def nucleus(scores, of, p=0.85):
    """``scores`` where ``of`` has its most probable tokens."""
    best, order = of.softmax(-1).sort(-1, descending=True)
    cut = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, best.cumsum(-1) - best >= p)
    return scores.masked_fill(cut, -INF)


BASE = make_model(1)
CONTROLLED = nucleus(BASE + 0.8 * (make_model(2) - make_model(3)), BASE)
DRAFTS = {
    "the base, hotter": (BASE, 1.2, None),
    "the base's nucleus, cooler": (nucleus(BASE, BASE, 0.7), 0.6, None),
    "an unrelated model": (make_model(4, 3.0), 1.0, None),
    "bfloat16": (BASE.bfloat16(), 1.1, None),
    "lengths by the text": (BASE, 1.0, torch.tensor([0, 2, 1, 0, 2, 2, 1, 1, 1])),
}


def speculate(target, draft, cool, lengths, places=2, count=3, seed=3, temperature=1.0, runs=RUNS):
    """The first ``count`` tokens of each run, in as many rounds as it takes."""
    text = torch.full((runs, count + places + 1), -1)
    have, rows = torch.zeros(runs, dtype=torch.int64), torch.arange(runs)
    last = torch.full((runs,), STATES)
    while len(rows):
        address = {"seed": seed, "prompt": rows % 1000, "sample": rows // 1000}
        before, drafted = [last[rows]], []
        for place in range(places):
            scores, step = draft[before[-1]], have[rows] + place
            if cool is None:
                drafted.append(scores.argmax(-1))
            else:
                drafted.append(sample(scores, step=step, temperature=cool, **address))
            before.append(drafted[-1])
        accepted, following = spec_verify(
            torch.stack([target[b] for b in before], 1),
            None if cool is None else torch.stack([draft[b] for b in before[:-1]], 1),
            tokens := torch.stack(drafted, 1),
            step=have[rows],
            lengths=None if lengths is None else lengths[before[0]],
            temperature=temperature,
            draft_temperature=cool or 1.0,
            **address,
        )
        for place in range(places):
            on = accepted > place
            text[rows[on], have[rows[on]] + place] = tokens[on, place]
        have[rows] += accepted
        text[rows, have[rows]] = last[rows] = following
        have[rows] += 1
        rows = rows[have[rows] < count]
    return text[:, :count]


def fit(text, model):
    """The p-value of the joint distribution of some texts under ``model``."""
    p = model.double().softmax(-1)
    joint = p[STATES, :, None, None] * p[:STATES, :, None] * p[None, :STATES]
    expected = joint.flatten().numpy() * len(text)
    powers = STATES ** torch.arange(2, -1, -1)
    counts = np.bincount((text * powers).sum(1), minlength=STATES**3)
    assert (counts[expected == 0] == 0).all()
    large, rare = expected >= 5, (expected > 0) & (expected < 5)
    assert large.sum() > 150
    bins = [np.append(x[large], x[rare].sum()) for x in (counts, expected)]
    return chisquare(*(x[bins[1] > 0] for x in bins)).pvalue


@pytest.mark.parametrize("kind", DRAFTS)
def test_texts_follow_the_target_whatever_the_draft(kind):
    assert fit(speculate(CONTROLLED, *DRAFTS[kind]), CONTROLLED) > 1e-3


def test_temperatures_of_both():
    text = speculate(CONTROLLED, BASE, 0.7, None, temperature=1.6)
    assert fit(text, CONTROLLED / 1.6) > 1e-3


def test_a_certain_draft_changes_no_token():
    plain = speculate(CONTROLLED, BASE, None, torch.zeros(STATES + 1, dtype=torch.int64))
    assert fit(plain, CONTROLLED) > 1e-3
    drafted = [
        speculate(CONTROLLED, BASE, None, None, runs=FEW),
        speculate(CONTROLLED, CONTROLLED, None, None, places=3, runs=FEW),
        # A draft from the target itself is never rejected, and its noise is the ordinary one.
        speculate(CONTROLLED, CONTROLLED, 1.0, None, places=3, runs=FEW),
    ]
    assert all(torch.equal(text, plain[:FEW]) for text in drafted)


def test_a_greedy_text_is_the_greedy_text():
    for cool in (None, 1.0):
        text = speculate(CONTROLLED, BASE, cool, None, temperature=0.0, runs=FEW)
        best = CONTROLLED.argmax(-1)
        assert (
            text == torch.stack([best[STATES], best[best[STATES]], best[best[best[STATES]]]])
        ).all()


@pytest.mark.parametrize(
    ("stream", "shared"), [("RESIDUAL", 0), ("RESIDUAL", 2**30), ("ACCEPTANCE", 0)]
)
def test_a_shared_stream_would_be_seen(stream, shared, monkeypatch):
    """What the draft or the acceptance has used is no noise for what comes next."""
    monkeypatch.setattr(module, stream, shared)
    assert fit(speculate(CONTROLLED, BASE, 1.2, None), CONTROLLED) < 1e-6


def test_streams_have_no_step_in_common_and_are_independent():
    starts = [0, module.ACCEPTANCE, module.RESIDUAL, 2**32]
    assert (np.diff(starts) >= module.STEPS).all()
    step = torch.arange(200_000)
    noise = [gumbel_noise(torch.tensor(0), step + start, 5, 6, 7) for start in starts[:3]]
    tenths = [
        np.searchsorted(np.quantile(x, np.linspace(0, 1, 7)[1:-1]), x)
        for x in map(np.asarray, noise)
    ]
    cells = np.bincount(np.ravel_multi_index(tenths, (6, 6, 6)), minlength=216)
    assert chi2_contingency(cells.reshape(6, 6, 6)).pvalue > 1e-3


def test_without_a_residual_the_token_comes_from_the_target():
    rows = torch.arange(RUNS)
    scores = CONTROLLED[2].expand(RUNS, 1, STATES)
    call = {"seed": 1, "prompt": rows, "sample": rows, "step": 0}
    assert CONTROLLED[2, 0] == -INF  # so that token 0 is rejected though p equals q
    tokens = torch.zeros(RUNS, 1, dtype=torch.int64)
    accepted, following = spec_verify(scores.repeat(1, 2, 1), scores, tokens, **call)
    expected = CONTROLLED[2].double().softmax(-1).numpy() * RUNS
    counts = np.bincount(following, minlength=STATES)
    some = expected > 0
    assert not accepted.any() and (counts[~some] == 0).all()
    assert chisquare(counts[some], expected[some]).pvalue > 1e-3
