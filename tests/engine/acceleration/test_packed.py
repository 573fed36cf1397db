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


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Small models are packed too, at the second token."""
    monkeypatch.setattr(packed, "LEAST", 0)
    monkeypatch.setattr(traced_step, "AFTER", 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "opt", "gemma3_text", "mixtral"])
def test_a_packed_body_gives_the_same_and_leaves_the_body_alone(kind, dtype):
    window = {"sliding_window": 8} if kind == "gemma3_text" else {}
    body = body_of(kind, **window).to(dtype)
    modules, values = list(body.modules()), [p.clone() for p in body.parameters()]
    mirror = packed_body(body, 3)
    assert weights_of(mirror) and not weights_of(body)
    want, got = walk(body, True, steps=4)[0], walk(mirror, True, steps=4)[0]
    error = (got - want).float().norm() / want.float().norm()
    assert error <= 4 * torch.finfo(dtype).eps
    assert all(a is b for a, b in zip(modules, body.modules(), strict=True))
    assert all(map(torch.equal, values, body.parameters()))


def test_a_layer_that_stands_twice_is_packed_once():
    body = body_of("llama")
    body.layers[1].mlp = body.layers[0].mlp
    mirror = packed_body(body, 3)
    assert mirror.layers[1].mlp is mirror.layers[0].mlp
    assert len(weights_of(mirror)) == len(weights_of(packed_body(body_of("llama"), 3))) - 3


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
    body = body_of("llama")
    spoil(body)
    assert packed_body(body, rows) is None


@pytest.mark.parametrize(("name", "value"), [("LEAST", 10**9), ("MOST", 1000), ("SHARE", 10**9)])
def test_neither_small_models_nor_those_beyond_the_memory_are_packed(name, value, monkeypatch):
    monkeypatch.setattr(packed, name, value)
    assert packed_body(body_of("llama"), 3) is None


def test_other_weights_are_read_inside_alone():
    mirror, x = packed_body(body_of("llama"), 3), torch.ones(3, 32)
    layer, before = mirror.layers[0].mlp.up_proj, weights_of(mirror)
    want = layer(x)
    others = [torch.ops.mkldnn._reorder_linear_weight(-layer.weight, 3)] * len(before)
    with pytest.raises(KeyError), reading(mirror, others):
        assert torch.allclose(layer(x), -want, atol=1e-6)
        raise KeyError
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma"])
def test_a_recording_serves_calls_that_pack_their_own_weights(kind, monkeypatch):
    body, recorder, ran = body_of(kind), Recorder(patience=3), []
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
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    # The prompt, a token before weights were packed, and none after: the recording was made before.
    assert len(ran) == 1


def controllers(tiny):
    adapted = pa.DExperts(tiny(seed=1), tiny(seed=2))
    return {"none": 0 * pa.SelfDebias(["w5"]), "prompts": pa.SelfDebias(["w5 w6"]), "own": adapted}


@pytest.mark.parametrize("name", ["none", "prompts", "own"])
def test_a_call_gives_the_same_and_keeps_no_copy(name, tiny, tokenizer, prompts, monkeypatch):
    model, controller = tiny(), controllers(tiny)[name]

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
    assert torch.equal(got, call()[1])


def test_a_model_with_windows_is_packed_too():
    """Its steps are not recorded."""
    body = body_of("gemma3_text", sliding_window=8)
    reading = Reading(body, Recorder(patience=0))
    want, got = walk(body, False, steps=20)[0], walk(body, False, steps=20, last=reading.last)[0]
    assert reading.is_packed
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_weights_that_change_between_calls_are_seen(tiny, tokenizer, prompts):
    model = tiny()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.split_models.recorder = Recorder(patience=0)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    before = steered.generate(**prompts(), **options)
    model.get_output_embeddings().weight.data.neg_()
    model.model.layers[0].mlp.up_proj.weight.data.mul_(-2)
    after = steered.generate(**prompts(), **options)
    assert torch.equal(after, model.generate(**prompts(), **options))
    assert not torch.equal(after, before)


def test_a_processor_that_is_kept_follows_its_models(tiny, tokenizer, prompts):
    expert, base = tiny(seed=1), tiny()
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    mask = prompts()["attention_mask"]
    kept = pa.wrap(base, tokenizer, pa.DExperts(expert)).processor(mask)
    base.generate(**prompts(), logits_processor=[kept], **options)
    expert.model.layers[0].mlp.up_proj.weight.data.mul_(-2)
    expert.get_output_embeddings().weight.data.neg_()
    other = {**prompts(seed=4), "attention_mask": mask}
    fresh = pa.wrap(base, tokenizer, pa.DExperts(expert)).processor(mask)
    want = base.generate(**other, logits_processor=[fresh], **options)
    assert torch.equal(base.generate(**other, logits_processor=[kept], **options), want)
