"""Texts to learn from and such as are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plugalign.fitting.fudge import broken_off
from plugalign.fitting.held_out import set_apart
from plugalign.fitting.labelled import Batch, encoded


def texts(start: int, count: int) -> list[str]:
    """Texts of two words, all different."""
    return [f"w{10 + (start + i) % 80} w{10 + (start + i) // 80}" for i in range(count)]


def rows_of(tokenizer: Any, some: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(some)["input_ids"]
    return found


def test_no_text_is_both_learnt_from_and_held_out(tokenizer: Any) -> None:
    shared = texts(0, 20)  # of both classes
    good, bad = texts(100, 100) * 4 + shared, texts(300, 60) * 3 + shared * 2
    order = np.random.default_rng(0).permutation(len(good))
    sides = ([good[i] for i in order], bad)
    learnt, held = encoded(tokenizer, sides, 16, 0, end=False)
    seen, apart = {*map(tuple, learnt.rows)}, {*map(tuple, held.rows)}
    assert apart and not seen & apart
    assert seen | apart == {*map(tuple, rows_of(tokenizer, good + bad))}
    for row in seen - {*map(tuple, rows_of(tokenizer, shared))}:  # as often as it was given
        given = rows_of(tokenizer, good + bad).count(list(row))
        assert [tuple(x) for x in learnt.rows].count(row) == given


def test_where_all_texts_differ_a_tenth_of_each_class_is_held_out(tokenizer: Any) -> None:
    sides = texts(0, 90), texts(200, 50)
    learnt, held = encoded(tokenizer, sides, 16, 3, end=False)
    (good, bad), (good_held, bad_held) = set_apart([rows_of(tokenizer, side) for side in sides], 3)
    assert (learnt.rows, held.rows) == (good + bad, good_held + bad_held)


def test_where_all_texts_are_in_both_classes_none_is_held_out(tokenizer: Any) -> None:
    learnt, held = encoded(tokenizer, (["w11 w12"] * 30, ["w11 w12"] * 30), 16, 0, end=False)
    assert len(learnt) == 60 and len(held) == 0


def test_texts_of_one_token_are_broken_off_behind_it() -> None:
    ids, mask = torch.full((8, 1), 5), torch.ones(8, 1, dtype=torch.long)
    label, weight = torch.ones(8), torch.ones(8)
    torch.manual_seed(0)
    found = broken_off(Batch(ids, mask, mask, label, weight), [1], hazard=1.0)
    ended = found.mask[:, 1].bool()
    assert 0 < int(ended.sum()) < 8 and (found.ids[ended, 1] == 1).all()
