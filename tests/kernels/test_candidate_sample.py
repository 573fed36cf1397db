"""Sampling among candidates: the torch reference against FUDGE's formula in float64, and the
sampler of full rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import chisquare

from plugalign.kernels.candidate_sample import candidate_sample, takes_triton
from plugalign.kernels.gumbel import sample
from plugalign.kernels.philox import philox4x32

INF, NAN = float("inf"), float("nan")


def make_call(rows, count, vocab=5003, seed=2**40 + 3):
    generator = torch.Generator().manual_seed(count)
    ids = torch.stack([torch.randperm(vocab, generator=generator)[:count] for _ in range(rows)])
    return {
        "values": torch.randn(rows, count, generator=generator) * 3,
        "ids": ids,
        "added": torch.randn(rows, count, generator=generator).mul(2).sigmoid().log(),
        "seed": seed,
        "prompt": torch.arange(rows) + 2**31,
        "sample": torch.arange(rows) * 7,
        "step": torch.full((rows,), 5),
    }


def exact_noise(ids, call):
    """-log(-log(1 - u)) in float64, u the middle of the interval of each token's word."""
    ids, rows = torch.as_tensor(ids), call["step"][:, None]
    found = philox4x32(
        ids >> 2, rows, call["prompt"][:, None], call["sample"][:, None], call["seed"]
    )
    words = np.choose(ids.numpy() & 3, [word.numpy() for word in found])
    return -np.log(-np.log1p(-(words.astype(np.float64) + 0.5) / 2**32))


def nucleus(scores, ids, top_p):
    """Whether each candidate of one row is in the smallest best set of mass top_p, and how close
    a mass comes to deciding otherwise."""
    if top_p == 1:
        return np.ones(len(ids), dtype=bool), INF
    p = np.exp(log_softmax(scores))
    order = sorted(range(len(p)), key=lambda i: (-scores[i], ids[i]))
    before = np.cumsum(p[order])[:-1]
    inside = np.zeros(len(p), dtype=bool)
    inside[[order[0], *np.array(order[1:], dtype=int)[before < top_p]]] = True
    return inside, np.abs(before - top_p).min(initial=INF)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.0])
@pytest.mark.parametrize(
    ("count", "weight", "temperature"),
    [(1, 1, 1), (2, -1.5, 1), (7, 0, 0.5), (50, 2, 1), (257, 1, 2), (1500, 1, 0.7)],
)
def test_against_the_formula_in_float64(count, weight, temperature, top_p):
    call = make_call(40, count)
    numbers = {"weight": float(weight), "temperature": temperature, "top_p": top_p}
    tokens, log_p = candidate_sample(**call, **numbers)
    z = call["values"].double().numpy() + weight * call["added"].double().numpy()
    assert log_p.dtype == torch.float32
    assert np.abs(log_p.double().numpy() - log_softmax(z, -1)).max() < 1e-5
    scores = z / temperature + exact_noise(call["ids"], call)
    clear = 0
    for row, ids in enumerate(call["ids"].numpy()):
        inside, margin = nucleus(z[row] / temperature, ids, top_p)
        ranked = np.sort(np.where(inside, scores[row], -INF))
        if margin < 1e-5 or (count > 1 and ranked[-1] - ranked[-2] < 1e-5):
            continue
        clear += 1
        assert tokens[row] == ids[np.where(inside, scores[row], -INF).argmax()]
    assert clear > 35


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_is_the_draw_from_a_full_row(temperature):
    call = make_call(64, 90)
    call["values"][:, ::4] = -INF
    tokens, _ = candidate_sample(**call, weight=1.3, temperature=temperature)
    z = call["values"] + 1.3 * call["added"]
    logits = torch.full((64, 5003), -INF).scatter(1, call["ids"], z)
    address = {name: call[name] for name in ("seed", "prompt", "sample", "step")}
    assert torch.equal(tokens, sample(logits, temperature=temperature, **address))


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"), [(1.0, 1.0, 24), (0.6, 1.0, 24), (1.5, 0.8, 7)]
)
def test_draws_follow_the_softmax(temperature, top_p, kept):
    draws, count = 200_000, 24
    call = make_call(1, count) | {"prompt": torch.full((draws,), 9), "sample": torch.arange(draws)}
    call["step"] = 3
    call["values"][0, [3, 17]] = -INF
    z = (call["values"] + 0.8 * call["added"]).double().numpy()[0] / temperature
    for name in ("values", "ids", "added"):
        call[name] = call[name].expand(draws, count)
    tokens, _ = candidate_sample(**call, weight=0.8, temperature=temperature, top_p=top_p)
    ids = call["ids"][0].numpy()
    inside, _ = nucleus(z, ids, top_p)
    assert inside.sum() == kept
    p = np.where(inside, np.exp(z - z.max()), 0)
    expected = draws * p / p.sum()
    counts = np.array([(tokens.numpy() == token).sum() for token in ids])
    assert counts.sum() == draws and (counts[expected == 0] == 0).all()
    large = expected >= 5
    observed, wanted = counts[large], expected[large]
    if rest := expected[~large].sum():
        observed, wanted = np.append(observed, counts[~large].sum()), np.append(wanted, rest)
    assert chisquare(observed, wanted).pvalue > 1e-3


