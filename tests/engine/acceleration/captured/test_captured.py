"""A step is captured once and replayed: the same texts, and nothing that is stale or stays."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import torch
from pairwise import pairwise
from tiny_models import ARCHITECTURES
from transformers import CompileConfig, LogitsProcessor, MaxLengthCriteria, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import plugalign as pa
from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.compiled import without_graphs
from plugalign.sampling import CoupledSampler

CONTROLLERS = (
    "nothing",
    "dexperts",
    "anti-only",
    "lora",
    "self-debias",
    "low-rank",
    "head",
    "prefix",
    "prefix-contrast",
    "several",
)

NEW = 12
ASKED = {"do_sample": True, "cache_implementation": "static", "max_new_tokens": NEW}


def generate(steered, inputs, static=True, **options):
    torch.manual_seed(1)
    options = {"max_new_tokens": NEW, "do_sample": True, "top_p": 0.9, "pad_token_id": 0} | options
    cache = {"cache_implementation": "static", "disable_compile": True} if static else {}
    return steered.generate(**inputs, **(cache | options))


@pytest.fixture
def steered(tiny, tokenizer):
    """A model with experts that are batched with it."""
    return pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))


@pairwise(which=CONTROLLERS, architecture=ARCHITECTURES, shape=[(3, 7), (1, 5)])
def test_replays_give_the_same_texts(
    which, architecture, shape, tiny, tokenizer, prompts, make, tapes
):
    model = tiny(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, architecture))
    inputs, every = prompts(*shape), {"min_new_tokens": NEW}
    want = generate(steered, inputs, static=False, **every)
    assert not tapes
    assert torch.equal(generate(steered, inputs, **every), want)
    assert [tape.replays for tape in tapes] == [NEW - 2]  # the first two set all up


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_return_sequences": 3},
        {"top_k": 5, "temperature": 0.7},
        {"min_p": 0.1, "top_p": 1.0},
        {"min_new_tokens": 6},
        {"max_new_tokens": 2},
        {"max_new_tokens": 3},
        {"eos_token_id": list(range(3, 40)), "max_new_tokens": 30},
        {"eos_token_id": list(range(3, 9)), "max_new_tokens": 30},
    ],
    ids=str,
)
def test_options_of_generate(options, steered, prompts, tapes):
    want = generate(steered, prompts(), static=False, **options)
    assert torch.equal(generate(steered, prompts(), **options), want)
    assert tapes


def test_coupled_noise_is_the_same(tiny, tokenizer, prompts, tapes):
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))
    inputs = prompts()

    def sampled(**options):
        sampler = CoupledSampler(7, torch.arange(3), torch.ones(3).long(), top_p=0.8)
        options |= {"do_sample": False, "top_p": None, "logits_processor": [sampler]}
        return generate(steered, inputs, **options)

    assert torch.equal(sampled(), sampled(static=False))
    assert tapes


@pytest.mark.parametrize("which", ["nothing", "dexperts", "self-debias", "prefix-contrast"])
def test_the_cache_is_that_of_the_base_alone(which, tiny, tokenizer, prompts, make, tapes):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    options = {"return_dict_in_generate": True, "eos_token_id": list(range(3, 40))}
    output = generate(steered, prompts(), max_new_tokens=20, **options)
    cache, ids = output.past_key_values, output.sequences
    mask = torch.cat([prompts()["attention_mask"], torch.ones_like(ids[:, 7:])], 1)
    assert int(cache.get_seq_length()) == ids.shape[1] - 1
    place = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = model(ids, attention_mask=mask, position_ids=place).logits[:, -1]
        further = model(
            ids[:, -1:], attention_mask=mask, past_key_values=cache, position_ids=place[:, -1:]
        ).logits[:, -1]
    torch.testing.assert_close(further, alone, rtol=1e-4, atol=1e-4)
    assert tapes


class Streamer(BaseStreamer):
    """Keeps what it is given, and may stop everything."""

    def __init__(self, stop_at=None):
        self.parts, self.ended, self._stop_at = [], False, stop_at

    def put(self, value):
        self.parts.append(value.reshape(1, -1))
        if len(self.parts) == self._stop_at:
            raise KeyboardInterrupt

    def end(self):
        self.ended = True


def test_a_streamer_gets_every_token_and_no_more(steered, prompts, tapes):
    streamer, inputs = Streamer(), prompts(rows=1)
    options = {"eos_token_id": list(range(3, 30)), "max_new_tokens": 30}
    ids = generate(steered, inputs, streamer=streamer, **options)
    assert torch.equal(torch.cat(streamer.parts, 1), ids)
    assert streamer.ended
    assert torch.equal(ids, generate(steered, inputs, static=False, **options))
    assert tapes


def test_nothing_of_a_call_is_stale_in_the_next(steered, tiny, prompts, tapes):
    calls = [(3, 7, 12), (1, 7, 12), (3, 5, 9), (2, 9, 5), (3, 7, 12)]
    for number, (rows, width, new) in enumerate(calls):
        inputs = prompts(rows=rows, width=width, seed=number)
        want = generate(steered, inputs, static=False, max_new_tokens=new)
        assert torch.equal(generate(steered, inputs, max_new_tokens=new), want)
        with torch.no_grad():
            steered.model.model.layers[0].mlp.up_proj.weight.neg_()
    steered.controller = 2.0 * steered.controller
    other = pa.wrap(steered.model, steered.tokenizer, steered.controller)
    assert torch.equal(generate(other, inputs), generate(other, inputs, static=False))
    assert len(tapes) == len(calls) + 1


def test_a_graph_dies_with_its_call(steered, prompts, tapes):
    generate(steered, prompts())
    with pytest.raises(KeyboardInterrupt):
        generate(steered, prompts(rows=1), streamer=Streamer(stop_at=6))
    ends = [weakref.ref(tape) for tape in tapes]
    assert len(ends) == 2
    tapes.clear()
    gc.collect()
    assert [end() for end in ends] == [None, None]


class Waiting(torch.nn.Module):
    """An activation that looks at its numbers."""

    def forward(self, x):
        return x * float(x.sum() < torch.inf)


@pytest.mark.parametrize("watches", [True, False])
def test_a_step_that_waits_for_the_device_is_captured_never_again(
    watches, tiny, tokenizer, prompts, tape, tapes, monkeypatch
):
    make = lambda device: tapes.append(tape(watches)) or tapes[-1]  # noqa: E731
    monkeypatch.setattr(captured_step, "graph_on", make)
    experts = tiny("gpt2-tied", seed=1), tiny("gpt2-tied", seed=2)
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(*experts))
    experts[0].transformer.h[1].mlp.act = Waiting()
    want = generate(steered, prompts(), static=False)
    with pytest.warns(RuntimeWarning, match="no CUDA graph of a step .* waits for the device"):
        assert torch.equal(generate(steered, prompts()), want)
    assert torch.equal(generate(steered, prompts()), want)
    assert [tape.replays for tape in tapes] == [0]
    assert (len(tapes[0].entries) > 0) is not watches  # one that is watched is not even begun
    assert "a step could not be captured" in steered.explain(**prompts(), **ASKED)
    with pytest.raises(ValueError, match=r"capture=True, and no step can .* waits for the device"):
        generate(steered, prompts(), capture=True)


def test_a_capture_that_was_asked_for_is_none_less(tiny, tokenizer, prompts, tapes):
    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.model.model.layers[1].mlp.act_fn = Waiting()
    streamer = Streamer()
    with pytest.raises(ValueError, match=r"waits for the device .*capture=False goes on without"):
        generate(steered, prompts(rows=1), capture=True, streamer=streamer)
    assert len(streamer.parts) == 1 + 2  # the prompt, and the two steps before a capture


def test_numbers_that_go_wrong_name_the_step(tiny, tokenizer, prompts, tapes):
    model, expert = tiny("gpt2-tied"), tiny("gpt2-tied", seed=1)
    with torch.no_grad():
        expert.transformer.wpe.weight[12] = torch.nan
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert, tiny("gpt2-tied", seed=2)))
    with pytest.raises(FloatingPointError, match=r"expert GPT2LMHeadModel.* gave NaN .* step 6"):
        generate(steered, prompts(rows=1), min_new_tokens=NEW)
    assert tapes[0].replays > 2
    with pytest.raises(FloatingPointError, match="step 6"):
        generate(steered, prompts(rows=1), min_new_tokens=NEW, static=False)


class Looks(LogitsProcessor):
    def __call__(self, ids, scores):
        return scores.index_fill(1, ids[0, -1:], -torch.inf)


class Waits(StoppingCriteria):
    def __call__(self, ids, scores, **_):
        return torch.zeros(len(ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("which", "options", "why"),
    [
        ("dexperts", {"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ("dexperts", {"output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ("dexperts", {"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ("dexperts", {"logits_processor": [Looks()]}, "Looks"),
        ("dexperts", {"stopping_criteria": [Waits()]}, "Waits"),
        ("fudge", {}, "FUDGE predictor' of Fudge"),
        ("sum", {}, "behind a trained prefix"),
    ],
)
def test_what_the_host_looks_at_is_not_captured(
    which, options, why, tiny, tokenizer, prompts, make, tapes
):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    got, want = (generate(steered, prompts(), static=s, **options) for s in (True, False))
    same = (getattr(x, "sequences", x) for x in (got, want))
    assert torch.equal(*same)
    assert not tapes
    explained = steered.explain(**prompts(), **ASKED, **options)
    assert re.search(f"steps: launched by the host: .*{why}", explained)


def test_hooks_run_at_every_step(tiny, tokenizer, prompts, tapes):
    model, expert, calls = tiny(), tiny(seed=1), []
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert, tiny(seed=2)))
    for hooked in (model, expert):
        layer = hooked.model.layers[0]
        generate(steered, prompts(), static=False)  # so that the engine knows the models
        hook = layer.register_forward_hook(lambda *_: calls.append(1))
        generate(steered, prompts())
        assert len(calls) == NEW
        assert "has hooks" in steered.explain(**prompts(), **ASKED)
        hook.remove()
        calls.clear()
    generate(steered, prompts())
    assert len(tapes) == 1 + 2  # explain asks for one too


def test_what_a_body_does_by_its_length_is_not_captured(tiny, tokenizer, prompts, tapes):
    model = tiny()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    model.config._attn_implementation = "flex_attention"
    assert "attends by flex_attention" in steered.explain(**prompts(), **ASKED)
    model.config._attn_implementation = "sdpa"
    model.model.rotary_emb.rope_type = "dynamic"
    assert "by their length" in steered.explain(**prompts(), **ASKED)


def test_few_tokens_are_not_worth_a_capture(steered, prompts, tapes, monkeypatch):
    monkeypatch.setattr(captured_step, "MIN_TOKENS", NEW + 1)
    assert f"for {NEW} tokens it does not pay" in steered.explain(**prompts(), **ASKED)
    generate(steered, prompts())
    assert len(tapes) == 1


def test_explain_leaves_later_caches_as_long_as_they_were(steered, prompts, tapes):
    steered.explain(**prompts(), **ASKED)
    assert not hasattr(steered.model, "_previous_max_cache_length")
    generate(steered, prompts())
    length = steered.model._previous_max_cache_length
    steered.explain(**prompts(), **{**ASKED, "max_new_tokens": 90})
    assert steered.model._previous_max_cache_length == length


def test_texts_are_contiguous(steered, prompts, tapes):
    ids = generate(steered, prompts(), eos_token_id=list(range(3, 40)))
    assert ids.is_contiguous() and ids.shape[1] < 7 + NEW


def test_a_criterion_cannot_ask_for_more_than_the_cache_holds(steered, prompts):
    longer = [MaxLengthCriteria(7 + NEW + 5)]
    assert generate(steered, prompts(), stopping_criteria=longer).shape[1] <= 7 + NEW


def flash(module, query, key, value, attention_mask, scaling=None, **_):
    """What flash attention computes: a mask is as long as the text, and columns behind it, or
    without one all of the keys, are the text's."""
    length = key.shape[2] if attention_mask is None else attention_mask.shape[1]
    key, value = (x[:, :, :length].repeat_interleave(2, 1) for x in (key, value))
    columns, rows = torch.arange(length), torch.arange(query.shape[2])
    seen = columns <= rows[:, None] + length - query.shape[2]
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None, None]
    shares = (query @ key.mT * scaling).masked_fill(~seen, -1e9).softmax(-1)
    return (shares @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("rows", [1, 3])
def test_flash_attention_over_a_static_cache(rows, tiny, tokenizer, prompts, tapes, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_like", flash)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_like", flash_attention_mask
    )
    model = tiny()
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6 w7", "w8"]))
    want = generate(steered, prompts(rows=rows), static=False)
    model.config._attn_implementation = "flash_like"
    assert torch.equal(generate(steered, prompts(rows=rows), static=False), want)
    assert torch.equal(generate(steered, prompts(rows=rows)), want)
    assert not tapes


class Again:
    """A graph that runs its step anew, for what no tape can hold."""

    def __init__(self):
        self.replays = 0

    def warm(self, step):
        step()

    def capture(self, step):
        self._step = step

    def replay(self):
        self.replays += 1
        self._step()


def test_bodies_are_compiled_without_graphs_of_their_own(steered, prompts, monkeypatch):
    torch.compiler.reset()
    made, asked, compile_ = [], [], torch.compile
    monkeypatch.setattr(captured_step, "graph_on", lambda device: made.append(Again()) or made[-1])
    monkeypatch.setattr(captured_step, "MIN_TOKENS", 1)
    monkeypatch.setattr(
        torch, "compile", lambda f, **o: asked.append(o) or compile_(f, backend="eager")
    )
    config = CompileConfig(mode="reduce-overhead")
    config._compile_all_devices = True
    nothing = pa.wrap(steered.model, steered.tokenizer, 0 * steered.controller)
    want = generate(nothing, prompts(), static=False)
    got = generate(nothing, prompts(), compile_config=config, disable_compile=False)
    assert torch.equal(got, want)
    assert [graph.replays for graph in made] == [NEW - 2]
    assert [o["mode"] for o in asked] == ["default"]
    torch.compiler.reset()


def test_options_of_compile_without_graphs():
    own = {"mode": None, "options": {"triton.cudagraphs": True, "max_autotune": True}}
    without = {"triton.cudagraphs": False, "max_autotune": True}
    assert without_graphs(own) == {"mode": None, "options": without}
    assert without_graphs({"mode": "max-autotune"}) == {"mode": "max-autotune-no-cudagraphs"}
    assert without_graphs({"mode": None, "backend": "inductor"})["mode"] is None
    assert without_graphs({"backend": "cudagraphs"}) is None


def test_explain_says_what_is_captured(steered, prompts, tapes):
    explained = steered.explain(**prompts(), **ASKED)
    assert "steps: the third is captured" in explained
    assert "expert LlamaForCausalLM: rows of the base's forward" in explained
    assert "cache_implementation" in steered.explain(**prompts(), max_new_tokens=NEW)
    spec = pa.Speculation("prompt")
    assert "a draft" in steered.explain(**prompts(), speculation=spec, **ASKED)
