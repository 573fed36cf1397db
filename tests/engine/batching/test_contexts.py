"""Texts in several contexts of one batch: where prompts, prefixes and padding stand."""

import torch

from plugalign.algebra.sources import Context
from plugalign.engine.batching.contexts import (
    context_layout,
    insertion,
    occurrences,
    without_start,
)

IDS = torch.tensor([[0, 1, 5], [1, 6, 7]])  # the first row is padded
MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


def test_shorter_prompts_are_padded_and_positions_have_no_gap():
    layout = context_layout([Context(ids=(8, 9)), Context(ids=(4,))], pad=0)
    assert (layout.depth, layout.width) == (0, 2)
    ids, mask = layout.rows(Context(ids=(4,)), IDS, MASK)
    assert ids.tolist() == [[0, 0, 4, 1, 5], [0, 4, 1, 6, 7]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_what_stands_behind_a_text_follows_it():
    ids, mask = context_layout([], pad=0).rows(Context(after=(3, 2)), IDS, MASK)
    assert ids.tolist() == [[0, 1, 5, 3, 2], [1, 6, 7, 3, 2]]
    assert mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_trained_prefixes_are_columns_of_the_mask_alone():
    short, long = (torch.randn(2, 2, 1, n, 4) for n in (1, 3))
    contexts = [Context(keys_values=short), Context(), Context(keys_values=long)]
    layout = context_layout(contexts, pad=0)
    assert (layout.depth, layout.width) == (3, 0)
    for context, front in zip(contexts, ([0, 0, 1], [0, 0, 0], [1, 1, 1]), strict=True):
        ids, mask = layout.rows(context, IDS, MASK)
        assert torch.equal(ids, IDS)
        assert mask.tolist() == [front + row for row in MASK.tolist()]
    filled = layout.keys_values(contexts, torch.float32)
    assert filled.shape == (2, 2, 3, 1, 3, 4)
    assert torch.equal(filled[:, :, 0, :, 2:], short) and not filled[:, :, 0, :, :2].any()
    assert not filled[:, :, 1].any() and torch.equal(filled[:, :, 2], long)


def test_a_text_has_one_start_token():
    context = Context(ids=(1, 4), start_token=1)
    assert without_start(context, IDS, MASK).tolist() == [[0, 0, 1], [0, 1, 1]]
    assert torch.equal(without_start(Context(ids=(4,)), IDS, MASK), MASK)
    later = torch.tensor([[6, 1, 7]])  # a start token inside a text stays
    assert without_start(context, later, torch.ones_like(later)).tolist() == [[1, 1, 1]]


def test_where_a_piece_ends():
    ids = torch.tensor([[5, 6, 5, 6, 6], [6, 5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])  # a masked token is no part of it
    assert occurrences((5, 6), ids, mask).tolist() == [
        [False, True, False, True, False],
        [False] * 5,
    ]
    assert not occurrences((1,) * 9, ids, mask).any()


def test_a_prompt_stands_inside_the_first_turn_of_a_chat():
    chat = torch.tensor([[1, 5, 6, 7, 5, 6, 8], [0, 0, 1, 9, 9, 9, 9]])  # the second is none
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    context = Context(ids=(1, 3), start_token=1, turn=(5, 6))
    assert insertion(context, chat, mask).tolist() == [3, 0]
    ids, shown = context_layout([context], pad=0).rows(context, chat, mask)
    texts = [
        [t for t, m in zip(*row, strict=True) if m]
        for row in zip(ids.tolist(), shown.tolist(), strict=True)
    ]
    assert texts == [[1, 5, 6, 3, 7, 5, 6, 8], [1, 3, 9, 9, 9, 9]]
