"""``plugalign fit value`` and ``plugalign judge``, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import make_model, make_tokenizer

from plugalign import cli


def run(monkeypatch: Any, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and texts of which those with label 1 have two words w0 more."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    draw, lines = np.random.default_rng(0), []
    for i in range(160):
        words = [f"w{word}" for word in draw.integers(20, 110, size=4)]
        words += ["w0", "w0"] * (i % 2)
        lines.append(json.dumps({"text": " ".join(words), "label": i % 2}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    return tmp_path


def test_a_value_is_fitted_and_judges(folder: Path, monkeypatch: Any, capfd: Any) -> None:
    fit = ["fit", "value", "--statement", "w50 w51", "--model", folder / "model"]
    learned = [*fit, "--data", folder / "data.jsonl", "--out", folder / "kind", "--level", 0.8]
    assert run(monkeypatch, *learned, "--licence", "CC0") == 0
    said = capfd.readouterr().out
    assert "better than chance (AUC" in said and "not better than TF-IDF (1.000" in said
    assert f"--judge kind={folder / 'kind'}" in said
    assert f"--controllers kind={folder / 'kind' / 'guide'}" in "".join(said.splitlines())
    assert run(monkeypatch, *fit, "--negation", "w7", "--out", folder / "guess") == 0
    assert "unvalidated" in capfd.readouterr().out
    models = [json.loads((folder / n / "fit.json").read_text())["model"] for n in ("kind", "guess")]
    assert {**models[1], "layers": models[0]["layers"]} == models[0]
    judge = ["judge", "w30 w0 w0 w40", "--value", f"kind={folder / 'kind'}"]
    judge += ["--value", f"guess={folder / 'guess'}"]
    assert run(monkeypatch, *judge, "--explain", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert [each["principle"] for each in found["judgements"]] == ["kind", "guess"]
    assert found["judgements"][0]["verdict"] == "breaks"
    assert found["explanations"][0]["top"]["word"] == "w0"
    assert found["judgements"][1]["validated"] is False
    assert run(monkeypatch, *judge, "--explain") == 0
    said = capfd.readouterr().out
    assert said.count("kind: breaks (P ") == 1 and "most of all for 'w0'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["value", "--model", "m"], "fit value needs --statement"),
        (["value", "--statement", "x"], "needs one of --model and --encoder"),
        (
            ["value", "--statement", "x", "--model", "m", "--encoder", "e"],
            "needs one of --model and --encoder",
        ),
        (["value", "--statement", "x", "--model", "m", "--licence", "y"], "--licence is of data"),
        (["value", "--statement", "x", "--model", "m", "--level", "0.5"], "--level is of data"),
        (["value", "--statement", "x", "--model", "m", "--minutes", "3"], "has no --minutes"),
        (
            ["value", "--statement", "x", "--model", "m", "--data", "DATA", "--minutes", "0"],
            "--minutes must lie above 0, up to 1e+06, got 0",
        ),
        (["judge", "--statement", "x", "--data", "f"], "--statement is for fit value, not for fit"),
        (["fudge_head", "--model", "m"], "fit fudge_head needs --data"),
        (
            ["value", "--statement", "x", "--model", "m", "--data", "DATA", "--negation", "y"],
            "--negation is for a value without data",
        ),
        (
            ["value", "--statement", "x", "--model", "m", "--data", "DATA", "--limit", "100"],
            "needs 128 different labelled texts",
        ),
        (
            ["value", "--statement", "x", "--model", "m", "--data", "DATA", "--level", "1"],
            "level must lie strictly between 0 and 1, got 1",
        ),
    ],
)
def test_what_cannot_be_is_one_error_before_any_work(
    arguments: list[str], message: str, folder: Path, monkeypatch: Any, capfd: Any
) -> None:
    data = str(folder / "data.jsonl")
    given = [data if each == "DATA" else each for each in arguments]
    assert run(monkeypatch, "fit", *given, "--out", folder / "out") == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not (folder / "out").exists()


def test_judge_refuses_what_it_cannot_judge(folder: Path, monkeypatch: Any, capfd: Any) -> None:
    assert run(monkeypatch, "judge", "--value", "kind=nowhere") == 2
    assert "there is no text to judge" in capfd.readouterr().err
    assert run(monkeypatch, "judge", "w1", "--value", f"kind={folder / 'model'}") == 2
    assert "holds no value discriminator" in capfd.readouterr().err
