"""Prompts that controllers reword."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa


class Reworded(pa.Controller):
    """Puts a word in front of a prompt, and leaves nothing of one that begins with ``without``."""

    def __init__(self, without=None):
        self.without = without

    def prompt(self, text):
        return "" if self.without and text.startswith(self.without) else f"w90 {text}"


def test_a_tokenizer_without_a_pad_token_will_do(tiny, tokenizer):
    """As GPT-2's; the call's own pad token fills the rows."""
    model, batch = tiny(), tokenizer(["w5", "w6 w7 w8"], padding=True, return_tensors="pt")
    options = {"max_new_tokens": 3, "pad_token_id": 1}
    want = pa.wrap(model, tokenizer, Reworded()).generate(**batch, **options)
    tokenizer.pad_token = None
    assert torch.equal(pa.wrap(model, tokenizer, Reworded()).generate(**batch, **options), want)


@pytest.mark.parametrize("rows", [["w5", "w6"], ["w5", "w6 w7 w8"]])
def test_a_prompt_that_is_reworded_to_nothing_is_refused(rows, tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, Reworded(without="w5"))
    batch = tokenizer(rows, padding=True, return_tensors="pt")
    with pytest.raises(ValueError, match="left no tokens of the prompt in row 0"):
        steered.generate(**batch, max_new_tokens=3)
