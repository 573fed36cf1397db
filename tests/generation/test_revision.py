"""What a reviser is given: which tokens are text, what a template becomes, what fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plugalign.algebra.revisions import Report, Revision, replaced
from plugalign.generation.revision import Answers
from plugalign.generation.transcript import Continuation

PROMPTS = torch.tensor([[0, 1, 5, 6], [1, 7, 8, 9]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
IDS = torch.tensor([[11, 12, 2, 0, 0], [13, 0, 14, 0, 0]])


def make(tokenizer: Any, **more: Any) -> Answers:
    fields = {"prompt_ids": PROMPTS, "prompt_mask": MASK, "ids": IDS, "cache": None}
    fields |= {"pad_token_id": 0, "end_token_ids": (2, 3), "continuation": Continuation(None)}
    return Answers(tokenizer=tokenizer, **fields | more)


def test_an_answer_ends_before_its_end_token_and_its_padding(tokenizer):
    """A pad token between words was generated, so it is text."""
    answers = make(tokenizer)
    assert answers.answer_mask(IDS).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    without_ends = make(tokenizer, end_token_ids=())
    assert without_ends.answer_mask(IDS).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    padded_with_ends = make(tokenizer, pad_token_id=2)
    assert padded_with_ends.answer_mask(IDS[:1]).tolist() == [[1, 1, 0, 0, 0]]


def test_the_transcript_is_prompt_and_answer(tokenizer):
    text = make(tokenizer).transcript()
    assert text.lengths.tolist() == [5, 7] and text.rows.tolist() == [0, 1]
    assert text.uncached_tokens == 12 and text.cached == 0


def test_templates_are_filled_with_the_prompt(tokenizer):
    tokenizer.bos_token = "<eos>"  # id 1, which a prompt in the middle of a text must not repeat
    ids, mask = make(tokenizer).fill("w10 {prompt} w11", torch.tensor([1, 0]))
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert rows == [[13, 7, 8, 9, 14], [13, 5, 6, 14]]


def test_of_a_prompt_in_a_template_only_the_first_start_token_goes(tokenizer):
    """Where turns are opened by the token that also starts texts, they stay open."""
    tokenizer.bos_token = "<eos>"
    prompts = torch.tensor([[0, 0, 1, 7, 1, 8], [1, 5, 1, 6, 1, 9]])
    mask = (prompts != 0).long()
    answers = make(tokenizer, prompt_ids=prompts, prompt_mask=mask)
    ids, mask = answers.fill("w10 {prompt}", torch.tensor([0, 1]))
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert rows == [[13, 7, 1, 8], [13, 5, 1, 6, 1, 9]]


def test_generated_tokens_are_counted_with_the_one_that_ends_them(tokenizer):
    assert make(tokenizer).lengths(IDS).tolist() == [3, 3]
    padded_with_ends = make(tokenizer, pad_token_id=2)
    ids = torch.tensor([[11, 2, 2, 2], [11, 12, 13, 14], [2, 2, 2, 2]])
    assert padded_with_ends.lengths(ids).tolist() == [2, 4, 1]
    assert padded_with_ends.lengths(ids[:, :0]).tolist() == [0, 0, 0]


def test_answers_are_texts_up_to_their_end(tokenizer):
    assert [make(tokenizer).text(row) for row in IDS] == ["w8 w9", "w10 w11"]


def test_texts_go_on_in_the_place_of_answers(tokenizer):
    text = make(tokenizer).transcript(answered=False)
    assert text.lengths.tolist() == [3, 4]
    ids = torch.tensor([[20], [21]])
    text = text.extended(torch.tensor([1, 0]), ids, torch.ones_like(ids))
    assert text.ids.tolist() == [[1, 7, 8, 9, 20], [0, 1, 5, 6, 21]]


def test_what_fits_the_context(tokenizer):
    lengths = torch.tensor([7, 8, 9])
    assert make(tokenizer).fits(lengths).all()
    assert make(tokenizer, context=8).fits(lengths).tolist() == [True, True, False]
    assert make(tokenizer, context=8, prefix=1).fits(lengths).tolist() == [True, False, False]


@pytest.mark.parametrize("width", [3, 5, 7])
def test_replaced_answers_are_padded(width):
    found = replaced(IDS, torch.tensor([1]), torch.full((1, width), 9), 0)
    assert found.shape == (2, max(width, 5))
    assert found[0, :5].tolist() == IDS[0].tolist() and (found[0, 5:] == 0).all()
    assert found[1].tolist() == [9] * width + [0] * (5 - width)


def test_reports_add_up():
    total = Report(critiqued=3, faulted=1, encoded_tokens=20) + Report(critiqued=1, refined=1)
    assert total == Report(critiqued=4, faulted=1, refined=1, encoded_tokens=20)
    assert Revision(IDS).report == Report()


def test_every_answer_needs_its_prompt(tokenizer):
    with pytest.raises(ValueError, match="2 answers need as many prompts and masks, got 1 and 2"):
        make(tokenizer, prompt_ids=PROMPTS[:1])
