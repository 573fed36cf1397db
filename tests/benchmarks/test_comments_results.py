"""The script that makes the results on real text, with tiny sizes and invented text."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from results_data import write_data

from plugalign import pocket
from plugalign.catalogue import ALONE
from plugalign.fitting.style import in_one_style
from plugalign.pocket import world

SETS = {"generations": 60, "continuations": 7}
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("comments_results")


@pytest.fixture
def tools(script: Any) -> Any:
    return importlib.import_module("results_tools")


@pytest.fixture
def data(tools: Any, tmp_path: Path) -> Path:
    return write_data(tools, tmp_path / "data")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot tell rude answers:UserWarning")  # it is tiny
def test_one_command_fits_compares_and_writes_results_without_texts(
    script: Any, tools: Any, data: Path, tmp_path: Path
) -> None:
    work, out, threads = tmp_path / "work", tmp_path / "results", torch.get_num_threads()
    sizes: dict[str, Any] = {"prompts": 4, "skip": 3, "samples": 2, "new_tokens": 5}
    places = {"model": str(pocket.PARTS / pocket.MODEL), "data": data, "work": work, "out": out}
    run = {**places, **sizes, "batch_size": 8, "minutes": 0.002, "threads": threads}
    script.main(**run)
    assert {path.name for path in out.iterdir()} == {
        "summary.json",
        "manifest.json",
        "fits.json",
        "judges.json",
        "table.md",
    }
    summary = json.loads((out / "summary.json").read_text())
    fits = json.loads((out / "fits.json").read_text())
    methods = {*fits, "dexperts_anti", *ALONE}
    assert set(summary["methods"]) == {"base", *methods}
    assert (summary["prompts"], summary["samples"]) == (4, 2)
    sets = {one["source"]: one for one in summary["judges"]["tfidf"]["agreements"]}
    assert {name: one["texts"] for name, one in sets.items()} == SETS
    assert sets["generations"]["auc"]["value"] > 0.8
    assert all(fit["settings"]["seed"] == 0 and fit["measured"] for fit in fits.values())
    manifest = (out / "manifest.json").read_text()
    assert str(tmp_path) not in manifest and '"path": "prompts.jsonl"' in manifest
    shown = (out / "table.md").read_text().splitlines()
    listed = [line for line in shown if line.startswith("* `")]
    assert methods - {line.split("`")[1] for line in listed} == {"prefix"}  # without settings
    heads = 2 + 1 + 1 + 2  # of both tables, and the empty lines between
    rows = len(summary["methods"]) + len(summary["references"]) + len(SETS)
    assert len(shown) == heads + rows + len(listed)
    assert [line.split("`")[1] for line in shown[-2:]] == [f"tfidf, {name}" for name in SETS]
    used = [json.loads(line)["text"] for line in (work / "prompts.jsonl").read_text().splitlines()]
    assert used == world.prompts(8, world.PROMPT_SEED)[3:7]
    before = (out / "summary.json").read_bytes()
    script.main(**run)  # nothing is left to do
    assert (out / "summary.json").read_bytes() == before
    comments = [json.dumps({"text": f"other {i}", "label": i % 2}) + "\n" for i in range(30)]
    (data / tools.GUIDES[1]).write_text("".join(comments))
    with pytest.raises(ValueError, match="its data was"):
        script.main(**run)


def test_too_few_prompts_are_named(tools: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1 prompts behind 7, not 4"):
        tools.held_out_prompts(data, tmp_path, 7, 4)


@pytest.mark.slow
def test_some_methods_may_be_compared_alone_and_learn_from_one_style(
    script: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Any] = []
    fit = script.fit_methods
    monkeypatch.setattr(script, "fit_methods", lambda *a, **k: learned.append(a[2]) or fit(*a, **k))
    script.main(
        model=str(pocket.PARTS / pocket.MODEL),
        data=data,
        work=tmp_path / "work",
        out=tmp_path / "results",
        prompts=4,
        skip=3,
        samples=2,
        new_tokens=5,
        batch_size=8,
        minutes=0.002,
        one_style=True,
        method=["fudge_head"],
        threads=torch.get_num_threads(),
    )
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert list(summary["methods"]) == ["base", "fudge_head"]
    assert learned[0] == in_one_style(learned[0])
