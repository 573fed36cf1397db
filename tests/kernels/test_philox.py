"""Philox against its authors' known answers and against the paper's rounds in Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.kernels.philox import philox4x32, rounds

ONES = 0xFFFFFFFF
# Random123, kat_vectors, philox4x32 10: counter, key (low word first), words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
word = st.integers(0, ONES)


def philox_by_the_paper(counter, seed):
    """Salmon et al. 2011, section 3.3, one counter at a time."""
    left, right = [counter[1], counter[3]], [counter[0], counter[2]]
    keys = [seed % 2**32, seed // 2**32]
    for _ in range(10):
        high_0, low_0 = divmod(right[0] * 0xD2511F53, 2**32)
        high_2, low_2 = divmod(right[1] * 0xCD9E8D57, 2**32)
        right = [high_2 ^ left[0] ^ keys[0], high_0 ^ left[1] ^ keys[1]]
        left = [low_2, low_0]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return [right[0], left[0], right[1], left[1]]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    c0, *rest = counter
    found = philox4x32(torch.tensor(c0), *rest, seed=key[0] + (key[1] << 32))
    assert tuple(w.item() for w in found) == words
    assert philox_by_the_paper(counter, key[0] + (key[1] << 32)) == list(words)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(word, word, word, word), min_size=1, max_size=9), st.integers(0, 2**64 - 1)
)
def test_equals_the_paper(counters, seed):
    found = torch.stack(philox4x32(*torch.tensor(counters).unbind(1), seed=seed), 1)
    assert found.tolist() == [philox_by_the_paper(c, seed) for c in counters]


def test_words_depend_on_their_counter_alone():
    tokens, rows = torch.arange(1000), torch.tensor([[3], [2**31], [7]])
    whole = torch.stack(philox4x32(tokens, 5, rows, rows + 1, 99))
    assert whole.shape == (4, 3, 1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    some = torch.stack(philox4x32(tokens[order][::3], 5, rows[1], rows[1] + 1, 99))
    assert torch.equal(some, whole[:, 1, order][:, ::3])
    assert torch.equal(philox4x32(tokens[4], 5, 7, 8, 99)[2], whole[2, 2, 4])


def test_counters_are_taken_modulo_2_to_32():
    big = philox4x32(torch.tensor([2**32 + 6, -1]), -2, 0, 2**40 + 1, 1)
    small = philox4x32(torch.tensor([6, ONES]), ONES - 1, 0, 1, 1)
    assert all(torch.equal(a, b) for a, b in zip(big, small, strict=True))


def test_rounds_of_torch_and_numpy_agree():
    counter = list(torch.randint(0, 2**32, (4, 64), generator=torch.Generator().manual_seed(1)))
    by_torch = rounds(counter, 2**63 + 11)
    by_numpy = rounds([c.numpy() for c in counter], 2**63 + 11)
    assert all((a.numpy() == b).all() for a, b in zip(by_torch, by_numpy, strict=True))


def test_other_integer_types():
    tokens = torch.arange(5)
    expected = philox4x32(tokens, 1, 2, 3, 4)
    found = philox4x32(tokens.int(), torch.tensor(1, dtype=torch.uint8), 2, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, torch.tensor(3)])
def test_seeds_that_do_not_fit(seed):
    with pytest.raises(ValueError, match=r"seed must be an int in \[0, 2\*\*64\)"):
        philox4x32(torch.zeros(1, dtype=torch.int64), 0, 0, 0, seed)


def test_a_counter_of_ints_has_no_device():
    with pytest.raises(ValueError, match="make one counter word a tensor"):
        philox4x32(0, 0, 0, 0, 1)
