"""SafeDecoding against the paper's formula in float64, without caches."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LogitsProcessor

import plugalign as pa
from plugalign.algebra.identity import Identity
from plugalign.controllers.dexperts import with_adapter
from plugalign.controllers.safe_decoding import SafeDecoding, ranks

MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "beam": {"num_beams": 3},
    "beam-sample": {"num_beams": 2, "do_sample": True, "top_k": 0},
    "several": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "static": {"cache_implementation": "static"},
    "assisted": {"assistant": True, "do_sample": False},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


# ------------------------------------------------------------------ float64 references


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def log_probs_of(model, text):
    """Next-token log-probabilities ``(V,)`` of one row without padding or cache, in float64."""
    with torch.no_grad():
        return log_softmax(model(input_ids=torch.tensor([text])).logits[0, -1].numpy())


def unpadded(ids):
    """A row without its left padding; an end token is followed by padding that counts as text."""
    return ids[next(i for i, token in enumerate(ids) if token) :]


def in_double(model):
    return copy.deepcopy(model).double()


def common_top(p, q, count):
    """The least k whose top-k sets share ``count`` tokens, and what they share."""
    by_p, by_q = (np.argsort(-x, kind="stable") for x in (p, q))
    for k in range(1, len(p) + 1):
        common = set(by_p[:k]) & set(by_q[:k])
        if len(common) >= count:
            return sorted(common)
    return list(range(len(p)))


class Formula(LogitsProcessor):
    """Evaluates the paper's sample space and probabilities from nothing but the prefix."""

    def __init__(self, expert, start, alpha=3.0, first_steps=2, least_common=5, floor=1e-8):
        self.expert, self.start, self.alpha = in_double(expert), start, alpha
        self.first_steps, self.least_common, self.floor = first_steps, least_common, floor

    def row(self, text, log_p, step):
        if step >= self.first_steps:
            return log_p
        p, q = np.exp(log_p), np.exp(log_probs_of(self.expert, text))
        scores = np.full(len(p), -np.inf)
        for token in common_top(p, q, self.least_common):
            scores[token] = math.log(max(p[token] + self.alpha * (q[token] - p[token]), self.floor))
        return log_softmax(scores)

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.start
        rows = [
            self.row(unpadded(ids), log_softmax(row), step)
            for ids, row in zip(input_ids.tolist(), scores.double().numpy(), strict=True)
        ]
        return torch.tensor(np.array(rows), dtype=torch.float32)


def run(generate, batch, mode, assistant, **more):
    options = dict(MODES[mode])
    if options.pop("assistant", False):
        options["assistant_model"] = assistant
    if mode in ("assisted", "lookup"):
        batch = {k: v[:1] for k, v in batch.items()}
    torch.manual_seed(11)
    return generate(
        **batch,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
        **more,
    )


def assert_close(got, want, tolerance=2e-3):
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite)
    torch.testing.assert_close(got[finite], want[finite], atol=tolerance, rtol=1e-3)


# ------------------------------------------------------------------ the formula


@pytest.mark.parametrize("count", [1, 5, 120, 200])
def test_the_common_tokens_are_those_of_the_definition(count, tiny, tokenizer):
    """Ties included: logits of few distinct values."""
    draw = torch.Generator().manual_seed(1)
    base, other = (torch.randint(0, 30, (4, 120), generator=draw).float() for _ in range(2))
    steered = pa.wrap(tiny(), tokenizer, SafeDecoding(tiny(seed=1), least_common=count))
    [support] = steered.plan.masks

    class Step:
        def read(self, source):
            return other

    Step.base = base
    mask = support.mask(Step())
    for row in range(4):
        want = common_top(base[row].numpy(), other[row].numpy(), count)
        assert mask[row].nonzero()[:, 0].tolist() == want
    assert ranks(torch.tensor([[1.0, 3.0, 3.0, 2.0]])).tolist() == [[3, 0, 1, 2]]


PAIRS = list(zip(MODES, ["llama-gqa", "gpt2-tied"] * 4, strict=True))


