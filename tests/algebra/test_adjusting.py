"""Controllers with other settings: typed, checked, and of the same learned parts."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import plugalign as pa
from plugalign.algebra.identity import identify
from plugalign.benchmarking.untrained import untrained
from plugalign.catalogue import METHODS
from plugalign.controllers.rad import RAD


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_method_is_made_anew_as_it_was(method, tiny, tokenizer):
    model = tiny()
    controller = untrained(method, model)
    again = controller.with_settings()
    assert type(again) is type(controller) and again is not controller
    assert again.config() == controller.config()
    mine, same = controller.tensors(), again.tensors()
    assert mine.keys() == same.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in mine.items())
    parts, others = controller.saved_parts(), again.saved_parts()
    assert parts.keys() == others.keys()
    assert all(others[name] is part for name, part in parts.items())


ADJUSTABLE = {
    "args": {"k", "label", "weight"},
    "contrastive": {"alpha", "beta"},
    "dera": {"weight"},
    "dexperts": {"alpha", "top_p"},
    "equilibrium": {"epsilon", "kappa", "strength", "confidence", "k"},
    "fudge": {"k", "weight"},
    "fudge_head": {"k", "weight"},
    "gedi": {"desired", "undesired", "omega", "rho", "tau", "scale", "bias"},
    "lm_arithmetic": set(),
    "mod": set(),
    "nullspace": {"strength", "top_p", "low", "high", "floor"},
    "pplm": {
        *("label", "stepsize", "iterations", "gamma", "gm", "kl", "window", "horizon", "top_k"),
        "variant",
    },
    "prefix": set(),
    "prefix_contrast": {"alpha", "top_p"},
    "rad": {"k", "label", "beta", "invert"},
    "safe_decoding": {"alpha", "first_steps", "least_common", "floor"},
    "self_critique": {
        *("critique", "fault", "fine", "refine", "rounds", "threshold", "critique_tokens"),
        "max_new_tokens",
    },
    "self_debias": {"decay", "floor"},
    "value_guide": {"statement", "k", "weight", "breaks"},
    "value_statement": {"statement"},
}


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_what_can_be_changed_is_what_is_no_learned_part(method, tiny):
    assert set(untrained(method, tiny()).adjustable()) == ADJUSTABLE[method]


@pytest.mark.parametrize("method", sorted(name for name, known in ADJUSTABLE.items() if known))
def test_a_number_that_is_changed_stands_in_the_config_and_nothing_else_does(method, tiny):
    controller = untrained(method, tiny())
    numbers = [name for name, kind in controller.adjustable().items() if kind is float]
    for name in numbers:
        before = 0.5 if method == "dera" else controller.config()[name]
        changed = controller.with_settings(**{name: before * 0.9 + 0.01})
        if method == "dera":
            assert changed.formula.summands[-1].weight == pytest.approx(0.46)
            continue
        after = changed.config()
        assert after.pop(name) == pytest.approx(before * 0.9 + 0.01)
        assert after.items() <= controller.config().items()


def test_a_setting_that_is_changed_decides_as_one_that_was_given(tiny, tokenizer):
    model = tiny()
    experts = tiny(seed=1), tiny(seed=2)
    given = pa.DExperts(*experts, alpha=0.3, top_p=0.8)
    changed = pa.DExperts(*experts).with_settings(alpha=0.3, top_p=0.8)
    scores = [
        pa.wrap(model, tokenizer, each).log_probs(["w1 w2 w3", "w4 w5"])
        for each in (given, changed, pa.DExperts(*experts))
    ]
    assert all(torch.equal(a, b) for a, b in zip(scores[0], scores[1], strict=True))
    assert not torch.allclose(scores[0][0], scores[2][0])


def test_what_was_fitted_for_and_settings_that_are_not_changed_stay(tiny, tokenizer):
    model = tiny()
    fitted = identify(model, tokenizer)
    basis = torch.linalg.qr(torch.randn(32, 3)).Q
    controller = pa.Nullspace(basis, guide=basis[:, 0], strength=0.5, fitted_for=fitted)
    changed = controller.with_settings(strength=0)
    assert changed.strength == 0 and isinstance(changed.strength, float)
    assert changed.fitted_for == fitted and torch.equal(changed.guide, basis[:, 0])
    assert controller.strength == 0.5


def test_a_controller_behind_a_gate_has_the_settings_of_what_is_behind_it():
    gated = pa.SelfDebias(["w5"]).when(pa.FirstSteps(2))
    changed = gated.with_settings(decay=3.0)
    assert changed.controller.decay == 3 and changed.gate is gated.gate
    assert set(gated.adjustable()) == ADJUSTABLE["self_debias"]


def test_what_is_known_of_a_controller_behind_a_gate_stays_where_settings_change(tmp_path):
    gated = pa.SelfDebias(["w5"]).when(pa.FirstSteps(2))
    gated.save_pretrained(tmp_path, model_card_kwargs={"license": "mit"})
    loaded = pa.Controller.from_pretrained(tmp_path)
    assert loaded.with_settings(decay=3.0).provenance.notes.license == "mit"


def test_the_names_of_hub_parts_and_code_that_may_run_stay(tiny):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    reward = LlamaForSequenceClassification(LlamaConfig(**sizes, num_attention_heads=1))
    rad = RAD(reward, tokenizer="some/tokenizer", trust_remote_code=True).with_settings(beta=2.0)
    assert rad.reward is reward and rad.tokenizer == "some/tokenizer"
    assert rad.trust_remote_code is True and rad.weight == 2
    expert = pa.DExperts("some/expert", trust_remote_code=True).with_settings(alpha=1)
    assert expert.expert == "some/expert" and expert.trust_remote_code is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decai": 1}, "SelfDebias has no setting 'decai'; known are decay, floor"),
        ({"decay": "1"}, "decay: input should be a valid number, got '1'"),
        ({"decay": True}, "decay: input should be a valid number, got True"),
        ({"decay": float("nan")}, "decay: input should be a finite number, got nan"),
        ({"floor": 3}, r"the floor must lie in \(0, 1\], got 3"),
        ({"prefixes": ["x"]}, "SelfDebias has no setting 'prefixes'"),
    ],
)
def test_refuses_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        pa.SelfDebias(["w5"]).with_settings(**changes)


def test_a_controller_without_settings_says_so():
    with pytest.raises(ValueError, match="'alpha'; none of its settings can be set"):
        pa.PrefixTuning(torch.zeros(1, 2, 1, 1, 4)).with_settings(alpha=1)
