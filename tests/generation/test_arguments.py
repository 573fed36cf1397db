"""``generate`` takes what transformers takes, goes by one configuration, and refuses the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import BatchEncoding, DynamicCache, GenerationConfig

import plugalign as pa
from plugalign.generation.arguments import CONTINUOUS_BATCHING

SUPPRESSED = 7


@pytest.fixture
def idle(tiny, tokenizer):
    """``idle(model)`` steers by nothing."""
    return lambda model: pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))


@pytest.fixture
def steered(tiny, tokenizer):
    """A small Llama under an expert."""
    return pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))


# ------------------------------------------------------------------ one configuration


@pytest.mark.parametrize("bare", [{}, {"pad_token_id": None, "eos_token_id": None}])
def test_what_a_configuration_leaves_open_is_the_models(bare, tiny, tokenizer, idle):
    """pad = eos = bos, and a prompt that begins with it: it is text."""
    model = tiny()
    own = model.generation_config
    own.pad_token_id = own.eos_token_id = own.bos_token_id = 1
    ids = torch.tensor([[1, 9, 30, 41]])
    config = GenerationConfig(max_new_tokens=6, **bare)
    want = model.generate(ids, generation_config=config)
    assert idle(model).generate(ids, generation_config=config).tolist() == want.tolist()
    expert = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))
    shown = expert.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)
    assert expert.generate(ids, generation_config=config).tolist() == shown.tolist()


def test_arguments_by_position(steered, prompts):
    ids = prompts()["input_ids"]
    config = GenerationConfig(max_new_tokens=4)
    want = steered.generate(ids, generation_config=config)
    assert steered.generate(ids, config).tolist() == want.tolist()

    def never(_, scores):
        return scores.index_fill(-1, torch.tensor([SUPPRESSED]), -torch.inf)

    by_name = steered.generate(ids, generation_config=config, logits_processor=[never])
    assert steered.generate(ids, config, [never]).tolist() == by_name.tolist()
    with pytest.raises(TypeError, match="multiple values for argument 'generation_config'"):
        steered.generate(ids, config, generation_config=config)
    with pytest.raises(TypeError, match="at most 11 arguments by position, got 13"):
        steered.generate(ids, config, *[None] * 11)


@pytest.mark.parametrize("make", [list, torch.tensor])
def test_end_tokens_as_a_list_or_a_tensor(make, tiny, idle, prompts):
    model, ids = tiny(), prompts()["input_ids"].clamp_min(5)
    second = int(model.generate(ids, max_new_tokens=2)[0, -1])
    ends = make([1, second])
    want = model.generate(ids, eos_token_id=ends, max_new_tokens=6)
    got = idle(model).generate(ids, eos_token_id=ends, max_new_tokens=6)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("ends", [-1, [1, -1], [1, 500]])
def test_end_tokens_that_no_model_gives(ends, tiny, idle, prompts):
    """-1 for no end, and a token that the tokenizer alone knows."""
    model = tiny()
    best = [[[119], 60.0]]  # the last of the vocabulary
    options = {**prompts(), "eos_token_id": ends, "min_new_tokens": 3, "max_new_tokens": 4}
    want = model.generate(**options, sequence_bias=best)
    assert (want[:, -4:] == 119).all()
    assert idle(model).generate(**options, sequence_bias=best).tolist() == want.tolist()


@pytest.mark.parametrize("option", [{"eos_token_id": -1}, {"pad_token_id": -1}])
def test_a_negative_pad_token_pads_nothing(option, tiny, tokenizer, prompts):
    model, text = tiny(), ["w9 w30", "w41"]
    model.generation_config.pad_token_id = None
    debiased = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6 w7", "w8"]))
    one = {name: x[:1] for name, x in prompts().items()}
    want = debiased.generate(**one, max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    assert debiased.generate(**one, max_new_tokens=4, **option).tolist() == want.tolist()
    found = debiased.log_probs(text, text)
    vars(model.generation_config).update(option)
    for mine, other in zip(debiased.log_probs(text, text), found, strict=True):
        torch.testing.assert_close(mine, other)


def test_prompts_by_both_names(steered):
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="as inputs or as input_ids=, not as both"):
        steered.generate(ids, input_ids=ids)


def test_no_prompt_begins_with_the_first_token_of_texts(tiny, tokenizer):
    model, expert = tiny(), tiny(seed=1)
    model.generation_config.bos_token_id = 4
    controller = pa.DExperts(expert, top_p=1.0)
    want = pa.wrap(model, tokenizer, controller).generate(torch.tensor([[4]]), max_new_tokens=4)
    got = pa.wrap(model, tokenizer, controller).generate(max_new_tokens=4)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("where", ["keyword", "configuration", "model"])
@pytest.mark.parametrize("option", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_a_trace_of_beams_or_drafts_is_refused_wherever_they_are_set(option, where, steered):
    given, ids = {}, torch.tensor([[5, 6, 7]])
    if where == "keyword":
        given = option
    elif where == "configuration":
        given = {"generation_config": GenerationConfig(**option)}
    else:
        vars(steered.model.generation_config).update(option)
    with pytest.raises(ValueError, match="a trace follows rows that grow by one token"):
        steered.generate(ids, trace=pa.Trace(), **given)


@pytest.mark.parametrize("where", ["keyword", "configuration", "model"])
def test_revised_answers_go_by_the_merged_configuration(where, tiny, tokenizer, prompts):
    """Beams leave no cache to read on from, and a dictionary is returned where one is asked for."""
    options = {"num_beams": 2, "return_dict_in_generate": True, "max_new_tokens": 3}
    critic = pa.SelfCritique(critique="w5", refine="w6", threshold=0.0)
    want = pa.wrap(tiny(), tokenizer, critic).generate(**prompts(), **options)
    model = tiny()
    if where == "model":
        vars(model.generation_config).update(options)
    given = options if where == "keyword" else {}
    if where == "configuration":
        given = {"generation_config": GenerationConfig(**options)}
    got = pa.wrap(model, tokenizer, critic).generate(**prompts(), **given)
    assert got.sequences.tolist() == want.sequences.tolist()
    with pytest.raises(ValueError, match="output_scores belongs to a draft"):
        scores = GenerationConfig(output_scores=True, return_dict_in_generate=True)
        pa.wrap(model, tokenizer, critic).generate(**prompts(), generation_config=scores)


# ------------------------------------------------------------------ caches


def test_a_cache_of_before_needs_the_whole_text(steered, prompts):
    batch = {k: v[:1] for k, v in prompts().items()}
    options = {"return_dict_in_generate": True, "max_new_tokens": 4}
    first = steered.generate(**batch, **options)
    ids = torch.cat([first.sequences, torch.tensor([[30, 31]])], 1)
    want = steered.generate(ids, max_new_tokens=4)
    whole = torch.ones_like(ids)
    cache = first.past_key_values
    for new in ({"input_ids": ids[:, -3:], "attention_mask": whole}, {"input_ids": ids[:, -3:]}):
        with pytest.raises(ValueError, match="hold 10 tokens and input_ids have 3: controllers"):
            steered.generate(**new, past_key_values=cache, max_new_tokens=4)
    assert cache.get_seq_length() == 10
    got = steered.generate(ids, attention_mask=whole, past_key_values=cache, max_new_tokens=4)
    assert got.tolist() == want.tolist()


def test_what_stands_for_a_prompt_that_is_reworded(tiny, tokenizer):
    model, ids = tiny(), torch.tensor([[9, 30, 41]])
    stated = pa.wrap(model, tokenizer, pa.ValueStatement("w50 w51"))
    held, empty = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :2], past_key_values=held, use_cache=True)
        embedded = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="ValueStatement rewords prompts, and inputs_embeds are"):
        stated.generate(ids, inputs_embeds=embedded, max_new_tokens=2)
    with pytest.raises(ValueError, match="ValueStatement rewords prompts, and past_key_values"):
        stated.generate(ids, past_key_values=held, max_new_tokens=2)
    want = stated.generate(ids, max_new_tokens=4)
    assert stated.generate(ids, past_key_values=empty, max_new_tokens=4).tolist() == want.tolist()


@pytest.mark.parametrize("where", ["keyword", "configuration"])
def test_continuous_batching_is_refused(where, steered):
    option = {"cache_implementation": "paged"}
    if where == "configuration":
        option = {"generation_config": GenerationConfig(**option)}
    with pytest.raises(ValueError, match="continuous batching, which takes no logits processors"):
        steered.generate(torch.tensor([[5, 6]]), **option)


def test_what_batches_continuously_is_not_the_models_own(steered):
    """It would answer without controllers."""
    for name in CONTINUOUS_BATCHING:
        assert hasattr(steered.model, name)
        with pytest.raises(AttributeError, match=f"{name} is .*controllers would be left out"):
            getattr(steered, name)


# ------------------------------------------------------------------ refused, before any work

IDS = torch.tensor([[5, 6, 7], [0, 8, 9]])
MASK = torch.tensor([[1, 1, 1], [0, 1, 1]])
REFUSED = {
    "an encoding": (
        TypeError,
        "by name, generate(**encoding), got a BatchEncoding",
        {"inputs": BatchEncoding({"input_ids": IDS})},
    ),
    "lists": (TypeError, "tensor of token ids (B, T), got a list", {"inputs": [[5, 6]]}),
    "numbers with points": (TypeError, "got torch.float32", {"inputs": IDS.float()}),
    "one row alone": (ValueError, "got (3,)", {"inputs": IDS[0]}),
    "embeddings alone": (
        ValueError,
        "got inputs_embeds and no token ids",
        {"inputs_embeds": torch.zeros(2, 3, 32)},
    ),
    "other embeddings": (
        ValueError,
        "must stand for input_ids of shape (2, 3)",
        {"inputs": IDS, "inputs_embeds": torch.zeros(2, 4, 32)},
    ),
    "a wide mask": (
        ValueError,
        "shape (2, 4), but the prompts have (2, 3)",
        {"inputs": IDS, "attention_mask": torch.ones(2, 4)},
    ),
    "a mask of other rows": (
        ValueError,
        "shape (1, 3), but the prompts have",
        {"inputs": IDS, "attention_mask": MASK[:1]},
    ),
    "a mask that is a list": (
        TypeError,
        "must be a tensor, got a list",
        {"inputs": IDS, "attention_mask": MASK.tolist()},
    ),
    "a fraction": (
        ValueError,
        "attention_mask holds 0.5",
        {"inputs": IDS, "attention_mask": MASK * 0.5},
    ),
    "a negative mask": (
        ValueError,
        "attention_mask holds -1",
        {"inputs": IDS, "attention_mask": -MASK},
    ),
    "NaN in a mask": (
        ValueError,
        "attention_mask holds nan",
        {"inputs": IDS, "attention_mask": MASK * float("nan")},
    ),
    "a row of zeros": (
        ValueError,
        "row 1 has no tokens: its attention mask is all zeros",
        {"inputs": IDS, "attention_mask": MASK * torch.tensor([[1], [0]])},
    ),
    "a trace by name": (
        TypeError,
        "trace must be a plugalign.Trace or None, got 'all'",
        {"inputs": IDS, "trace": "all"},
    ),
    "a draft by name": (
        TypeError,
        "speculation must be a plugalign.Speculation or None",
        {"inputs": IDS, "speculation": "base"},
    ),
    "less than no sequence": (
        ValueError,
        "num_return_sequences must be a whole number of at",
        {"inputs": IDS, "num_return_sequences": -1},
    ),
    "no beam": (
        ValueError,
        "num_beams must be a whole number of at least 1, got 0",
        {"inputs": IDS, "num_beams": 0},
    ),
    "a token of another model": (
        ValueError,
        "row 1 holds the token id 120, and the model knows 120",
        {"inputs": IDS.masked_fill(IDS == 9, 120)},
    ),
    "a token below 0": (ValueError, "row 0 holds the token id -5", {"inputs": -IDS}),
    "half a token": (
        ValueError,
        "max_new_tokens must be a whole number of at least 1, got 2.5",
        {"inputs": IDS, "max_new_tokens": 2.5},
    ),
    "a number in words": (
        ValueError,
        "max_new_tokens must be a whole number of at least 1, got '3'",
        {"inputs": IDS, "max_new_tokens": "3"},
    ),
    "a share in words": (
        ValueError,
        "top_p must be a finite number, got 'a'",
        {"inputs": IDS, "top_p": "a"},
    ),
    "a temperature that is none": (
        ValueError,
        "temperature must be a finite number, got nan",
        {"inputs": IDS, "temperature": float("nan")},
    ),
    "another flag in words": (
        ValueError,
        "use_cache must be True or False, got 'no'",
        {"inputs": IDS, "use_cache": "no"},
    ),
    "a flag that is a number": (
        ValueError,
        "do_sample must be True or False, got 2",
        {"inputs": IDS, "do_sample": 2},
    ),
    "an end in words": (
        TypeError,
        "eos_token_id must be one token id or several, got '</s>'",
        {"inputs": IDS, "eos_token_id": "</s>"},
    ),
    "half an end": (
        TypeError,
        "eos_token_id must be one token id or several, got [1, 2.5]",
        {"inputs": IDS, "eos_token_id": [1, 2.5]},
    ),
    "a flag in words": (
        ValueError,
        "do_sample must be True or False, got 'false'",
        {"inputs": IDS, "do_sample": "false"},
    ),
    "a stop that is no text": (
        ValueError,
        "stop_strings must be a text or a list of texts, got [3]",
        {"inputs": IDS, "stop_strings": [3]},
    ),
    "a list of what is no processor": (
        TypeError,
        "logits_processor must be a list of functions, got 3 in it",
        {"inputs": IDS, "logits_processor": [3]},
    ),
    "a processor by itself": (
        TypeError,
        "logits_processor must be a list, got 3",
        {"inputs": IDS, "logits_processor": 3},
    ),
    "a criterion by itself": (
        TypeError,
        "stopping_criteria must be a list, got 3",
        {"inputs": IDS, "stopping_criteria": 3},
    ),
    "a cache that is none": (
        TypeError,
        "past_key_values must be a Cache or None, got 3",
        {"inputs": IDS, "past_key_values": 3},
    ),
    "an assistant by name": (
        TypeError,
        "assistant_model must be a model that generates, got 'gpt2'",
        {"inputs": IDS, "assistant_model": "gpt2"},
    ),
    "an assistant with other tokens": (
        ValueError,
        "with an assistant_tokenizer they get its tokens, where controllers read the base's",
        {
            "inputs": IDS,
            "assistant_model": SimpleNamespace(generate=None),
            "assistant_tokenizer": SimpleNamespace(),
        },
    ),
    "embeddings that are none": (
        TypeError,
        "inputs_embeds must be a Tensor or None, got 3",
        {"inputs": IDS, "inputs_embeds": 3},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_argument_is_refused_before_any_model_runs(case, tiny, tokenizer):
    error, message, given = REFUSED[case]
    models = tiny(), tiny(seed=1)
    for model in models:
        model.register_forward_pre_hook(lambda *_: pytest.fail("a model runs"))
    steered = pa.wrap(models[0], tokenizer, pa.DExperts(models[1], top_p=1.0))
    with pytest.raises(error) as caught:
        steered.generate(**{"max_new_tokens": 2, **given})
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int32])
def test_masks_of_other_types(kind, steered):
    want = steered.generate(IDS, attention_mask=MASK, max_new_tokens=3)
    got = steered.generate(IDS, attention_mask=MASK.to(kind), max_new_tokens=3)
    assert got.tolist() == want.tolist()


def test_a_cache_that_is_empty_is_the_callers(steered):
    cache = DynamicCache()
    steered.generate(IDS[:1], past_key_values=cache, max_new_tokens=3)
    assert cache.get_seq_length() == 5
