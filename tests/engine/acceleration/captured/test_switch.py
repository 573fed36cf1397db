"""Whether steps are captured can be said: for a call, and for a process."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.engine.acceleration import captured_step, cuda_graph
from plugalign.engine.acceleration.switch import VARIABLE, capture_switch

NEW = 6
STATIC = {"cache_implementation": "static", "disable_compile": True}
LENGTH = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}


@pytest.fixture
def steered(tiny, tokenizer):
    return pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    return steered.generate(**inputs, **{**LENGTH, "do_sample": True, **options})


@pytest.mark.parametrize(
    ("variable", "capture", "replays"),
    [
        (None, "auto", [NEW - 2]),
        (None, True, [NEW - 2]),
        (None, False, []),
        ("auto", "auto", [NEW - 2]),
        ("1", "auto", [NEW - 2]),
        ("0", "auto", []),
        ("0", True, [NEW - 2]),
        ("1", False, []),
    ],
)
def test_who_asks_and_who_forbids(variable, capture, replays, steered, prompts, tapes, monkeypatch):
    want = generate(steered, prompts())
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable)
    got = generate(steered, prompts(), **STATIC, capture=capture)
    assert torch.equal(got, want)
    assert [tape.replays for tape in tapes if tape.replays] == replays
    explained = steered.explain(**prompts(), **LENGTH, **STATIC, capture=capture)
    why = f"{VARIABLE}=0" if variable == "0" else "capture=False"
    assert ("the third is captured" if replays else f"by the host: {why}") in explained


def test_a_capture_that_is_asked_for_is_made_for_a_few_tokens_too(
    steered, prompts, tapes, monkeypatch
):
    monkeypatch.setattr(captured_step, "MIN_TOKENS", NEW + 1)
    assert "does not pay" in steered.explain(**prompts(), **LENGTH, **STATIC)
    generate(steered, prompts(), **STATIC, capture=True)
    assert [tape.replays for tape in tapes if tape.replays] == [NEW - 2]
    with pytest.raises(ValueError, match="the first to be captured is step 3, and 2 tokens"):
        generate(steered, prompts(), **STATIC, capture=True, max_new_tokens=2, min_new_tokens=1)


@pytest.mark.parametrize("by", ["argument", "variable"])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cache_implementation": None}, "'static' is not asked for"),
        ({"num_beams": 2, "do_sample": False}, "beam search moves rows"),
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor is looked at by the host"),
        ({"trace": pa.Trace()}, "a trace looks at every step"),
        ({"speculation": pa.Speculation("prompt")}, "a draft is as long as it happens to be"),
    ],
)
def test_what_cannot_be_captured_is_refused_before_any_token(
    by, options, why, steered, prompts, tapes, monkeypatch
):
    if by == "variable":
        monkeypatch.setenv(VARIABLE, "1")
    asked = {} if by == "variable" else {"capture": True}
    ran, who = [], f"{VARIABLE}=1" if by == "variable" else "capture=True"
    with pytest.raises(ValueError, match=f"{who}, and no step can be captured: .*{why}") as raised:
        steered.model.register_forward_pre_hook(lambda *_: ran.append(1))
        generate(steered, prompts(), **{**STATIC, **options, **asked})
    assert not ran
    assert f"capture=False goes on without for a call, {VARIABLE}=0 for a process" in str(
        raised.value
    )
    if "trace" not in options:
        explained = steered.explain(**prompts(), **{**LENGTH, **STATIC, **options, **asked})
        assert f"steps: {who} is refused: " in explained and why in explained


def test_a_device_without_graphs_is_named_first(steered, prompts):
    why = "there are no CUDA graphs on a cpu"
    with pytest.raises(ValueError, match=f"capture=True, and no step can be captured: {why}"):
        generate(steered, prompts(), capture=True)
    assert f"steps: launched by the host: {why}" in steered.explain(**prompts(), **LENGTH)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("2.8.1+cu128", "torch 2.8.1+cu128 is older than 2.9"),
        ("2.9.0", None),
        ("2.11.0+cu130", None),
        ("2.13.0", None),
        ("3.0.0a0", None),
    ],
)
def test_versions_of_torch(version, why, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert cuda_graph.unavailable(torch.device("cuda")) == why
    assert (captured_step.graph_on(torch.device("cuda")) is None) is (why is not None)


@pytest.mark.parametrize("capture", [None, 1, 0.0, "yes", "True", ["auto"]])
def test_anything_else_is_refused(capture, steered, prompts):
    kind = ValueError if isinstance(capture, str) else TypeError
    for call in (steered.generate, steered.explain):
        with pytest.raises(kind, match='capture must be True, False or "auto", got '):
            call(**prompts(), **LENGTH, capture=capture)


@pytest.mark.parametrize("value", ["", "yes", "true", "2"])
def test_a_variable_of_another_value_is_refused(value, steered, prompts, monkeypatch):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=f"{VARIABLE} must be 0, 1 or auto, got '{value}'"):
        generate(steered, prompts())
    assert (
        capture_switch(False).why_off == "capture=False"
    )  # what is said by the call itself counts
