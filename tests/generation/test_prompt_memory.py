"""A memory of prompts changes no number, and what prompts begin with is read once."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.generation.prompt_memory import PromptMemory

SHARED = "w1 w2 w3 w4 w5 w6 w7 w8"
QUESTIONS = [f"{SHARED} w20 w21", f"{SHARED} w30 w31 w32 w33", f"{SHARED} w20 w40"]
OPTIONS = ["w9 w40 w7 Yes", "w5", "w8 w60"]


@pytest.mark.parametrize(
    "which",
    ["nothing", "dexperts", "self-debias", "low-rank", "fudge", "prefix", "prefix-contrast"],
)
def test_with_a_memory_it_is_the_same(which, tiny, tokenizer, make):
    model = tiny("gpt2-tied")
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "gpt2-tied"))
    memory = PromptMemory()
    for question in QUESTIONS:
        prompts = [question] * len(OPTIONS)
        found = steered.log_probs(OPTIONS, prompts, supports=False, memory=memory)
        wanted = steered.log_probs(OPTIONS, prompts, supports=False)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_what_prompts_begin_with_is_read_once(tiny, tokenizer, monkeypatch):
    model, memory, tokens = tiny("llama-gqa"), PromptMemory(), []
    steered = pa.wrap(model, tokenizer, Controller())
    steered.log_probs(OPTIONS, [SHARED] * 3)  # the model is found to be plain
    forward = type(model.base_model).forward

    def counted(self, *args, **kwargs):
        tokens.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", counted)
    for question in QUESTIONS:
        steered.log_probs(OPTIONS, [question] * 3, memory=memory)
    # The last token of a prompt is read with each option, and so are all tokens but its last.
    front = [8 + 1, 3, 1]  # the third question goes on behind the column that it shares
    assert tokens == [front[0], 3 * 4, front[1], 3 * 4, front[2], 3 * 4]
    assert memory.columns == sum(front)


def test_an_attachment_reads_all_itself(tiny, tokenizer, make):
    model, memory = tiny("llama-gqa"), PromptMemory()
    steered = pa.wrap(model, tokenizer, make("prefix", model, tiny, "llama-gqa"))
    steered.log_probs(OPTIONS, [SHARED] * 3, memory=memory)
    assert memory.columns == 0


def test_prompts_that_differ_are_refused(tiny, tokenizer):
    steered = pa.wrap(tiny("llama-gqa"), tokenizer, Controller())
    with pytest.raises(ValueError, match="make a call for each"):
        steered.log_probs(["w1", "w2"], ["w3", "w4"], memory=PromptMemory())
