"""A prefix in every decoding mode on every architecture, against feeding it by hand."""

import copy
import threading

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    MambaConfig,
    MistralConfig,
    StaticCache,
)

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.supports import TopP
from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
from plugalign.engine.readers.prefix_hook import cache_shape

WIDTH, NEW = 3, 5
MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
    "no-cache": {"use_cache": False},
    "chunked": {"prefill_chunk_size": 2},
    "chunked-static": {"prefill_chunk_size": 2, "cache_implementation": "static"},
}
BEAMS = {
    "beam": {"num_beams": 3},
    "beam-sample": {"num_beams": 2, "do_sample": True, "top_k": 0},
    "beam-static": {"num_beams": 2, "cache_implementation": "static"},
}


def random_prefix(model, seed=5, width=WIDTH):
    layers, heads, head_dim = cache_shape(model)
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(layers, 2, heads, width, head_dim, generator=generator)


def by_hand(model, keys_values, ids):
    """Logits ``(T, V)`` of one unpadded row behind the prefix, in one fresh forward."""
    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(keys_values.to(model.dtype)):
        cache.update(keys[None], values[None], layer)
    width = keys_values.shape[-2]
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids]),
            past_key_values=cache,
            attention_mask=torch.ones(1, width + len(ids), dtype=torch.long),
            position_ids=torch.arange(width, width + len(ids))[None],
        ).logits[0]


def greedy_by_hand(model, keys_values, ids, new=NEW):
    ids = list(ids)
    for _ in range(new):
        ids.append(int(by_hand(model, keys_values, ids)[-1].argmax()))
    return ids


def unpadded(inputs):
    both = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    return [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in both]


@pytest.fixture
def make(tiny):
    """A float64 model that never ends a text early."""

    def factory(architecture="llama-gqa", seed=0):
        model = tiny(architecture, seed=seed).double()
        model.generation_config.eos_token_id = None
        return model

    return factory


# ------------------------------------------------------------------ attached


@pytest.mark.parametrize("mode", MODES)
def test_every_step_equals_the_prefix_fed_by_hand(mode, architecture, make, prompts):
    model, inputs = make(architecture), prompts()
    prefix = random_prefix(model)
    torch.manual_seed(3)
    with PrefixTuning(prefix).attach(model) as extra:
        output = model.generate(
            **inputs,
            max_new_tokens=NEW,
            output_logits=True,
            return_dict_in_generate=True,
            **MODES[mode],
        )
    assert extra == WIDTH
    start, copies = inputs["input_ids"].shape[1], MODES[mode].get("num_return_sequences", 1)
    for row, sequence in enumerate(output.sequences):
        prompt = unpadded(inputs)[row // copies]
        whole = prompt + sequence[start:].tolist()
        expected = by_hand(model, prefix, whole)[len(prompt) - 1 : -1]
        got = torch.stack([logits[row] for logits in output.logits])
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)
    if not MODES[mode].get("do_sample"):
        expected = [greedy_by_hand(model, prefix, p)[-NEW:] for p in unpadded(inputs)]
        assert output.sequences[:, start:].tolist() == expected


@pytest.mark.parametrize("mode", BEAMS)
def test_beam_scores_are_those_of_the_prefix_fed_by_hand(mode, architecture, make, prompts):
    model, inputs = make(architecture), prompts()
    prefix = random_prefix(model)
    torch.manual_seed(3)
    with PrefixTuning(prefix).attach(model):
        output = model.generate(
            **inputs,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
            **BEAMS[mode],
        )
    start = inputs["input_ids"].shape[1]
    for prompt, sequence, score in zip(
        unpadded(inputs), output.sequences, output.sequences_scores, strict=True
    ):
        new = sequence[start:]
        logits = by_hand(model, prefix, prompt + new.tolist())[len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, new[:, None]).sum()
        assert float(score) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("mode", ["assistant", "lookup", "itself"])
def test_assisted_decoding(mode, architecture, make, prompts):
    model, inputs = make(architecture), prompts(rows=1)
    prefix = random_prefix(model)
    helper = {
        "assistant": {"assistant_model": make(architecture, seed=1)},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "itself": {"assistant_model": model},
    }[mode]
    with PrefixTuning(prefix).attach(model):
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, **helper)
    assert ids[0].tolist() == greedy_by_hand(model, prefix, unpadded(inputs)[0], new=12)


def test_bfloat16(architecture, tiny, prompts):
    model, inputs = tiny(architecture).bfloat16(), prompts()
    prefix = random_prefix(model)
    with PrefixTuning(prefix).attach(model):
        got = model(**inputs, position_ids=positions(inputs)).logits[:, -1].float()
    expected = [by_hand(model.float(), prefix.bfloat16().float(), p)[-1] for p in unpadded(inputs)]
    assert (got - torch.stack(expected)).norm() < 0.1 * torch.stack(expected).norm()


