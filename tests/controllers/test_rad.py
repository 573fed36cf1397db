"""RAD against algorithm 1 of the paper: every candidate's text, read anew by the reward model."""

from __future__ import annotations

import copy

import numpy as np
import paper
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import plugalign as pa
from plugalign.controllers.rad import RAD
from plugalign.controllers.reward_models import TextReward

SIZES = {"vocab_size": 120, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
ARCHITECTURES = {"tokens": "llama-gqa", "texts": "gpt2-tied", "labels": "llama-gqa"}


def make_reward(kind="tokens", seed=5):
    """A random classifier whose rewards lie on both sides of 0 and of 1."""
    torch.manual_seed(seed)
    match kind:
        case "tokens":
            config = GPT2Config(
                n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=1, **SIZES
            )
            reward = GPT2ForSequenceClassification(config)
        case "texts":
            config = LlamaConfig(num_attention_heads=4, num_labels=1, **LLAMA, **SIZES)
            reward = LlamaForSequenceClassification(config)
        case "labels":
            names = {0: "calm", 1: "rude"}
            config = BertConfig(num_attention_heads=4, id2label=names, **LLAMA, **SIZES)
            reward = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in reward.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0 if kind == "labels" else 6.0)
        if kind == "tokens":
            reward.score.weight.mul_(3.0)
    return reward.eval()


@pytest.fixture
def other(tokenizer):
    """Another tokenizer: it knows the same words by other ids, and one more."""
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["something-else"])
    return other


@torch.no_grad()
def rewards(reward, tokenizer, texts, label=None):
    """Float64 rewards of lists of token ids, each read alone."""
    found = []
    for ids in texts:
        if tokenizer is not None:
            ids = tokenizer(tokenizer.decode(ids, skip_special_tokens=True))["input_ids"]
        ids = torch.tensor([ids])
        if tokenizer is None:  # the last token's state, whatever that token is
            state = reward.base_model(input_ids=ids).last_hidden_state[0, -1]
            found.append(reward.score(state).double().item())
        else:
            logits = reward(input_ids=ids).logits[0].double()
            found.append((logits[0] if label is None else logits.softmax(-1)[label]).item())
    return np.array(found)


def best(base, k):
    return np.argsort(-base, kind="stable")[:k]


@pytest.fixture
def written(tiny, other):
    """A controller by name, with the model that it is for, and the scores of the paper."""

    def written(kind, invert=False, beta=4.0, k=8):
        model, reward = tiny(ARCHITECTURES[kind]), make_reward(kind)
        own = None if kind == "tokens" else other
        label = "rude" if kind == "labels" else None

        def wanted(ids, base):
            chosen, scores = best(base, k), np.full(120, -np.inf)
            texts = [[*ids, int(token)] for token in chosen]
            r = rewards(reward, own, texts, 1 if label else None).clip(0, 1)
            scores[chosen] = base[chosen] + beta * (1 - r if invert else r)
            return scores

        controller = RAD(reward, tokenizer=own, k=k, beta=beta, invert=invert, label=label)
        return model, controller, wanted

    return written


def test_generate_equals_the_formula(mode, written, tiny, tokenizer, prompts):
    model, controller, wanted = written("tokens")
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, tiny(seed=9))


@pytest.mark.parametrize(
    ("kind", "invert", "mode"),
    [
        ("tokens", True, "greedy"),
        ("tokens", True, "beam"),
        ("texts", True, "greedy"),
        ("texts", False, "beam-sample"),
        ("texts", True, "assisted"),
        ("labels", False, "sample"),
        ("labels", True, "beam"),
    ],
)
def test_inverted_rewards_and_rewards_of_texts(
    kind, invert, mode, written, tiny, tokenizer, prompts
):
    model, controller, wanted = written(kind, invert)
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(
        steered, wanted, prompts(rows=2, width=6), mode, tiny(ARCHITECTURES[kind], seed=9)
    )


def test_rewards_are_clamped_on_both_sides(prompts):
    reward, ids = make_reward(), prompts(rows=1, width=7)["input_ids"][0].tolist()
    found = rewards(reward, None, [[*ids, token] for token in range(120)])
    assert found.min() < 0 and found.max() > 1 and ((found > 0) & (found < 1)).any()


