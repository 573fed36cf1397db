"""A value statement: the exact token ids that the model sees, as a text and in a chat."""

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
    make_tokenizer,
)

import plugalign as pa
from plugalign.files.messages import conversation_of
from plugalign.generation.chat_format import choose_chat

STATEMENT, SAID = "w9 w10", [12, 13]


def first_input(model: Any) -> list[list[int]]:
    """The rows of the first forward, as it is made."""
    seen: list[list[int]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.extend(kwargs["input_ids"].tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def chat_ids(prompt: Any) -> list[int]:
    chat = choose_chat(make_chat_model(), make_chat_tokenizer())
    assert chat.format is not None
    return chat.format.ids(prompt)


def test_a_text_is_read_behind_the_statement_and_returned_without_it():
    model, tokenizer = make_model(), make_tokenizer()
    seen = first_input(model)
    steered = pa.wrap(model, tokenizer, pa.ValueStatement(STATEMENT))
    ids = tokenizer("w1 w2", return_tensors="pt")
    made = steered.generate(**ids, max_new_tokens=4)
    assert seen == [[*SAID, 4, 5]]
    whole = tokenizer(f"{STATEMENT}\n\nw1 w2", return_tensors="pt")
    wanted = make_model().generate(**whole, max_new_tokens=4, do_sample=False)
    assert made[0].tolist() == [4, 5, *wanted[0, 4:].tolist()]


def test_in_a_chat_it_is_the_beginning_of_what_the_user_says_last():
    talk = conversation_of(
        [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": "w2"},
            {"role": "user", "content": "w3"},
        ],
        "it",
    )
    for prompt, before in (("w3", []), (talk, [*chat_ids("w1"), 5, CLOSE])):
        model = make_chat_model()
        seen = first_input(model)
        steered = pa.wrap(model, make_chat_tokenizer(), pa.ValueStatement(STATEMENT))
        steered.generate(torch.tensor([chat_ids(prompt)]), max_new_tokens=2)
        assert seen == [[*before, OPEN, USER, *SAID, 6, CLOSE, OPEN, ASSISTANT]]


def test_given_texts_are_scored_behind_the_statement():
    model, tokenizer = make_model(), make_tokenizer()
    steered = pa.wrap(model, tokenizer, pa.ValueStatement(STATEMENT))
    (found,) = steered.log_probs(["w4 w5"], prompts=["w1"])
    with torch.no_grad():
        logits = model(torch.tensor([[*SAID, 4, 7, 8]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, torch.stack([logits[2, 7], logits[3, 8]]))


def test_it_is_saved_and_adds_up(tmp_path: Any) -> None:
    pa.ValueStatement(STATEMENT).save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, pa.ValueStatement) and loaded.config() == {"statement": STATEMENT}
    both = loaded + pa.SelfDebias(["w7"])
    assert len(both.parts()) == 2
    with pytest.raises(ValueError, match="acts on prompt, which is all or nothing"):
        0.5 * loaded


@pytest.mark.parametrize("statement", ["", "  \n"])
def test_an_empty_statement_is_refused(statement: str) -> None:
    with pytest.raises(ValueError, match="a value statement needs words"):
        pa.ValueStatement(statement)
    with pytest.raises(TypeError, match="must be a text, got 3"):
        pa.ValueStatement(3)  # type: ignore[arg-type]