@pytest.mark.parametrize(("mode", "architecture"), PAIRS)
def test_steered_generate_equals_the_formula(mode, architecture, tiny, tokenizer, prompts):
    model, expert, batch = tiny(architecture), tiny(architecture, seed=1), prompts(rows=2, width=6)
    settings = {"alpha": 1.5, "first_steps": 3, "least_common": 7}
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert, **settings))
    assistant = tiny(architecture, seed=9)
    if mode in ("sample", "several"):  # the loop draws other noise: see the next test
        ours = steered.processor(batch["attention_mask"])
        got = run(model.generate, batch, mode, assistant, logits_processor=[ours])
    else:
        got = run(steered.generate, batch, mode, assistant)
    formula = Formula(expert, 6, **settings)
    want = run(model.generate, batch, mode, assistant, logits_processor=[formula])
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, theirs in zip(got.scores, want.scores, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_k": 0, "num_return_sequences": 2}]
)
def test_the_loop_decides_by_the_formula(options, tiny, tokenizer, prompts):
    """Every step's scores against the paper's, at the paper's settings."""
    model, expert, batch = tiny(), tiny(seed=1), prompts(rows=2, width=6)
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert))
    described = steered.explain(max_new_tokens=4, **options)
    assert "kept by a mask: CommonTop" in described and "where a gate is open" in described
    output = steered.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, **options
    )
    formula, double = Formula(expert, 6), in_double(model)
    for step, got in enumerate(output.scores):
        prefix = output.sequences[:, : 6 + step]
        texts = [unpadded(ids) for ids in prefix.tolist()]
        want = formula(prefix, torch.tensor(np.array([log_probs_of(double, t) for t in texts])))
        assert_close(got, want)
        possible = got.isfinite().sum(-1)
        assert ((possible >= 5) & (possible <= 6)).all() if step < 2 else (possible == 120).all()


def test_the_expert_is_run_at_the_first_steps_alone(tiny, tokenizer, prompts):
    expert, calls = tiny(seed=1), []
    expert.register_forward_hook(lambda *_: calls.append(1))
    pa.wrap(tiny(), tokenizer, SafeDecoding(expert)).generate(**prompts(), max_new_tokens=5)
    assert len(calls) == 2


def test_a_batch_is_its_rows_one_by_one(tiny, tokenizer, prompts):
    batch = prompts(rows=3)
    steered = pa.wrap(tiny(), tokenizer, SafeDecoding(tiny(seed=1)))
    together = steered.generate(**batch, max_new_tokens=5)
    for row in range(3):
        keep = batch["attention_mask"][row].bool()
        alone = steered.generate(batch["input_ids"][row][keep][None], max_new_tokens=5)
        answer = alone[0, keep.sum() :].tolist()
        assert answer == together[row, 7 : 7 + len(answer)].tolist()


def test_scored_texts_are_the_formula(tiny, tokenizer):
    """The first tokens of each text are those behind its prompt, however long the others are."""
    model, expert = tiny(), tiny(seed=1)
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert, alpha=1.0, least_common=100))
    texts, prompts = ["w20 w21 w22 w23", "w30"], ["w9", "w10 w11 w12 w13"]
    formula, base = Formula(expert, 0, alpha=1.0, least_common=100), in_double(model)
    for got, text, prompt in zip(steered.log_probs(texts, prompts), texts, prompts, strict=True):
        ids, want = tokenizer(prompt)["input_ids"], []
        for step, token in enumerate(tokenizer(text)["input_ids"]):
            want.append(formula.row(ids, log_probs_of(base, ids), step)[token])
            ids = [*ids, token]
        assert_close(got, torch.tensor(want).float())


# ------------------------------------------------------------------ composition


def scores_of(model, tokenizer, controller, batch):
    output = pa.wrap(model, tokenizer, controller).generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    return torch.stack(output.scores)


def test_adds_up_with_others_in_any_order(tiny, tokenizer, prompts):
    model, batch, safe, anti = tiny(), prompts(rows=2), tiny(seed=1), tiny(seed=2)
    a = SafeDecoding(safe, alpha=1.0, least_common=20)
    b = pa.DExperts(antiexpert=anti, alpha=0.5, top_p=0.95)
    got = scores_of(model, tokenizer, a + b, batch)
    assert torch.equal(got, scores_of(model, tokenizer, b + a, batch))
    formula = Formula(safe, 7, alpha=1.0, least_common=20)
    for row in range(2):
        keep = batch["attention_mask"][row].bool()
        text = batch["input_ids"][row][keep].tolist()
        log_p, log_anti = (log_probs_of(in_double(m), text) for m in (model, anti))
        order = np.argsort(-log_p, kind="stable")
        outside = order[np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order]) >= 0.95]
        want = formula.row(text, log_p, 0) + 0.5 * (log_p - log_anti)
        want[outside] = -np.inf
        assert_close(got[0, row], torch.tensor(log_softmax(want)).float())


