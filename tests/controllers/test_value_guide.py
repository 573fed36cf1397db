"""Guide and gate by a value: what their readers give is what whole forwards give."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit
from tiny_models import make_model, make_prompts, make_tokenizer

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.controllers.equilibrium import Equilibrium
from plugalign.controllers.principles import Preferences, Principle
from plugalign.controllers.value_head import ValueHead
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.guiding import gate, guide, head_of
from plugalign.values.discriminator.head import Calibration, Head
from plugalign.values.discriminator.readers import CausalReader, EncoderReader
from plugalign.values.discriminator.sheet import Sheet

STATEMENT = "w50 w51"


def discriminator(architecture: str = "llama-gqa", layer: int = 1) -> ValueDiscriminator:
    reader = CausalReader(make_model(architecture), make_tokenizer(), (layer,))
    weights = np.random.default_rng(0).normal(size=32) / 3
    sheet = Sheet(statement=STATEMENT, model="tiny")
    return ValueDiscriminator(
        STATEMENT, reader, Head(weights, 0.2), Calibration(1.7, -0.1, 0.5, -0.5, 0.9), sheet
    )


def step_of(model, batch) -> SimpleNamespace:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        base = model(input_ids=ids, attention_mask=mask, position_ids=place).logits[:, -1]
    return SimpleNamespace(ids=ids, mask=mask, base=base, number=torch.zeros(len(ids)))


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied", "qwen2-tied", "neox"])
@pytest.mark.parametrize("layer", [1, 2])
def test_candidates_are_worth_what_their_texts_are(architecture: str, layer: int) -> None:
    judge = discriminator(architecture, layer)
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    batch = make_prompts()
    (shift,) = guide(judge, k=6).steer(model, tokenizer).shifts
    reader = shift.scores.reader(model)
    for _ in range(3):  # behind a cache that grows
        step = step_of(model, batch)
        found = reader.read(step)
        texts = [
            tokenizer.decode([*row[keep.bool()].tolist(), token])
            for row, keep, tokens in zip(step.ids, step.mask, found.ids.tolist(), strict=True)
            for token in tokens
        ]
        wanted = logit(judge.conforms(texts)).reshape(found.values.shape)
        np.testing.assert_allclose(found.values.numpy(), wanted, rtol=1e-3, atol=1e-3)
        grown = torch.cat([batch["input_ids"], found.ids[:, 2:3]], 1)
        batch = {
            "input_ids": grown,
            "attention_mask": torch.cat([batch["attention_mask"], torch.ones(3, 1).long()], 1),
        }


def test_breaks_is_the_other_side() -> None:
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    step = step_of(model, make_prompts())
    kind, rude = (
        each.steer(model, tokenizer).shifts[0].scores.reader(model).read(step).values
        for each in (guide(judge, k=50), guide(judge, k=50, breaks=True))
    )
    torch.testing.assert_close(kind, -rude)


def test_a_gate_is_open_where_the_text_breaks_the_value() -> None:
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    batch = make_prompts(rows=6, width=14)
    step = step_of(model, batch)
    texts = [
        tokenizer.decode(row[keep.bool()]) for row, keep in zip(step.ids, step.mask, strict=True)
    ]
    breaks = judge(texts)
    threshold = float(np.median(breaks))
    bound = gate(judge, threshold).bound(model, tokenizer)
    reader = bound.source.reader(model)
    step.read = lambda source: reader.read(step)
    assert bound.open(step).tolist() == (breaks >= threshold).astype(float).tolist()


def test_equal_gates_of_a_loaded_sum_share_one_forward(tmp_path: Path) -> None:
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    parts = [pa.SelfDebias([f"w{i} w9"]).when(gate(judge)) for i in (50, 51)]
    (parts[0] + parts[1]).save_pretrained(tmp_path / "sum")
    loaded = Controller.from_pretrained(str(tmp_path / "sum"))
    first, second = pa.wrap(model, tokenizer, loaded).plan.shifts
    assert first.gates[0] is second.gates[0]
    assert gate(judge) == gate(judge) != gate(judge, 0.6) != gate(discriminator(layer=2))


def test_guided_text_conforms_more() -> None:
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    batch = make_prompts(rows=8, width=12)
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 0}
    found = []
    for controller in (guide(judge, k=120, weight=0.0), guide(judge, k=120, weight=50.0)):
        torch.manual_seed(0)
        ids = pa.wrap(model, tokenizer, controller).generate(**batch, **options)
        found.append(judge.conforms(tokenizer.batch_decode(ids, skip_special_tokens=True)).mean())
    assert found[1] > found[0] + 0.05


def test_a_value_bounds_an_equilibrium() -> None:
    """Feedback that wants the value broken moves the text, and does not within the bound."""
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    rude, care = guide(judge, breaks=True), Principle("care", guide(judge))
    found = {}
    for theta, epsilon in ((0.0, 1.0), (400.0, 1.0), (400.0, 0.0)):
        wanted = Preferences({"rude": rude}, torch.tensor([theta]))
        whole = Equilibrium(None, [care], wanted, epsilon=epsilon, kappa=None, k=40)
        torch.manual_seed(0)
        batch = make_prompts(rows=8, width=12)
        ids = pa.wrap(model, tokenizer, whole).generate(**batch, max_new_tokens=8, do_sample=True)
        found[theta, epsilon] = judge(tokenizer.batch_decode(ids, skip_special_tokens=True)).mean()
    assert found[400.0, 1.0] > found[0.0, 1.0] + 0.1
    assert found[400.0, 0.0] < found[0.0, 1.0] + 0.05


def test_both_are_saved(tmp_path) -> None:
    judge = discriminator()
    model, tokenizer = judge.reader.model, judge.reader.tokenizer
    whole = guide(judge, k=5).when(gate(judge, 0.3))
    whole.save_pretrained(tmp_path / "guide")
    loaded = pa.Controller.from_pretrained(tmp_path / "guide")
    ids = [
        pa.wrap(model, tokenizer, each).generate(**make_prompts(), max_new_tokens=6).tolist()
        for each in (whole, loaded)
    ]
    assert ids[0] == ids[1]


def test_another_model_is_refused() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    head = head_of(discriminator())
    with pytest.raises(ValueError, match="the value's head was fitted for the weights of"):
        pa.wrap(make_model(seed=1), tokenizer, pa.ValueGuide(head))
    with pytest.raises(ValueError, match="reads layer 3, but the model has 2"):
        pa.wrap(model, tokenizer, pa.ValueGuide(ValueHead("x", 3, torch.ones(32), 0.0)))
    with pytest.raises(ValueError, match="reads 8 hidden units, but the model has 32"):
        pa.wrap(model, tokenizer, pa.ValueGuide(ValueHead("x", 1, torch.ones(8), 0.0)))
    assert head.fitted_for == identify(model, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": float("nan")}, "the guide's weight must be finite, got nan"),
        ({"k": True}, "top-k must be at least 1, got True"),
    ],
)
def test_refuses_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pa.ValueGuide(ValueHead("x", 1, torch.ones(32), 0.0), **settings)


def test_an_encoder_cannot_guide() -> None:
    judge = discriminator()
    judge.reader = EncoderReader(
        SimpleNamespace(name_or_path="minilm", config=SimpleNamespace(num_hidden_layers=1)), None
    )
    with pytest.raises(ValueError, match="reads with the encoder 'minilm'"):
        guide(judge)
