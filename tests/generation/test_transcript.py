"""Texts that grow keep their caches right, and the caller's settings go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    MistralConfig,
    MistralForCausalLM,
    RepetitionPenaltyLogitsProcessor,
)

from plugalign.generation.transcript import Continuation, Transcript


def start(batch: Any, model: Any = None) -> Transcript:
    """Prompts as a transcript, with all but their last column in a cache if there is a model."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache = None
    if model is not None:
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, :-1]
        with torch.no_grad():
            cache = model(
                ids[:, :-1], attention_mask=mask[:, :-1], position_ids=places, use_cache=True
            ).past_key_values
    return Transcript(ids, mask, torch.arange(len(ids)), 0, cache)


def pieces(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens to append, with holes in their mask as finished answers have them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 120, (rows, width), generator=generator)
    mask = (torch.rand(rows, width, generator=generator) < 0.6).long()
    mask[:, -1] = 1
    return ids, mask


def texts(transcript: Transcript) -> list[list[int]]:
    rows = zip(transcript.ids, transcript.mask, strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


@torch.no_grad()
def alone(model: Any, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


GREEDY = {"do_sample": False}


def test_moved_caches_give_the_logits_of_a_fresh_forward(architecture, tiny, prompts):
    model = tiny(architecture, seed=1)
    text = start(prompts(rows=5, width=11), model)
    for turn, keep in enumerate(([4, 0, 2, 3], [3, 1], [0, 1])):
        keep = torch.tensor(keep)
        before = [texts(text)[i] for i in keep]
        ids, mask = pieces(len(keep), 5, turn)
        text = text.extended(keep, ids, mask)
        added = [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)]
        assert texts(text) == [a + b for a, b in zip(before, added, strict=True)]
        assert (text.mask.diff(dim=1) >= 0).all() and text.mask[:, 0].any()
        assert (text.ids[text.mask == 0] == 0).all() and text.cached > 0
        new, output = Continuation(model, GREEDY).generate(text, 3, output_logits=True)
        expected = torch.stack([alone(model, row) for row in texts(text)])
        torch.testing.assert_close(output.logits[0], expected, atol=1e-5, rtol=1e-5)
        text = text.with_generated(new, torch.ones_like(new), output.past_key_values)
        assert text.cached == text.ids.shape[1] - 1
    assert text.rows.tolist() == [3, 0]


def test_only_unread_columns_are_fed(tiny, prompts):
    model = tiny()
    text = start(prompts(rows=3, width=9), model)
    text = text.extended(torch.arange(3), torch.full((3, 4), 9), torch.ones(3, 4, dtype=torch.long))
    assert text.cached == 8 and text.uncached_tokens == 3 * 5


def test_no_rows_left(tiny, prompts):
    text = start(prompts(rows=3), tiny())
    none = torch.arange(0)
    assert text.extended(none, text.ids[:0], text.mask[:0]).ids.shape == (0, 0)


def test_sliding_windows_are_encoded_again(prompts):
    """A window's cache forgets, so a text that moves in it must be read anew."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        pad_token_id=0,
    )
    model = MistralForCausalLM(config).eval()
    text = start(prompts(rows=3, width=9), model)
    ids, mask = torch.full((3, 4), 9), torch.ones(3, 4, dtype=torch.long)
    text = text.extended(torch.arange(3), ids, mask)
    assert text.cache is None
    _, output = Continuation(model, GREEDY).generate(text, 1, output_logits=True)
    expected = torch.stack([alone(model, row) for row in texts(text)])
    torch.testing.assert_close(output.logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "max_length": 30},
        {"generation_config": GenerationConfig(repetition_penalty=1.7)},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
        {"streamer": object(), "past_key_values": DynamicCache(), "output_scores": True},
    ],
)
def test_the_callers_settings_go_on_with_and_without_a_cache(options, architecture, tiny, prompts):
    model, batch = tiny(architecture, seed=2), prompts(rows=3, width=9)
    options = {"do_sample": False, "eos_token_id": list(range(3, 30)), **options}
    found = []
    for known in (model, None):
        text = start(batch, known)
        text = text.extended(torch.arange(3), *pieces(3, 4, 0))
        found.append(Continuation(model, options).generate(text, 5)[0])
    assert torch.equal(*found) and len(found[0]) == 3 and found[0].shape[1] <= 5


def test_what_goes_by_rows_is_that_of_the_answers(tiny, prompts):
    model, batch, keep = tiny(), prompts(rows=3, width=9), torch.tensor([2, 0])
    ids, mask = pieces(3, 4, 0)
    text = start(batch).extended(keep, ids[keep], mask[keep])
    allowed = {"prefix_allowed_tokens_fn": lambda row, _: [20 + row]}
    for options, want in (
        ({}, [22, 20]),
        ({"num_return_sequences": 2}, [22, 20]),
        ({"num_beams": 2, "num_return_sequences": 2}, [21, 20]),
    ):
        new, _ = Continuation(model, GREEDY | allowed | options).generate(text, 1)
        assert new[:, 0].tolist() == want
    negative = {"negative_prompt_ids": batch["input_ids"].flip(0), "guidance_scale": 3.0}
    guided = Continuation(model, GREEDY | negative | {"eos_token_id": None})
    whole, _ = guided.generate(start(batch).extended(torch.arange(3), ids, mask), 4)
    assert torch.equal(guided.generate(text, 4)[0], whole[keep])


def test_beams_leave_no_cache_to_go_on_from(tiny, prompts):
    text = start(prompts(rows=2)).extended(torch.arange(2), *pieces(2, 4, 0))
    for beams, left in ((1, True), (3, False)):
        _, output = Continuation(tiny(), GREEDY | {"num_beams": beams}).generate(text, 2)
        assert (output.past_key_values is not None) == left


def test_assisted_decoding_goes_on(tiny, prompts):
    model, draft = tiny(seed=2), tiny(seed=2)
    text = start(prompts(rows=1, width=9), model)
    text = text.extended(torch.arange(1), *pieces(1, 4, 0))
    plain, _ = Continuation(model, GREEDY).generate(text, 5)
    text = start(prompts(rows=1, width=9), model).extended(torch.arange(1), *pieces(1, 4, 0))
    assisted, _ = Continuation(model, GREEDY | {"assistant_model": draft}).generate(text, 5)
    assert torch.equal(plain, assisted)


def test_sampling_follows_the_callers_seed(tiny, prompts):
    model, batch = tiny(seed=2), prompts(rows=3, width=9)
    found = []
    for known in (model, None):
        text = start(batch, known).extended(torch.arange(3), *pieces(3, 4, 0))
        torch.manual_seed(5)
        found.append(Continuation(model, {"do_sample": True, "top_p": 0.9}).generate(text, 8)[0])
    assert torch.equal(*found)


class Ban(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.arange(0, 120, 2), -torch.inf)


def test_the_callers_processors_run(tiny, prompts):
    text = start(prompts(rows=2)).extended(torch.arange(2), *pieces(2, 4, 0))
    options = {"do_sample": False, "logits_processor": [Ban()]}
    options["logits_processor"].append(RepetitionPenaltyLogitsProcessor(1.5))
    new, _ = Continuation(tiny(seed=2), options).generate(text, 6)
    assert (new % 2 == 1).all()


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 20),
        ({"max_new_tokens": 7}, 7),
        ({"max_length": 30}, 21),
        ({"max_length": 5}, 0),
        ({"generation_config": GenerationConfig(max_new_tokens=8)}, 8),
        ({"generation_config": GenerationConfig(max_new_tokens=8), "max_new_tokens": 3}, 3),
    ],
)
def test_answer_length(options, length, tiny):
    assert Continuation(tiny(), options).answer_length(9) == length
