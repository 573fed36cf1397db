"""What a model is asked, in a chat or not, and what of its answers is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plugalign as pa
from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.values.questionnaire.respondent import ModelRespondent, is_chat

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
PROMPTS = [f"The nurse was kind today.\n\nThe {who} is:" for who in ("nurse", "cook")]
ANSWERS = ["kind", "very rude to everybody", "late"]


@pytest.fixture
def world() -> Any:
    return pocket.load()


@torch.no_grad()
def summed(model: Any, front: list[int], behind: list[int]) -> float:
    """The log p of some tokens behind others, by one plain forward."""
    log_p = model(torch.tensor([front + behind])).logits[0].float().log_softmax(-1)
    at = range(len(front) - 1, len(front) + len(behind) - 1)
    return sum(float(log_p[i, token]) for i, token in zip(at, behind, strict=True))


def test_answers_are_read_as_they_follow_the_prompt(world: Any) -> None:
    model, tokenizer = world
    respondent = ModelRespondent(pa.wrap(model, tokenizer, Controller()), chat=False)
    for prompt in PROMPTS:
        front = tokenizer(prompt)["input_ids"]
        for answer, found in zip(ANSWERS, respondent.log_probs(prompt, ANSWERS), strict=True):
            whole = tokenizer(f"{prompt} {answer}")["input_ids"]
            assert whole[: len(front)] == front
            assert found == pytest.approx(summed(model, front, whole[len(front) :]), abs=1e-3)


def test_a_chat_is_the_users_turn(world: Any) -> None:
    model, tokenizer = world
    tokenizer.chat_template = CHAT
    steered = pa.wrap(model, tokenizer, Controller())
    respondent = ModelRespondent(steered, chat=True, system="Be brief.")
    text = f"<system>Be brief.\n<user>{PROMPTS[0]}\n<assistant>"
    assert tokenizer.decode(respondent.ids(PROMPTS[0])) == tokenizer.decode(
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    front, behind = respondent.ids(PROMPTS[0]), tokenizer("kind", add_special_tokens=False)
    (found,) = respondent.log_probs(PROMPTS[0], ["kind"])
    assert found == pytest.approx(summed(model, front, behind["input_ids"]), abs=1e-3)


def test_words_are_the_models_own(world: Any) -> None:
    model, tokenizer = world
    said = ModelRespondent(pa.wrap(model, tokenizer, Controller()), chat=False).say(PROMPTS)
    ids = tokenizer(PROMPTS[1], return_tensors="pt")
    alone = model.generate(**ids, max_new_tokens=24, do_sample=False)
    assert said[1] == tokenizer.decode(alone[0, ids["input_ids"].shape[1] :], True)


@pytest.mark.parametrize(
    ("template", "mode", "system", "message"),
    [
        (None, "on", None, "'m' has no chat template, so it cannot be asked with chat 'on'"),
        (CHAT, "yes", None, "chat must be one of auto, on, off, got 'yes'"),
        (None, "auto", "x", "'m' is not asked in a chat, so leave out the system text"),
        ("{{ messages + 1 }}", "auto", None, "takes no question .* say chat 'off'"),
        (NO_SYSTEM + CHAT, "auto", "x", "the chat template of 'm' takes no system text"),
    ],
)
def test_chats_that_cannot_be(
    world: Any, template: str | None, mode: str, system: str | None, message: str
) -> None:
    _, tokenizer = world
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        is_chat(tokenizer, mode, system, "m")


def test_auto_asks_in_a_chat_where_there_is_a_template(world: Any, tmp_path: Path) -> None:
    _, tokenizer = world
    assert not is_chat(tokenizer, "auto", None, "m")
    tokenizer.chat_template = CHAT
    assert is_chat(tokenizer, "auto", None, "m") and not is_chat(tokenizer, "off", None, "m")
