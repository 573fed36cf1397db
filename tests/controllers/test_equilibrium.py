"""Equilibrium alignment against float64 references, and what it promises for any theta."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import plugalign as pa
from plugalign.algebra.identity import identify, vocabulary_hash
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.equilibrium_step import EquilibriumShift
from plugalign.controllers.fudge import Predictor
from plugalign.engine.prefix import prefix_of
from plugalign.engine.step import Step
from plugalign.kernels import steer

K = 12


def draw(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(seed=3, size=0.3, k=K):
    left, right = size * draw(32, 3, seed=seed), size * draw(32, 3, seed=seed + 1)
    return pa.FudgeHead(left, right, draw(120, seed=seed + 2), 0.1 * draw(32, seed=seed), 0.5, k=k)


def make_table(seed=9, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    return pa.TokenTable((torch.rand(120, generator=generator) < share).float())


def make_features():
    return {
        "soft": pa.TokenTable(draw(120, seed=5).sigmoid()),
        "hard": pa.TokenTable(draw(120, seed=6).sigmoid()),
    }


def equilibrium(reference=None, theta=(-3.0, 2.0), principles=None, **options):
    principles = principles or [
        pa.Principle("civil", make_head()),
        pa.Principle("words", make_table()),
    ]
    preferences = pa.Preferences(make_features(), torch.tensor(theta).double())
    return pa.Equilibrium(reference, principles, preferences, **{"k": K, **options})


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def states(model, ids):
    """Logits and the last hidden state behind one unpadded, uncached row, float64."""
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return found.logits[0, -1].double().numpy(), found.hidden_states[-1][0, -1].double().numpy()


def keeps(head, model, hidden):
    """P(keeps | x, t) of all tokens by the head's formula."""
    part = {name: tensor.double().numpy() for name, tensor in head.tensors().items()}
    embedding = model.get_output_embeddings().weight.detach().double().numpy()
    bilinear = embedding @ part["left"] @ (part["right"].T @ hidden)
    score = bilinear + part["token_bias"] + part["state"] @ hidden + part["offset"]
    return 1 / (1 + np.exp(-score))


def nearest(log_rho, delta, g, b, kappa):
    """The projection by a general solver over q itself."""
    target, rho = log_softmax(log_rho + delta), np.exp(log_rho)

    def log(q):
        return np.log(np.clip(q, 1e-300, None))

    limits = [
        {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like},
        {"type": "ineq", "fun": lambda q: b - g @ q, "jac": lambda q: -g},
        {
            "type": "ineq",
            "fun": lambda q: kappa - (q * (log(q) - log_rho)).sum(),
            "jac": lambda q: log_rho - log(q) - 1,
        },
    ]
    found = minimize(
        lambda q: (q * (log(q) - target)).sum(),
        rho,
        jac=lambda q: log(q) - target + 1,
        bounds=[(1e-12, 1)] * len(rho),
        constraints=limits,
        method="SLSQP",
        options={"ftol": 1e-10, "maxiter": 500},
    )
    assert found.success, found.message
    return found.x


@pytest.mark.parametrize("kappa", [0.05, 0.5])
def test_it_is_the_formula(kappa, tiny, tokenizer, prompts):
    model, batch, reference = tiny(), prompts(rows=4, width=7), 4.0 * make_head(seed=20)
    mine = equilibrium(reference, kappa=kappa, epsilon=0.01)
    steered = pa.wrap(model, tokenizer, mine)
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    got = steered.processor(batch["attention_mask"])(batch["input_ids"], logits).double().numpy()
    for row, ids in enumerate(batch["input_ids"].tolist()):
        z, hidden = states(model, ids[ids.count(0) :])
        best = np.sort(np.argsort(-z, kind="stable")[:K])
        rho = log_softmax((z + 4 * np.log(keeps(make_head(seed=20), model, hidden)))[best])
        table, features = make_table().values.numpy(), make_features().values()
        g = np.stack([1 - keeps(make_head(), model, hidden), table])[:, best]
        delta = (
            -3 * next(iter(features)).values.numpy() + 2 * make_features()["hard"].values.numpy()
        )
        want = nearest(rho, delta[best], g, g @ np.exp(rho) + 0.01, kappa)
        assert np.abs(np.exp(got[row, best]) - want).max() < 2e-4
        assert np.isneginf(np.delete(got[row], best)).all()


