"""The scripts that measure discriminators and alignment, with tiny sizes and invented text."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from results_data import lines
from tiny_models import make_model, make_tokenizer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = {"learned": 24, "calibrated": 40, "held_out": 24, "contrasted": 8, "explained": 4}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of five words, of which two in texts that break a value are w0."""
    draw, folder = np.random.default_rng(0), tmp_path / "data"

    def texts(bad: bool) -> list[str]:
        words = draw.integers(20, 110, size=(60, 5))
        words[:, :2] = 0 if bad else words[:, :2]
        return [" ".join(f"w{word}" for word in row) for row in words]

    both = [(text, bad) for bad in (False, True) for text in texts(bad)]
    rows = [{"text": text, "label": int(bad)} for text, bad in both]
    lines(folder / "toxicity/jigsaw.jsonl", rows)
    pairs = zip([*texts(True), *texts(True)], [*texts(False), *texts(False)], strict=True)
    lines(folder / "toxicity/paradetox.jsonl", [{"toxic": t, "neutral": [n]} for t, n in pairs])
    rows = [{"scenario": text, "excuse": "w9", "label": str(int(not bad))} for text, bad in both]
    for name in ("justice", "deontology"):
        lines(folder / f"values/ethics_{name}_train.jsonl", rows)
    return folder


def test_one_command_fills_every_cell_and_goes_on(
    benchmarks: Any, data: Path, tmp_path: Path
) -> None:
    script, model = benchmarks("value_discriminator"), tmp_path / "tiny"
    make_model().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    out, work = tmp_path / "out", tmp_path / "work"
    options: dict[str, Any] = {"data": data, "work": work, "out": out, "causal": str(model)}
    options |= {**SIZES, "splits": 2, "max_tokens": 16, "threads": torch.get_num_threads()}
    found = []
    for _ in range(2):  # nothing is left to do the second time
        try:
            script.main(**options)
        except typer.Exit as end:  # a tiny model may miss bars
            assert end.exit_code == 1
        found.append([(out / name).read_bytes() for name in ("results.json", "README.md")])
    assert found[0] == found[1]
    by_set = json.loads(found[0][0])["models"]["tiny"]
    assert list(by_set) == ["jigsaw", "paradetox", "justice", "deontology"]
    for name, cells in by_set.items():
        assert cells["head"]["auc"]["value"] > 0.8 and len(cells["unseen"]) == 3
        assert ("occlusion" in cells) == (name == "paradetox")
        assert 0 <= cells["without labels"]["low"] <= cells["without labels"]["high"] <= 1
    with pytest.raises(ValueError, match="held_out was 24 and is 20; give another --work"):
        script.main(**options | {"held_out": 20})


def test_an_empty_set_does_not_cover(benchmarks: Any) -> None:
    script, parting = benchmarks("value_discriminator"), benchmarks("value_discriminator_data")
    sizes = parting.Sizes(20, 40, 20, 1, 1, 1, 1)
    conforms = np.arange(80) % 2 == 0
    states = np.where(conforms, 1.0, -1.0)[:, None] + np.linspace(-0.1, 0.1, 80)[:, None]
    states[-1] = 0.0  # between the classes, where neither label is likely
    coverage, empty = script.covered(states, conforms, sizes.parts(0))
    assert empty >= 1 / 20 and coverage <= 1 - empty


def test_a_missed_bar_says_by_how_much(benchmarks: Any) -> None:
    bar = benchmarks("value_discriminator_page").Bar
    assert bar("AUC", 0.83, 0.86).said == "AUC 0.830, missed by 0.030"
    assert bar("shuffled", 0.6, 0.42, 0.58).missed_by == pytest.approx(0.02)
    assert bar("AUC", 0.86, 0.86).passed


def test_a_few_labels_hold_the_share_and_a_judge_narrows_it(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, script = tmp_path / "tweets.jsonl", benchmarks("how_aligned_labels")
    monkeypatch.setattr(script, "DRAWS", 300)
    rows = [{"text": f"text {i}", "label": int(i % 10 < 7)} for i in range(200)]
    lines(path, rows)
    judges = {
        "knows": lambda texts: np.array([0.9 * (int(t.split()[1]) % 10 < 7) for t in texts]),
        "constant": lambda texts: np.full(len(texts), 0.2),
    }
    found = script.few_labels(judges, path, 200)
    knows, constant = found["judges"]["knows"], found["judges"]["constant"]
    assert found["share"] == pytest.approx(0.3)
    assert constant["weight"] == 0 and constant["width"] == constant["width_of_labels_alone"]
    assert knows["width"] < 0.5 * constant["width"] and knows["judge_alone"] > 0.36
    assert min(knows["coverage"], constant["coverage"]) > 0.9
