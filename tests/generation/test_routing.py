"""Which calls the loop takes, and what is said of those that it does not."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from plugalign.generation.request import make_request
from plugalign.generation.routing import obstacle

IDS = torch.tensor([[5, 6, 7]])


def why(model, tokenizer, **options):
    return obstacle(model, IDS, make_request(model, tokenizer, options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_return_sequences": 2, "do_sample": True},
        {"cache_implementation": "static"},
    ],
)
def test_greedy_decoding_and_sampling_run_in_the_loop(options, tiny, tokenizer):
    assert why(tiny(), tokenizer, **options) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "beam search moves rows or columns about"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation moves rows or columns about"),
        ({"custom_generate": lambda *_, **__: None}, "custom_generate is a loop of its own"),
        ({"stop_strings": ["w5"]}, "stop_strings need the tokenizer"),
        ({"use_cache": False}, "use_cache=False reads the whole text at every step"),
        ({"cache_implementation": "quantized"}, "the cache is quantized"),
        ({"prefill_chunk_size": 4}, "the prompt is read in a way of its own"),
        ({"synced_gpus": True}, "several processes generate in step"),
        ({"position_ids": IDS}, "position_ids is an argument of the model's forward"),
    ],
)
def test_what_the_loop_does_not_do_is_said(options, said, tiny, tokenizer):
    assert why(tiny(), tokenizer, **options) == said


def test_a_setting_of_the_model_counts_like_a_keyword(tiny, tokenizer):
    model = tiny()
    model.generation_config.num_beams = 2
    assert why(model, tokenizer) == "beam search moves rows or columns about"
    assert why(model, tokenizer, num_beams=1) is None


def test_a_model_with_a_way_of_its_own_is_named(tokenizer):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=120, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert "MambaForCausalLM" in why(MambaForCausalLM(config), tokenizer)
