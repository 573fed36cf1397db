"""The addressed noise and the torch reference, against float64 and the distribution itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from plugalign.kernels import gumbel
from plugalign.kernels.gumbel import LEAST_NOISE, MOST_NOISE, gumbel_noise, noise_of, sample
from plugalign.kernels.philox import philox4x32

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def exact_noise(words):
    """-log(-log(1 - u)) in float64, u the middle of the word's interval."""
    u = (np.asarray(words, dtype=np.float64) + 0.5) / 2**32
    return -np.log(-np.log1p(-u))


def make_logits(rows, vocab, dtype=torch.float32, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)


def make_address(rows):
    return {"prompt": torch.arange(rows) + 3, "sample": torch.arange(rows) * 2**20, "step": 11}


def dense(logits, seed, prompt, sample, step, temperature):
    """The definition: noise for every token, then the smallest argmax."""
    tokens = torch.arange(logits.shape[1])
    noise = gumbel_noise(tokens, step, prompt[:, None], sample[:, None], seed)
    temperature = torch.as_tensor(temperature, dtype=torch.float32).expand(len(logits))
    scores = logits.float() + temperature[:, None] * noise
    best = scores == scores.amax(-1, keepdim=True)
    return torch.where(scores.amax(-1) > -INF, best.int().argmax(-1), -1)


def test_noise_equals_the_formula_in_float64():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2**32, (200_000,), generator=generator)
    small = torch.cat([torch.arange(4096), 2 ** torch.arange(32)])
    for chosen in (words, small):
        error = np.abs(noise_of(chosen).double().numpy() - exact_noise(chosen))
        # Noise near its minimum, which never wins, carries the rounding of 1 - u.
        assert (error < 4e-6 + 2.0**-24 / (1 - (chosen.numpy() + 0.5) / 2**32)).all()


def test_both_tails():
    ends = noise_of(torch.tensor([0, 1, 2**32 - 2, 2**32 - 1]))
    assert ends[0].item() == pytest.approx(33 * np.log(2), abs=2e-6)
    assert ends[1].item() == pytest.approx(np.log(2**32 / 1.5), abs=2e-6)
    assert ends[0] < MOST_NOISE
    assert ends[3] > LEAST_NOISE
    assert (ends.diff() <= 0).all()


def test_a_token_has_its_own_word():
    # The third known answer of Random123: counter 243f6a88 85a308d3 13198a2e 03707344.
    tokens = 4 * 0x243F6A88 + torch.arange(4)
    noise = gumbel_noise(tokens, 0x85A308D3, 0x13198A2E, 0x03707344, 0x299F31D0_A4093822)
    words = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert np.abs(noise.double().numpy() - exact_noise(words)).max() < 4e-6


def test_noise_is_the_same_in_any_batch_order_and_stride():
    whole = gumbel_noise(torch.arange(5003), 2, torch.arange(4)[:, None], 9, 2**40)
    order = torch.randperm(5003, generator=torch.Generator().manual_seed(3))
    for tokens in (order, order[::7], order[:1], order[:13].repeat(3)):
        assert torch.equal(gumbel_noise(tokens, 2, 3, 9, 2**40), whole[3, tokens])
    one_by_one = [gumbel_noise(torch.tensor(t), 2, 1, 9, 2**40) for t in range(40)]
    assert torch.equal(torch.stack(one_by_one), whole[1, :40])
    assert torch.equal(noise_of(torch.arange(999)[::5]), noise_of(torch.arange(999))[::5])


def test_every_part_of_the_address_matters():
    tokens = torch.arange(64)
    base = gumbel_noise(tokens, 1, 2, 3, 4)
    for other in ((2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 2, 3, 4 + 2**32)):
        assert not torch.isclose(gumbel_noise(tokens, *other), base).any()


