"""``plugalign compare --set``, ``--dtype`` and ``--threads``, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plugalign import cli
from plugalign.commands.options import settings
from plugalign.controllers.self_debias import SelfDebias
from plugalign.evaluation.comparison.spec import read_spec


@pytest.fixture
def arguments(tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small run of one fitted controller, with a judge of its own module."""
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    SelfDebias(["w5 w6"]).save_pretrained(tmp_path / "debias")
    (tmp_path / "prompts.txt").write_text("w1 w2\nw3\n")
    source = "def words(texts):\n    return [min(1.0, len(t.split()) / 6) for t in texts]\n"
    (tmp_path / "set_judge.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {
        "--model": str(tmp_path / "model"),
        "--prompts": str(tmp_path / "prompts.txt"),
        "--judge": "set_judge:words",
        "--controllers": f"debias={tmp_path / 'debias'}",
        "--samples": "2",
        "--max-new-tokens": "3",
        "--out": str(tmp_path / "out"),
    }
    return ["compare", *(part for pair in options.items() for part in pair)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_values_are_rows_and_the_manifest_names_precision_and_threads(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    threads = torch.get_num_threads()
    more = ["--set", "debias.decay=0, 50,100", "--set", "debias.floor=0.5"]
    more += ["--dtype", "bfloat16", "--threads", "2"]
    assert run(monkeypatch, *arguments, *more) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    methods = manifest["settings"]["methods"]
    rows = [f"debias[decay={n}]" for n in (0, 50, 100)]
    assert list(methods) == ["base", *rows]
    found = [(methods[row]["config"]["decay"], methods[row]["config"]["floor"]) for row in rows]
    assert found == [(0, 0.5), (50, 0.5), (100, 0.5)]
    assert manifest["settings"]["model"]["dtype"] == "bfloat16"
    assert manifest["settings"]["scorer"]["dtype"] == "bfloat16"
    assert manifest["conditions"]["threads"] == 2 and torch.get_num_threads() == threads
    assert "debias[decay=50]" in "".join(capsys.readouterr().out.split())
    assert run(monkeypatch, *arguments, *more[:-4], "--resume", "--dtype", "float32") == 2
    assert "model.dtype was 'bfloat16' and is now 'float32'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "debias.decai=1"], "debias cannot have decai='1': SelfDebias has no setting"),
        (["--set", "shout.alpha=1"], "'shout.alpha' is of the method 'shout', which is not"),
        (["--set", "debias.decay=x"], "debias.decay: input should be a valid number"),
        (["--set", "debias.floor=3"], "debias cannot have floor=3.0: the floor must lie in (0, 1]"),
        (["--set", "debias.decay"], "--set takes METHOD.SETTING=VALUE"),
        (["--set", "decay=1"], "--set takes METHOD.SETTING=VALUE"),
        (["--set", "debias.decay=1,"], "--set takes METHOD.SETTING=VALUE"),
        (["--set", "a.b=1", "--set", "a.b=2"], "--set sets 'a.b' twice"),
        (["--dtype", "int8"], "dtype: input should be 'auto', 'bfloat16', 'float16' or 'float32'"),
        (["--threads", "0"], ", got '0'"),
    ],
)
def test_errors_are_one_line_before_any_work(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments, *more) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]
    assert not (tmp_path / "out").exists()


def test_options_are_values_by_setting() -> None:
    assert settings(["a.b=1, 2", "c.d.e=x"], "--set") == {"a.b": ["1", "2"], "c.d.e": ["x"]}
    assert settings(None, "--set") is None


def test_a_spec_sets_values_too(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "settings: {debias.decay: [0, 1]}\ndtype: float16\nthreads: 3\n"
    )
    found = read_spec(tmp_path / "s.yaml", {})
    assert found == {"settings": {"debias.decay": [0, 1]}, "dtype": "float16", "threads": 3}