@pytest.mark.parametrize("kind", ["tokens", "texts"])
def test_given_texts_are_scored_by_the_formula(kind, written, tokenizer, prompts):
    model, controller, _ = written(kind)
    _, everywhere, wanted = written(kind, k=120)
    paper.scores_texts(pa.wrap(model, tokenizer, everywhere), wanted, prompts(rows=2, width=6))
    batch = prompts(rows=2, width=6)
    few = pa.wrap(model, tokenizer, controller)
    found = few.log_probs((batch["input_ids"], batch["attention_mask"]))
    assert any(torch.isinf(row).any() for row in found)  # not among the candidates


@pytest.mark.parametrize("kind", ["tokens", "texts"])
def test_a_batch_is_its_rows_one_by_one(kind, written, tokenizer, prompts):
    model, controller, _ = written(kind)
    batch = prompts(rows=3)
    together = paper.decides(model, tokenizer, controller, batch)
    for row in range(3):
        own = paper.alone(batch, row)
        [ids] = paper.decides(model, tokenizer, controller, own)
        assert ids[own["input_ids"].shape[1] :] == together[row][7:]


def test_sums_with_other_controllers(written, tiny, tokenizer, prompts):
    model, a, wanted = written("tokens")
    expert = tiny(seed=4)
    b = pa.DExperts(expert, top_p=1.0, alpha=0.5)
    assert a + b == b + a

    def both(ids, base):
        return wanted(ids, base) + 0.5 * (paper.log_p(expert, ids) - base)

    for controller, mode in ((a + b, "greedy"), (b + a, "sample")):
        steered = pa.wrap(model, tokenizer, controller)
        paper.follows(steered, both, prompts(rows=2, width=6), mode)


def test_strength_zero_is_the_identity(written, tokenizer, prompts):
    model, controller, _ = written("tokens")
    batch = prompts()
    plain = paper.scores_of(model, tokenizer, 0 * pa.SelfDebias(["w5"]), batch)
    assert torch.equal(paper.scores_of(model, tokenizer, 0 * controller, batch), plain)
    _, idle, _ = written("tokens", beta=0.0, k=120)
    found = paper.scores_of(model, tokenizer, idle, batch)
    torch.testing.assert_close(found, plain.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "texts", "labels"])
def test_saves_and_decides_alike(kind, written, tokenizer, prompts, tmp_path):
    model, saved, _ = written(kind, invert=True)
    saved.save_pretrained(tmp_path / "saved")
    loaded = pa.Controller.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(loaded, RAD) and loaded.config() == saved.config()
    loaded.save_pretrained(tmp_path / "again")
    again = pa.Controller.from_pretrained(str(tmp_path / "again"))
    batch = prompts()
    want = paper.decides(model, tokenizer, saved, batch)
    assert paper.decides(model, tokenizer, loaded, batch) == want
    assert paper.decides(model, tokenizer, again, batch) == want


def test_a_folder_with_its_tokenizer(written, tokenizer, other, prompts, tmp_path):
    model, live, _ = written("texts")
    live.reward.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    batch = prompts()
    got = paper.decides(model, tokenizer, RAD(tmp_path, k=8, beta=4.0), batch)
    assert got == paper.decides(model, tokenizer, live, batch)