@pytest.mark.parametrize("axis", ["token", "step", "prompt", "sample"])
def test_noise_is_gumbel_along_every_axis(axis):
    address = {"token": 5, "step": 6, "prompt": 7, "sample": 8}
    run = {name: torch.tensor(value) for name, value in address.items()}
    run[axis] = torch.arange(20_000)
    noise = gumbel_noise(run["token"], run["step"], run["prompt"], run["sample"], 12)
    assert kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("axis", ["prompt", "sample"])
def test_draws_follow_the_softmax(temperature, axis):
    draws, vocab = 200_000, 96
    logits = make_logits(1, vocab, seed=4, spread=2.5)
    logits[0, [5, 50]] = -INF
    fixed, running = torch.full((draws,), 8), torch.arange(draws)
    address = {"prompt": fixed, "sample": fixed} | {axis: running}
    found = sample(logits.expand(draws, vocab), seed=77, step=1, temperature=temperature, **address)
    expected = (logits[0].double() / temperature).softmax(-1).numpy() * draws
    counts = np.bincount(found, minlength=vocab)
    assert counts[5] == counts[50] == 0
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    assert large.sum() > 30 and expected[-1] > 1
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 7, 127, 257, 1000, 32000, 50257, 128256])
def test_sample_is_the_argmax_over_all_tokens(vocab, dtype):
    logits = make_logits(4, vocab, dtype)
    call = make_address(4) | {"seed": 2**63 + 5, "temperature": torch.tensor([0.0, 0.3, 1.0, 9.0])}
    assert torch.equal(sample(logits, **call), dense(logits, **call))


value = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([-INF, 0.0, -0.0, 1.0, 1e-30, 88.0, 3e4, -3e4, 3e38, -3e38, INF]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sample_is_the_argmax_on_odd_rows(data):
    rows, vocab = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    entries = data.draw(st.lists(value, min_size=vocab, max_size=vocab))
    logits = torch.tensor(entries).expand(rows, vocab).clone()
    logits[0] = logits[0].roll(1)
    address = make_address(rows) | {"seed": data.draw(st.integers(0, 2**64 - 1))}
    temperature = data.draw(st.sampled_from([0.0, 1e-3, 0.7, 1.0, 40.0]))
    call = address | {"temperature": temperature}
    assert torch.equal(sample(logits, **call), dense(logits, **call))


def test_sample_against_float64():
    """Independent of the torch reference's float32: words, then the textbook formula in float64."""
    logits = make_logits(200, 501, seed=9)
    call = make_address(200)
    words = philox4x32(
        torch.arange(126), call["step"], call["prompt"][:, None], call["sample"][:, None], 321
    )
    noise = exact_noise(torch.stack(words, -1).flatten(1)[:, :501])
    scores = logits.double().numpy() / 0.8 + noise
    first, second = np.sort(scores)[:, :-3:-1].T
    clear = first - second > 1e-5
    found = sample(logits, seed=321, temperature=0.8, **call).numpy()
    assert clear.mean() > 0.99 and (found == scores.argmax(-1))[clear].all()


def test_a_row_does_not_see_its_batch(monkeypatch):
    logits, call = make_logits(9, 3001), make_address(9) | {"seed": 6}
    temperature = torch.linspace(0, 2, 9)
    whole = sample(logits, temperature=temperature, **call)
    for chunk in (1, 7000):
        monkeypatch.setattr(gumbel, "CHUNK", chunk)
        assert torch.equal(sample(logits, temperature=temperature, **call), whole)
    for row in range(9):
        one = {name: call[name][row : row + 1] for name in ("prompt", "sample")}
        alone = sample(
            logits[row : row + 1], seed=6, step=11, temperature=temperature[row].item(), **one
        )
        assert alone[0] == whole[row]
    padded = torch.full((9, 3100), NAN)
    padded[:, :3001] = logits
    assert torch.equal(sample(padded[:, :3001], temperature=temperature, **call), whole)


def test_steps_and_temperatures_of_rows_and_of_the_batch():
    logits, call = make_logits(3, 50), make_address(3) | {"seed": 1}
    plain = sample(logits, **call)
    for step in (torch.tensor(11), torch.full((3,), 11)):
        assert torch.equal(sample(logits, **(call | {"step": step})), plain)
    for temperature in (torch.tensor(0.7), torch.full((3,), 0.7)):
        same = sample(logits, temperature=temperature, **call)
        assert torch.equal(same, sample(logits, temperature=0.7, **call))


def test_noise_on_survivors_is_the_same_draw():
    logits, call = make_logits(1, 2000), make_address(1) | {"seed": 8}
    kept = logits[0].topk(60).indices.sort().values
    masked = torch.full_like(logits, -INF)
    masked[0, kept] = logits[0, kept]
    noise = gumbel_noise(kept, call["step"], call["prompt"], call["sample"], 8)
    best = kept[(logits[0, kept] + 0.9 * noise).argmax()]
    assert sample(masked, temperature=0.9, **call)[0] == best


def test_greedy_takes_the_smaller_of_equals():
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0], [7.0, 7.0, 7.0, 7.0]])
    call = make_address(2) | {"seed": 3}
    assert sample(logits, temperature=0.0, **call).tolist() == [1, 0]
    assert sample(logits, temperature=torch.zeros(2), **call).tolist() == [1, 0]


