"""What a model is asked, in a chat or not, and what of its answers is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import (
    ASSISTANT,
    CLOSE,
    OPEN,
    USER,
    make_chat_model,
    make_chat_tokenizer,
    make_model,
)
from transformers import LogitsProcessor

import plugalign as pa
from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.generation.chat_format import choose_chat
from plugalign.values.questionnaire.respondent import ModelRespondent
from plugalign.values.questionnaire.rows import described_rows, model_rows
from plugalign.values.universalising.maxim import Situation
from plugalign.values.universalising.model_agent import ModelAgent

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
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


def plain(model: Any, tokenizer: Any) -> ModelRespondent:
    steered = pa.wrap(model, tokenizer, Controller())
    return ModelRespondent(steered, choose_chat(model, tokenizer, "off"))


def test_answers_are_read_as_they_follow_the_prompt(world: Any) -> None:
    model, tokenizer = world
    respondent = plain(model, tokenizer)
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
    chat = choose_chat(model, tokenizer, "on", "Be brief.")
    respondent = ModelRespondent(steered, chat)
    text = f"<system>Be brief.\n<user>{PROMPTS[0]}\n<assistant>"
    assert tokenizer.decode(respondent.ids(PROMPTS[0])) == tokenizer.decode(
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    front, behind = respondent.ids(PROMPTS[0]), tokenizer("kind", add_special_tokens=False)
    (found,) = respondent.log_probs(PROMPTS[0], ["kind"])
    assert found == pytest.approx(summed(model, front, behind["input_ids"]), abs=1e-3)


def test_words_are_the_models_own(world: Any) -> None:
    model, tokenizer = world
    said = plain(model, tokenizer).say(PROMPTS)
    ids = tokenizer(PROMPTS[1], return_tensors="pt")
    alone = model.generate(**ids, max_new_tokens=24, do_sample=False)
    assert said[1] == tokenizer.decode(alone[0, ids["input_ids"].shape[1] :], True)


def test_auto_is_the_one_rule_of_chats() -> None:
    """A base model that was published with a template goes on with texts."""
    tokenizer = make_chat_tokenizer()
    instruct, base = make_chat_model(), make_model()
    for model, chat, controller in ((instruct, True, {}), (base, False, {"d": Controller()})):
        rows = model_rows([(model, tokenizer)], controller, "auto", None, "auto")
        assert all(row["chat"] is chat for row in described_rows(rows).values())
        agent = ModelAgent(model, tokenizer)
        asked = agent._prompt(Situation("w1", ("w2", "w3"), (0.5, 0.5)), None)
        assert asked.startswith("w80 w81 w1") is chat and asked.endswith("Answer: ") is not chat
    turned = {"conversations": True}
    (row,) = model_rows([(base, tokenizer)], {}, "auto", None, "auto", **turned).values()
    assert row.chat.format is not None
    with pytest.raises(ValueError, match="--system is a message of a chat"):
        model_rows([(base, tokenizer)], {}, "auto", "w9", "auto")


def test_a_chat_begins_with_one_begin_token() -> None:
    """Where the tokenizer begins texts with one and the template writes none."""
    model, tokenizer = make_chat_model(), make_chat_tokenizer(bos=True)
    asked = ModelRespondent(pa.wrap(model, tokenizer, Controller()), choose_chat(model, tokenizer))
    begin = tokenizer.bos_token_id
    assert asked.ids("w1") == [begin, OPEN, USER, 4, CLOSE, OPEN, ASSISTANT]
    (found,) = asked.log_probs("w1", ["w5"])
    assert found == pytest.approx(summed(model, asked.ids("w1"), [8]), abs=1e-3)


def test_an_answer_ends_where_its_turn_closes() -> None:
    """Of a model, too, that does not end there by itself but is asked in chats."""
    model, tokenizer = make_model(), make_chat_tokenizer()
    chat = choose_chat(model, tokenizer, "on")
    asked = ModelRespondent(pa.wrap(model, tokenizer, Controller()), chat)
    start = len(asked.ids("w1"))

    class Says(LogitsProcessor):
        """w5, the end of the turn, and w6 for ever."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            step = input_ids.shape[1] - start
            said = torch.full_like(scores, -torch.inf)
            said[:, [8, CLOSE, 9][min(step, 2)]] = 0.0
            return said

    assert asked.write(["w1"], 6, Says()) == ["w5"]