def test_the_prefix_is_read_once(written, tokenizer, prompts):
    model, controller, _ = written("tokens")
    columns = []
    controller.reward.base_model.register_forward_hook(
        lambda _, __, given, ___: columns.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    pa.wrap(model, tokenizer, controller).generate(**prompts(), max_new_tokens=4)
    assert columns == [7, 8, 8, 8, 8]  # the prompts, and 8 candidates a step


def test_what_it_cannot_do_it_says_by_name(written, tokenizer, prompts):
    model, controller, _ = written("tokens")
    steered, batch = pa.wrap(model, tokenizer, controller), prompts(rows=1)
    with pytest.raises(ValueError, match=r"'the reward model GPT2For.*' is read at one"):
        steered.generate(**batch, max_new_tokens=4, speculation=pa.Speculation("base"))
    assert "the reward model GPT2For" in steered.plan.why_uncapturable
    long = {"input_ids": torch.full((1, 64), 5), "attention_mask": torch.ones(1, 64).long()}
    with pytest.raises(ValueError, match=r"context of 'the reward model GPT2.*' \(64 tokens\)"):
        steered.generate(**long, max_new_tokens=4)
    with pytest.raises(ValueError, match="text 0 has 65 tokens, more than the context"):
        steered.log_probs([" ".join(["w5"] * 65)])


def test_a_text_that_is_too_long_for_the_reward_model(tokenizer, other, tiny, prompts):
    other.model_max_length = 8
    controller = RAD(make_reward("texts"), tokenizer=other)
    steered = pa.wrap(tiny(), tokenizer, controller)
    with pytest.raises(ValueError, match=r"a text of 9 tokens is longer .* \(8 tokens\)"):
        steered.generate(**prompts(), max_new_tokens=4)


@pytest.mark.parametrize("kind", ["texts", "labels"])
def test_a_text_without_tokens_is_read_as_a_padding_token(kind, other):
    reward = TextReward(make_reward(kind), other, label=1 if kind == "labels" else None)
    alone, blank, among = reward([""]), reward([" ", "w5 w6"]), reward(["w5 w6", "", "w7"])
    assert alone.shape == (1,) and alone.isfinite().all()
    want = torch.cat([alone, reward(["w5 w6"])])
    torch.testing.assert_close(blank, want)
    torch.testing.assert_close(among[:2], want.flip(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "labels"}, "has the labels 'calm', 'rude', and none is named"),
        ({"reward": "labels", "label": "kind"}, "and 'kind' is none of them"),
        ({"reward": "labels", "label": "rude"}, "reads texts .*give tokenizer=.*, the base's if"),
        ({"label": "kind"}, "has the labels 'LABEL_0', and 'kind' is none of them"),
        ({"vocab": 121}, "knows 120 tokens, but 'LlamaForCausalLM' can choose 121"),
    ],
)
def test_refuses_by_name(options, message, tiny, tokenizer):
    model = tiny(vocab=options.pop("vocab", 120))
    controller = RAD(make_reward(options.pop("reward", "tokens")), **options)
    with pytest.raises(ValueError, match=message):
        pa.wrap(model, tokenizer, controller)


def test_refuses_a_tokenizer_without_padding(tiny, tokenizer, other):
    other.pad_token = None
    with pytest.raises(ValueError, match="pad_token is None and its config's pad_token_id 0"):
        pa.wrap(tiny(), tokenizer, RAD(make_reward("texts"), tokenizer=other))


def test_refuses_what_is_no_reward_model(tiny, tokenizer, tmp_path):
    with pytest.raises(TypeError, match=r"sequence classifier .* got LlamaForCausalLM"):
        RAD(tiny())
    with pytest.raises(ValueError, match="top-k must be at least 1, got 0"):
        RAD(make_reward(), k=0)
    with pytest.raises(ValueError, match="top-k must be at least 1, got True"):
        RAD(make_reward(), k=True)
    with pytest.raises(ValueError, match="weight must be finite, got inf"):
        RAD(make_reward(), beta=float("inf"))
    with pytest.raises(ValueError, match="cannot load the reward model 'no/such': "):
        pa.wrap(tiny(), tokenizer, RAD("no/such", tokenizer=tokenizer))
    with pytest.raises(ValueError, match="cannot load the reward model's tokenizer 'no/such': "):
        pa.wrap(tiny(), tokenizer, RAD(make_reward(), tokenizer="no/such"))
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained reward model: it lacks score\.weight"):
        pa.wrap(tiny(), tokenizer, RAD(tmp_path))


def test_a_damaged_reward_model_is_named(tiny, tokenizer, tmp_path):
    make_reward().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"cannot load the reward model '{tmp_path}': "):
        pa.wrap(tiny(), tokenizer, RAD(tmp_path))


def test_a_loaded_reward_model_goes_beside_the_base(written, tiny, tokenizer, prompts, tmp_path):
    make_reward().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model = tiny().bfloat16()
    output = pa.wrap(model, tokenizer, RAD(tmp_path, k=8) + RAD(loaded, k=8)).generate(
        **prompts(), max_new_tokens=3, return_dict_in_generate=True, output_scores=True
    )
    sums = torch.stack(output.scores).exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
