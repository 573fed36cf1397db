"""Speculative verification, by torch, against algorithm 1 in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from plugalign.kernels.gumbel import sample
from plugalign.kernels.philox import philox4x32
from plugalign.kernels.spec_verify import spec_verify

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def make_call(rows, places, vocab, dtype=torch.float32, seed=2**40 + 7, spread=0.7, cool=1.2):
    """Targets, of which some entries are masked out, and a draft drawn from scores like them."""
    generator = torch.Generator().manual_seed(1000 * vocab + places)
    target = torch.randn(rows, places + 1, vocab, generator=generator) * 3
    draft = target[:, :-1] + torch.randn(rows, places, vocab, generator=generator) * spread
    if vocab > 2:
        target[torch.rand(target.shape, generator=generator) < 0.3] = -INF
        target[..., 1] = draft[..., 1] = 0.5
        draft[..., 2] = -INF
    numbers = torch.arange(rows)
    call = {
        "target": target.to(dtype),
        "draft": draft.to(dtype),
        "seed": seed,
        "prompt": numbers + 2**31 - 1,
        "sample": numbers * 5,
        "step": numbers % 50,
        "temperature": torch.full((rows,), 0.8),
        "draft_temperature": torch.full((rows,), cool),
        "lengths": torch.where(numbers % 3 == 0, numbers % (places + 1), places),
    }
    return call | {"tokens": draw_draft(call)}


def draw_draft(call):
    """As a caller does it: with the ordinary noise, place by place."""
    address = {name: call[name] for name in ("seed", "prompt", "sample")}
    address["temperature"] = call["draft_temperature"]
    drafted = [
        sample(scores, step=call["step"] + place, **address)
        for place, scores in enumerate(call["draft"].unbind(1))
    ]
    return torch.stack(drafted, 1)


def exact_noise(words):
    return -np.log(-np.log1p(-(words + 0.5) / 2**32))


def words_of(step, prompt, sample, seed, vocab):
    words = philox4x32(torch.arange(-(-vocab // 4)), step, prompt, sample, seed)
    return torch.stack(words, 1).flatten().double().numpy()[:vocab]


def algorithm_1(call, row):
    """Accepted, next, and how clearly: Leviathan et al. 2023, in float64 from the random words."""
    vocab, clear = call["target"].shape[2], INF
    address = (call["prompt"][row].item(), call["sample"][row].item(), call["seed"], vocab)
    step, temperature = call["step"][row].item(), call["temperature"][row].item()
    log_p = log_softmax(call["target"][row].double().numpy() / temperature, axis=-1)
    log_q = call["draft"][row].double().numpy() / call["draft_temperature"][row].item()
    log_q = log_softmax(log_q, axis=-1)
    length = call["lengths"][row].item()
    for place in range(length):
        u = (words_of(step + place + 2**30, *address)[0] + 0.5) / 2**32
        token = call["tokens"][row, place]
        ratio = np.exp(log_p[place, token] - log_q[place, token])
        clear = min(clear, abs(ratio - u))
        if u >= ratio:
            with np.errstate(divide="ignore"):
                scores = np.log(np.maximum(np.exp(log_p[place]) - np.exp(log_q[place]), 0))
            scores += exact_noise(words_of(step + place + 2**31, *address))
            break
    else:
        place, scores = length, log_p[length] + exact_noise(words_of(step + length, *address))
    second, first = np.sort(np.append(scores, -1e9))[-2:]
    return place, scores.argmax(), min(clear, first - second)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "places", "vocab"),
    [(9, 2, 1), (90, 3, 2), (200, 1, 7), (99, 4, 127), (99, 11, 257), (9, 2, 1000), (2, 1, 50257)],
)
def test_equals_algorithm_1_in_float64(rows, places, vocab, dtype):
    call = make_call(rows, places, vocab, dtype)
    accepted, following = spec_verify(**call)
    expected = [algorithm_1(call, row) for row in range(rows)]
    clear = np.array([gap > 1e-4 for _, _, gap in expected])
    assert clear.mean() > 0.9
    place, token = np.array([(p, t) for p, t, _ in expected]).T
    assert (accepted.numpy() == place)[clear].all()
    assert (following.numpy() == token)[clear].all()


def test_a_row_does_not_see_its_batch():
    call = make_call(12, 3, 500) | {"lengths": torch.arange(12) % 4}
    call["temperature"][::5] = 0.0
    whole = spec_verify(**call)
    assert len(whole[0].unique()) > 2
    for row in range(12):
        one = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        assert [x.tolist() for x in spec_verify(**one)] == [[x[row]] for x in whole]
    numbers = {"step": 4, "temperature": 0.8, "draft_temperature": 1.2, "lengths": 2}
    tensors = {name: torch.full_like(call[name], value) for name, value in numbers.items()}
    for a, b in zip(spec_verify(**call | numbers), spec_verify(**call | tensors), strict=True):
        assert torch.equal(a, b)


def test_what_lies_outside_is_never_looked_at():
    call = make_call(12, 3, 500) | {"lengths": torch.arange(12) % 4}
    whole = spec_verify(**call)
    beyond = torch.arange(3) >= call["lengths"][:, None]
    for poison in (300.0, NAN):
        wide = torch.full((12, 5, 515), poison)
        wide[:, :4, :500] = call["target"]
        dirty = {
            "target": wide[:, :4, :500],
            "draft": call["draft"].masked_fill(beyond[..., None], poison),
            "tokens": call["tokens"].masked_fill(beyond, -7),
        }
        for a, b in zip(spec_verify(**call | dirty), whole, strict=True):
            assert torch.equal(a, b)


def test_greedy_rows_take_the_smaller_of_equals():
    target = torch.tensor([[1.0, 5.0, 5.0, 2.0], [7.0, 7.0, 7.0, 7.0], [0.0, -INF, 3.0, 3.0]])
    tokens = torch.tensor([[1, 0], [2, 0], [1, 3]])
    call = make_call(3, 2, 4) | {"target": target.expand(3, 3, 4), "tokens": tokens}
    call |= {"temperature": torch.zeros(3), "lengths": 2}
    for draft in (call["draft"], None):
        accepted, following = spec_verify(**call | {"draft": draft})
        assert accepted.tolist() == [2, 0, 1] and following.tolist() == [2, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_places_without_an_answer(temperature):
    scores = torch.zeros(5, 3, 4)
    scores[..., 0] = 200.0  # so that token 0 is certain
    bad = scores.clone()
    bad[0, 1, 3], bad[1, 0], bad[2, 1, 1], bad[3, 0, 2] = NAN, -INF, NAN, INF
    call = make_call(5, 2, 4) | {"tokens": torch.zeros(5, 2, dtype=torch.int64), "lengths": 2}
    call |= {"temperature": temperature, "draft_temperature": 1.0}
    stopped = [1, 0, 1, 0, 2], [-1, -1, -1, -1, 0]
    for draft in (scores[:, :2], None):
        found = spec_verify(**call | {"target": bad, "draft": draft})
        assert tuple(x.tolist() for x in found) == stopped
    found = spec_verify(**call | {"target": scores, "draft": bad[:, :2]})
    greedy = [2] * 5, [0] * 5  # who does not look at the draft's scores
    assert tuple(x.tolist() for x in found) == (stopped if temperature else greedy)
    bad = bad.roll(1, 1)  # behind the draft too
    found = spec_verify(**call | {"target": bad, "draft": None})
    assert tuple(x.tolist() for x in found) == ([2, 1, 2, 1, 2], [-1, -1, -1, -1, 0])


score = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([-INF, 0.0, 1.0, 3e4, -3e4, 3e38]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_odd_scores(data):
    places, vocab = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    size = (2 * places + 1) * vocab
    scores = torch.tensor(data.draw(st.lists(score, min_size=size, max_size=size)))
    draft, target = scores.view(1, -1, vocab).tensor_split([places], 1)
    token = st.lists(st.integers(0, vocab - 1), min_size=places, max_size=places)
    tokens = torch.tensor([data.draw(token)])
    call = make_call(1, places, vocab, seed=data.draw(st.integers(0, 2**64 - 1)))
    call |= {"target": target, "draft": draft, "tokens": tokens, "lengths": places}
    temperature = data.draw(st.sampled_from([0.0, 1e-30, 0.7, 40.0]))
    accepted, following = (x.item() for x in spec_verify(**call | {"temperature": temperature}))
    kept = torch.arange(accepted)
    assert (target[0, kept, tokens[0, kept]] > -INF).all()
    if following >= 0:
        assert target[0, accepted, following] > -INF
        assert accepted == places or temperature > 0 or following != tokens[0, accepted]
    else:
        empty = [(x[0, accepted] == -INF).all() for x in (target, draft)[: 1 + places - accepted]]
        assert any(empty)


def test_empty_batches_and_drafts():
    for rows, places in ((0, 2), (3, 0)):
        call = make_call(4, 2, 9)
        call = {k: v[:rows] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        call |= {"target": call["target"][:, : places + 1], "tokens": call["tokens"][:, :places]}
        call |= {"lengths": None}
        for draft in (call["draft"][:, :places], None):
            accepted, following = spec_verify(**call | {"draft": draft})
            assert accepted.tolist() == [0] * rows
            plain = {k: call[k] for k in ("seed", "prompt", "sample", "step", "temperature")}
            assert torch.equal(following, sample(call["target"][:, 0], **plain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(2, 4, 5)}, r"target must be \(2, 3, 5\).* got \(2, 4, 5\)"),
        ({"target": torch.zeros(5)}, r"target must be .* got \(5,\)"),
        ({"target": torch.zeros(2, 3, 0)}, "V >= 1"),
        ({"target": torch.zeros(2, 3, 5).double()}, "target must be .*torch.float64"),
        ({"target": torch.zeros(2, 5, 3).mT}, r"each row of target must be contiguous.*strides"),
        ({"draft": torch.zeros(2, 3, 5)}, r"draft must be \(2, 2, 5\).* got \(2, 3, 5\)"),
        ({"draft": torch.zeros(2, 2, 6)}, r"draft must be \(2, 2, 5\)"),
        ({"draft": torch.zeros(2, 2, 5, device="meta")}, "draft must be .* on cpu.* on meta"),
        ({"tokens": torch.zeros(2, 2)}, r"tokens must be int64 \(B, G\) .*got torch.float32"),
        ({"tokens": torch.zeros(2, dtype=torch.int64)}, r"tokens must be .*got torch.int64 \(2,\)"),
        ({"tokens": torch.full((2, 2), 5)}, r"tokens must lie in \[0, V = 5\), got 5"),
        ({"lengths": 3}, r"lengths must lie in \[0, G = 2\], got 3"),
        ({"lengths": torch.tensor([1, -1])}, "lengths must .* got -1"),
        ({"lengths": torch.ones(2)}, "lengths must be .*torch.int64.* got torch.float32"),
        ({"step": 2**30 - 2}, r"step must lie in \[0, 2\*\*30 - G\), G = 2, got 1073741822"),
        ({"step": torch.tensor([-1, 0])}, "step must lie .* got -1"),
        ({"prompt": torch.zeros(3, dtype=torch.int64)}, r"prompt must be .*\(2,\).* got .*\(3,\)"),
        ({"sample": torch.zeros(2)}, "sample must be .*torch.int64.* got torch.float32"),
        ({"temperature": -0.5}, "temperature must be finite and not negative, got -0.5"),
        ({"temperature": torch.tensor([1.0, NAN])}, "temperature .* got nan"),
        ({"draft_temperature": 0.0}, r"draft_temperature must .*draft=None\), got 0.0"),
        ({"draft_temperature": torch.tensor([1.0, INF])}, "draft_temperature must .* got inf"),
        ({"seed": -3}, "seed must be an int"),
        ({"backend": "cuda"}, "backend must be .*got 'cuda'"),
        ({"backend": "triton"}, "needs a CUDA tensor, got one on cpu"),
    ],
)
def test_bad_input(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = torch.arange(2)
    good = {
        "target": torch.zeros(2, 3, 5),
        "draft": torch.zeros(2, 2, 5),
        "tokens": torch.zeros(2, 2, dtype=torch.int64),
        **{"seed": 1, "prompt": rows, "sample": rows, "step": 0},
    }
    with pytest.raises(ValueError, match=message):
        spec_verify(**good | change)