def test_rows_without_an_answer():
    rows = [
        [-INF] * 5,
        [0, 1, NAN, 2, 3],
        [NAN] * 5,
        [-INF, -INF, 0, -INF, NAN],
        [-INF, 0, 3, INF, INF],
    ]
    call = make_address(5) | {"seed": 3}
    for temperature in (0.0, 1.0):
        assert sample(torch.tensor(rows), temperature=temperature, **call).tolist() == [
            -1,
            -1,
            -1,
            -1,
            3,
        ]


def test_an_empty_batch():
    assert sample(torch.empty(0, 9), **make_address(0), seed=1).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(5)}, r"logits must be \(B, V\).*got \(5,\)"),
        ({"logits": torch.zeros(2, 0)}, "V >= 1"),
        ({"logits": torch.zeros(2, 5, dtype=torch.float64)}, "torch.float64"),
        ({"logits": torch.zeros(5, 2).T}, r"strides \(1, 2\); call .contiguous"),
        ({"prompt": torch.zeros(3, dtype=torch.int64)}, r"prompt must be .*\(2,\).* got .*\(3,\)"),
        ({"sample": torch.zeros(2)}, "sample must be .*torch.int64.* got torch.float32"),
        ({"step": torch.zeros(2, dtype=torch.int64, device="meta")}, "step must be .*on meta"),
        ({"temperature": -0.5}, "temperature must be finite and not negative, got -0.5"),
        ({"temperature": torch.tensor([1.0, NAN])}, "temperature .* got nan"),
        ({"temperature": "hot"}, "temperature must be finite and not negative, got 'hot'"),
        ({"prompt": [1, 2]}, r"prompt must be a number or torch.int64 .*, got \[1, 2\]"),
        ({"step": None}, "step must be a number or .*, got None"),
        ({"seed": -3}, "seed must be an int"),
        ({"backend": "cuda"}, "backend must be .*got 'cuda'"),
        ({"backend": "triton"}, 'needs a CUDA tensor, got one on cpu; take "auto"'),
    ],
)
def test_bad_input(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    good = {"logits": torch.zeros(2, 5), "seed": 1} | make_address(2)
    with pytest.raises(ValueError, match=message):
        sample(**(good | change))


def test_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from plugalign.kernels.gumbel import sample\n"
        "one = torch.ones(1, dtype=torch.int64)\n"
        "assert sample(torch.zeros(1, 3), seed=1, prompt=one, sample=one, step=0) >= 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_scores_may_want_a_gradient():
    logits, number = torch.randn(2, 50, requires_grad=True), torch.arange(2)
    drawn = sample(logits, seed=3, prompt=number, sample=number, step=0)
    assert torch.equal(drawn, sample(logits.detach(), seed=3, prompt=number, sample=number, step=0))