# ------------------------------------------------------------------ nothing learned, nothing bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 0}])
def test_theta_0_is_the_reference_bit_for_bit(dtype, options, tiny, tokenizer, prompts):
    model, batch, head = tiny().to(dtype), prompts(), 3.0 * make_head(seed=20)
    made = []
    for controller in (head, equilibrium(head, (0.0, 0.0))):
        torch.manual_seed(1)
        made.append(
            pa.wrap(model, tokenizer, controller).generate(
                **batch,
                **options,
                max_new_tokens=6,
                output_scores=True,
                return_dict_in_generate=True,
            )
        )
    assert made[0].sequences.tolist() == made[1].sequences.tolist()
    for mine, theirs in zip(made[0].scores, made[1].scores, strict=True):
        assert torch.equal(mine, theirs)


def test_without_evidence_there_is_no_steering(tiny, tokenizer):
    unsure = equilibrium().preferences.learned(torch.tensor([0.5, -0.5]), torch.eye(2))
    steering = equilibrium().taught(unsure).steer(tiny(), tokenizer)
    assert steering == Steering((), (TopK(K),))
    sure = unsure.learned(unsure.theta, 0.01 * torch.eye(2))
    assert sure.bounded(0.95).tolist() == pytest.approx([0.5 - 0.1645, -0.5 + 0.1645], abs=1e-4)
    assert sure.bounded(0.5).tolist() == [0.5, -0.5]


# ------------------------------------------------------------------ what holds for any theta


def step_of(controller, model, tokenizer, rows=8):
    """A step behind random prefixes, and the equilibrium's shift in it."""
    ids = torch.randint(3, 120, (rows, 6), generator=torch.Generator().manual_seed(1))
    run = pa.wrap(model, tokenizer, controller).processor(torch.ones_like(ids)).run
    prefix = prefix_of(ids, torch.ones_like(ids))
    base = run._unrounded(prefix, model(ids).logits[:, -1].float())
    return run, Step(run.plan, run._sources, prefix, base)


