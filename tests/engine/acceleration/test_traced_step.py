"""A recorded step gives what the body gives, and is never used where it might not."""

from __future__ import annotations

import operator

import pytest
import torch
from bodies import SIZES, body_of, walk
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

import plugalign as pa
from plugalign.engine.acceleration import hooks, traced_step, tracing
from plugalign.engine.acceleration.traced_step import Reading, Recorder, Recording
from plugalign.engine.acceleration.tracing import KNOWN, is_repeatable, read


def assert_walks_alike(body, masked, last, rows=3):
    """Equal to rounding: a mask that transformers leaves out may be written out in a recording."""
    want, held = walk(body, masked, rows=rows)
    got, cache = walk(body, masked, last=last, rows=rows)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    for mine, theirs in zip(cache.layers, held.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=0, atol=2e-5)
        torch.testing.assert_close(mine.values, theirs.values, rtol=0, atol=2e-5)


def runs_of(body, monkeypatch):
    """A list that grows by one whenever the body itself runs."""
    runs, own = [], read
    monkeypatch.setattr(
        traced_step, "read", lambda b, inputs: runs.append(b is body) or own(b, inputs)
    )
    return runs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_every_known_architecture_is_recorded_and_gives_the_same(kind, masked, monkeypatch):
    body = body_of(kind)
    made = Recording(body, 3)
    runs = runs_of(body, monkeypatch)
    assert_walks_alike(body, masked, lambda inputs: made.last(inputs, body))
    # Three before it is made, and some side by side with it.
    assert sum(runs) == 3 + traced_step.PROOFS, "the recording was not used"


@pytest.mark.parametrize(("dtype", "one"), [(torch.float32, True), (torch.float64, False)])
def test_a_gelu_is_one_operation_where_rounding_may_differ(dtype, one):
    body = body_of("gpt_neo").to(dtype)
    parts, ids = list(body.modules()), torch.tensor([[5]])
    cache = torch.zeros(1, 4, 3, 8, dtype=dtype)
    graph = tracing.record(body, [ids, torch.tensor([[3]]), *[cache] * 4], False).inlined_graph
    kinds = [node.kind() for node in graph.nodes()]
    counts = kinds.count("aten::gelu"), kinds.count("aten::tanh")
    assert counts == ((2, 0) if one else (0, 2))
    assert all(map(operator.is_, parts, body.modules())), "the model itself was changed"


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_every_weight_may_change_in_place(kind):
    """Also those that are equal when a recording is made, and those that it has evaluated."""
    body, recorder = body_of(kind), Recorder(patience=1)
    walk(body, False, steps=6, last=Reading(body, recorder).last)
    for name, tensor in body.named_parameters():
        before = tensor.data.clone()
        tensor.data.add_(torch.linspace(0.3, 1.0, tensor.numel()).view(tensor.shape))
        want, _ = walk(body, False, steps=6)
        got, _ = walk(body, False, steps=6, last=Reading(body, recorder).last)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=name)
        tensor.data.copy_(before)


def test_a_step_that_changes_with_the_length_is_found_out(monkeypatch):
    class Moody(LlamaModel):
        def forward(self, *args, **inputs):
            answer = super().forward(*args, **inputs)
            long = inputs["past_key_values"].layers[0].keys.shape[-2] > 13
            answer.last_hidden_state = answer.last_hidden_state * (2.0 if long else 1.0)
            return answer

    monkeypatch.setattr(hooks, "MAKERS", (*hooks.MAKERS, __name__))
    body = body_of("llama")
    body.__class__ = Moody
    made = Recording(body, 3)
    assert_walks_alike(body, False, lambda inputs: made.last(inputs, body))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.train(),
        lambda body: body.layers[0].register_forward_hook(lambda *_: None),
        lambda body: body.layers[0].mlp.register_forward_pre_hook(lambda *_: None),
        lambda body: setattr(body.layers[1], "forward", body.layers[1].forward),
        lambda body: setattr(body.config, "model_type", "something_new"),
        lambda body: setattr(body.rotary_emb, "rope_type", "dynamic"),
        lambda body: setattr(body.layers[0], "mlp", type("Mine", (nn.Identity,), {})()),
    ],
    ids=["training", "hook", "pre-hook", "forward", "unknown", "moving rope", "foreign module"],
)
def test_what_is_not_known_to_repeat_is_not_recorded(spoil):
    body = body_of("llama")
    assert is_repeatable(body)
    spoil(body)
    assert not is_repeatable(body)


@pytest.mark.parametrize(
    ("rows", "changed", "factor", "same"),
    [(8, 0, 1, True), (8, 4, 1.01, True), (8, 5, 1.01, False), (8, 1, 1.2, False)],
)
def test_in_half_precision_some_rows_may_be_rounded_otherwise(rows, changed, factor, same):
    """A recording stands in for a body that gives other numbers in so many rows of one step."""
    body, seen = body_of("llama").bfloat16(), []
    made = Recording(body, 0)

    def step(inputs):
        found = made.last(inputs, body)
        if made._graph is not None and not seen:
            seen.append(made._graph)
            made._graph = lambda *a: (spoiled(seen[0](*a)[0]), *seen[0](*a)[1:])
        return found

    def spoiled(state):
        return torch.cat([state[:changed] * factor, state[changed:]])

    walk(body, False, steps=4, last=step, rows=rows)
    assert made._refused is not same


