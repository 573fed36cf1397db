"""compare says how aligned the methods are, with value judges, human texts and human labels."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_models import make_model, make_tokenizer

from plugalign.controllers.self_debias import SelfDebias
from plugalign.controllers.self_diagnosis import diagnose
from plugalign.evaluation.comparison.alignment import read_labels
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.judging.judge import Judge
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.readers import CausalReader

PROMPTS = [f"w{i} w{i + 1}" for i in range(12)]
GAP = ["epsilon", "self_floor", "energy_distance", "signed_difference"]


def odd(texts: list[str]) -> list[float]:
    """A judge by words with an odd number."""
    words = [[w for w in text.split() if w[1:].isdigit()] for text in texts]
    return [sum(int(w[1:]) % 2 for w in each) / max(1, len(each)) for each in words]


def run(out: Path, **more: Any) -> Any:
    model, tokenizer = more.pop("model", None) or make_model(), make_tokenizer()
    given = {"judges": {"odd": odd}, "samples": 2, "max_new_tokens": 5, "seed": 1}
    return compare(
        model,
        tokenizer,
        controllers={"debias": SelfDebias(["w3"])},
        prompts=PROMPTS,
        out=out,
        **{**given, **more},
    )


def shown(comparison: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(comparison.table())
    return stream.getvalue()


def test_without_values_nothing_is_said_of_alignment(tmp_path: Path) -> None:
    assert "alignment" not in run(tmp_path / "run").summary


def test_human_texts_and_labels_are_added_to_a_run(tmp_path: Path) -> None:
    out, human = tmp_path / "run", tmp_path / "human.jsonl"
    human.write_text("".join(json.dumps({"text": f"w{i} w{3 * i}"}) + "\n" for i in range(20)))
    first = run(out, human_texts=human)
    rows = first.summary["alignment"]["rows"]
    degree = rows["debias"]["degree"]["odd"]
    mean = first.summary["methods"]["debias"]["mean_toxicity"]
    assert degree["value"] == pytest.approx(1 - mean["value"])
    assert degree["difference"]["value"] == pytest.approx(-mean["difference"]["value"])
    assert list(rows["base"]["gap"]["odd"]) == GAP
    assert "difference" in rows["debias"]["gap"]["odd"]["energy_distance"]
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    labels = tmp_path / "labels.jsonl"
    mine = [{**line, "label": line["prompt"] % 2} for line in lines if line["method"] == "base"]
    labels.write_text("".join(json.dumps(line) + "\n" for line in mine))
    second = run(out, human_labels=labels, resume=True)
    found = second.summary["alignment"]["rows"]["base"]
    assert found["by_labels"]["odd"]["mean"]["value"] == pytest.approx(0.5)
    assert list(found["gap"]["odd"]) == GAP  # human texts stay
    text = shown(second)
    assert "How aligned, by odd" in text and "by labels" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "How aligned" in second.report.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "other"}, "line 1: no method 'other'"),
        ({"prompt": 12}, "line 1: 'prompt' must be from 0 to 11, got '12'"),
        ({"prompt": "²"}, "line 1: 'prompt' must be from 0 to 11, got '²'"),
        ({"label": "maybe"}, "line 1: a label is 0 or 1, got 'maybe'"),
        ({}, "answers of 'base' to 1 prompts are labelled; 10 are needed"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    line = {"method": "base", "prompt": 0, "sample": 0, "label": 1, **change}
    (tmp_path / "labels.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", human_labels=tmp_path / "labels.jsonl")
    assert not (tmp_path / "run").exists()


def test_two_labels_of_one_answer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    lines = [{"method": "base", "prompt": i, "sample": 0, "label": 1} for i in range(12)]
    lines.append({**lines[3], "label": 0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="line 13: the answer 'base', prompt 3, sample 0 is"):
        read_labels(path, ["base"], 12, 1)


def test_labels_of_other_answers_are_refused(tmp_path: Path) -> None:
    lines = [
        {"method": "base", "prompt": i, "sample": 0, "label": 1, "text": "else"} for i in range(12)
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="the label is of 'else'"):
        run(tmp_path / "run", human_labels=tmp_path / "labels.jsonl")
    assert "alignment" not in run(tmp_path / "run", resume=True).summary


def own_judge(kind: str, seed: int) -> Any:
    model, tokenizer = make_model(seed=seed), make_tokenizer()
    if kind == "contrast":
        return ValueContrast("w5", "w7", CausalReader(model, tokenizer, (1,)))
    return partial(diagnose, model, tokenizer, attribute="w5 w7", template="{text} w1 {attribute}")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("contrast", torch.float32),
        ("contrast", torch.bfloat16),
        ("diagnosis", torch.float32),
        ("diagnosis", torch.bfloat16),
    ],
)
def test_the_model_judges_its_own_texts(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where it answers in half precision, and the judge was loaded in float32."""
    judges = {"itself": Judge("itself", own_judge(kind, 0)), "odd": odd}
    found = run(tmp_path / "run", judges=judges, model=make_model().to(dtype))
    action = found.summary["alignment"]["rows"]["base"]["judgement_and_action"]["itself"]["odd"]
    gap = action["judgement"]["value"] - action["action"]["value"]
    assert action["gap"]["value"] == pytest.approx(gap)
    assert "the model on its own texts (itself)" in " ".join(shown(found).split())
    judges["itself"] = Judge("itself", own_judge(kind, 3))
    rows = run(tmp_path / "other", judges=judges).summary["alignment"]["rows"]
    assert "judgement_and_action" not in rows["base"]
