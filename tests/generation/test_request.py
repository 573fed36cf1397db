"""One merged configuration: a setting means the same wherever it is set."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import plugalign as pa
from plugalign.generation.request import make_request

PLACES = ("keyword", "config", "position", "model")


@pytest.fixture
def steered(tiny, tokenizer):
    return pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5 w6"]))


@pytest.fixture
def critic(tiny, tokenizer):
    """Every answer is rewritten."""
    verdicts = {"fault": " w7", "fine": " w8", "threshold": 0.0}
    return pa.wrap(tiny(), tokenizer, pa.SelfCritique(critique="w5", refine="w6", **verdicts))


def call(steered, place, batch, **settings):
    """``generate`` with settings that stand in one place."""
    if place == "keyword":
        return steered.generate(**batch, **settings)
    if place == "config":
        return steered.generate(**batch, generation_config=GenerationConfig(**settings))
    if place == "position":
        batch = dict(batch)
        return steered.generate(batch.pop("input_ids"), GenerationConfig(**settings), **batch)
    before = copy.deepcopy(steered.model.generation_config)
    steered.model.generation_config.update(**settings)
    try:
        return steered.generate(**batch)
    finally:
        steered.model.generation_config = before


@pytest.mark.parametrize("place", PLACES[1:])
def test_beams_under_a_reviser(place, critic, prompts):
    settings = {"num_beams": 2, "max_new_tokens": 4}
    want = call(critic, "keyword", prompts(), **settings)
    assert call(critic, place, prompts(), **settings).tolist() == want.tolist()


@pytest.mark.parametrize("place", PLACES)
def test_a_dict_is_returned_where_one_is_wanted(place, critic, prompts):
    output = call(critic, place, prompts(), max_new_tokens=4, return_dict_in_generate=True)
    want = call(critic, "keyword", prompts(), max_new_tokens=4)
    assert output.sequences.tolist() == want.tolist() and output.past_key_values is None


@pytest.mark.parametrize("name", ["output_scores", "output_logits", "output_hidden_states"])
@pytest.mark.parametrize("place", PLACES)
def test_scores_of_a_draft_are_refused(place, name, critic, prompts):
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, name: True}
    with pytest.raises(ValueError, match=f"{name} belongs to a draft"):
        call(critic, place, prompts(), **settings)


def test_a_cache_that_a_draft_would_fill_is_refused(critic, prompts):
    """The next turn would go on behind the draft, and its text is the rewritten one."""
    cache = DynamicCache()
    with pytest.raises(ValueError, match="past_key_values belongs to a draft"):
        critic.generate(**prompts(), past_key_values=cache, max_new_tokens=4)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("name", ["position_ids", "inputs_embeds"])
def test_what_a_forward_is_given_for_the_prompts_alone_is_refused(name, critic, prompts):
    """The model would read it in the place of the texts that are written anew."""
    batch = prompts()
    embedded = critic.get_input_embeddings()(batch["input_ids"]).detach()
    tensor = embedded if name == "inputs_embeds" else (batch["attention_mask"].cumsum(1) - 1)
    with pytest.raises(ValueError, match=f"{name} belongs to the prompts, and a controller that"):
        critic.generate(**batch, **{name: tensor}, max_new_tokens=4)


@pytest.mark.parametrize(("own", "given"), [("static", "dynamic"), ("dynamic", None)])
def test_a_model_whose_settings_name_a_cache_is_revised(own, given, critic, prompts):
    """``generate`` takes no cache beside a named one, so the text is read anew."""
    settings, traces = {"max_new_tokens": 4}, (pa.Trace(), pa.Trace())
    want = critic.generate(**prompts(), **settings, trace=traces[0])
    critic.model.generation_config.cache_implementation = own
    named = {} if given is None else {"cache_implementation": given}
    got = critic.generate(**prompts(), **settings, **named, trace=traces[1])
    assert got.tolist() == want.tolist()
    with_cache, anew = (trace.revisions[0].report.encoded_tokens for trace in traces)
    assert anew > with_cache


@pytest.mark.parametrize("place", PLACES)
def test_the_pad_token_decides_the_mask(place, steered, prompts):
    ids = prompts()["input_ids"].clamp_min(3)
    ids[1, :2] = 9  # left padding, if 9 pads
    own = (ids != 9).long()
    want = steered.generate(ids, attention_mask=own, max_new_tokens=4, pad_token_id=9)
    got = call(steered, place, {"input_ids": ids}, max_new_tokens=4, pad_token_id=9)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("controller", ["nothing", "self-debias"])
def test_what_a_config_leaves_open_is_the_models(controller, loop, tiny, tokenizer, make):
    """The pad token is the end token and what a prompt begins with."""
    model = tiny()
    model.generation_config.update(pad_token_id=5, eos_token_id=5, bos_token_id=5)
    steered = pa.wrap(model, tokenizer, make(controller, model, tiny, "llama-gqa"))
    ids = torch.tensor([[5, 20, 21, 22]])
    more = {"max_new_tokens": 6, "use_cache": loop}
    want = steered.generate(ids, attention_mask=torch.ones_like(ids), **more)
    got = steered.generate(ids, generation_config=GenerationConfig(**more))
    assert got.tolist() == want.tolist()
    if controller == "nothing":
        assert want.tolist() == model.generate(ids, **more).tolist()


def test_keywords_stand_before_a_config_before_the_model(steered, tokenizer):
    model = steered.model
    model.generation_config.update(top_k=7, top_p=0.7, num_beams=3)
    config = GenerationConfig(top_k=8, top_p=0.8)
    request = make_request(model, tokenizer, {"generation_config": config, "top_k": 9})
    merged = request.config
    assert (merged.top_k, merged.top_p, merged.num_beams, merged.max_length) == (9, 0.8, 3, 20)
    assert (config.top_k, config.num_beams) == (8, None), "the caller's own was changed"


def test_what_is_no_setting_goes_to_the_forward(steered, tokenizer):
    options = {"position_ids": torch.ones(1, 1), "token_type_ids": None, "streamer": None}
    assert list(make_request(steered.model, tokenizer, options).forward) == ["position_ids"]


@pytest.mark.parametrize("place", ["config", "model"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"num_beams": 2}, "beam search"), ({"use_cache": False}, "use_cache=False")],
)
def test_the_path_follows_from_all_settings(place, settings, reason, steered):
    if place == "model":
        steered.model.generation_config.update(**settings)
        explained = steered.explain()
    else:
        explained = steered.explain(generation_config=GenerationConfig(**settings))
    assert explained.startswith("the processor path") and reason in explained


def test_a_tensor_of_end_tokens(steered, prompts):
    ends = list(range(3, 60))
    want = steered.generate(**prompts(), max_new_tokens=6, eos_token_id=ends)
    got = steered.generate(**prompts(), max_new_tokens=6, eos_token_id=torch.tensor(ends))
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("which", ["prefix", "head"])
def test_a_config_is_not_mixed_with_keywords(which, tiny, tokenizer, prompts, make, monkeypatch):
    """transformers warns of settings that come in both ways, and these would be ours."""
    model, seen = tiny(), {}
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: seen.update(given) or generate(**given))
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    config = GenerationConfig(max_new_tokens=3)
    before = config.to_dict()
    steered.generate(**prompts(), generation_config=config, use_cache=False)
    assert seen["generation_config"].disable_compile and "disable_compile" not in seen
    assert config.to_dict() == before


def test_answers_that_nobody_refines_are_the_models_own(tiny, tokenizer, prompts):
    """They are as wide as they were, also where the end token pads."""
    model = tiny()
    model.generation_config.pad_token_id = model.generation_config.eos_token_id
    want = model.generate(**prompts(), max_new_tokens=8)
    steered = pa.wrap(model, tokenizer, pa.SelfCritique(threshold=1.0))
    assert steered.generate(**prompts(), max_new_tokens=8).tolist() == want.tolist()


# ------------------------------------------------------------------ refused, before any work

REFUSED = {
    "settings": ({"generation_config": {"top_k": 9}}, TypeError, "must be a GenerationConfig"),
    "streamer": ({"streamer": print}, TypeError, "needs put"),
    "no answer": ({"num_return_sequences": 0}, ValueError, "at least 1, got 0"),
    "half a beam": ({"num_beams": 1.5}, ValueError, "at least 1, got 1.5"),
    "no token": ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    "a trace": ({"trace": []}, TypeError, r"a plugalign.Trace or None, got \[\]"),
    "a trace of beams": (
        {"trace": pa.Trace(), "num_beams": 2},
        ValueError,
        "rows that grow by one token",
    ),
    "a mask": ({"attention_mask": torch.ones(2, 4)}, ValueError, r"the prompts have \(2, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", ["generate", "explain"])
def test_refused_before_a_model_runs(method, case, steered):
    arguments, error, message = REFUSED[case]
    steered.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        getattr(steered, method)(torch.full((2, 3), 5), **arguments)


def test_a_row_of_padding_alone_is_no_prompt(steered):
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        steered.generate(torch.tensor([[5, 6], [0, 0]]), max_new_tokens=2)
