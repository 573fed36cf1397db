"""The parts of the equilibrium's evidence that need no model."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from plugalign.fitting.data import Labelled

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_crowd_chooses_by_its_taste(script, tmp_path):
    crowds = script("equilibrium_crowds")
    prompts = [f"p{i}" for i in range(400)]
    answers = [(f"good {i}", f"bad {i}") for i in range(399)] + [("same", "same")]

    def judge(of):
        return lambda texts: np.array([float(of in text) for text in texts])

    judges = {"crowd_toxicity": judge("bad"), "crowd_negativity": judge("bad")}
    crowds.choose(prompts, answers, judges, tmp_path)
    for crowd, liked, least in (("polite", "good", 0.99), ("rude", "bad", 0.98)):
        files = [tmp_path / f"{crowd}-{i}.jsonl" for i in range(crowds.LESSONS)]
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        assert len(rows) == 399 and {row["prompt"] for row in rows} == set(prompts[:-1])
        assert np.mean([liked in row["chosen"] for row in rows]) >= least


def test_words_that_editors_removed(script, tokenizer):
    """w5 stands in 40 toxic sentences and in 10 neutral ones, w7 in all, w9 is rare."""
    neutral = ["w7 w8"] * 30 + ["w5 w7"] * 10
    toxic = ["w5 w7"] * 39 + ["w5 w7 w9"]
    data = Labelled((*neutral, *toxic), ("desired",) * 40 + ("undesired",) * 40)
    table = script("equilibrium_crowds").removed_words(tokenizer, data, 120).values
    assert table.nonzero().flatten().tolist() == [8]
    assert float(table[8]) == pytest.approx(0.75)


def figure(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def test_pictures_and_a_table(script, tmp_path):
    principles = {"toxicity": {"expected": figure(0.1), "change": figure(-0.001)}}
    told = {
        "tokens": 10,
        "most_excess": 1e-12,
        "kl": figure(0.03),
        "active": figure(0.2),
        "repaired": figure(0.0),
        "principles": principles,
    }
    row = {
        kind: {"mean": figure(0.4), "change": figure(0.1)} for kind in ("toxicity", "positivity")
    }
    lesson = {"pairs": 10, "theta": {"civil": 0.1}, "standard_error": {"civil": 0.05}}
    harm = {"unwritten": 0.02, "most_change": 0.05, "excess": 0.0, "kl": 0.05}
    results = {
        "judged": {"base": row, "top_down": row, "rude_free": row, "adversary": row},
        "certificates": {"rude_free": told},
        "lessons": {"polite": [lesson, lesson], "rude": [lesson]},
        "search": {"by_budget": {"0.02": harm, "0.2": harm, "None": harm}},
    }
    script("equilibrium_pictures").draw(results, tmp_path)
    for name in ("crowds", "bounds", "adversary", "budget", "learning"):
        svg = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert svg.tag.endswith("svg") and len(svg) > 5
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 6 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert "| 1e-12 | -0.0010 [-0.0110, 0.0190] | 0.030 | 0.0% |" in lines[-2]
