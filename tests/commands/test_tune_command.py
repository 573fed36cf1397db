"""``plugalign tune``, as it is typed, on the pocket world."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from plugalign import cli, pocket
from plugalign.algebra.controller import Controller
from plugalign.controllers.self_debias import SelfDebias

SHORT = ["--limit", "9", "--samples", "2", "--max-new-tokens", "6"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    folder = shutil.copytree(pocket.parts() / "controllers" / "dexperts_lora", tmp_path / "d")
    return ["tune", f"d={folder}", "--out", str(tmp_path / "out"), *SHORT]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_setting_is_chosen_and_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = ["--set", "d.alpha=0.25,3", "--max-perplexity", "9", "--max-length-change", "9"]
    options += [
        "--seed",
        "3",
        "--threads",
        "1",
        "--dtype",
        "float32",
        "--max-perplexity-cut-alike",
        "8.5",
    ]
    options += ["--perplexity-model", str(pocket.parts() / "pocket")]
    assert run(monkeypatch, *arguments, *options) == 0
    said = capsys.readouterr().out
    assert "alpha=0.25" in said and "chosen" in said and "pareto.svg" in said.replace("\n", "")
    found = json.loads((tmp_path / "d" / "tuning.json").read_text())
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert config["alpha"] == found["chosen"]["alpha"] in (0.25, 3)
    assert found["perplexity_model"].endswith("pocket") and "perplexity under" in said
    assert found["budgets"] == {
        "max_perplexity": 9,
        "max_length_change": 9,
        "max_cost": None,
        "max_perplexity_cut_alike": 8.5,
    }
    assert found["prompts"]["seed"] == 3 and found["samples"] == 2 and found["max_new_tokens"] == 6


def test_without_a_setting_in_the_budgets_the_exit_code_is_1(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = ["--set", "d.alpha=0.5,1", "--max-perplexity", "0.01"]
    assert run(monkeypatch, *arguments, *options) == 1
    assert "no setting keeps the budgets, so the controller is left" in capsys.readouterr().err
    assert not (tmp_path / "d" / "tuning.json").exists()


def test_the_folder_of_a_method_that_needs_nothing_fitted_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, out = tmp_path / "debias", str(tmp_path / "out")
    given = ["tune", f"self_debias={folder}", *SHORT, "--set", "self_debias.decay=1,2", "--out"]
    assert run(monkeypatch, *given, out, "--max-perplexity", "0.01") == 1
    assert not folder.exists()
    bounds = ["--max-perplexity", "9", "--max-length-change", "9"]
    assert run(monkeypatch, *given, out + "-2", *bounds) == 0
    found = json.loads((folder / "tuning.json").read_text())
    made = Controller.from_pretrained(folder)
    assert isinstance(made, SelfDebias) and made.decay == found["chosen"]["decay"]
    assert made.config() == SelfDebias().with_settings(decay=made.decay).config()
    for other in (f"fudge={tmp_path / 'f'}", "self_debias=someone/debias"):  # no hub id
        name = other.partition("=")[0]
        setting = {"fudge": "fudge.k=1,2", "self_debias": "self_debias.decay=1,2"}[name]
        assert run(monkeypatch, "tune", other, "--set", setting) == 2
        assert "self_debias, value_statement are made)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option '--set'"),
        (["--set", "d.alpha=1"], "nothing to choose from; give d.SETTING several values"),
        (["--set", "d.alpha=1,x"], "d.alpha: input should be a valid number"),
        (["--set", "d.alpha=1,2", "--max-perplexity", "0"], "max_perplexity is a ratio"),
        (["--set", "d.alpha=1,2", "--model", "m"], "with a model of your own, give prompts too"),
        (["--set", "d.alpha=1,2", "--chat", "on"], "has no chat template, which --chat on needs"),
        (["--set", "d.alpha=1,2", "--num-beams", "2"], "so samples must be 1, got 2"),
        (["--set", "d.alpha=1,2", "--agreement", "x"], "No such option: --agreement"),
    ],
)
def test_errors_are_one_line_before_any_work(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    options: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments, *options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]
    assert not (tmp_path / "out").exists()
