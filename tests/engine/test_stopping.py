"""When a loop stops: lengths, end tokens and other criteria, on the host and deferred."""

import pytest
import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

from plugalign.engine.stopping import NONE, POLL, Stopping, max_length_of

PROMPTS = torch.tensor([[3, 4], [5, 6]])
PAD = torch.tensor(0)


def criteria(*others, length=6, ends=(1,)):
    return StoppingCriteriaList(
        [MaxLengthCriteria(length), EosTokenCriteria(torch.tensor(ends)), *others]
    )


def written(stopping, columns):
    """The texts after columns of tokens, and whether they were complete after each."""
    ids, done = PROMPTS, []
    for column in columns:
        tokens = stopping.padded(torch.tensor(column), ids.shape[1])
        ids = torch.cat([ids, tokens[:, None]], 1)
        done.append(stopping(ids, tokens, None))
    return ids.tolist(), done


def test_a_row_that_has_ended_is_padded_and_the_loop_goes_on_for_the_other():
    ids, done = written(Stopping(criteria(), PROMPTS, PAD), [(1, 7), (8, 7), (8, 1)])
    assert ids == [[3, 4, 1, 0, 0], [5, 6, 7, 7, 1]]
    assert done == [False, False, True]


def test_the_length_ends_all():
    stopping = Stopping(criteria(length=4), PROMPTS, PAD)
    assert [stopping.remaining(PROMPTS), stopping.max_length] == [2, 4]
    assert written(stopping, [(7, 7), (7, 7)])[1] == [False, True]


def test_without_a_limit_nothing_ends_by_itself():
    stopping = Stopping(StoppingCriteriaList(), PROMPTS, None)
    assert stopping.remaining(PROMPTS) == NONE
    assert written(stopping, [(7, 7)] * 3)[1] == [False] * 3


@pytest.mark.parametrize(("columns", "want"), [(None, 6), (5, 5), (9, 6)])
def test_a_static_cache_may_be_shorter_than_the_limit(columns, want):
    assert max_length_of(criteria(), columns) == want


class Third(StoppingCriteria):
    """Ends the second row at its fifth column, with numbers as some criteria give."""

    def __call__(self, input_ids, scores, **_):
        return torch.tensor([0, int(input_ids.shape[1] == 5)])


def test_criteria_of_the_caller_are_called_at_every_step():
    stopping = Stopping(criteria(Third()), PROMPTS, PAD)
    assert not stopping.deferred
    ids, done = written(stopping, [(7, 7), (7, 7), (1, 7)])
    assert done == [False, False, True]
    assert ids == [[3, 4, 7, 7, 1], [5, 6, 7, 7, 7]]


def test_deferred_it_looks_at_some_columns_and_counts_what_was_written_too_much():
    stopping = Stopping(criteria(length=40), PROMPTS, PAD, captured=True)
    columns = [(1, 7), (8, 1), *[(8, 8)] * 10]
    ids, done = written(stopping, columns)
    assert done.index(True) + 3 == POLL  # both have ended at column 4, and it looks at column 8
    assert ids[0][3:] == [0] * 11
    assert stopping.surplus(torch.zeros(2, POLL)) == POLL - 4


def test_deferred_a_column_without_a_possible_token_is_reported_later():
    stopping = Stopping(criteria(length=40), PROMPTS, PAD, captured=True)
    ids, _ = written(stopping, [(7, 7), (-1, 7), (7, 7)])
    assert min(map(min, ids)) >= 0
    texts = torch.zeros(2, POLL - 1)
    assert stopping.failed(texts, done=False) is None
    assert stopping.failed(torch.zeros(2, POLL), done=False) == 3
    assert stopping.failed(texts, done=True) == 3
