"""A head is linear: models that share one and are only added up need it once."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import plugalign as pa
from plugalign.adapters.layers import LoraLinear, shared_copy
from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import BiasDecay, LogLinear
from plugalign.algebra.sources import Context, Logits
from plugalign.algebra.steering import Steering
from plugalign.engine.batching.batched_base import FEW
from plugalign.engine.step import Step
from plugalign.kernels.head import Head, is_same, weighted_sum
from plugalign.kernels.mixture import mix


def adapted(model, seed):
    """A LoRA expert: the model with low-rank changes, under the same head."""
    draw = torch.Generator().manual_seed(seed)
    expert = shared_copy(model)
    for name, module in list(expert.named_modules()):
        if name.endswith(("q_proj", "up_proj")):
            out, into = module.weight.shape
            down, up = (torch.randn(n, 4, generator=draw) for n in (into, out))
            expert.set_submodule(name, LoraLinear(module, down, up.T))
    return expert


@pytest.fixture
def mixtures(monkeypatch):
    """All that steps were made of."""
    seen, mixture = [], Step.mixture

    def noted(step, *args):
        seen.append(mixture(step, *args))
        return seen[-1]

    monkeypatch.setattr(Step, "mixture", noted)
    return seen


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    options = {"max_new_tokens": 6, "do_sample": True, "top_p": 0.9, "pad_token_id": 0} | options
    return steered.generate(**inputs, **options)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", [(2.0, -2.0), (0.5, 1.25)])
def test_a_sum_of_heads_is_a_head(bias, weights):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 16, generator=draw), torch.randn(40, 16, generator=draw)
    shift = torch.randn(40, generator=draw) if bias else None
    want = torch.zeros(5, 40, dtype=torch.float64)
    for state, factor in zip(hidden, weights, strict=True):
        logits = state.double() @ weight.double().T + (0 if shift is None else shift.double())
        want += factor * logits
    got = weighted_sum([Head(state, weight, shift) for state in hidden], weights)
    torch.testing.assert_close(got.full().double(), want, rtol=1e-5, atol=1e-5)


def test_what_counts_as_one_head():
    hidden, weight, bias = torch.zeros(1, 4), torch.zeros(9, 4), torch.zeros(9)
    assert is_same(Head(hidden, weight), Head(hidden + 1, weight))
    assert is_same(Head(hidden, weight, bias), Head(hidden, weight.detach(), bias))
    assert not is_same(Head(hidden, weight, bias), Head(hidden, weight))
    assert not is_same(Head(hidden, weight), Head(hidden, weight.clone()))
    assert not is_same(Head(hidden, weight), Head(hidden, weight[:8]))


@pytest.mark.parametrize("rows", [2, FEW])
def test_experts_under_the_base_head_are_one_source(rows, tiny, tokenizer, prompts, mixtures):
    model = tiny()
    controller = pa.DExperts(adapted(model, 1), adapted(model, 2), alpha=1.5)
    steered, inputs = pa.wrap(model, tokenizer, controller), prompts(rows=2)
    inputs = {k: x.repeat_interleave(rows // 2, 0) for k, x in inputs.items()}
    processor = steered.processor(inputs["attention_mask"])
    torch.manual_seed(0)
    step = generate(steered, inputs, max_new_tokens=1)
    assert {count_inputs(m) for m in mixtures} == {2}
    # One by one and in float64, from whole forwards.
    place = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    wide = [
        m.double()(inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=place)
        for m in (shared_copy(x) for x in (model, controller.expert, controller.antiexpert))
    ]
    base, expert, anti = (x.logits[:, -1].log_softmax(-1) for x in wide)
    z = base + 1.5 * (expert - anti)
    got = processor(inputs["input_ids"], base.float())
    kept = got.isfinite()
    want = z.masked_fill(~kept, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(got[kept].double(), want[kept], rtol=1e-4, atol=1e-4)
    # And what the loop made of its rows, in one product where there are few.
    mixed = mix(mixtures[0])
    raw = base + 1.5 * (wide[1].logits - wide[2].logits)[:, -1]
    torch.testing.assert_close(
        mixed.double().log_softmax(-1), raw.log_softmax(-1), rtol=1e-4, atol=1e-4
    )
    assert step.shape == (len(inputs["input_ids"]), 8)


def test_it_is_refused_for_other_heads(tiny, tokenizer, prompts, mixtures):
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))
    generate(steered, prompts())
    assert {count_inputs(m) for m in mixtures} == {3}


def test_it_is_refused_where_logits_are_capped(tokenizer, prompts, mixtures):
    config = Gemma2Config(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    experts = adapted(model, 1), adapted(model, 2)
    generate(pa.wrap(model, tokenizer, pa.DExperts(*experts)), prompts())
    assert {count_inputs(m) for m in mixtures} == {3}


def count_inputs(mixture):
    return len(list(mixture.inputs()))


class Declared(Controller):
    def __init__(self, *shifts):
        self.steering = Steering(shifts)

    def steer(self, model, tokenizer):
        return self.steering


def test_a_prompt_that_also_debiases_stays_a_source_of_its_own(tiny, tokenizer, prompts, mixtures):
    rude, polite = (
        Logits(name, context=Context(ids)) for name, ids in (("rude", (5, 6)), ("polite", (7,)))
    )
    other = Logits("other", context=Context((8, 9)))
    added = LogLinear(((1.0, polite), (-1.0, rude), (0.5, other)))
    both = Declared(added, BiasDecay((rude,), decay=10.0, floor=0.01))
    model = tiny()
    steered = pa.wrap(model, tokenizer, both)
    assert set(steered.plan.linear) == {polite.key, other.key}
    generate(steered, prompts())
    # The base, the head of the others' sum, and the rude prompt twice: added, and damping.
    assert {count_inputs(m) for m in mixtures} == {4}
    apart = pa.wrap(model, tokenizer, both)
    apart.plan.__dict__["linear"] = {}
    got, want = (mix(step_of(each, prompts(), mixtures)) for each in (steered, apart))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def step_of(steered, inputs, mixtures):
    mixtures.clear()
    generate(steered, inputs, max_new_tokens=1)
    return mixtures[0]


def test_it_is_refused_where_sums_may_overflow(tiny, tokenizer, prompts, mixtures):
    model = tiny().half()
    controller = pa.DExperts(adapted(model, 1), adapted(model, 2), alpha=3e4)
    generate(pa.wrap(model, tokenizer, controller), prompts())
    assert {count_inputs(m) for m in mixtures} == {3}
