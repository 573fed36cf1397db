"""Weights learned of choices, against general solvers and simulated crowds."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import plugalign as pa
from plugalign.values.preferences import (
    Belief,
    agreement,
    most_probable,
    nothing_known,
    projected_gradient,
)
from plugalign.values.preferences_evidence import evidence


def choices(n=60, features=3, seed=0, theta=(1.0, -0.5, 0.0)):
    """Choices that a crowd of this theta makes between random texts."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(size=(n, features))
    keep = rng.random(n) < 1 / (1 + np.exp(-differences @ np.array(theta)))
    return torch.from_numpy(np.where(keep[:, None], differences, -differences))


def test_the_mode_and_its_curvature():
    differences, rng = choices(), np.random.default_rng(1)
    spread = rng.normal(size=(3, 3))
    prior = Belief(
        torch.from_numpy(rng.normal(size=3)), torch.from_numpy(spread @ spread.T + np.eye(3))
    )
    d, mean = differences.numpy(), prior.theta.numpy()
    held = np.linalg.inv(prior.covariance.numpy())

    def loss(theta):
        apart = theta - mean
        return np.logaddexp(0, -d @ theta).sum() + 0.5 * apart @ held @ apart

    want = minimize(loss, mean, method="BFGS", options={"gtol": 1e-9}).x
    got = most_probable(differences, prior)
    np.testing.assert_allclose(got.theta.numpy(), want, atol=1e-6)
    p = 1 / (1 + np.exp(-d @ want))
    curvature = (d.T * (p * (1 - p))) @ d + held
    np.testing.assert_allclose(got.covariance.numpy(), np.linalg.inv(curvature), atol=1e-6)
    assert torch.equal(got.covariance, got.covariance.mT)


def test_no_choice_teaches_nothing():
    prior = nothing_known(2, ridge=4.0)
    got = most_probable(torch.zeros(0, 2), prior)
    assert got.theta.tolist() == [0, 0]
    torch.testing.assert_close(got.covariance, 0.25 * torch.eye(2, dtype=torch.float64))


def test_separable_choices_have_a_mode():
    got = most_probable(1000.0 * torch.ones(50, 1), nothing_known(1))
    assert got.theta.isfinite().all() and 0 < float(got.theta) < 1


def test_piece_by_piece_is_almost_all_at_once_and_fades():
    every, prior = choices(n=400, theta=(0.6, -0.3, 0.0)), nothing_known(3)
    together, belief = most_probable(every, prior), prior
    for part in every.split(100):
        belief = most_probable(part, belief)
    apart = (belief.theta - together.theta).abs() / together.standard_errors()
    assert float(apart.max()) < 0.35
    faded = belief.fading(0.5)
    torch.testing.assert_close(faded.standard_errors(), belief.standard_errors() * 2**0.5)
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], got 0"):
        belief.fading(0)


def test_the_gradient_follows_people_who_change():
    start, rate = nothing_known(3), 0.3
    one = projected_gradient(choices(n=800), start, rate=rate)
    other = projected_gradient(choices(n=800, theta=(-1.0, 0.5, 0.0), seed=3), one, rate=rate)
    assert float(one.theta[0]) > 0.4 and float(other.theta[0]) < -0.4
    near = projected_gradient(choices(n=800), start, rate=100.0, radius=0.5)
    assert float(near.theta.norm()) <= 0.5 + 1e-12
    assert agreement(choices(n=800, seed=4), one.theta) > 0.6
    assert agreement(choices(n=10), torch.zeros(3, dtype=torch.float64)) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nothing_known(2, ridge=0), "the ridge must be positive and finite, got 0"),
        (lambda: most_probable(torch.zeros(3, 2), nothing_known(3)), r"choices must be \(N, 3\)"),
        (
            lambda: most_probable(torch.full((1, 1), torch.nan), nothing_known(1)),
            "the evidence of a choice must be finite",
        ),
        (
            lambda: projected_gradient(torch.zeros(1, 1), nothing_known(1), rate=-1),
            "the rate must be positive and finite, got -1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------ evidence of texts


def head(seed, k=20):
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.randn(*s, generator=draw) for s in ((32, 3), (32, 3), (120,), (32,))]
    return pa.FudgeHead(0.3 * parts[0], 0.3 * parts[1], parts[2], 0.1 * parts[3], 0.5, k=k)


