"""Packed weights give what the model's own give, for one call, and are gone afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from bodies import body_of, walk
from torch import nn

import plugalign as pa
from plugalign.engine.acceleration import packed, traced_step
from plugalign.engine.acceleration.packed import PackedLinear, packed_body, reading, weights_of
from plugalign.engine.acceleration.traced_step import Reading, Recorder
from plugalign.engine.batching import grouped
from plugalign.kernels.product import can_pack

pytestmark = pytest.mark.skipif(
    not can_pack(torch.zeros(2, 2, dtype=torch.bfloat16)), reason="oneDNN has no bfloat16 here"
)


def bfloat16(kind, **more):
    return body_of(kind, **more).bfloat16()


def assert_near(got, want):
    """Equal but for roundings."""
    error = (got.float() - want.float()).norm() / want.float().norm()
    assert error <= 4 * torch.finfo(got.dtype).eps


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "opt", "mixtral"])
def test_a_packed_body_in_float32_gives_the_same(kind):
    body = body_of(kind)
    mirror = packed_body(body, 3)
    if not can_pack(torch.zeros(2, 2)):
        assert mirror is None
        return
    assert weights_of(mirror)
    want, got = walk(body, True, steps=4)[0], walk(mirror, True, steps=4)[0]
    assert_near(got, want)


def test_steps_in_float32_give_the_same_tokens(tiny, tokenizer, prompts, monkeypatch):
    """Also once they are recorded."""
    model, made, own = tiny(), [], PackedLinear.__init__
    monkeypatch.setattr(PackedLinear, "__init__", lambda s, *a: made.append(1) or own(s, *a))
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.split_models.recorder = Recorder(patience=3)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    want = model.generate(**prompts(rows=3), **options)
    assert torch.equal(steered.generate(**prompts(rows=3), **options), want)
    assert bool(made) == can_pack(torch.zeros(2, 2))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Small models are packed too, at the second token."""
    monkeypatch.setattr(packed, "LEAST", 0)
    monkeypatch.setattr(traced_step, "AFTER", 2)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "opt", "gemma3_text", "mixtral"])
def test_a_packed_body_gives_the_same_and_leaves_the_body_alone(kind):
    window = {"sliding_window": 8} if kind == "gemma3_text" else {}
    body = bfloat16(kind, **window)
    modules, values = list(body.modules()), [p.clone() for p in body.parameters()]
    mirror = packed_body(body, 3)
    assert weights_of(mirror) and not weights_of(body)
    want, got = walk(body, True, steps=4)[0], walk(mirror, True, steps=4)[0]
    assert_near(got, want)
    assert all(a is b for a, b in zip(modules, body.modules(), strict=True))
    assert all(map(torch.equal, values, body.parameters()))


def test_a_layer_that_stands_twice_is_packed_once():
    body = bfloat16("llama")
    body.layers[1].mlp = body.layers[0].mlp
    mirror = packed_body(body, 3)
    assert mirror.layers[1].mlp is mirror.layers[0].mlp
    assert len(weights_of(mirror)) == len(weights_of(packed_body(bfloat16("llama"), 3))) - 3


@pytest.mark.parametrize(
    ("rows", "spoil"),
    [
        (1, lambda body: None),
        (65, lambda body: None),
        (3, lambda body: body.train()),
        (3, lambda body: body.layers[0].register_forward_hook(lambda *_: None)),
        (3, lambda body: setattr(body.layers[1], "forward", body.layers[1].forward)),
        (3, lambda body: setattr(body.layers[0], "mlp", type("Mine", (nn.Identity,), {})())),
        (3, lambda body: body.half()),
    ],
    ids=["one row", "many rows", "training", "hook", "forward", "foreign module", "float16"],
)
def test_what_would_not_pay_or_be_right_is_not_packed(rows, spoil, monkeypatch):
    monkeypatch.setattr(packed, "LEAST", 1)
    body = bfloat16("llama")
    spoil(body)
    assert packed_body(body, rows) is None


@pytest.mark.parametrize(("name", "value"), [("LEAST", 10**9), ("MOST", 1000), ("SHARE", 10**9)])
def test_neither_small_models_nor_those_beyond_the_memory_are_packed(name, value, monkeypatch):
    monkeypatch.setattr(packed, name, value)
    assert packed_body(bfloat16("llama"), 3) is None


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  4096 kB\n", True),
        ("MemTotal: 4096 kB\nMemAvailable: 9 kB\n", False),
        ("MemTotal: 4096 kB\n", False),
        (None, False),
    ],
)
def test_weights_are_packed_where_the_system_says_that_there_is_memory(
    text, fits, monkeypatch, tmp_path
):
    monkeypatch.setattr(packed, "MEMORY", tmp_path / "meminfo")
    if text is not None:
        packed.MEMORY.write_text(text)
    assert (packed_body(bfloat16("llama"), 3) is not None) == fits