@pytest.mark.parametrize("adapted", [False, True])
def test_an_expert_may_serve_another_controller_too(adapted, tiny, tokenizer, prompts, tmp_path):
    """One source, read at every step for one and at the first for the other; also as rows of the
    base's forward."""
    model, batch, expert = tiny(), prompts(rows=2), tiny(seed=1)
    if adapted:
        torch.manual_seed(4)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(tiny(), config).save_pretrained(tmp_path)
        expert = with_adapter(model, tmp_path)
    settings = {"alpha": 1.0, "least_common": 40, "first_steps": 2}
    both = SafeDecoding(expert, **settings) + pa.DExperts(expert, alpha=0.5, top_p=1.0)
    output = pa.wrap(model, tokenizer, both).generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    formula = Formula(expert, 7, **settings)
    for step, got in enumerate(output.scores):
        for row, ids in enumerate(output.sequences[:, : 7 + step].tolist()):
            text = unpadded(ids)
            log_p, log_q = (log_probs_of(in_double(m), text) for m in (model, expert))
            want = log_softmax(formula.row(text, log_p, step) + 0.5 * (log_q - log_p))
            assert_close(got[row], torch.tensor(want).float())


def test_half_the_weight_is_half_the_shift(tiny, tokenizer, prompts):
    model, batch, expert = tiny(), prompts(rows=1), tiny(seed=1)
    got = scores_of(model, tokenizer, 0.5 * SafeDecoding(expert), batch)[0, 0]
    text = batch["input_ids"][0].tolist()
    log_p = log_probs_of(in_double(model), text)
    want = log_softmax(0.5 * (log_p + Formula(expert, 7).row(text, log_p, 0)))
    assert_close(got, torch.tensor(want).float())


def test_strength_zero_is_the_identity(tiny, tokenizer, prompts):
    model, batch, expert = tiny(), prompts(), tiny(seed=1)
    plain = model.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    nothing = scores_of(model, tokenizer, 0 * SafeDecoding(expert), batch)
    assert torch.equal(nothing, torch.stack(plain.scores))
    idle = scores_of(model, tokenizer, SafeDecoding(expert, alpha=0, least_common=120), batch)
    want = torch.stack(plain.scores).log_softmax(-1).clamp_min(math.log(1e-8))
    torch.testing.assert_close(idle, want)


# ------------------------------------------------------------------ saving, refusals


def test_saves_and_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    saved = SafeDecoding(tiny(seed=1), alpha=2.0, first_steps=3, least_common=4, floor=1e-6)
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "expert")
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, SafeDecoding) and loaded.config() == saved.config()
    torch.testing.assert_close(*(scores_of(model, tokenizer, c, batch) for c in (saved, loaded)))
    named = SafeDecoding("somewhere/safe")
    assert named.config()["models"] == {"expert": "somewhere/safe"} and not named.saved_parts()


def test_an_adapter_follows_the_weights_that_it_changes(tiny, tokenizer, prompts, tmp_path):
    """Also behind a gate: what was merged before the base was trained is not used afterwards."""
    torch.manual_seed(4)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(tiny(), config).save_pretrained(tmp_path)
    model, batch = tiny(), prompts()
    steered = pa.wrap(
        model, tokenizer, SafeDecoding(tmp_path, fitted_for=Identity.of(model, tokenizer))
    )
    for _ in range(2):
        merged = SafeDecoding(with_adapter(model, tmp_path))
        got, want = (
            c.generate(**batch, max_new_tokens=4).tolist()
            for c in (steered, pa.wrap(model, tokenizer, merged))
        )
        assert got == want
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(-2.0)


def test_what_needs_all_places_at_once_says_why_it_cannot(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, SafeDecoding(tiny(seed=1)))
    why = "no draft can be verified here: the gate FirstSteps is asked at one place at a time"
    with pytest.raises(ValueError, match=why):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation("prompt"))
    assert steered.plan.uncapturable == "the gate FirstSteps is looked at by the host"


def test_steps_are_not_counted_from_nowhere(tiny, tokenizer, prompts):
    model = tiny()
    processor = pa.wrap(model, tokenizer, SafeDecoding(tiny(seed=1))).processor()
    with pytest.raises(ValueError, match="give processor\\(\\) the prompts' attention_mask"):
        model.generate(**prompts(), max_new_tokens=2, logits_processor=[processor])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert": None}, "expert must be a causal language model, a folder or a hub id"),
        ({"alpha": -1}, "alpha must be finite and not negative, got -1"),
        ({"first_steps": 0}, "a number of steps of at least 1, got 0"),
        ({"least_common": 2.5}, "least_common must be an int of at least 1, got 2.5"),
        ({"floor": 0.0}, r"floor must lie in \[2\*\*-126, 1\], got 0.0"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SafeDecoding(**{"expert": "some/expert", **settings})


def test_an_expert_with_another_vocabulary_is_refused(tiny, tokenizer):
    with pytest.raises(ValueError, match="scores 60 tokens"):
        pa.wrap(tiny(), tokenizer, SafeDecoding(tiny(vocab=60)))
