"""A text that carries its begin token gets no second one."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import plugalign as pa
from plugalign.evaluation.comparison.prompts import encode, load_prompts
from plugalign.evaluation.metrics.likelihood import perplexity
from plugalign.fitting import data
from plugalign.generation.chat_format import choose_chat
from plugalign.generation.tokens import token_ids
from plugalign.values.questionnaire.respondent import ModelRespondent


@pytest.fixture
def framing(tokenizer: Any) -> Any:
    """A tokenizer that puts <bos> (120) in front, as Gemma's and Llama's do."""
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    begin = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", begin)]
    )
    assert tokenizer("w1")["input_ids"] == [begin, 4]
    return tokenizer


def test_one_begin_token(framing: Any) -> None:
    begin, texts = (
        framing.bos_token_id,
        ["<bos>w1 w2", "w1", "<bos><bos>w1", "w1 <bos>", "<bos>", ""],
    )
    assert token_ids(framing, texts) == [
        [begin, 4, 5],
        [begin, 4],
        [begin, begin, 4],
        [begin, 4, begin],
        [begin],
        [begin],
    ]


def test_a_tokenizer_without_framing_is_left_alone(tokenizer: Any) -> None:
    assert token_ids(tokenizer, ["w1"]) == [[4]]
    tokenizer.bos_token = "<eos>"  # as GPT-2: the same token, and never put in front
    assert token_ids(tokenizer, ["<eos><eos>w1", "w1"]) == [[1, 1, 4], [4]]


def test_given_texts_and_their_prompts_are_read_so(framing: Any, tiny: Any) -> None:
    steered = pa.wrap(tiny(vocab=121), framing, pa.SelfDebias(["w5"]))
    carried, plain = (steered.log_probs([text])[0] for text in ("<bos>w7 w8", "w7 w8"))
    assert carried.tolist() == plain.tolist()
    carried, plain = (steered.log_probs(["w7"], [text])[0] for text in ("<bos>w1 w2", "w1 w2"))
    assert carried.tolist() == plain.tolist()
    asked = ModelRespondent(steered, choose_chat(steered.model, framing, "off"))
    assert asked.ids("<bos>w1 w2") == asked.ids("w1 w2") == [framing.bos_token_id, 4, 5]
    assert asked.nats("<bos>w1 w2", 9) == asked.nats("w1 w2", 9)


def test_compare_and_fit_read_chats_alike(framing: Any, tiny: Any) -> None:
    begin = framing.bos_token_id
    model = tiny(vocab=121)
    assert encode(load_prompts(["<bos>w1 w2"]), model, framing, 4) == [[begin, 4, 5]]
    assert data.encode(framing, ["<bos>w1 w2"], 9) == [[begin, 4, 5, 1]]
    carried, plain = (perplexity(model, framing, [p], [" w3"]) for p in ("<bos>w1", "w1"))
    assert carried.nll == plain.nll
