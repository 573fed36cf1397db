"""Cached equals uncached, whatever happens to the prefix."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXModel, LlamaConfig, LlamaModel

from plugalign.controllers.fudge import Predictor
from plugalign.engine.readers.prefix_cache import CachedModel, CachedScorer, position_ids
from plugalign.engine.readers.tree_attention import (
    LlamaTreeAttention,
    MaskedTreeAttention,
    tree_attention_for,
)


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
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("asked", [1, 3, 4])
def test_align_always_leaves_something_to_encode(tiny, asked):
    model, ids = tiny(), torch.tensor([[3, 4, 5, 6]])
    cached = CachedModel(model)
    cached.logits(ids, torch.ones_like(ids))
    cached._answers.clear()
    check(cached, model, ids[:, :asked], torch.ones_like(ids[:, :asked]))


# ------------------------------------------------------------------ candidates


def predictor_of(kind):
    torch.manual_seed(4)
    predictor = Predictor(120, width=16, layers=2, heads=2).eval()
    if kind == "another backbone":
        config = GPTNeoXConfig(
            vocab_size=120,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        )
        predictor.backbone = GPTNeoXModel(config).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return predictor


def uncached_scores(predictor, ids, mask, candidates):
    """One candidate of one row at a time, without padding and without a cache."""
    scores = torch.empty(candidates.shape)
    for row, keep in enumerate(mask.bool()):
        for k, candidate in enumerate(candidates[row]):
            text = torch.cat([ids[row, keep], candidate[None]])[None]
            with torch.no_grad():
                states = predictor.backbone(input_ids=text, use_cache=False).last_hidden_state
                scores[row, k] = predictor.head(states[0, -1])
    return scores


@pytest.fixture(params=["a plain Llama", "another backbone"])
def predictor(request):
    return predictor_of(request.param)


def check_scores(scorer, ids, mask, candidates):
    want = uncached_scores(scorer.predictor, ids, mask, candidates)
    torch.testing.assert_close(scorer.scores(ids, mask, candidates), want, atol=1e-5, rtol=1e-5)


def some(rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(120, generator=generator)[:count] for _ in range(rows)])


def test_each_backbone_is_read_the_way_it_can_be():
    kinds = ("a plain Llama", "another backbone")
    found = [type(tree_attention_for(predictor_of(kind).backbone)) for kind in kinds]
    assert found == [LlamaTreeAttention, MaskedTreeAttention]
    grouped = LlamaConfig(
        vocab_size=9,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    hooked = predictor_of("a plain Llama").backbone
    hooked.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert (
        type(tree_attention_for(LlamaModel(grouped)))
        is type(tree_attention_for(hooked))
        is MaskedTreeAttention
    )


def test_chosen_candidates_are_not_read_again(predictor, prompts):
    batch, scorer = prompts(rows=3, width=7), CachedScorer(predictor)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for step in range(4):
        candidates = some(3, 300 // 3 + step, step)
        check_scores(scorer, ids, mask, candidates)
        ids, mask = grow(ids, mask, candidates[torch.arange(3), [5, 0, step]][:, None])
    assert scorer.encoded == 7


def test_any_other_prefix_is_scored_as_if_it_were_the_first(predictor, prompts):
    batch, scorer = prompts(rows=3, width=7), CachedScorer(predictor)
    ids, mask, candidates = batch["input_ids"], batch["attention_mask"], some(3, 6, 1)
    check_scores(scorer, ids, mask, candidates)
    check_scores(scorer, ids, mask, some(3, 4, 2))  # the same prefixes once more
    longer = grow(ids, mask, candidates[:, :1])  # not candidates of the last call
    check_scores(scorer, *longer, candidates)
    much_longer = grow(*longer, candidates[:, :3])  # three at once
    check_scores(scorer, *much_longer, candidates)
    check_scores(scorer, *longer, candidates)  # rewound
    assert scorer.encoded == 7 + 1 + 3
    order = torch.tensor([2, 2, 0])  # permuted, as by beams
    ids, mask = grow(longer[0][order], longer[1][order], candidates[order, 1:2])
    check_scores(scorer, ids, mask, candidates)
    holed = grow(ids, mask, candidates[:, 3:4])
    holed[1][0, -1] = 0  # a candidate that is hidden after all
    check_scores(scorer, *holed, candidates)
    check_scores(scorer, *grow(*holed, candidates[:, :1]), candidates)
    check_scores(scorer, ids[:2], mask[:2], candidates[:2])
    scorer.forget()
    check_scores(scorer, ids, mask, candidates)


def test_a_forward_that_fails_leaves_no_candidates_behind(predictor, prompts, monkeypatch):
    batch, scorer = prompts(rows=2, width=5), CachedScorer(predictor)
    ids, mask, candidates = batch["input_ids"], batch["attention_mask"], some(2, 6, 1)
    check_scores(scorer, ids, mask, candidates)
    ids, mask = grow(ids, mask, candidates[:, 2:3])
    with monkeypatch.context() as patch:
        embedding = predictor.backbone.get_input_embeddings()
        patch.setattr(embedding, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scorer.scores(ids, mask, candidates)
    check_scores(scorer, *grow(ids, mask, candidates[:, 4:5]), candidates)


def test_a_row_whose_first_token_was_a_candidate(predictor, prompts):
    """Texts of different lengths that are scored from their first tokens on."""
    batch, scorer, candidates = prompts(rows=3, width=7), CachedScorer(predictor), some(3, 6, 1)
    ids, mask = batch["input_ids"][:, :1], batch["attention_mask"][:, :1]  # two rows are empty yet
    for step in range(4):
        scores = scorer.scores(ids, mask, candidates)
        begun = mask.bool().any(1)
        want = uncached_scores(predictor, ids[begun], mask[begun], candidates[begun])
        torch.testing.assert_close(scores[begun], want, atol=1e-4, rtol=1e-4)
        shown = (step >= torch.tensor([0, 1, 2])).long()[:, None]
        ids = torch.cat([ids, candidates[:, step : step + 1]], 1)
        mask = torch.cat([mask, shown], 1)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_forward_that_fails_half_way_leaves_no_columns_behind(
    failing, tiny, prompts, monkeypatch
):
    """The first layer has kept the new columns then, and the second has not."""
    model, batch = tiny(), prompts(rows=2, width=5)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cached = CachedModel(model)
    check(cached, model, ids, mask)
    ids, mask = grow(ids, mask, torch.tensor([[5], [9]]))
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[failing].mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cached.logits(ids, mask)
    check(cached, model, ids, mask)
    check(cached, model, *grow(ids, mask, torch.tensor([[7], [8]])))
