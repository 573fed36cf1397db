"""What a call is refused for, before any model runs."""

from __future__ import annotations

import pytest
import torch
from transformers import BatchEncoding, GenerationConfig

import plugalign as pa

IDS = torch.full((2, 3), 5)
ONES = torch.ones(2, 3, dtype=torch.long)
NAN = float("nan")


@pytest.fixture
def steered(tiny, tokenizer):
    """A model that must not run."""
    model = tiny()

    def runs(*_):
        pytest.fail("the model ran")

    model.register_forward_pre_hook(runs)
    return pa.wrap(model, tokenizer, pa.SelfDebias(["w5"]))


MASKS = {
    "too narrow": (ONES[:, 1:], ValueError, r"\(2, 2\) and the prompts have \(2, 3\)"),
    "too wide": (torch.ones(2, 4), ValueError, r"\(2, 4\)"),
    "too few rows": (ONES[:1], ValueError, r"\(1, 3\)"),
    "four dimensions": (torch.ones(2, 1, 3, 3), ValueError, r"\(2, 1, 3, 3\)"),
    "fractional": (ONES * 0.5, ValueError, "0 and 1 only, got 0.5"),
    "negative": (-ONES, ValueError, "0 and 1 only, got -1"),
    "NaN": (ONES * NAN, ValueError, "0 and 1 only, got nan"),
    "an empty row": (torch.tensor([[1, 1, 1], [0, 0, 0]]), ValueError, "row 1 has no tokens"),
    "a list": ([[1, 1, 1], [1, 1, 1]], TypeError, "attention_mask must be a tensor, got a list"),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("method", ["generate", "explain"])
def test_a_mask_says_of_each_token_whether_it_is_one(method, case, steered):
    mask, error, message = MASKS[case]
    with pytest.raises(error, match=message):
        getattr(steered, method)(IDS, attention_mask=mask, max_new_tokens=2)


def test_a_row_of_padding_alone_is_no_prompt(steered):
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        steered.generate(torch.tensor([[5, 6], [0, 0]]), max_new_tokens=2)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
def test_a_mask_may_have_any_type(kind, tiny, tokenizer, prompts):
    steered, batch = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"])), prompts()
    want = steered.generate(**batch, max_new_tokens=3)
    batch["attention_mask"] = batch["attention_mask"].to(kind)
    assert steered.generate(**batch, max_new_tokens=3).tolist() == want.tolist()


PROMPTS = {
    "nothing": ({}, ValueError, "got None"),
    "twice": ({"inputs": IDS, "input_ids": IDS}, ValueError, "give one"),
    "embeddings alone": ({"inputs_embeds": torch.ones(1, 3, 32)}, ValueError, "read token ids"),
    "packed": ({"inputs": BatchEncoding({"input_ids": IDS})}, TypeError, r"generate\(\*\*inputs\)"),
    "a list": ({"inputs": IDS.tolist()}, TypeError, "got a list; make it a tensor"),
    "floats": ({"inputs": IDS.float()}, TypeError, "got a tensor of torch.float32"),
    "one dimension": ({"inputs": IDS[0]}, ValueError, r"got \(3,\)"),
    "no columns": ({"inputs": IDS[:, :0]}, ValueError, r"got \(2, 0\)"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_are_token_ids(case, steered):
    arguments, error, message = PROMPTS[case]
    with pytest.raises(error, match=message):
        steered.generate(**arguments, max_new_tokens=2)


OTHERS = {
    "trace": ({"trace": []}, TypeError, r"trace must be a Trace or None, got \[\] \(list\)"),
    "speculation": ({"speculation": "base"}, TypeError, r"a Speculation or None, got 'base' \(str"),
    "settings": ({"generation_config": {"max_length": 9}}, TypeError, "must be a GenerationConfig"),
    "streamer": ({"streamer": print}, TypeError, "needs put"),
    "minus one answer": ({"num_return_sequences": -1}, ValueError, "at least 1, got -1"),
    "no answer": ({"num_return_sequences": 0}, ValueError, "at least 1, got 0"),
    "half a beam": ({"num_beams": 1.5}, ValueError, "at least 1, got 1.5"),
    "no beam": ({"num_beams": 0}, ValueError, "num_beams must be an integer of at least 1, got 0"),
    "no token": ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("method", ["generate", "explain"])
def test_other_arguments(method, case, steered):
    arguments, error, message = OTHERS[case]
    with pytest.raises(error, match=message):
        getattr(steered, method)(IDS, **arguments)


@pytest.mark.parametrize("where", ["keyword", "config", "model"])
def test_a_trace_of_beams_is_refused_wherever_they_are_set(where, steered):
    options, beams = {}, {"num_beams": 2, "max_new_tokens": 2}
    if where == "model":
        steered.model.generation_config.update(**beams)
    else:
        options = beams if where == "keyword" else {"generation_config": GenerationConfig(**beams)}
    with pytest.raises(ValueError, match="beams and drafts move rows"):
        steered.generate(IDS, trace=pa.Trace(), **options)
