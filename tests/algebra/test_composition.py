"""Sums: one canonical order, nested sums, weights."""

import pytest
import torch

import plugalign as pa
from plugalign.algebra.controller import Composition, Controller
from plugalign.evaluation.run_folder.describe import describe_controller


def reworded(controller: Controller, text: str) -> str:
    for _, part in controller.parts():
        text = part.prompt(text)
    return text


def test_prompts_are_reworded_in_one_order_whenever_controllers_were_made(tmp_path):
    kept, texts = [], set()
    for number in range(16):
        words = ["Be kind.", "Be brief.", "Be true."]
        made = [pa.ValueStatement(each) for each in words[number % 3 :] + words[: number % 3]]
        whole = made[0] + made[1] + made[2]
        whole.save_pretrained(tmp_path)
        kept += [whole, pa.Controller.from_pretrained(tmp_path), [object()] * number]
        texts |= {reworded(each, "x") for each in kept[-3:-1]}
    assert len(texts) == 1


def test_prefixes_stand_in_one_order_whenever_controllers_were_made():
    kept, orders = [], set()
    for number in range(16):
        made = [pa.PrefixTuning(torch.full((2, 2, 2, 3, 8), float(x))) for x in (1, 2, 3)]
        kept += [made, [object()] * number]
        parts = (made[number % 3] + made[number % 3 - 1] + made[number % 3 - 2]).parts()
        orders.add(tuple(float(part.keys_values[0, 0, 0, 0, 0]) for _, part in parts))
    assert len(orders) == 1


def test_a_saved_sum_is_described_alike_whenever_it_is_loaded(tiny, tokenizer, tmp_path):
    for seed in (1, 2):
        tiny(seed=seed).save_pretrained(tmp_path / str(seed))
    experts = 0.5 * pa.DExperts(tmp_path / "1") + pa.DExperts(tmp_path / "2")
    gated = 3 * pa.SelfDebias(["w5"]).when(pa.FirstSteps(2)) + pa.SelfDebias(["w5"])
    (experts + gated + 2 * pa.SelfDebias(["w6"])).save_pretrained(tmp_path / "sum")
    loaded = [pa.Controller.from_pretrained(tmp_path / "sum") for _ in range(12)]
    first, *others = map(describe_controller, loaded)
    assert all(other == first for other in others)


def test_a_sum_in_a_sum_adds_up(tiny, tokenizer):
    a, b = pa.SelfDebias(["w5"]), pa.SelfDebias(["w6"])
    nested = Composition((0.5, a + 2 * b), (1.0, b))
    assert nested == 0.5 * a + 2 * b
    assert len(pa.wrap(tiny(), tokenizer, nested).plan.shifts) == 2


@pytest.mark.parametrize("make", [lambda a: 1e200 * (1e200 * a), lambda a: 1e308 * a + 1e308 * a])
def test_weights_that_grow_beyond_all_numbers_are_refused(make):
    with pytest.raises(ValueError, match="weight must be finite, got inf"):
        make(pa.SelfDebias(["w5"]))


def test_the_same_controller_twice_is_one_of_the_weights_together(tiny, tokenizer):
    model, a = tiny(), pa.SelfDebias(["w5 w6"])
    one, other = (pa.wrap(model, tokenizer, c) for c in (0.3 * a + 0.4 * a, 0.7 * a))
    assert len(one.plan.shifts) == 1
    scores = [each.log_probs(["w1 w2 w3"])[0] for each in (one, other)]
    torch.testing.assert_close(*scores)