entry = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([-INF, 0.0, -0.0, 1.0, 60.0, -3e4]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_odd_rows(data):
    """Whatever the values: the token is the best of the nucleus by the reference's own scores."""
    count = data.draw(st.integers(1, 12))
    row = st.lists(entry, min_size=count, max_size=count)
    values = torch.tensor([data.draw(row)])
    call = make_call(1, count, seed=data.draw(st.integers(0, 2**64 - 1))) | {"values": values}
    few = st.sampled_from([0.0, -1.0, -2.0])
    call["added"] = torch.tensor([data.draw(st.lists(few, min_size=count, max_size=count))])
    temperature = data.draw(st.sampled_from([0.0, 0.5, 1.0, 30.0]))
    top_p = data.draw(st.sampled_from([0.0, 0.35, 0.85, 1.0]))
    token, _ = candidate_sample(**call, temperature=temperature, top_p=top_p)
    z, ids = (values + call["added"])[0].double().numpy(), call["ids"][0].numpy()
    if (z == -INF).all():
        assert token.tolist() == [-1]
        return
    inside, margin = nucleus(z / (temperature or 1), ids, top_p)
    scores = np.where(inside, z + temperature * exact_noise(call["ids"], call)[0], -INF)
    found = np.flatnonzero(ids == token.item())[0]
    if temperature == 0:
        assert found == min(np.flatnonzero(z == z.max()), key=lambda i: ids[i])
    elif margin > 1e-6:
        assert inside[found] and scores[found] >= scores.max() - 1e-4


def test_equal_scores_give_the_smaller_id():
    call = make_call(2, 4) | {"values": torch.zeros(2, 4), "added": torch.zeros(2, 4)}
    call["ids"] = torch.tensor([[9, 4, 6, 8], [7, 70, 50, 3]])
    assert candidate_sample(**call, temperature=0.0)[0].tolist() == [4, 3]
    # Four of mass 1/4: a nucleus of 1/2 holds the two smaller ids, and not a third.
    many = make_call(500, 4) | {"values": torch.zeros(500, 4), "added": torch.zeros(500, 4)}
    many["ids"] = call["ids"][:1].expand(500, 4)
    for top_p, drawn in ((0.0, {4}), (0.25, {4}), (0.5, {4, 6}), (0.51, {4, 6, 8})):
        assert set(candidate_sample(**many, top_p=top_p)[0].tolist()) == drawn


def test_empty_slots_and_a_weight_of_zero_ignore_the_rest():
    call = make_call(6, 30)
    tokens, log_p = candidate_sample(**call)
    wide = {name: torch.nn.functional.pad(call[name], (2, 3)) for name in ("ids", "added")}
    wide["values"] = torch.nn.functional.pad(call["values"], (2, 3), value=-INF)
    wide["added"][:, [0, 1, -1]] = torch.tensor([NAN, INF, 300.0])
    found = candidate_sample(**(call | wide))
    assert torch.equal(found[0], tokens)
    assert torch.allclose(found[1][:, 2:-3], log_p, rtol=0, atol=1e-6)
    assert (found[1][:, [0, 1, -1]] == -INF).all()
    plain = candidate_sample(**(call | {"added": torch.zeros(6, 30)}))
    nothing = candidate_sample(**(call | {"added": torch.full((6, 30), NAN)}), weight=0.0)
    assert torch.equal(nothing[0], plain[0]) and torch.equal(nothing[1], plain[1])


def test_the_order_of_candidates_and_other_rows_do_not_matter():
    call = make_call(9, 60)
    numbers = {"weight": torch.linspace(-1, 2, 9), "temperature": torch.linspace(0, 2, 9)}
    numbers["top_p"] = torch.linspace(0, 1, 9)
    tokens, log_p = candidate_sample(**call, **numbers)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    turned = {name: call[name][:, order].contiguous() for name in ("values", "ids", "added")}
    assert torch.equal(candidate_sample(**(call | turned), **numbers)[0], tokens)
    for row in range(9):
        one = {name: call[name][row : row + 1] for name in call if name != "seed"}
        own = {name: number[row].item() for name, number in numbers.items()}
        found = candidate_sample(**one, **own, seed=call["seed"])
        assert found[0] == tokens[row] and torch.allclose(found[1][0], log_p[row], atol=1e-6)


def test_rows_without_an_answer():
    call = make_call(5, 6)
    call["values"][0] = -INF
    call["values"][1, 2] = NAN
    call["added"][2, 4] = NAN
    call["added"][3] = -INF
    call["values"][4, [1, 5]] = INF
    for top_p in (1.0, 0.5):
        for temperature in (0.0, 1.0):
            tokens, log_p = candidate_sample(**call, temperature=temperature, top_p=top_p)
            assert tokens[:4].tolist() == [-1] * 4
            assert tokens[4] == call["ids"][4, [1, 5]].min()
            assert log_p.isnan().all()


def test_an_empty_batch():
    call = {name: value[:0] for name, value in make_call(1, 4).items() if name != "seed"}
    tokens, log_p = candidate_sample(**call, seed=1)
    assert tokens.shape == (0,) and log_p.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(5)}, r"values must be \(B, K\) with K >= 1, got \(5,\)"),
        ({"values": torch.zeros(2, 0)}, "K >= 1"),
        ({"values": torch.zeros(2, 4, dtype=torch.float64)}, "values must be in .*torch.float64"),
        ({"ids": torch.zeros(2, 4)}, "ids must be in torch.int64, got torch.float32"),
        ({"ids": torch.zeros(2, 5, dtype=torch.int64)}, r"ids must be \(2, 4\) .* got \(2, 5\)"),
        ({"added": torch.zeros(2, 4, device="meta")}, "added must be .* on cpu .* on meta"),
        ({"added": torch.zeros(4, 2).T}, r"row of added .* strides \(1, 2\); call .contiguous"),
        ({"weight": NAN}, "weight must be finite, from -inf to inf, got nan"),
        ({"weight": torch.tensor([1.0, INF])}, "weight .* got inf"),
        ({"weight": torch.zeros(3)}, r"weight must be .*\(2,\).* got .*\(3,\)"),
        ({"temperature": -0.5}, "temperature must be finite and not negative, got -0.5"),
        ({"top_p": 1.5}, "top_p must be finite, from 0 to 1, got 1.5"),
        ({"top_p": torch.tensor([0.5, NAN])}, "top_p .* got nan"),
        ({"step": torch.zeros(2)}, "step must be .*torch.int64.* got torch.float32"),
        ({"prompt": torch.zeros(3, dtype=torch.int64)}, r"prompt must be .* got .*\(3,\)"),
        ({"seed": 2**64}, "seed must be an int"),
        ({"backend": "cuda"}, "backend must be .*got 'cuda'"),
        ({"backend": "triton"}, 'needs a CUDA tensor, got one on cpu; take "auto"'),
    ],
)
def test_bad_input(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        candidate_sample(**(make_call(2, 4) | change))


def test_what_is_too_large_for_the_kernel(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert takes_triton("triton", torch.zeros(1, 1024))
    with pytest.raises(ValueError, match='at most 1024 candidates, got 1025; take "auto"'):
        takes_triton("triton", torch.zeros(1, 1025))


def test_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from plugalign.kernels.candidate_sample import candidate_sample\n"
        "one = torch.ones(1, dtype=torch.int64)\n"
        "x = torch.zeros(1, 1)\n"
        "call = dict(seed=1, prompt=one, sample=one, step=0)\n"
        "assert candidate_sample(x, one[None], x, **call)[0] == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
