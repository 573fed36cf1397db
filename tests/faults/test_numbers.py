"""Logits that are no numbers: who gave them, and at which step."""

from __future__ import annotations

from functools import partial

import pytest
import torch

NAN, INF = float("nan"), float("inf")
NEVER = 20  # a token that no prompt holds
SOURCES = {"expert": "dexperts", "antiexpert": "dexperts", "predictor": "fudge"}


def leads(row, input_ids, scores):
    """Makes a row choose the token that somebody has no number for, at step 2."""
    if input_ids.shape[1] == 9:
        scores = scores.clone()
        scores[row], scores[row, NEVER] = -100.0, 0.0
    return scores


@pytest.fixture
def refusal(prompts):
    """The message with which a call is refused."""

    def go(steered, rows=3, *processors):
        batch = {k: v[:rows] for k, v in prompts().items()}
        with pytest.raises(FloatingPointError) as caught:
            steered.generate(**batch, max_new_tokens=5, logits_processor=list(processors))
        return str(caught.value)

    return go


def spoil(weight, value):
    with torch.no_grad():
        weight[...] = value


@pytest.mark.parametrize(("rows", "row"), [(1, 0), (3, 1)])
def test_nan_of_the_base(kind, rows, row, path, wrapped, refusal):
    steered = wrapped(kind)
    spoil(steered.model.get_input_embeddings().weight[NEVER], NAN)
    want = f"the base model 'LlamaForCausalLM' gave NaN logits at step 3 (row {row})"
    assert refusal(steered, rows, partial(leads, row)).startswith(want)


@pytest.mark.parametrize(("rows", "row"), [(1, 0), (3, 1)])
@pytest.mark.parametrize("who", SOURCES)
def test_nan_of_a_source(who, rows, row, path, wrapped, refusal):
    steered = wrapped(SOURCES[who])
    part = getattr(steered.controller, who)
    spoil(getattr(part, "backbone", part).get_input_embeddings().weight[NEVER], NAN)
    message = refusal(steered, rows, partial(leads, row))
    assert message.startswith("the source '") and who in message
    assert f"gave NaN logits at step 3 (row {row})" in message


@pytest.mark.parametrize(
    ("kind", "tensor", "who"),
    [
        ("prefix", "keys_values", "the base model 'LlamaForCausalLM'"),
        ("prefix-contrast", "contrast", "the source 'the base behind the contrast prefix'"),
        ("nullspace", "removed", "the controller Nullspace"),
        ("fudge-head", "left", "the controller FudgeHead"),
    ],
)
def test_nan_of_a_controller(kind, tensor, who, path, wrapped, afresh, refusal):
    steered = wrapped(kind)
    spoil(getattr(steered.controller, tensor), NAN)
    assert refusal(afresh(steered)).startswith(f"{who} gave NaN logits at step 0 (row 0)")


@pytest.mark.parametrize(("value", "word"), [(NAN, "NaN"), (INF, "infinite")])
@pytest.mark.parametrize(
    ("kind", "who", "block"),
    [
        ("nothing", "the base model", 0),
        ("dexperts", "the base model", 0),
        ("dexperts", "the source 'expert", 0),
        ("self-debias", "the source 'the base behind 'w8'", -1),
    ],
)
def test_one_entry(kind, who, block, value, word, path, wrapped, refusal):
    """In one row of the base, of an expert, of the base behind the last prompt."""

    def entry(_, __, output):
        blocks = output.logits.view(-1, 3, *output.logits.shape[1:])
        if block == 0 or len(blocks) > 1:
            spoil(blocks[block, 1, -1], value)

    steered = wrapped(kind)
    part = steered.controller.expert if "expert" in who else steered.model
    part.register_forward_hook(entry)
    message = refusal(steered)
    assert message.startswith(who) and f"gave {word} logits at step 0 (row 1)" in message