def positions(inputs):
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)


def test_embeddings_instead_of_ids(make, prompts):
    model, inputs = make("qwen2-tied"), prompts(rows=1)
    prefix = random_prefix(model)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with PrefixTuning(prefix).attach(model):
        ids = model.generate(inputs_embeds=embeds, max_new_tokens=NEW)
    assert ids[0].tolist() == greedy_by_hand(model, prefix, unpadded(inputs)[0])[-NEW:]


def test_a_plain_forward_with_positional_ids(make):
    model = make("gpt2-tied")
    prefix = random_prefix(model)
    with PrefixTuning(prefix).attach(model), torch.no_grad():
        got = model(torch.tensor([[5, 6, 7]])).logits[0]
    torch.testing.assert_close(got, by_hand(model, prefix, [5, 6, 7]))


@pytest.mark.parametrize("implementation", [None, "static"])
def test_two_prefixes_stand_side_by_side(implementation, architecture, make, prompts):
    model, inputs = make(architecture), prompts()
    first, second = random_prefix(model, 1, width=2), random_prefix(model, 2, width=3)
    together = torch.cat([first, second], dim=-2)
    with PrefixTuning(first).attach(model), PrefixTuning(second).attach(model):
        ids = model.generate(**inputs, max_new_tokens=NEW, cache_implementation=implementation)
    expected = [greedy_by_hand(model, together, p)[-NEW:] for p in unpadded(inputs)]
    assert ids[:, -NEW:].tolist() == expected


def sliding_model(window):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("window", [4, 64])
@pytest.mark.parametrize("implementation", [None, "static"])
def test_sliding_windows(window, implementation, prompts):
    model, inputs = sliding_model(window), prompts(rows=1 if window == 4 else 3)
    prefix = random_prefix(model)
    options = {"max_new_tokens": NEW, "cache_implementation": implementation}
    with PrefixTuning(prefix).attach(model):
        if window == 4 and implementation == "static":
            with pytest.raises(ValueError, match="window is shorter than the text"):
                model.generate(**inputs, **options)
            return
        ids = model.generate(**inputs, **options)
    expected = [greedy_by_hand(model, prefix, p)[-NEW:] for p in unpadded(inputs)]
    assert ids[:, -NEW:].tolist() == expected


# ------------------------------------------------------------------ caches of the caller


def test_a_static_cache_that_is_used_again_grows_once(make, prompts):
    model, inputs = make(), prompts()
    prefix = random_prefix(model)
    cache = StaticCache(config=model.config, max_cache_len=inputs["input_ids"].shape[1] + NEW)
    room = cache.get_max_length()
    expected = [greedy_by_hand(model, prefix, p)[-NEW:] for p in unpadded(inputs)]
    for _ in range(3):
        with PrefixTuning(prefix).attach(model):
            ids = model.generate(**inputs, max_new_tokens=NEW, past_key_values=cache)
        assert ids[:, -NEW:].tolist() == expected
        assert cache.get_max_length() == room + WIDTH
        cache.reset()


@pytest.mark.parametrize("how", ["without", "with"])
def test_a_cache_with_text_in_it_is_refused(how, make, prompts):
    model, inputs = make(), prompts()
    controller = PrefixTuning(random_prefix(model))
    cache = DynamicCache(config=model.config)
    if how == "without":
        model.generate(**inputs, max_new_tokens=2, past_key_values=cache)
    else:
        with controller.attach(model):
            model.generate(**inputs, max_new_tokens=2, past_key_values=cache)
    with controller.attach(model), pytest.raises(ValueError, match=r"already hold \d+ tokens"):
        model.generate(**inputs, max_new_tokens=2, past_key_values=cache)


# ------------------------------------------------------------------ afterwards


def hooks(model):
    return sum(
        len(h)
        for m in model.modules()
        for h in (m._forward_pre_hooks, m._forward_pre_hooks_with_kwargs, m._forward_hooks)
    )


def test_nothing_is_left_behind(make, prompts):
    model, inputs = make(), prompts()
    before = copy.deepcopy(model.state_dict())
    plain = model.generate(**inputs, max_new_tokens=NEW)
    controller = PrefixTuning(random_prefix(model))
    with controller.attach(model):
        assert model.generate(**inputs, max_new_tokens=NEW).tolist() != plain.tolist()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), controller.attach(model):
            model.generate(**inputs, max_new_tokens=1)
            raise error
    assert hooks(model) == 0
    assert model.generate(**inputs, max_new_tokens=NEW).tolist() == plain.tolist()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_threads_do_not_see_it(make, prompts):
    model, inputs = make(), prompts()
    plain = model.generate(**inputs, max_new_tokens=NEW)
    seen = []
    with PrefixTuning(random_prefix(model)).attach(model):
        thread = threading.Thread(
            target=lambda: seen.append(model.generate(**inputs, max_new_tokens=NEW))
        )
        thread.start()
        thread.join()
    assert seen[0].tolist() == plain.tolist()


