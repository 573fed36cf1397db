"""The script that tries settings of self-debiasing: measurements, and all of it at a tiny size."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from results_data import lines, write_data
from tiny_models import make_chat_model, make_chat_tokenizer, make_model, make_tokenizer

import plugalign as pa
from plugalign import pocket

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("self_debias_settings")


@pytest.fixture
def parts(script: Any) -> Any:
    return importlib.import_module("self_debias_reaction")


def test_reaction_and_damping_are_what_the_formulas_say(parts: Any) -> None:
    p = np.array([[0.6, 0.3, 0.06, 0.04], [0.25, 0.25, 0.25, 0.25]])
    q = np.array([[0.5, 0.3, 0.05, 0.15], [0.25, 0.25, 0.25, 0.25]])
    offensive = np.array([False, False, False, True])
    found = parts.reaction(*map(torch.tensor, (p, q, offensive)))
    assert found["kl"] == pytest.approx((q * np.log(q / p)).sum(1).mean())
    assert found["total_variation"] == pytest.approx(0.5 * np.abs(p - q).sum(1).mean())
    assert found["offensive_without"] == pytest.approx((0.04 + 0.25) / 2)
    assert found["offensive_behind"] == pytest.approx((0.15 + 0.25) / 2)
    assert found["gain_of_the_head"] == pytest.approx(1)  # .15 is of the head
    factor = np.maximum(np.exp(-50 * np.maximum(0, q - p)), 0.01)  # the fourth falls to .01
    after = p * factor / (p * factor).sum(1, keepdims=True)
    damped = parts.damping(*map(torch.tensor, (p, q, offensive)), 50, 0.01)
    assert damped["damped"] == pytest.approx(0.04 / 2)
    assert damped["damped_offensive"] == pytest.approx(0.04 / 0.29)
    assert damped["removed"] == pytest.approx(1 - (p * factor).sum(1).mean())
    assert damped["removed_offensive"] == pytest.approx(0.04 * 0.99 / 0.29)
    assert damped["offensive_after"] == pytest.approx(after[:, 3].mean())
    assert damped["change"]["value"] == pytest.approx((after - p)[:, 3].mean())
    assert damped["change"]["low"] <= damped["change"]["value"] <= damped["change"]["high"]


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "chats"])
def test_damped_distributions_are_those_that_the_controller_draws_from(
    parts: Any, chat: bool
) -> None:
    """The measurement and the controller are two ways to the same distribution."""
    model = make_chat_model() if chat else make_model()
    tokenizer = make_chat_tokenizer() if chat else make_tokenizer()
    prompts = ["w1 w2", "w3 w4 w5 w6"]
    if chat:
        turns = [[{"role": "user", "content": text}] for text in prompts]
        prompts = [
            tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
            for each in turns
        ]
    texts = parts.begun(model, tokenizer, tokenizer(prompts)["input_ids"], 3)
    assert texts.ids.shape == texts.mask.shape
    bad = ["w7 w8", "w9"]
    p = parts.distributions(model, tokenizer, texts, None)
    q = torch.stack([parts.distributions(model, tokenizer, texts, text) for text in bad]).amax(0)
    wanted = p * (-50 * (q - p).clamp_min(0)).clamp_min(math.log(0.01)).exp()
    wanted = (wanted / wanted.sum(-1, keepdim=True))[2::3]  # the last of three steps
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(bad, decay=50))
    out = steered.generate(
        texts.ids,
        attention_mask=texts.mask,
        max_new_tokens=1,
        do_sample=True,
        top_k=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.allclose(out.scores[0].softmax(-1), wanted, atol=1e-5)


def test_tokens_are_offensive_where_toxic_texts_have_them_and_polite_ones_do_not(
    parts: Any,
) -> None:
    bad = ["w1 w7 w7"] * 10 + ["w8 w9"] * 9 + ["w1 w5"] * 11
    good = ["w1 w2"] * 10 + ["w5"] * 5
    found = parts.offensive_tokens(make_tokenizer(), 130, good, bad)
    # w7 in ten toxic texts; w8 and w9 in nine; w5 in eleven, and in ten of thirty polite ones.
    assert found.shape == (130,) and found.nonzero().tolist() == [[10]]


def test_comparisons_and_their_rows_are_chosen_by_name(script: Any) -> None:
    found = script.chosen(script.KINDS, None, ["six, decay 100", "one, decay 50"])
    assert {name: kind.rows for name, kind in found.items()} == {
        "texts-sampling": ("one, decay 50",),
        "chats-sampling": ("one, decay 50",),
        "texts-beams": ("six, decay 100", "one, decay 50"),
        "chats-beams": ("six, decay 100",),
    }
    assert list(script.chosen(script.KINDS, ["chats-beams"], None)) == ["chats-beams"]
    with pytest.raises(ValueError, match="there is no 'chat'; there are texts-sampling, "):
        script.chosen(script.KINDS, ["chat"], None)


def test_chats_put_the_description_inside_the_turn_and_rows_have_the_papers_settings(
    script: Any, tmp_path: Path
) -> None:
    tools = importlib.import_module("results_tools")
    lines(tmp_path / tools.PROMPTS, [{"text": f"text {i} "} for i in range(4)])
    sizes = script.Sizes(1, 2, 1, 1, 1, 1, 1, 4)
    study = script.Study(None, None, {}, tmp_path, tmp_path, tmp_path, sizes)
    assert study._prompts("off", 2) == ["text 2 ", "text 3 "]
    asked = [{"role": "user", "content": "Continue this text: text 2"}]
    assert study._prompts("on", 1) == [asked]
    rows = script.rows()
    default = pa.SelfDebias().config()
    assert rows["six, decay 10"].config() == default  # the one that a user gets
    assert rows["one, decay 10"].config() == {
        **default,
        "prefixes": default["prefixes"][:1],
        "decay": 10,
    }
    for kind in script.KINDS.values():
        assert set(kind.rows) <= set(rows)


@pytest.mark.slow
def test_one_command_compares_and_writes_results_without_texts(script: Any, tmp_path: Path) -> None:
    tools = importlib.import_module("results_tools")
    model = str(pocket.PARTS / pocket.MODEL)
    work, out = tmp_path / "work", tmp_path / "results"
    run: dict[str, Any] = {
        "model": model,
        "data": write_data(tools, tmp_path / "data"),
        "work": work,
        "out": out,
        "judges": None,
        "encoder": None,
        "perplexity_model": model,
        "prompts": 3,
        "skip": 2,
        "samples": 2,
        "new_tokens": 4,
        "batch_size": 6,
        "reaction": 2,
        "kind": None,
        "row": None,
        "steps": 2,
        "diagnosed": 8,
        "dtype": "float32",
        "threads": 1,
    }
    script.main(**run)
    # The pocket model has no chat template.
    assert {path.name for path in out.iterdir()} == {
        "texts-sampling",
        "texts-beams",
        "reaction.json",
    }
    for name, outside in (("texts-sampling", False), ("texts-beams", True)):
        summary = json.loads((out / name / "summary.json").read_text())
        assert set(summary["methods"]) == {"base", *script.KINDS[name].rows}
        assert ("perplexity_model" in summary) == outside
        table = (out / name / "table.md").read_text().splitlines()
        assert len(table) == 2 + len(summary["methods"]) + len(summary["references"])
        assert len({line.count("|") for line in table}) == 1
        assert str(tmp_path) not in (out / name / "manifest.json").read_text()
    beams = json.loads((out / "texts-beams" / "summary.json").read_text())
    assert beams["samples"] == 1 and beams["methods"]["base"]["length"]["value"] == 4
    found = json.loads((out / "reaction.json").read_text())
    assert found.keys() == {"texts", "diagnosis"}
    assert found["texts"]["groups"].keys() == script.DESCRIPTIONS.keys()
    assert 0 <= found["diagnosis"]["auc"]["value"] <= 1
    before = (out / "texts-beams" / "summary.json").read_bytes()
    script.main(**run)  # nothing is left to do
    assert (out / "texts-beams" / "summary.json").read_bytes() == before
