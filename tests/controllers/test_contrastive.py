"""Contrastive decoding and proxy tuning against their papers, with uncached float64 forwards."""

from __future__ import annotations

import numpy as np
import paper
import pytest
import torch

import plugalign as pa
from plugalign.controllers.contrastive import ContrastiveDecoding, proxy_tuning

ARCHITECTURES = ("llama-gqa", "gpt2-tied")


@pytest.fixture
def contrast(tiny):
    """Contrastive decoding, with the model that it is for, and the scores of equation 2."""

    def contrast(architecture="llama-gqa", alpha=0.05, beta=0.5):
        model, amateur = tiny(architecture), tiny(architecture, seed=1)

        def wanted(ids, base):
            kept = np.exp(base) >= alpha * np.exp(base).max()
            return np.where(kept, base - beta * paper.log_p(amateur, ids), -np.inf)

        return model, ContrastiveDecoding(amateur, alpha=alpha, beta=beta), wanted

    return contrast


@pytest.fixture
def proxy(tiny):
    """Proxy tuning, likewise."""

    def proxy(architecture="gpt2-tied", alpha=0.8):
        model, tuned, untuned = (tiny(architecture, seed=seed) for seed in range(3))

        def wanted(ids, base):
            return base + alpha * (paper.log_p(tuned, ids) - paper.log_p(untuned, ids))

        return model, proxy_tuning(tuned, untuned, alpha=alpha), wanted

    return proxy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contrastive_decoding_equals_the_formula(
    architecture, mode, contrast, tiny, tokenizer, prompts
):
    model, controller, wanted = contrast(architecture)
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, tiny(architecture, seed=9))


def test_proxy_tuning_equals_the_formula(mode, proxy, tiny, tokenizer, prompts):
    model, controller, wanted = proxy()
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, tiny("gpt2-tied", seed=9))


def test_given_texts_are_scored_by_the_formula(contrast, proxy, tokenizer, prompts):
    for model, controller, wanted in (contrast(alpha=0.0), contrast(alpha=0.1), proxy()):
        paper.scores_texts(pa.wrap(model, tokenizer, controller), wanted, prompts(rows=2))


def test_a_batch_is_its_rows_one_by_one(contrast, tokenizer, prompts):
    model, controller, _ = contrast("gpt2-tied")
    batch = prompts(rows=3)
    together = paper.decides(model, tokenizer, controller, batch)
    for row in range(3):
        own = paper.alone(batch, row)
        [ids] = paper.decides(model, tokenizer, controller, own)
        assert ids[own["input_ids"].shape[1] :] == together[row][7:]


def test_sums_with_other_controllers(contrast, tiny, tokenizer, prompts):
    model, a, wanted = contrast()
    expert = tiny(seed=4)
    b = pa.DExperts(expert, top_p=1.0, alpha=0.5)
    assert a + b == b + a

    def both(ids, base):
        return wanted(ids, base) + 0.5 * (paper.log_p(expert, ids) - base)

    for controller, mode in ((a + b, "greedy"), (b + a, "sample")):
        steered = pa.wrap(model, tokenizer, controller)
        paper.follows(steered, both, prompts(rows=2, width=6), mode)


def test_strength_zero_is_the_identity(contrast, proxy, tokenizer, prompts):
    batch = prompts()
    idle = contrast(alpha=0.0, beta=0.0), proxy(alpha=0.0)
    for model, controller, _ in (contrast(), proxy(), *idle):
        plain = paper.scores_of(model, tokenizer, 0 * pa.SelfDebias(["w5"]), batch)
        assert torch.equal(paper.scores_of(model, tokenizer, 0 * controller, batch), plain)
    for model, controller, _ in idle:
        plain = paper.scores_of(model, tokenizer, 0 * controller, batch).log_softmax(-1)
        found = paper.scores_of(model, tokenizer, controller, batch)
        torch.testing.assert_close(found, plain)


def test_saves_and_decides_alike(contrast, proxy, tokenizer, prompts, tmp_path):
    for name, (model, saved, _) in {"contrastive": contrast(), "proxy": proxy()}.items():
        folder = tmp_path / name
        saved.save_pretrained(folder)
        loaded = pa.Controller.from_pretrained(str(folder))
        assert type(loaded) is type(saved) and loaded.config() == saved.config()
        decided = [paper.decides(model, tokenizer, each, prompts()) for each in (saved, loaded)]
        assert decided[0] == decided[1]


def test_an_id_on_the_hub_is_saved_by_name(tmp_path):
    ContrastiveDecoding("hub/small").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'hub/small' on the hub as its amateur; if it may"):
        ContrastiveDecoding.from_pretrained(str(tmp_path))
    loaded = ContrastiveDecoding.from_pretrained(str(tmp_path), allow_hub_parts=True)
    assert loaded.config() == {"alpha": 0.1, "beta": 1.0, "models": {"amateur": "hub/small"}}


def test_drafts_and_captures(contrast, proxy, tokenizer, prompts):
    for model, controller, _ in (contrast(), proxy()):
        steered, drafts = pa.wrap(model, tokenizer, controller), pa.Speculation("base", 3)
        options = {**prompts(rows=2), "max_new_tokens": 12, "do_sample": False}
        got = steered.generate(**options, speculation=drafts)
        assert torch.equal(got, steered.generate(**options)) and drafts.rounds > 0
        assert steered.plan.why_uncapturable is None


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: ContrastiveDecoding(None), TypeError, r"the amateur must be .* got NoneType"),
        (lambda: ContrastiveDecoding("a", alpha=2), ValueError, r"must lie in \[0, 1\], got 2"),
        (lambda: ContrastiveDecoding("a", beta=float("nan")), ValueError, "beta must be finite"),
        (lambda: proxy_tuning("a", None), TypeError, r"the untuned model must be .* got NoneType"),
    ],
)
def test_refuses_by_name(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_an_amateur_with_another_tokenizer_is_refused_by_name(tiny, tokenizer):
    with pytest.raises(ValueError, match="scores 90 tokens but 'LlamaForCausalLM' has 120"):
        pa.wrap(tiny(), tokenizer, ContrastiveDecoding(tiny(seed=1, vocab=90)))


def test_nan_names_the_amateur(tiny, tokenizer, prompts):
    amateur = tiny(seed=1)
    with torch.no_grad():
        amateur.get_output_embeddings().weight.fill_(float("nan"))
    steered = pa.wrap(tiny(), tokenizer, ContrastiveDecoding(amateur))
    with pytest.raises(
        FloatingPointError, match=r"'the amateur Llama.*' gave NaN logits at step 0"
    ):
        steered.generate(**prompts(), max_new_tokens=2)
