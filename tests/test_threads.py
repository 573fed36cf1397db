"""A command's number of threads is torch's for as long as it works, and no longer."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

from plugalign import cli
from plugalign.threads import torch_threads

ROOT = Path(__file__).resolve().parent.parent
WORK = {  # the command line, and the function that does its work
    "fit fudge --model m --data d --out o": "plugalign.fitting.command:load_data",
    "fit judge --data d --out o": "plugalign.fitting.judge:fit_judge",
    "fit value --statement s --data d --out o": "plugalign.fitting.value_command:fit_value_files",
    "judge text --value v=v": "plugalign.values.discriminator.saved:load_discriminators",
    "feedback f --add d --model m": "plugalign.values.feedback_learning:teach",
    "trace": "plugalign.values.account.tracing:trace",
    "trace --replay f": "plugalign.values.account.replay:replay",
}


@pytest.mark.parametrize("line", WORK)
def test_a_command_sets_threads_back_also_after_an_error(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = WORK[line].partition(":")
    seen = []

    def works(*args: object, **kwargs: object) -> None:
        seen.append(torch.get_num_threads())
        raise ValueError("it went wrong")

    monkeypatch.setattr(importlib.import_module(module), function, works)
    if line.startswith("fit judge"):
        monkeypatch.setattr("plugalign.fitting.data.load_data", lambda *args, **kwargs: None)
    (tmp_path / "d").write_text("", encoding="utf-8")
    (tmp_path / "f").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plugalign", *line.split(), "--threads", "3"])
    before = torch.get_num_threads()
    with pytest.raises(SystemExit):
        cli.main()
    assert "it went wrong" in capsys.readouterr().err
    assert seen == [3] and torch.get_num_threads() == before != 3


def test_nothing_else_in_the_package_sets_them() -> None:
    found = []
    for path in (ROOT / "plugalign").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "set_num_threads":
                found.append(path.name)
    assert set(found) == {"threads.py"}


def test_threads_are_counted() -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"), torch_threads(0):
        pass