def adversarial(situation, size):
    """Theta ``(R, F)`` of this norm, found by gradient: the one under which the plain sum violates
    the first principle most."""
    theta = (1e-3 * draw(len(situation.phi), situation.phi.shape[1])).double().requires_grad_()
    for _ in range(20):
        delta = (theta[..., None] * situation.phi).sum(-2)
        free = (situation.log_rho + delta).softmax(-1)
        [slope] = torch.autograd.grad((free * situation.g[:, 0]).sum(), theta)
        theta = (theta + 20 * slope).detach().requires_grad_()
    return size * torch.nn.functional.normalize(theta.detach(), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kappa", [None, 0.05])
@torch.no_grad()
def test_no_theta_passes_a_bound_the_budget_or_the_support(dtype, kappa, tiny, tokenizer):
    """500 of them each, 1,000 a precision; in float64, and in what the engine makes of it."""
    reference = pa.DExperts(tiny(seed=1).to(dtype), top_p=0.98) + make_head(seed=20)
    mine, model = equilibrium(reference, kappa=kappa), tiny().to(dtype)
    model.get_output_embeddings().weight.mul_(5)
    run, step = step_of(mine, model, tokenizer, rows=500)
    *_, shift = run.plan.shifts
    assert isinstance(shift, EquilibriumShift)
    at = step.read(shift.balances).situation
    sizes = torch.tensor([0.1, 3.0, 30.0, 1000.0]).double().repeat(125)[:, None]
    random = torch.nn.functional.normalize(draw(500, 2).double(), dim=-1)
    with torch.enable_grad():
        found = adversarial(at, 1.0)
    theta = sizes * torch.where(torch.arange(500)[:, None] % 8 < 4, random, found)
    tried = replace(shift, balances=replace(shift.balances, theta=theta))
    run.plan.sources[tried.balances.key] = tried.balances
    balance = step.read(tried.balances)
    assert float((balance.found.expected - at.bounds).max()) <= 1e-9
    assert float(balance.found.kl.max()) <= (math.inf if kappa is None else kappa + 1e-9)
    slackness = (balance.found.multipliers * (balance.found.expected - at.bounds)).abs()
    unrepaired = balance.found.repair == 0  # a repaired q need not have it
    assert float(unrepaired.double().mean()) > 0.95 and float(slackness[unrepaired].max()) <= 1e-8

    step._plan = replace(run.plan, steerings=(("it", Steering((*run.plan.shifts[:-1], tried))),))
    made = steer.scores(step.mixture(), before=run.plan.truncation).gather(1, at.ids).double()
    excess = (made.exp()[:, None] * at.g).sum(-1) - at.bounds
    assert float(excess.max()) <= 1e-6
    assert bool((at.scores[made > -math.inf] > -math.inf).all())
    assert float((made.exp().sum(-1) - 1).abs().max()) < 1e-5


@torch.no_grad()
def test_wide_bounds_are_the_plain_sum(tiny, tokenizer):
    mine = equilibrium(epsilon=1.0, kappa=None, theta=(-8.0, 5.0))
    run, step = step_of(mine, tiny(), tokenizer)
    soft, hard = (feature.values for feature in make_features().values())
    want = (step.base - 8 * soft + 5 * hard).masked_fill(
        ~steer.kept(step.base, TopK(K).truncation), -math.inf
    )
    got = steer.scores(step.mixture(), before=run.plan.truncation)
    real = got > -math.inf
    torch.testing.assert_close(got[real], want.log_softmax(-1)[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_lower_principle_never_raises_a_higher_one_above_its_bound(tiny, tokenizer):
    """Its own controller steers within the bounds above it, which stay what they were."""
    high, rude = pa.Principle("high", make_table()), 8.0 * make_head(seed=40)
    low = pa.Principle("low", make_head(), controller=rude)
    model, expected = tiny(), []
    for principles in ([high], [high, low], [high, replace(low, controller=None)]):
        for theta in ((0.0, 0.0), (-30.0, 9.0)):
            mine = equilibrium(make_head(seed=20), theta, principles, epsilon=0.002)
            run, step = step_of(mine, model, tokenizer)
            made = steer.scores(step.mixture(), before=run.plan.truncation)
            expected.append((made.double().exp() * make_table().values).sum(-1))
    bound = expected[0] + 0.002
    assert all(bool((e <= bound + 1e-6).all()) for e in expected)
    free = equilibrium(make_head(seed=20) + rude, (0.0, 0.0), [high])
    run, step = step_of(free, model, tokenizer)
    made = steer.scores(step.mixture(), before=run.plan.truncation)
    assert bool(((made.double().exp() * make_table().values).sum(-1) > bound).any())


@torch.no_grad()
def test_without_supports_other_tokens_are_as_likely_as_under_the_reference(tiny, tokenizer):
    """The candidates keep the mass that they have there, so that perplexities can be compared."""
    model, head = tiny(), make_head(seed=20)
    texts = [f"w{n} w{n + 1} w{n + 2} w{n + 3}" for n in range(5, 35, 5)]
    mine, theirs = (
        torch.cat(pa.wrap(model, tokenizer, each).log_probs(texts, supports=False))
        for each in (equilibrium(head, (-30.0, 9.0)), head)
    )
    inside = torch.cat(pa.wrap(model, tokenizer, head).log_probs(texts)) > -math.inf
    assert bool(inside.any()) and bool((~inside).any())
    torch.testing.assert_close(mine[~inside], theirs[~inside], atol=1e-4, rtol=1e-4)
    assert float((mine - theirs)[inside].abs().max()) > 0.1


def test_a_model_that_gives_nan_is_named(tiny, tokenizer, prompts):
    model = tiny()
    steered = pa.wrap(model, tokenizer, equilibrium(make_head(seed=20)))
    model.lm_head.weight.data[5, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"the base model '.*' gave NaN logits at step 0"):
        steered.generate(**prompts(), max_new_tokens=2)


@torch.no_grad()
def test_the_certificate_says_what_the_engine_does(tiny, tokenizer):
    mine = equilibrium(make_head(seed=20), (-30.0, 9.0))
    run, step = step_of(mine, tiny(), tokenizer)
    told = run.plan.shifts[-1].certificate(step, 1.0)
    made = steer.scores(step.mixture(), before=run.plan.truncation).double().exp()
    violated = (made * make_table().values).sum(-1)
    torch.testing.assert_close(told["expected.words"], violated, atol=1e-6, rtol=0.0)
    assert float(told["excess"].max()) <= 1e-9 and float(told["kl"].max()) <= 0.05 + 1e-9
    assert bool((told["active"] > 0).any()) and bool((told["scale"] < 1).any())
    assert bool((told["multiplier.civil"] >= 0).all())
    assert bool((told["bound.civil"] >= told["expected.civil"] - 1e-9).all())
    assert all(value.shape == (8,) for value in told.values())


def test_a_trace_holds_the_certificates_of_every_token(tiny, tokenizer, prompts):
    model, batch, trace = tiny(), prompts(), pa.Trace()
    model.generation_config.eos_token_id = None
    mine = equilibrium(make_head(seed=20), (-30.0, 9.0))
    pa.wrap(model, tokenizer, mine).generate(
        **batch, do_sample=True, top_k=0, max_new_tokens=5, trace=trace
    )
    assert len(trace.certificates) == 5
    for step in trace.certificates:
        told = step["Equilibrium"]
        assert float(told["excess"].max()) <= 1e-6 and float(told["kl"].max()) <= 0.05 + 1e-6
        assert set(told) >= {"scale", "repair", "active", "expected.words", "bound.civil"}


# ------------------------------------------------------------------ scorers


@torch.no_grad()
def test_every_kind_of_scorer_gives_a_probability(tiny, tokenizer):
    torch.manual_seed(5)
    predictor = Predictor(120, width=16, layers=1, heads=2)
    scorers = {
        "fudge": pa.Fudge(predictor, k=3, weight=7.0),
        "head": make_head(k=5),
        "table": make_table(),
    }
    principles = [pa.Principle(name, scorer) for name, scorer in scorers.items()]
    mine, model = equilibrium(principles=principles), tiny()
    run, step = step_of(mine, model, tokenizer)
    at = step.read(run.plan.shifts[-1].balances).situation
    for row, ids in enumerate(step.ids):
        chosen = at.ids[row]
        _, hidden = states(model, ids.tolist())
        texts = torch.cat([ids.expand(K, -1), chosen[:, None]], 1)
        yes = predictor(texts, torch.ones_like(texts))[:, -1].sigmoid()
        torch.testing.assert_close(at.g[row, 0], 1 - yes.double(), atol=1e-5, rtol=0.0)
        want = torch.from_numpy(1 - keeps(make_head(), model, hidden))[chosen]
        torch.testing.assert_close(at.g[row, 1], want, atol=1e-4, rtol=0.0)
        assert torch.equal(at.g[row, 2], make_table().values.double()[chosen])


def test_a_table_of_words(tiny, tokenizer):
    table = pa.TokenTable.of_words(["W5 ", "w7"], tiny(), tokenizer)
    assert table.values.nonzero().flatten().tolist() == [8, 10]
    assert table.vocabulary == vocabulary_hash(tokenizer)
    with pytest.raises(ValueError, match="no token of the tokenizer is one of the words"):
        pa.TokenTable.of_words(["zzz"], tiny(), tokenizer)


def test_a_part_in_two_places_is_saved_and_loaded_once(tiny, tokenizer, tmp_path):
    head, table = make_head(), make_table()
    principles = [pa.Principle("a", head), pa.Principle("b", table, controller=head)]
    preferences = pa.Preferences({"a": head, "b": table}, torch.ones(2), torch.eye(2))
    pa.Equilibrium(head, principles, preferences).save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"reference"}
    loaded = pa.load(tmp_path)
    assert loaded.reference is loaded.principles[0].scorer is loaded.principles[1].controller
    assert loaded.principles[1].scorer is loaded.preferences.features["b"]
    assert loaded.config() == pa.Equilibrium(head, principles, preferences).config()
    assert loaded.with_settings(kappa=None).kappa == math.inf


# ------------------------------------------------------------------ what does not fit


def other_tokenizer(head, tiny, tokenizer):
    other = replace(identify(tiny(), tokenizer), vocabulary="0123", name="other")
    return pa.FudgeHead(*head.tensors().values(), fitted_for=other)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: equilibrium(epsilon=-0.1),
            ValueError,
            "epsilon must be at least 0 and finite, got -",
        ),
        (lambda: equilibrium(kappa=-1.0), ValueError, "kappa must be at least 0 nats, got -1.0"),
        (lambda: equilibrium(kappa=math.nan), ValueError, "kappa must be at least 0 nats, got nan"),
        (
            lambda: equilibrium(strength=-1.0),
            ValueError,
            "strength must be finite and not negative",
        ),
        (lambda: equilibrium(confidence=0.4), ValueError, r"confidence must lie in \[0.5, 1\)"),
        (lambda: equilibrium(k=2000), ValueError, "k must be at most 1024 candidates, got 2000"),
        (
            lambda: equilibrium(theta=(1.0,)),
            ValueError,
            r"theta must be 2 finite numbers, one for each feature \(soft, hard\), got \[1.0\]",
        ),
        (
            lambda: pa.Principle("a", make_table(), epsilon=-0.5),
            ValueError,
            "the principle 'a': epsilon must be at least 0 and finite, got -0.5",
        ),
        (
            lambda: equilibrium(
                principles=[pa.Principle(n, make_table(), priority=1) for n in ("a", "b")]
            ),
            ValueError,
            "the principles 'a' and 'b' both have the priority 1, and one must yield",
        ),
        (
            lambda: equilibrium(
                principles=[
                    pa.Principle("a", make_table(), priority=1),
                    pa.Principle("b", make_table()),
                ]
            ),
            ValueError,
            "the principle 'b' has no priority and others have",
        ),
        (
            lambda: equilibrium(principles=[pa.Principle("a", make_table())] * 2),
            ValueError,
            "two principles are called 'a'; rename one",
        ),
        (
            lambda: equilibrium(principles=[pa.Principle(f"p{i}", make_table()) for i in range(9)]),
            ValueError,
            "holds at most 8 principles, got 9",
        ),
        (
            lambda: pa.Equilibrium(None, [], pa.Preferences(make_features())),
            ValueError,
            "an equilibrium needs a principle",
        ),
        (
            lambda: pa.Principle("a", "toxic"),
            TypeError,
            "'a' needs a scorer of candidates.* got str",
        ),
        (lambda: pa.Preferences({}), ValueError, "preferences need a feature"),
        (
            lambda: equilibrium(pa.SelfCritique()),
            ValueError,
            "the reference: SelfCritique acts on revise; add it to the equilibrium",
        ),
        (
            lambda: pa.TokenTable(torch.tensor([0.5, 1.5])),
            ValueError,
            r"a table of tokens holds numbers in \[0, 1\], \(V,\), got \(2,\) from 0.5 to 1.5",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_was_made_for_another_model_is_refused_by_name(tiny, tokenizer):
    foreign = other_tokenizer(make_head(), tiny, tokenizer)
    with pytest.raises(ValueError, match="the principle 'a': the FUDGE head was fitted for the"):
        pa.wrap(tiny(), tokenizer, equilibrium(principles=[pa.Principle("a", foreign)]))
    own = pa.TokenTable(torch.zeros(120), vocabulary_hash(tokenizer))
    both = [pa.Principle("a", foreign), pa.Principle("b", own)]
    with pytest.raises(
        ValueError, match="'a' reads the token ids of 'other' and the principle 'b'"
    ):
        equilibrium(principles=both)
    short = [pa.Principle("a", pa.TokenTable(torch.zeros(50)))]
    with pytest.raises(
        ValueError, match="'a': its table has 50 tokens, but 'LlamaForCausalLM' can"
    ):
        pa.wrap(tiny(), tokenizer, equilibrium(principles=short))
    with pytest.raises(ValueError, match="'a': a SelfDebias steers by no probability"):
        debias = pa.Principle("a", pa.SelfDebias(["w5"]))
        pa.wrap(tiny(), tokenizer, equilibrium(principles=[debias]))
