"""Chats are found by the template's own turns, whatever the template is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plugalign.algebra.sources import Context
from plugalign.engine.batching.contexts import context_layout
from plugalign.generation.chat import Chat, chat_of
from plugalign.generation.prompts import reworded

GENERATION = "{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
        "{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}" + GENERATION + "<|im_start|>assistant\n{% endif %}"
    ),
    "headers": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n"
        "{{ m['content'] | trim }}<|eot|>{% endfor %}"
        + GENERATION
        + "<|start|>assistant<|end|>\n\n{% endif %}"
    ),
    "model": (
        "{{ bos_token }}{% for m in messages %}<turn>"
        "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] }}</turn>\n"
        "{% endfor %}" + GENERATION + "<turn>model\n{% endif %}"
    ),
    "brackets": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
}
MARKERS = {
    "chatml": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "headers": ("<|start|>user<|end|>\n\n", "<|eot|><|start|>assistant<|end|>\n\n"),
    "model": ("<turn>user\n", "</turn>\n<turn>model\n"),
    "brackets": ("[INST] ", " [/INST]"),
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]
QUESTION = [{"role": "user", "content": "Who wrote Hamlet?"}]
TALK = [
    *QUESTION,
    {"role": "assistant", "content": "Shakespeare."},
    {"role": "user", "content": "Are you sure?"},
]


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes, and special tokens, of which ChatML's first begins texts, as it does for some."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    bos, pad = ("<|im_start|>", "<|im_end|>") if template == "chatml" else ("<s>", "</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, pad_token=pad)
    more = [token for token in (*SPECIAL, "<turn>", "</turn>") if token not in (bos, pad)]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    if template is not None:
        tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def encoded(tokenizer: Any, *texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask."""
    batch = tokenizer(
        list(texts),
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    return batch["input_ids"], batch["attention_mask"]


@pytest.fixture(params=TEMPLATES)
def chat(request: Any) -> Chat:
    found = chat_of(make_tokenizer(request.param))
    assert found is not None
    return found


def rendered(chat: Chat, messages: list[dict[str, str]], generation: bool = True) -> str:
    text: str = chat.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation
    )
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turns_of_known_kinds_of_templates(name):
    tokenizer = make_tokenizer(name)
    chat = chat_of(tokenizer)
    assert (tokenizer.decode(chat.user), tokenizer.decode(chat.reply)) == MARKERS[name]
    assert chat.before_reply == MARKERS[name][1] and chat.after_answer.endswith(MARKERS[name][0])


def test_an_answer_and_the_next_turn_are_what_the_template_makes_of_them(chat):
    text = rendered(chat, QUESTION) + "Shakespeare." + chat.turn("Are you sure?")
    assert text == rendered(chat, TALK)


def test_chats_are_found_beside_plain_prompts(chat):
    question, talk = rendered(chat, QUESTION), rendered(chat, TALK)
    prompts = ("Who wrote Hamlet?", question, talk, f"{question}It was", "<s>user and assistant")
    ids, mask = encoded(chat.tokenizer, *prompts)
    assert chat.found(ids, mask).tolist() == [False, True, True, True, False]
    assert not chat.found(ids[:, :3], mask[:, :3]).any()  # shorter than any turn
    assert not chat.found(ids, mask * 0).any()


def test_what_the_user_says_last(chat):
    system = (
        [{"role": "system", "content": "Be brief."}] if "[INST]" not in chat.after_answer else []
    )
    prompts = [rendered(chat, messages) for messages in (QUESTION, TALK, [*system, *TALK])]
    ids, mask = encoded(chat.tokenizer, *prompts)
    said = chat.last_message(ids, mask).bool()
    texts = [chat.tokenizer.decode(row[keep]) for row, keep in zip(ids, said, strict=True)]
    assert texts == ["Who wrote Hamlet?", "Are you sure?", "Are you sure?"]


class Polite:
    def prompt(self, text):
        return f"Please: {text}"


def test_controllers_reword_what_the_user_says_and_leave_the_turns(chat):
    tokenizer = chat.tokenizer
    ids, mask = encoded(tokenizer, rendered(chat, TALK), "Who wrote Hamlet?")
    ids, mask = reworded([Polite(), Polite()], tokenizer, ids, mask)
    texts = [tokenizer.decode(row[keep]) for row, keep in zip(ids, mask.bool(), strict=True)]
    asked = [*TALK[:2], {"role": "user", "content": "Please: Please: Are you sure?"}]
    assert texts == [rendered(chat, asked), "Please: Please: Who wrote Hamlet?"]
    assert mask[:, -1].all()


def test_a_text_inside_the_first_turn_is_where_the_template_would_put_it(chat):
    """Beside a plain prompt, in front of which it stands with a start token."""
    tokenizer = chat.tokenizer
    ids, mask = encoded(tokenizer, rendered(chat, TALK), "Who wrote Hamlet?")
    said = tokenizer("Be brief. ", add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id
    context = Context((start, *said), start, turn=chat.user)
    ids, mask = context_layout([context], tokenizer.pad_token_id).rows(context, ids, mask)
    texts = [tokenizer.decode(row[keep]) for row, keep in zip(ids, mask.bool(), strict=True)]
    first = {"role": "user", "content": "Be brief. Who wrote Hamlet?"}
    plain = f"{tokenizer.bos_token}Be brief. Who wrote Hamlet?"
    assert texts == [rendered(chat, [first, *TALK[1:]]), plain]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('only translations') }}",
        "{{ messages + 1 }}",
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
        "{% for m in messages if m['role'] == 'user' %}<turn>{{ m['content'] }}</turn>{% endfor %}",
        "<turn>{{ messages[-1]['content'] }}{{ messages[-1]['content'] }}</turn>",
    ],
)
def test_a_template_without_turns_gives_no_chat(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert chat_of(tokenizer) is None