def equilibrium(features, reference=None, k=20):
    return pa.Equilibrium(
        reference, [pa.Principle("civil", head(7))], pa.Preferences(features), k=k, kappa=None
    )


@torch.no_grad()
def test_evidence_of_half_precision_models_is_not_rounded(tiny, tokenizer):
    """The logits are the head's sums in float32, as the equilibrium acts on."""
    model, table = tiny().bfloat16(), torch.rand(120, generator=torch.Generator().manual_seed(2))
    mine = equilibrium({"table": pa.TokenTable(table)}, k=120)
    front, text = tokenizer("w5 w6")["input_ids"], tokenizer("w20 w21 w22 w23")["input_ids"]
    weight, want = model.get_output_embeddings().weight.double(), 0.0
    for n, token in enumerate(text):
        ids = torch.tensor([[*front, *text[:n]]])
        state = model.model(input_ids=ids).last_hidden_state[0, -1]
        want += float(table[token] - (weight @ state.double()).softmax(-1) @ table.double())
    got = evidence(model, tokenizer, mine, ["w5 w6"], ["w20 w21 w22 w23"]).phi
    assert float(got) == pytest.approx(want, abs=2e-6)


@torch.no_grad()
def test_evidence_is_what_the_text_has_beyond_the_reference(tiny, tokenizer):
    """phi of the token less its mean under the reference, one unpadded prefix at a time."""
    model, table = tiny(), torch.rand(120, generator=torch.Generator().manual_seed(2))
    reference = 2.0 * head(30, k=70)
    mine = equilibrium({"table": pa.TokenTable(table)}, reference, k=70)
    prompts, texts = ["w5 w6", "w9 w8 w7 w6"], ["w20 w21 w22 w23", "w40 w41"]
    got = evidence(model, tokenizer, mine, prompts, texts)
    steered = pa.wrap(model, tokenizer, reference)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        front, want, outside = tokenizer(prompt)["input_ids"], 0.0, 0
        for token in tokenizer(text)["input_ids"]:
            ids = torch.tensor([front])
            rho = steered.processor(torch.ones_like(ids))(ids, model(ids).logits[:, -1])[0].exp()
            if rho[token] > 0:
                want += float(table[token] - rho @ table)
            else:
                outside += 1
            front = [*front, token]
        assert float(got.phi[row, 0]) == pytest.approx(want, abs=1e-4)
        assert int(got.outside[row]) == outside
    assert got.tokens.tolist() == [4, 2] and 0 < int(got.outside.sum()) < 6
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        evidence(model, tokenizer, mine, prompts, ["w5", ""])


@torch.no_grad()
def test_opposite_crowds_teach_opposite_weights(tiny, tokenizer):
    """480 pairs each of the model's own answers; a crowd likes a feature or dislikes it."""
    model = tiny()
    model.generation_config.eos_token_id = None
    features = {"warm": head(11), "dull": head(13)}
    mine = equilibrium(features)
    prompts = [f"w{5 + i % 60} w{7 + i % 31}" for i in range(480)]
    torch.manual_seed(0)
    ids = tokenizer(prompts, return_tensors="pt")
    made = pa.wrap(model, tokenizer, mine).generate(
        **ids, do_sample=True, top_k=0, max_new_tokens=6, num_return_sequences=2
    )
    answers = tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :])
    twice = [prompt for prompt in prompts for _ in range(2)]
    phi = evidence(model, tokenizer, mine, twice, answers).phi
    differences = phi[::2] - phi[1::2]
    draw = torch.rand(480, generator=torch.Generator().manual_seed(1)).double()
    for sign in (1, -1):
        keep = draw < (2.0 * sign * differences[:, 0]).sigmoid()
        chosen = torch.where(keep[:, None], differences, -differences)
        belief = most_probable(chosen, nothing_known(2))
        z = belief.theta / belief.standard_errors()
        assert float(sign * z[0]) >= 2 and abs(float(z[1])) < 3
        acting = mine.preferences.learned(belief.theta, belief.covariance).bounded(0.95)
        assert float(sign * acting[0]) > 0