@pytest.fixture
def steered(tiny, tokenizer):
    """A wrapped tiny model whose steps are recorded at once."""
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5 w6", "w7"]))
    steered.split_models.recorder = Recorder(patience=0)
    return steered


def call(steered, prompts, recorder=True, rows=3, **options):
    if not recorder:
        steered = pa.wrap(steered.model, steered.tokenizer, steered.controller)
    options = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0, **options}
    torch.manual_seed(5)
    return steered.generate(**prompts(rows=rows), **options)


def test_loop_gives_the_same_tokens_with_recordings(steered, prompts):
    for rows in (3, 1, 3, 5):  # other batch sizes in between
        for options in ({}, {"do_sample": False}, {"num_return_sequences": 2}):
            got = call(steered, prompts, rows=rows, **options)
            assert torch.equal(got, call(steered, prompts, False, rows=rows, **options))


def test_processor_path_gives_the_same_tokens_with_recordings(steered, prompts):
    got = call(steered, prompts, num_beams=2, do_sample=False)
    assert torch.equal(got, call(steered, prompts, False, num_beams=2, do_sample=False))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.model.layers[0].mlp.up_proj.weight.data.mul_(-2),
        lambda m: setattr(m.model.layers[0].mlp.up_proj.weight, "data", -torch.ones(48, 32)),
        lambda m: setattr(m.model.layers[0].mlp, "up_proj", nn.Linear(32, 48, bias=False)),
        lambda m: setattr(
            m.model.layers[1].mlp.up_proj, "weight", nn.Parameter(torch.ones(48, 32))
        ),
        lambda m: m.model.layers[0].mlp.register_forward_hook(lambda _m, _a, out: -out),
        lambda m: m.model.layers[0].mlp.register_forward_pre_hook(lambda _m, args: (-args[0],)),
        lambda m: setattr(m.model.layers[0].self_attn, "scaling", 3.0),
        lambda m: setattr(m.model.norm, "variance_epsilon", 1e3),
    ],
    ids=["in place", "data", "module", "parameter", "hook", "pre-hook", "scaling", "epsilon"],
)
def test_a_changed_model_is_never_replayed_as_it_was(steered, prompts, change):
    before = call(steered, prompts)
    change(steered.model)
    after = call(steered, prompts)
    assert torch.equal(after, call(steered, prompts, False))
    assert not torch.equal(after, before), "the change changes nothing"


def test_experts_of_one_forward_follow_their_weights(tiny, tokenizer, prompts):
    expert = tiny(seed=1)
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(expert, tiny(seed=2)))
    steered.split_models.recorder = Recorder(patience=0)
    before = call(steered, prompts)
    assert torch.equal(before, call(steered, prompts, False))
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.neg_()
    after = call(steered, prompts)
    assert torch.equal(after, call(steered, prompts, False))
    assert not torch.equal(after, before)


def test_a_processor_that_is_kept_follows_its_models(tiny, tokenizer, prompts):
    expert, base = tiny(seed=1), tiny()
    steered = pa.wrap(base, tokenizer, pa.DExperts(expert))
    steered.split_models.recorder = Recorder(patience=0)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    mask = prompts()["attention_mask"]
    kept = steered.processor(mask)
    base.generate(**prompts(), logits_processor=[kept], **options)
    expert.model.norm.weight.data.neg_()
    other = {**prompts(seed=4), "attention_mask": mask}
    fresh = pa.wrap(base, tokenizer, pa.DExperts(expert)).processor(mask)
    want = base.generate(**other, logits_processor=[fresh], **options)
    assert torch.equal(base.generate(**other, logits_processor=[kept], **options), want)


def test_a_recording_that_breaks_lets_the_body_say_why(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny("gpt2-tied"), tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.split_models.recorder = Recorder(patience=0)
    with pytest.raises(IndexError):
        call(steered, prompts, max_new_tokens=130, use_model_defaults=None)


def test_recordings_made_in_inference_mode_serve_outside(steered, prompts):
    with torch.inference_mode():
        inside = call(steered, prompts)
    assert torch.equal(inside, call(steered, prompts))


def test_static_cache_is_not_replayed(tiny, tokenizer, prompts, monkeypatch):
    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    monkeypatch.setattr(Recording, "last", lambda *_: pytest.fail("a static cache was replayed"))
    call(steered, prompts, cache_implementation="static")
    with pytest.raises(pytest.fail.Exception):
        call(steered, prompts)


def test_only_so_many_recordings_are_kept(steered, prompts):
    for rows in range(1, traced_step.KEPT + 3):
        call(steered, prompts, rows=rows, max_new_tokens=3)
    ((_, kept),) = steered.split_models.recorder._known.values()
    assert len(kept) == traced_step.KEPT


@pytest.mark.parametrize("kind", ["gpt_neo", "llama"])
def test_logits_that_are_shown_are_the_models_own(kind, tokenizer, prompts):
    sizes = {k: v for k, v in SIZES.items() if k in AutoConfig.for_model(kind).to_dict()}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**sizes, "eos_token_id": None, "bos_token_id": None})
    model = AutoModelForCausalLM.from_config(config).eval()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    steered.split_models.recorder = Recorder(patience=2)
    options = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    inputs = prompts(rows=1)
    want = model.generate(**inputs, max_new_tokens=20, **options).logits
    got = steered.generate(**inputs, max_new_tokens=20, **options).logits
    assert torch.equal(torch.stack(got), torch.stack(want))
    (recordings,) = (known for _, known in steered.split_models.recorder._known.values())
    assert [form[2] for form in recordings] == [True]
