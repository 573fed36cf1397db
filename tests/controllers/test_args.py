"""ARGS against the formula of the paper: what differs from RAD, whose reading it shares."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paper
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

import plugalign as pa
from plugalign.controllers.args import ARGS
from plugalign.controllers.reward_models import label_number

K, WEIGHT = 10, 1.5


def make_reward(seed=5):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, **heads, num_hidden_layers=2, num_labels=1, pad_token_id=0)
    reward = Qwen2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in reward.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return reward.eval()


@pytest.fixture
def written(tiny):
    """A controller, with the model that it is for, and the scores of the paper."""
    model, reward = tiny("gpt2-tied"), make_reward()

    @torch.no_grad()
    def wanted(ids, base):
        scores = np.full(120, -np.inf)
        for token in np.argsort(-base, kind="stable")[:K]:
            text = torch.tensor([[*ids, int(token)]])
            state = reward.base_model(input_ids=text).last_hidden_state[0, -1]
            scores[token] = base[token] + WEIGHT * reward.score(state).double().item()
        return scores

    return model, ARGS(reward, k=K, weight=WEIGHT), wanted


def test_generate_equals_the_formula(mode, written, tiny, tokenizer, prompts):
    model, controller, wanted = written
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, tiny("gpt2-tied", seed=9))


def test_rewards_are_not_clamped(written, tokenizer, prompts):
    model, controller, _ = written
    found = paper.scores_of(model, tokenizer, controller, prompts())
    plain = paper.scores_of(model, tokenizer, 0 * controller, prompts()).log_softmax(-1)
    gained = (found - plain)[0, 0]
    gained = gained[gained.isfinite()] / WEIGHT
    assert gained.max() - gained.min() > 1


def test_sums_and_weights(written, tiny, tokenizer, prompts):
    model, a, wanted = written
    expert = tiny("gpt2-tied", seed=4)
    b = pa.DExperts(expert, top_p=1.0, alpha=0.5)
    assert a + b == b + a

    def both(ids, base):
        return 2 * wanted(ids, base) - base + 0.5 * (paper.log_p(expert, ids) - base)

    for controller in (2 * a + b, b + a + a):
        steered = pa.wrap(model, tokenizer, controller)
        paper.follows(steered, both, prompts(rows=2, width=6), "greedy")


def test_saves_and_decides_alike(written, tokenizer, prompts, tmp_path):
    model, saved, _ = written
    saved.save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, ARGS) and loaded.config() == saved.config()
    want = paper.decides(model, tokenizer, saved, prompts())
    assert paper.decides(model, tokenizer, loaded, prompts()) == want


def test_defaults_are_those_of_the_paper():
    rest = {"models": {"reward": "hub/reward"}, "label": None}
    assert ARGS("hub/reward").config() == {"k": 10, "weight": 1.0, **rest}


def test_the_only_label_may_be_named():
    class OneLabel:
        config = SimpleNamespace(id2label={0: "L0"}, num_labels=1, name_or_path="one")

    assert label_number(OneLabel(), None) is None and label_number(OneLabel(), "L0") is None
    with pytest.raises(ValueError, match="'L1' is none of them"):
        label_number(OneLabel(), "L1")