# ------------------------------------------------------------------ through wrap


def test_wrapped(architecture, make, tokenizer, prompts):
    model, inputs = make(architecture), prompts()
    prefix = random_prefix(model)
    steered = pa.wrap(model, tokenizer, PrefixTuning(prefix))
    ids = steered.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    expected = [greedy_by_hand(model, prefix, p)[-NEW:] for p in unpadded(inputs)]
    assert ids[:, -NEW:].tolist() == expected
    assert hooks(model) == 0


def test_contrast_is_the_formula(architecture, make, tokenizer, prompts):
    model, inputs = make(architecture), prompts()
    good, bad = random_prefix(model, 1), random_prefix(model, 2)
    steered = pa.wrap(model, tokenizer, PrefixContrast(good, bad, alpha=0.7, top_p=1.0))
    output = steered.generate(
        **inputs,
        max_new_tokens=NEW,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    start = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(unpadded(inputs)):
        ids = prompt + output.sequences[row, start:].tolist()
        with torch.no_grad():
            base = model(input_ids=torch.tensor([ids])).logits[0]
        total = base.numpy() + 0.7 * (by_hand(model, good, ids) - by_hand(model, bad, ids)).numpy()
        total = total[len(prompt) - 1 : -1]
        expected = total - np.log(np.exp(total - total.max(-1, keepdims=True)).sum(-1))[:, None]
        expected -= total.max(-1, keepdims=True)
        got = torch.stack([scores[row] for scores in output.scores]).double().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_declarations(make, tokenizer):
    model = make()
    good, bad = random_prefix(model, 1), random_prefix(model, 2)
    contrast = PrefixTuning(good, bad).against(alpha=2.0, top_p=0.8)
    steering = contrast.steer(model, tokenizer)
    (shift,) = steering.shifts
    assert isinstance(shift, LogLinear) and shift.weight == 2.0
    assert [c for c, _ in shift.coefficients] == [1.0, -1.0]
    trained = [source.context.keys_values for source in shift.sources]
    assert trained[0] is good and trained[1] is bad
    assert steering.supports == (TopP(0.8),)
    assert PrefixContrast(good, bad, top_p=1.0).steer(model, tokenizer).supports == ()
    assert not contrast.overrides("attach") and (0.5 * contrast).parts()[0][0] == 0.5
    with pytest.raises(ValueError, match="all or nothing"):
        0.5 * PrefixTuning(good)


@pytest.mark.parametrize("kind", ["attach", "contrast"])
def test_saved_and_loaded(kind, make, tokenizer, tmp_path):
    model = make()
    good, bad = random_prefix(model, 1), random_prefix(model, 2)
    saved = PrefixTuning(good, bad, fitted_for=identify(model, tokenizer))
    saved = saved if kind == "attach" else saved.against(alpha=1.5, top_p=0.7)
    saved.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(tmp_path)
    assert type(loaded) is type(saved) and loaded.config() == saved.config()
    assert all(torch.equal(loaded.tensors()[k], v) for k, v in saved.tensors().items())
    loaded.steer(model, tokenizer)


# ------------------------------------------------------------------ bad input


def test_another_model_is_refused(make, tokenizer):
    model, other = make(), make("gpt2-tied")
    fitted = PrefixTuning(random_prefix(model), fitted_for=identify(model, tokenizer))
    with pytest.raises(ValueError, match="this prefix was fitted for the weights of"):
        pa.wrap(other, tokenizer, fitted)
    with pytest.raises(ValueError, match=r"\(2, 2, 8\).*'GPT2LMHeadModel' has \(2, 4, 8\)"):
        pa.wrap(other, tokenizer, PrefixTuning(random_prefix(model)))


def test_wrong_shapes_are_refused(make):
    prefix = random_prefix(make())
    with pytest.raises(ValueError, match="a prefix is"):
        PrefixTuning(prefix[0])
    with pytest.raises(ValueError, match="one shape"):
        PrefixContrast(prefix, prefix[:1])
    with pytest.raises(ValueError, match="has no contrast"):
        PrefixTuning(prefix).against()
    with pytest.raises(ValueError, match="top-p"):
        PrefixContrast(prefix, prefix, top_p=1.5)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        PrefixContrast(prefix, prefix, alpha=float("nan"))


def test_a_model_without_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="no prefix fits"):
        cache_shape(model)