def test_other_weights_are_read_inside_alone():
    mirror, x = packed_body(bfloat16("llama"), 3), torch.ones(3, 32).bfloat16()
    layer, before = mirror.layers[0].mlp.up_proj, weights_of(mirror)
    want = layer(x)
    others = [torch.ops.mkldnn._reorder_linear_weight(-layer.weight, 3)] * len(before)
    with pytest.raises(KeyError), reading(mirror, others):
        assert_near(layer(x), -want)
        raise KeyError
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma"])
def test_a_recording_serves_calls_that_pack_their_own_weights(kind, monkeypatch):
    body, recorder, ran = bfloat16(kind), Recorder(patience=3), []
    own = traced_step.read
    monkeypatch.setattr(traced_step, "read", lambda b, inputs: ran.append(b) or own(b, inputs))
    for factor in (1.0, -0.7):
        with torch.no_grad():
            for parameter in (
                body.layers[0].parameters() if kind != "gpt_neo" else body.parameters()
            ):
                parameter.mul_(factor)
        want, _ = walk(body, False, steps=20)
        ran.clear()
        got, _ = walk(body, False, steps=20, last=Reading(body, recorder).last)
        assert_near(got, want)
    # The prompt, a token before weights were packed, and none after: the recording was made before.
    assert len(ran) == 1


def alike(got, want):
    """Whether texts differ by a rounded number's choice at most."""
    return got.shape == want.shape and bool((got == want).float().mean() > 0.8)


def controllers(tiny):
    adapted = pa.DExperts(tiny(seed=1).bfloat16(), tiny(seed=2).bfloat16())
    return {"none": 0 * pa.SelfDebias(["w5"]), "prompts": pa.SelfDebias(["w5 w6"]), "own": adapted}


@pytest.mark.parametrize("name", ["none", "prompts", "own"])
def test_a_call_gives_the_same_and_keeps_no_copy(name, tiny, tokenizer, prompts, monkeypatch):
    model, controller = tiny().bfloat16(), controllers(tiny)[name]

    def call(rows=3):
        torch.manual_seed(5)
        steered = pa.wrap(model, tokenizer, controller)
        options = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0}
        return steered, steered.generate(**prompts(rows=rows), **options)

    monkeypatch.setattr(grouped, "MOST_STACKED", 0)
    made, own = [], PackedLinear.__init__
    monkeypatch.setattr(
        PackedLinear, "__init__", lambda s, *a: made.append(weakref.ref(s)) or own(s, *a)
    )
    steered, got = call()
    assert made, "nothing was packed"
    gc.collect()
    assert not any(layer() for layer in made)
    assert steered is not None
    monkeypatch.setattr(packed, "LEAST", 10**9)
    assert alike(got, call()[1])


def test_a_model_with_windows_is_packed_too():
    """Its steps are not recorded."""
    body = bfloat16("gemma3_text", sliding_window=8)
    reading = Reading(body, Recorder(patience=0))
    want, got = walk(body, False, steps=20)[0], walk(body, False, steps=20, last=reading.last)[0]
    assert reading.is_packed
    assert_near(got, want)


def test_weights_that_change_between_calls_are_seen(tiny, tokenizer, prompts):
    model = tiny().bfloat16()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.split_models.recorder = Recorder(patience=0)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    before = steered.generate(**prompts(), **options)
    model.get_output_embeddings().weight.data.neg_()
    model.model.layers[0].mlp.up_proj.weight.data.mul_(-2)
    after = steered.generate(**prompts(), **options)
    assert alike(after, model.generate(**prompts(), **options))
    assert not alike(after, before)


def test_a_processor_that_is_kept_follows_its_models(tiny, tokenizer, prompts):
    expert, base = tiny(seed=1).bfloat16(), tiny().bfloat16()
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    mask = prompts()["attention_mask"]
    kept = pa.wrap(base, tokenizer, pa.DExperts(expert)).processor(mask)
    base.generate(**prompts(), logits_processor=[kept], **options)
    expert.model.layers[0].mlp.up_proj.weight.data.mul_(-2)
    expert.get_output_embeddings().weight.data.neg_()
    other = {**prompts(seed=4), "attention_mask": mask}
    fresh = pa.wrap(base, tokenizer, pa.DExperts(expert)).processor(mask)
    want = base.generate(**other, logits_processor=[fresh], **options)
    assert alike(base.generate(**other, logits_processor=[kept], **options), want)
