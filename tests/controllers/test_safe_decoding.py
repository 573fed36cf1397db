"""SafeDecoding against the paper's formula in float64, without caches."""

import math

import numpy as np
import paper
import pytest
import torch
from paper import MODES, assert_close, follows, in_double, log_softmax, scores_of, unpadded
from peft import LoraConfig, get_peft_model

import plugalign as pa
from plugalign.algebra.identity import identify
from plugalign.controllers.dexperts import with_adapter
from plugalign.controllers.safe_decoding import SafeDecoding, ranks

# ------------------------------------------------------------------ float64 references


def common_top(p, q, count):
    """The least k whose top-k sets share ``count`` tokens, and what they share."""
    by_p, by_q = (np.argsort(-x, kind="stable") for x in (p, q))
    for k in range(1, len(p) + 1):
        common = set(by_p[:k]) & set(by_q[:k])
        if len(common) >= count:
            return sorted(common)
    return list(range(len(p)))


def safe(expert, alpha=3.0, first_steps=2, least_common=5, floor=1e-8):
    """The paper's sample space and probabilities, ``(ids, log_p, step)``."""
    double = in_double(expert)

    def formula(ids, log_p, step):
        if step >= first_steps:
            return log_p
        p, q = np.exp(log_p), np.exp(paper.log_p(double, ids))
        scores = np.full(len(p), -np.inf)
        for token in common_top(p, q, least_common):
            scores[token] = math.log(max(p[token] + alpha * (q[token] - p[token]), floor))
        return log_softmax(scores)

    return formula


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


@pytest.mark.parametrize(
    ("mode", "architecture"), list(zip(MODES, ["llama-gqa", "gpt2-tied"] * 5, strict=False))
)
def test_steered_generate_equals_the_formula(mode, architecture, tiny, tokenizer, prompts):
    model, expert, batch = tiny(architecture), tiny(architecture, seed=1), prompts(rows=2, width=6)
    settings = {"alpha": 1.5, "first_steps": 3, "least_common": 7}
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert, **settings))
    follows(steered, safe(expert, **settings), batch, mode, tiny(architecture, seed=9), start=6)


@pytest.mark.parametrize("mode", ["greedy", "several"])
def test_the_loop_decides_by_the_formula(mode, tiny, tokenizer, prompts):
    """Every step's scores against the paper's, at the paper's settings."""
    model, expert, batch = tiny(), tiny(seed=1), prompts(rows=2, width=6)
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert))
    described = steered.explain(max_new_tokens=4, **MODES[mode])
    assert "kept by a mask: CommonTop" in described and "where a gate is open" in described
    output = follows(steered, safe(expert), batch, mode, start=6)
    for step, got in enumerate(output.scores):
        possible = got.isfinite().sum(-1)
        assert ((possible >= 5) & (possible <= 6)).all() if step < 2 else (possible == 120).all()


def test_the_expert_is_run_at_the_first_steps_alone(tiny, tokenizer, prompts):
    expert, calls = tiny(seed=1), []
    expert.register_forward_hook(lambda *_: calls.append(1))
    pa.wrap(tiny(), tokenizer, SafeDecoding(expert)).generate(**prompts(), max_new_tokens=5)
    assert len(calls) == 2


def test_a_batch_is_its_rows_one_by_one(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, SafeDecoding(tiny(seed=1)))
    paper.batches_as_rows(steered, prompts(rows=3))


def test_scored_texts_are_the_formula(tiny, tokenizer):
    """The first tokens of each text are those behind its prompt, however long the others are."""
    model, expert = tiny(), tiny(seed=1)
    steered = pa.wrap(model, tokenizer, SafeDecoding(expert, alpha=1.0, least_common=100))
    formula = safe(expert, alpha=1.0, least_common=100)
    paper.scores_answers(steered, formula, tokenizer, numbered=True)


# ------------------------------------------------------------------ composition


def test_adds_up_with_others_in_any_order(tiny, tokenizer, prompts):
    model, batch, expert, anti = tiny(), prompts(rows=2), tiny(seed=1), tiny(seed=2)
    a = SafeDecoding(expert, alpha=1.0, least_common=20)
    b = pa.DExperts(antiexpert=anti, alpha=0.5, top_p=0.95)
    got = scores_of(model, tokenizer, a + b, batch)
    assert torch.equal(got, scores_of(model, tokenizer, b + a, batch))
    formula = safe(expert, alpha=1.0, least_common=20)
    for row in range(2):
        [text] = paper.alone(batch, row)["input_ids"].tolist()
        log_p, log_anti = (paper.log_p(in_double(m), text) for m in (model, anti))
        want = formula(text, log_p, 0) + 0.5 * (log_p - log_anti)
        want[~paper.nucleus(log_p, 0.95)] = -np.inf
        assert_close(got[0, row], log_softmax(want))


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
    formula = safe(expert, **settings)
    for step, got in enumerate(output.scores):
        for row, ids in enumerate(output.sequences[:, : 7 + step].tolist()):
            text = unpadded(ids)
            log_p, log_q = (paper.log_p(in_double(m), text) for m in (model, expert))
            want = log_softmax(formula(text, log_p, step) + 0.5 * (log_q - log_p))
            assert_close(got[row], want)


def test_half_the_weight_is_half_the_shift(tiny, tokenizer, prompts):
    model, batch, expert = tiny(), prompts(rows=1), tiny(seed=1)
    got = scores_of(model, tokenizer, 0.5 * SafeDecoding(expert), batch)[0, 0]
    text = batch["input_ids"][0].tolist()
    log_p = paper.log_p(in_double(model), text)
    want = log_softmax(0.5 * (log_p + safe(expert)(text, log_p, 0)))
    assert_close(got, want)


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
        model, tokenizer, SafeDecoding(tmp_path, fitted_for=identify(model, tokenizer))
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
    assert steered.plan.why_uncapturable == "the gate FirstSteps is looked at by the host"


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
