"""Cached equals uncached, whatever happens to the prefix."""

import pytest
import torch

from plugalign.auxiliary import CachedModel, positions


def uncached(model, ids, mask):
    """One row at a time, without padding and without a cache."""
    rows = []
    for row, keep in zip(ids, mask.bool(), strict=True):
        with torch.no_grad():
            rows.append(model(input_ids=row[keep][None], use_cache=False).logits[0, -1].float())
    return torch.stack(rows)


def grow(ids, mask, new):
    return torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)


def check(cached, model, ids, mask):
    torch.testing.assert_close(
        cached.logits(ids, mask), uncached(model, ids, mask), atol=2e-4, rtol=1e-4
    )


def test_append_rewind_and_permute_equal_uncached_forwards(tiny, prompts, architecture):
    model = tiny(architecture)
    batch = prompts(rows=3, width=7)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cached = CachedModel(model)
    check(cached, model, ids, mask)
    for step in range(3):
        ids, mask = grow(ids, mask, torch.tensor([[5 + step], [9 + step], [40 + step]]))
        check(cached, model, ids, mask)
    assert cached.encoded == 10, "each of the 7 + 3 columns goes through the model once"
    check(cached, model, ids[:, :8], mask[:, :8])  # rewound by two
    order = torch.tensor([0, 0, 2])
    ids, mask = grow(ids[:, :8][order], mask[:, :8][order], torch.tensor([[7], [8], [9]]))
    check(cached, model, ids, mask)
    assert cached.encoded == 10 + 1 + 1


def test_rows_may_multiply_and_vanish(tiny, prompts):
    model, batch = tiny(), prompts(rows=2)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cached = CachedModel(model)
    check(cached, model, ids, mask)
    many = torch.tensor([0, 0, 1, 1])
    ids, mask = grow(ids[many], mask[many], torch.tensor([[3], [4], [5], [6]]))
    check(cached, model, ids, mask)
    ids, mask = grow(ids[1:3], mask[1:3], torch.tensor([[8], [9]]))
    check(cached, model, ids, mask)
    assert cached.encoded == 7 + 1 + 1


def test_a_new_prompt_is_encoded_from_scratch(tiny, prompts):
    model = tiny("gpt2-tied")
    cached = CachedModel(model)
    for seed in (0, 1):
        batch = prompts(rows=3, seed=seed)
        check(cached, model, batch["input_ids"], batch["attention_mask"])
    other = prompts(rows=2, width=5, seed=2)
    check(cached, model, other["input_ids"], other["attention_mask"])


def test_padding_elsewhere_is_another_prefix(tiny):
    model, ids = tiny(), torch.tensor([[5, 6, 7, 8]])
    cached = CachedModel(model)
    check(cached, model, ids, torch.ones_like(ids))
    check(cached, model, ids, torch.tensor([[0, 1, 1, 1]]))


def test_asking_again_after_a_rewind_costs_nothing(tiny):
    model, ids = tiny(), torch.tensor([[5, 6, 7, 8, 9]])
    cached = CachedModel(model)
    answers = {n: cached.logits(ids[:, :n], torch.ones_like(ids[:, :n])) for n in (3, 4, 5)}
    for n in (3, 4, 5):
        again = cached.logits(ids[:, :n], torch.ones_like(ids[:, :n]))
        assert torch.equal(again, answers[n])
    assert cached.encoded == 5


def test_hidden_state_is_what_the_head_reads(tiny, prompts, architecture):
    model, batch = tiny(architecture), prompts()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = CachedModel(model).hidden(ids, mask)
    head = model.get_output_embeddings()
    torch.testing.assert_close(head(hidden), uncached(model, ids, mask), atol=2e-4, rtol=1e-4)


def test_a_trained_prefix_stands_in_front(tiny, prompts):
    """Keys and values of real tokens used as a prefix give what the tokens themselves give."""
    model, batch = tiny(), prompts(rows=2, width=6)
    front = torch.tensor([[11, 12, 13]])
    with torch.no_grad():
        past = model(input_ids=front, use_cache=True).past_key_values
    keys_values = torch.stack([torch.stack([la.keys[0], la.values[0]]) for la in past.layers])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cached = CachedModel(model, keys_values)
    for new in (None, torch.tensor([[5], [6]])):
        if new is not None:
            ids, mask = grow(ids, mask, new)
        whole = torch.cat([front.expand(2, -1), ids], 1)
        whole_mask = torch.cat([torch.ones(2, 3, dtype=torch.long), mask], 1)
        want = uncached(model, whole, whole_mask)
        torch.testing.assert_close(cached.logits(ids, mask), want, atol=2e-4, rtol=1e-4)


def test_positions_start_at_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("asked", [1, 3, 4])
def test_align_always_leaves_something_to_encode(tiny, asked):
    model, ids = tiny(), torch.tensor([[3, 4, 5, 6]])
    cached = CachedModel(model)
    cached.logits(ids, torch.ones_like(ids))
    cached._answers.clear()
    check(cached, model, ids[:, :asked], torch.ones_like(ids[:, :asked]))
