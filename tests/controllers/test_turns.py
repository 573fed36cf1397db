"""Methods that add words act inside a chat's turns: the exact ids that the model then sees.

The prompts come from `ChatFormat`, as compare makes them; what is expected is written out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ASSISTANT, CLOSE, OPEN, SYSTEM, USER, make_chat_model, make_chat_tokenizer

import plugalign as pa
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm
from plugalign.generation.chat_format import ChatFormat, choose_chat
from plugalign.generation.revision import Answers
from plugalign.generation.transcript import Continuation

FRONT, BEHIND = [OPEN, SYSTEM, 23, CLOSE, OPEN, USER], [CLOSE, OPEN, ASSISTANT]
NEXT = [CLOSE, OPEN, USER]
CACHE = "past_key_values"


@pytest.fixture
def chat() -> ChatFormat:
    """Chats with the system message w20."""
    found = choose_chat(make_chat_model(), make_chat_tokenizer(), "auto", "w20").format
    assert found is not None
    return found


def whole_texts(model: Any) -> set[tuple[int, ...]]:
    """The texts that a model reads from their beginning, without padding, as it is called."""
    seen: set[tuple[int, ...]] = set()

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids, mask, cache = (kwargs.get(x) for x in ("input_ids", "attention_mask", CACHE))
        if cache is not None and cache.get_seq_length():
            return
        mask = torch.ones_like(ids) if mask is None else mask  # none is given where all are ones
        rows = zip(ids.tolist(), mask.tolist(), strict=True)
        seen.update(tuple(t for t, k in zip(row, keep, strict=True) if k) for row, keep in rows)

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", ["self_debias", "gedi"])
def test_a_prefix_stands_inside_the_users_turn(name: str, chat: ChatFormat) -> None:
    controller: pa.Controller = pa.SelfDebias(["w9 w10", "w11"])
    prefixes = [[12, 13], [14]]
    if name == "gedi":
        controller = GeDi("w9 w10", "w11", omega=1.0)
    model = make_chat_model()
    seen = whole_texts(model)
    prompt = torch.tensor([chat.ids("w1 w2")])
    pa.wrap(model, make_chat_tokenizer(), controller).generate(prompt, max_new_tokens=2)
    assert prompt[0].tolist() == [*FRONT, 4, 5, *BEHIND]
    for prefix in prefixes:
        assert (*FRONT, *prefix, 4, 5, *BEHIND) in seen


def test_a_prompt_with_turns_of_its_own_stands_in_front_of_the_chat(chat: ChatFormat) -> None:
    model = make_chat_model()
    seen = whole_texts(model)
    formula = 2 * lm() - lm(prompt="w9") / 2 - lm(prompt="w80 w84 w11 w83") / 2
    prompt = torch.tensor([chat.ids("w1 w2")])
    pa.wrap(model, make_chat_tokenizer(), LMArithmetic(formula)).generate(prompt, max_new_tokens=2)
    whole = (*FRONT, 4, 5, *BEHIND)
    assert {whole, (*FRONT, 12, 4, 5, *BEHIND), (OPEN, SYSTEM, 14, CLOSE, *whole)} == seen


def test_critique_and_refinement_are_the_users_next_turns(chat: ChatFormat) -> None:
    words = {"critique": "w30", "fault": " w40", "fine": " w41", "refine": " w50"}
    model, tokenizer, prompt = make_chat_model(), make_chat_tokenizer(), chat.ids("w1 w2")
    drafts = Answers(
        tokenizer=tokenizer,
        prompt_ids=torch.tensor([prompt]),
        prompt_mask=torch.ones(1, len(prompt), dtype=torch.long),
        ids=torch.tensor([[60, 61, CLOSE]]),
        cache=None,  # so that each text is read from its beginning
        pad_token_id=0,
        end_token_ids=(1, CLOSE),
        continuation=Continuation(model, {"max_new_tokens": 2, "do_sample": False}),
    )
    seen = whole_texts(model)
    pa.SelfCritique(**words, threshold=0.0).revise(drafts)
    content_free = tokenizer("N/A", add_special_tokens=False)["input_ids"]
    assert seen == {
        (*prompt, *content_free, *NEXT, 33, *BEHIND),
        (*prompt, 60, 61, *NEXT, 33, *BEHIND),
    }


def test_a_statement_of_values_and_a_prefix_share_the_turn(chat: ChatFormat) -> None:
    controller = pa.ValueStatement("w15") + pa.SelfDebias(["w9"])
    model = make_chat_model()
    seen = whole_texts(model)
    prompt = torch.tensor([chat.ids("w1")])
    pa.wrap(model, make_chat_tokenizer(), controller).generate(prompt, max_new_tokens=2)
    assert {(*FRONT, 18, 4, *BEHIND), (*FRONT, 12, 18, 4, *BEHIND)} <= seen
