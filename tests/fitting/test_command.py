"""``plugalign fit`` from end to end: what it says, what it saves, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plugalign import cli
from plugalign.algebra.controller import Controller
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting import command


@pytest.fixture
def model(tiny: Any, tokenizer: Any, tmp_path: Path) -> str:
    """A saved tiny model."""
    folder = tmp_path / "tiny model"
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    lines = [
        {"text": " ".join(f"w{first + (i + k) % 10}" for k in range(5)), "label": label}
        for first, label in ((10, 0), (60, 1))
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``plugalign fit ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["plugalign", "fit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_it_says_what_it_does_and_its_hint_works_when_typed(
    model: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "my head"
    arguments = ["--model", model, "--data", data, "--out", str(out), "--set", "steps=20"]
    assert fit(monkeypatch, "fudge_head", *arguments) == 0
    shown = capsys.readouterr()
    stages = (
        "loading",
        "tokenizing texts: 30 of 30",
        "hidden states of 54 texts: about",
        "20 steps take",
    )
    said = " ".join(shown.err.split())
    assert [said.index(stage) for stage in stages] == sorted(said.index(stage) for stage in stages)
    assert isinstance(Controller.from_pretrained(out), FudgeHead)
    saved = json.loads((out / "fit.json").read_text())
    assert saved["method"] == "fudge_head" and saved["settings"]["steps"] == 20
    assert str(tmp_path) not in json.dumps(saved)
    measured = saved["measured"]["held_out"]
    assert f"out of the fit: auc {measured['auc']:g}; loss {measured['loss']:g}. Guessing has" in (
        " ".join(shown.out.split())
    )
    hint = shown.out[shown.out.index("python -c") :].strip()
    typed = re.sub("^python", sys.executable, hint)
    done = subprocess.run(typed, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert fit(monkeypatch, "fudge_head", *arguments) == 2
    assert "my head is not empty; name another folder" in " ".join(capsys.readouterr().err.split())


def test_classes_of_two_styles_are_named_and_may_learn_from_one(
    model: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    styled = [{**row, "text": row["text"].upper()} if row["label"] else row for row in rows]
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in styled))
    arguments = ["--model", model, "--data", data, "--set", "steps=2", "--out"]
    warning = "0% of desired texts have a capital, 100% of the others"
    assert fit(monkeypatch, "fudge_head", *arguments, str(tmp_path / "two")) == 0
    assert warning in " ".join(capsys.readouterr().err.split())
    assert fit(monkeypatch, "fudge_head", *arguments, str(tmp_path / "one"), "--one-style") == 0
    assert "differ in style" not in capsys.readouterr().err
    found = [json.loads((tmp_path / x / "fit.json").read_text())["data"] for x in ("two", "one")]
    assert "one_style" not in found[0] and found[1]["one_style"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "lr=nan"], "--set lr: input should be a finite number, got 'nan'"),
        (["--set", "steps=1.5"], "--set steps: input should be a valid integer"),
        (["--dtype", "half"], "dtype must be one of auto, bfloat16, float16, float32, got 'half'"),
        (["--minutes", "0"], "minutes: input should be greater than 0, got 0.0"),
        (["--threads", "-1"], "Invalid value for '--threads'"),
        (["--desired", "2"], "no text has the desired label '2'"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_leaves_nothing(
    options: list[str],
    message: str,
    model: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", model, "--data", data, "--out", str(out), *options]
    assert fit(monkeypatch, "fudge_head", *arguments) == 2
    said = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
    assert message in said and "Traceback" not in said
    assert not out.exists() and not out.with_name("out.fitting").exists()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("fudge", ["--minutes", "0"], "minutes: input should be greater than 0, got 0.0"),
        ("fudge", [], "full is not empty; name another folder or remove it"),
        ("nullspace", ["--desired", "0"], "nullspace learns from all labels alike"),
        ("value", ["--statement", "It is fine."], "full is not empty; name another folder"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    method: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes").write_text("mine")
    out = full if "full" in message else tmp_path / "out"
    arguments = ["--model", str(tmp_path / "none"), "--data", data, "--out", str(out), *options]
    assert fit(monkeypatch, method, *arguments) == 2
    said = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
    assert message in said and "loading" not in said


def test_every_fit_is_in_the_precision_that_decodes(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 where the processor is good at it; what is tuned as a whole learns in float32."""
    seen: dict[str, torch.dtype] = {}

    def stop(method: str, loaded: Any, *_: Any, **__: Any) -> None:
        seen[method] = loaded.dtype
        raise ValueError("far enough")

    monkeypatch.setattr("plugalign.files.precision.multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "run_fit", stop)
    for method in command.FITTERS:
        fit(monkeypatch, method, "--model", model, "--data", data, "--out", str(tmp_path / "out"))
    assert seen == dict.fromkeys(command.FITTERS, torch.bfloat16)
