"""``generate`` takes what transformers takes, and goes by one configuration, as transformers does.

What it refuses is in test_arguments.py; transformers' own tests are in tests/contract."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, OPTConfig, OPTForCausalLM

import plugalign as pa

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


# ------------------------------------------------------------------ padding


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2-tied"])
@pytest.mark.parametrize("expert", [False, True])
def test_right_padding_is_read_as_transformers_reads_it(expert, name, tiny, tokenizer, prompts):
    """In the loop, behind a processor and without controllers."""
    model, batch = tiny(name), prompts()
    batch = {k: v.flip(1) for k, v in batch.items()}
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
    controller = pa.DExperts(tiny(name, seed=1), top_p=1.0) if expert else 0 * pa.SelfDebias(["w5"])
    steered = pa.wrap(model, tokenizer, controller)
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    assert steered.explain(batch["input_ids"], max_new_tokens=5).startswith("the owned loop")
    loop = steered.generate(**batch, **options)
    ours = [steered.processor(batch["attention_mask"])] if expert else []
    apart = model.generate(**batch, **options, logits_processor=ours)
    assert loop.sequences.tolist() == apart.sequences.tolist()
    for mine, theirs in zip(loop.scores, apart.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_a_processor_asks_for_a_mask_where_padding_may_be_text(tiny, tokenizer):
    model = tiny()
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = 1
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))
    ids = torch.tensor([[1, 1, 9], [5, 6, 7]])
    mask, options = torch.tensor([[0, 0, 1], [1, 1, 1]]), {"max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"row 0 begins with token 1, which both.*attention_mask="):
        bare = steered.processor()
        model.generate(ids, attention_mask=mask, logits_processor=[bare], **options)
    given = steered.processor(mask)
    got = model.generate(ids, attention_mask=mask, logits_processor=[given], **options)
    assert got.tolist() == steered.generate(ids, attention_mask=mask, **options).tolist()
    with pytest.raises(ValueError, match=r"of shape \(2, 3\) is of other prompts than texts"):
        model.generate(torch.tensor([[5, 6, 7]]), logits_processor=[given], **options)


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


@pytest.mark.parametrize("where", ["keyword", "configuration"])
def test_continuous_batching_is_refused(where, steered):
    option = {"cache_implementation": "paged"}
    if where == "configuration":
        option = {"generation_config": GenerationConfig(**option)}
    with pytest.raises(ValueError, match="continuous batching, which takes no logits processors"):
        steered.generate(torch.tensor([[5, 6]]), **option)


def test_an_expert_whose_embedding_takes_positions(tokenizer, prompts):
    """OPT calls it with more than one argument, so experts are no rows of the base's forward."""

    def opt(seed):
        torch.manual_seed(seed)
        config = OPTConfig(
            vocab_size=120, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, dropout=0.0,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )  # fmt: skip
        return OPTForCausalLM(config).eval()

    model, batch = opt(0), prompts()
    steered = pa.wrap(model, tokenizer, pa.DExperts(opt(1), opt(2), top_p=1.0))
    got = steered.generate(**batch, max_new_tokens=5)
    ours = steered.processor(batch["attention_mask"])
    want = model.generate(**batch, max_new_tokens=5, logits_processor=[ours])
    assert got.tolist() == want.tolist()
    assert "expert OPTForCausalLM: a forward of its own" in steered.explain(max_new_tokens=5)


def test_a_cache_that_is_empty_is_the_callers(steered):
    cache = DynamicCache()
    steered.generate(torch.tensor([[5, 6, 7]]), past_key_values=cache, max_new_tokens=3)
    assert cache.get_seq_length() == 5


def test_embeddings_stand_for_the_tokens_that_controllers_read(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    want = steered.generate(**batch, max_new_tokens=4)
    got = steered.generate(**batch, inputs_embeds=embedded, max_new_tokens=4)
    assert got.tolist() == want.tolist()
    with pytest.raises(ValueError, match=r"must stand for input_ids of shape \(3, 7\)"):
        steered.generate(**batch, inputs_embeds=embedded[:, 1:], max_new_tokens=4)
