"""What controllers together ask of a step, known before anything runs."""

import pytest
import torch

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.sources import BASE
from plugalign.algebra.steering import Steering
from plugalign.engine.plan import make_plan


def plan_of(controller, model, tokenizer):
    return make_plan(controller, model, tokenizer)


def test_two_controllers_share_an_expert(tiny, tokenizer):
    model, shared, other = tiny(), tiny(seed=1), tiny(seed=2)
    both = pa.DExperts(shared, antiexpert=other) + pa.DExperts(tiny(seed=3), antiexpert=other)
    plan = plan_of(both, model, tokenizer)
    assert len(plan.experts) == 3
    assert sum(expert is other for expert in plan.experts.values()) == 1


def test_order_does_not_matter(tiny, tokenizer):
    model = tiny()
    a, b = pa.DExperts(tiny(seed=1), top_p=0.8), pa.SelfDebias(["w5"])
    one, other = plan_of(a + b, model, tokenizer), plan_of(b + a, model, tokenizer)
    assert [name for name, _ in one.steerings] == [name for name, _ in other.steerings]
    assert list(one.sources) == list(other.sources)


def test_a_controller_of_weight_zero_asks_for_nothing(tiny, tokenizer):
    plan = plan_of(0 * pa.DExperts(tiny(seed=1)), tiny(), tokenizer)
    assert (plan.steerings, plan.sources) == ((), {})


def test_supports_intersect(tiny, tokenizer):
    both = pa.DExperts(tiny(seed=1), top_p=0.8) + pa.DExperts(tiny(seed=2), top_p=0.6)
    plan = plan_of(both, tiny(), tokenizer)
    assert plan.truncation.top_p == 0.6 and not plan.masks
    assert plan.unsteered == plan.truncation


def test_a_support_that_follows_the_steering_counts_as_what_it_is_without(tiny, tokenizer):
    moved, gate = pa.PPLM(["w5"], top_k=8), pa.FirstSteps(2)
    plan = plan_of(moved + pa.DExperts(tiny(seed=1), top_p=0.8), tiny(), tokenizer)
    assert (plan.truncation.top_k, plan.truncation.top_p) == (0, 0.8)
    assert (plan.unsteered.top_k, plan.unsteered.top_p) == (8, 0.8)
    assert plan_of(moved.when(gate), tiny(), tokenizer).unsteered.top_k == 0


def test_behind_a_gate_nothing_is_always_read(tiny, tokenizer):
    model, expert = tiny(), pa.DExperts(tiny(seed=1))
    gated = plan_of(expert.when(pa.FirstSteps(2)), model, tokenizer)
    assert len(gated.sources) > len(gated.always_read)
    assert not gated.experts and "FirstSteps" in gated.why_stepwise
    assert "FirstSteps" in gated.why_uncapturable
    both = plan_of(expert + expert.when(pa.FirstSteps(2)), model, tokenizer)
    assert len(both.experts) == 1  # what is outside needs it at every step


def test_what_is_only_added_up_is_linear(tiny, tokenizer):
    model, experts = tiny(), pa.DExperts(tiny(seed=1), antiexpert=tiny(seed=2), alpha=2.0)
    plan = plan_of(0.5 * experts, model, tokenizer)
    assert sorted(plan.linear.values()) == [-1.0, 1.0]
    damped = plan_of(experts + pa.SelfDebias(["w5"]), model, tokenizer)
    assert sorted(damped.linear.values()) == [-2.0, 2.0]  # a prompt's own logits are compared


def test_a_plan_is_made_anew_when_weights_that_it_hangs_on_have_changed(tiny, tokenizer):
    model, controller = tiny(), pa.Nullspace(torch.eye(32)[:, :3])
    plan = plan_of(controller, model, tokenizer)
    assert plan.refreshed(controller, model, tokenizer) is plan
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    assert plan.refreshed(controller, model, tokenizer) is not plan
    debias = pa.SelfDebias(["w5"])
    other = plan_of(debias, model, tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    assert other.refreshed(debias, model, tokenizer) is other


class Declares(Controller):
    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (None, r"Declares declared a NoneType \(None\) where a Steering belongs"),
        (Steering(shifts=("a shift",)), "declared a str .'a shift'. where a Shift belongs"),
        (Steering(supports=(0.9,)), r"declared a float \(0\.9\) where a Support belongs"),
    ],
)
def test_what_is_no_declaration_is_refused_by_name(steering, message, tiny, tokenizer):
    with pytest.raises(TypeError, match=message):
        plan_of(Declares(steering), tiny(), tokenizer)


def test_a_name_for_the_forward(tiny, tokenizer):
    plan = plan_of(pa.SelfDebias(["w5"]), tiny(), tokenizer)
    assert plan.forward_name([]) == "the base model"
    names = plan.forward_name(plan.contexts)
    assert names.startswith("the base model with the rows of '")
    assert BASE not in plan.contexts
