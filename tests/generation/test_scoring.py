"""Teacher-forced log-probabilities against the run, step by step, one text at a time."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.generation import scoring

TEXTS = ["w3 w9 w40 w7 Yes w11", "w5 w60", "w8 w8 w21 w100 No"]
PROMPTS = ["w1 w2", "w30 w31 w32 w33 w34", "w7"]


class BestToken(Controller):
    """Is nothing but a support."""

    def steer(self, model, tokenizer):
        return Steering(supports=(TopK(1),))


class Polite(Controller):
    """Rewords prompts."""

    def prompt(self, text):
        return f"w90 w91 {text}"


@pytest.fixture
def make(make):
    """The factory; its sum also rewords prompts, and candidates are many."""

    def go(which, model, tiny, architecture):
        match which:
            case "fudge":
                torch.manual_seed(5)
                return Fudge(Predictor(120, width=16, layers=1, heads=2), k=60, weight=3.0)
            case "sum":
                parts = (
                    "self-debias",
                    "low-rank",
                    "fudge",
                    "prefix",
                    "prefix-contrast",
                    "dexperts",
                )
                return sum((go(p, model, tiny, architecture) for p in parts), 0.0 * Polite())
        return make(which, model, tiny, architecture)

    return go


CONTROLLERS = (
    "nothing",
    "dexperts",
    "anti-only",
    "self-debias",
    "low-rank",
    "head",
    "fudge",
    "prefix",
    "prefix-contrast",
    "sum",
)


def stepwise(steered, prompt, text):
    """What the run gives for each token, one prefix after the other, from uncached forwards."""
    ids, found = torch.tensor([prompt + text]), []
    for end in range(len(prompt), ids.shape[1]):
        with steered._attached() as extra, torch.no_grad():
            mask = torch.ones(1, end, dtype=torch.long)
            run = steered._run(steered._request(), mask, extra=extra)
            with run.watching():
                scores = steered.model(input_ids=ids[:, :end]).logits[:, -1].float()
                found.append(run.step(ids[:, :end], scores)[0, ids[0, end]])
    return torch.stack(found)


def assert_steps(found, steered, prompts, texts):
    for log_p, prompt, text in zip(found, prompts, texts, strict=True):
        want = stepwise(steered, prompt, text)
        assert torch.equal(log_p.isinf(), want.isinf())
        torch.testing.assert_close(log_p, want, atol=2e-3, rtol=1e-3)


def ids_of(tokenizer, texts):
    return [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("which", CONTROLLERS)
def test_all_at_once_is_step_by_step(which, tiny, tokenizer, architecture, make):
    model = tiny(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, architecture))
    prompts, texts = ids_of(tokenizer, PROMPTS), ids_of(tokenizer, TEXTS)
    assert_steps(steered.log_probs(TEXTS, PROMPTS), steered, prompts, texts)
    bare = steered.log_probs(TEXTS)
    assert [len(log_p) for log_p in bare] == [len(text) - 1 for text in texts]
    assert_steps(bare[:1], steered, [texts[0][:1]], [texts[0][1:]])


@pytest.mark.parametrize("which", ["dexperts", "self-debias", "sum"])
def test_blocks_batches_and_padding_change_nothing(which, tiny, tokenizer, monkeypatch, make):
    model = tiny("gpt2-tied")
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "gpt2-tied"))
    whole = steered.log_probs(TEXTS, PROMPTS)
    texts = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="right")
    prompts = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    pairs = [(batch["input_ids"], batch["attention_mask"]) for batch in (texts, prompts)]
    monkeypatch.setattr(scoring, "ENTRIES", 2 * 120 * 3)  # two columns at a time
    for again in (steered.log_probs(*pairs), steered.log_probs(TEXTS, PROMPTS, batch_size=2)):
        for one, other in zip(again, whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_without_a_controller_it_is_the_models_own(tiny, tokenizer):
    model = tiny()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    for text, log_p in zip(TEXTS, steered.log_probs(TEXTS), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            want = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(log_p, want, atol=1e-4, rtol=1e-4)


def test_what_a_support_leaves_out_is_impossible(tiny, tokenizer):
    controller = pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=0.0)  # the base's best token alone
    log_p = pa.wrap(tiny(), tokenizer, controller).log_probs(TEXTS)
    values = set(torch.cat(log_p).tolist())
    assert values <= {0.0, -torch.inf} and -torch.inf in values


def test_capped_logits_are_read_from_the_whole_model(tiny, tokenizer, make):
    model = tiny()
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, logits: 3 * torch.tanh(logits / 3))
    steered = pa.wrap(model, tokenizer, make("low-rank", model, tiny, "llama-gqa"))
    prompts, texts = ids_of(tokenizer, PROMPTS), ids_of(tokenizer, TEXTS)
    assert_steps(steered.log_probs(TEXTS, PROMPTS), steered, prompts, texts)
    handle.remove()


def test_prompts_are_reworded(tiny, tokenizer):
    model = tiny()
    plain = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    want = plain.log_probs(TEXTS, [f"w90 w91 {prompt}" for prompt in PROMPTS])
    steered = pa.wrap(model, tokenizer, Polite())
    for one, other in zip(steered.log_probs(TEXTS, PROMPTS), want, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="Polite rewords prompts; give some"):
        steered.log_probs(TEXTS)


def test_each_column_of_a_source_is_read_once(tiny, tokenizer):
    model, expert = tiny(), tiny(seed=1)
    seen = []
    expert.base_model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert, top_p=1.0))
    steered.log_probs(TEXTS, PROMPTS)
    assert seen[-1] == (3, 7) and len(seen) <= 3  # the others find out how its head works


IDS, ONES = torch.tensor([[5, 6, 7]]), torch.ones(1, 3)
BAD = {
    "none": (([],), "log_probs needs at least one text, got none"),
    "a string": (("w1 w2",), "texts must be a list of strings"),
    "empty": ((["w1 w2", ""],), "text 1 has 0 tokens; the first has no prefix"),
    "one token": ((["w1"],), "text 0 has 1 tokens; the first has no prefix"),
    "empty behind a prompt": ((["w1", ""], ["w1", "w2"]), "text 1 has 0 tokens$"),
    "empty prompt": ((["w1", "w2"], ["w1", ""]), "prompt 1 has 0 tokens$"),
    "too few prompts": ((["w1", "w2"], ["w1"]), "2 texts need as many prompts, got 1"),
    "unknown ids": (((IDS + 200, ONES),), "the text in row 0 holds the token id 205"),
    "negative ids": (((-IDS, ONES),), "the text in row 0 holds the token id -5"),
    "unknown ids in front": ((["w1"], (IDS + 200, ONES)), "the prompt in row 0 holds the token id"),
    "no ids": (((ONES, ONES),), r"whole numbers .* got \(1, 3\) of torch.float32"),
    "one row": (((IDS[0], ONES[0]),), r"whole numbers \(B, T\), got \(3,\)"),
    "a mask of others": (((IDS, ONES[:, 1:]),), "attention_mask has shape .* but the texts have"),
    "a fraction": (((IDS, ONES / 2),), "attention_mask holds 0.5"),
    "too long": ((["w1 w2", "w1 " * 127 + "w2 w3"],), "text 1 has 129 tokens, more than the "),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_refuses_bad_input(arguments, message, tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1)))
    with pytest.raises(ValueError, match=message):
        steered.log_probs(*arguments)


def test_a_context_can_be_filled_and_prompts_count(tiny, tokenizer):
    model, full = tiny(), ["w1 " * 128]
    assert len(pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1))).log_probs(full)[0]) == 127
    with pytest.raises(ValueError, match="128 tokens and 2 that controllers put in front"):
        pa.wrap(model, tokenizer, pa.SelfDebias(["w1 w2"])).log_probs(full)


def test_refuses_a_batch_of_nothing(tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w1"]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        steered.log_probs(TEXTS, batch_size=0)


def test_refuses_what_revises(tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfCritique(threshold=1.0))
    with pytest.raises(ValueError, match="SelfCritique revises finished answers"):
        steered.log_probs(TEXTS)


def test_a_broken_model_is_named(tiny, tokenizer):
    expert = tiny(seed=1)
    with torch.no_grad():
        expert.get_output_embeddings().weight[7] = torch.nan
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(expert, top_p=1.0))
    with pytest.raises(FloatingPointError, match="gave NaN logits") as caught:
        steered.log_probs(TEXTS)
    assert any("text 0" in note for note in caught.value.__notes__)


# ------------------------------------------------------------------ without supports


@pytest.mark.parametrize("which", ["dexperts", "fudge", "prefix-contrast"])
def test_without_supports_every_token_is_possible(which, tiny, tokenizer, make):
    """The shifts are the same, on the whole vocabulary."""
    model = tiny()
    controller = make(which, model, tiny, "llama-gqa")
    steered = pa.wrap(model, tokenizer, controller)
    texts = TEXTS
    inside, everywhere = (steered.log_probs(texts, supports=flag) for flag in (True, False))
    assert any(bool(x.isinf().any()) for x in inside), "the support left nothing out"
    assert all(bool(x.isfinite().all()) for x in everywhere)
    assert steered.log_probs(texts)[0].tolist() == inside[0].tolist()


def test_without_supports_it_is_the_formula(tiny, tokenizer):
    """``log softmax(z + alpha (z_expert - z_anti))`` in float64, from uncached forwards."""
    model, expert, anti = tiny(), tiny(seed=1), tiny(seed=2)
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert, anti, alpha=1.5, top_p=0.5))
    ids = torch.tensor([tokenizer("w5 w6 w7 w8 w9")["input_ids"]])
    with torch.no_grad():
        z, plus, minus = (each(ids).logits[0, :-1].double() for each in (model, expert, anti))
    want = (z + 1.5 * (plus - minus)).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    (got,) = steered.log_probs(["w5 w6 w7 w8 w9"], supports=False)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)


def test_a_support_alone_is_then_no_controller(tiny, tokenizer):
    model = tiny()
    steered = pa.wrap(model, tokenizer, BestToken())
    plain = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"])).log_probs(["w5 w6 w7"])
    assert steered.log_probs(["w5 w6 w7"], supports=False)[0].tolist() == plain[0].tolist()
