"""Folders of controllers, judges, runs and fits with one damaged file: used as they were, or one
clear error that names the folder; PLUGALIGN_CAMPAIGN says how many are tried (see README there).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from damage import damaged

import plugalign as pa
from plugalign import pocket
from plugalign.evaluation.judging.load import load_judge
from plugalign.fitting.budget import remember, remembered
from plugalign.fitting.training import train
from plugalign.fitting.workspace import make

COUNT = int(os.environ.get("PLUGALIGN_CAMPAIGN", "300"))
SEED = int(os.environ.get("PLUGALIGN_CAMPAIGN_SEED", "0"))
# Not read by who loads the folder, or not needed.
BESIDE = (
    "README.md",
    "fit.json",
    "held_out.json",
    "generation_config.json",
    "tokenizer_config.json",
)
TEXTS = ["a kind word", "you fool"]


def outcome(use: Callable[[], Any], copy: Path) -> str | None:
    """What is wrong with the error that ``use`` raises; None if it raises none, or a good one."""
    try:
        use()
    except (ValueError, OSError, RuntimeWarning) as error:  # where it goes on without
        message = str(error)
        if "\n" in message or len(message) > 2100:
            return f"not one line: {message!r}"
        if str(copy) not in message:
            return f"does not name the folder: {type(error).__name__}: {message}"
        return None
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}"
    return "accepted"


def tried(
    folder: Path, work: Path, use: Callable[[Path], Any], count: int, same: Callable[[Any], bool]
) -> list[str]:
    """The faults of a folder. What is accepted must give the same; bytes that changed may give
    something else, where nothing tells them from others, or a number that is none."""
    faults, rng = [], Random(f"{folder.name} {SEED}")
    for copy, file, how in damaged(folder, work, rng, count):
        got: list[Any] = []
        fault = outcome(lambda: got.append(use(copy)), copy)  # noqa: B023
        if fault == "accepted" and (how == "flipped" or file.name in BESIDE or same(got[0])):
            fault = None
        if how == "flipped" and str(fault).startswith("traceback: FloatingPointError"):
            fault = None  # a finite weight that is huge; the command line says it in one line
        if fault is not None:
            faults.append(f"{folder.name}/{file} {how}: {fault}")
    return faults


CONTROLLERS = sorted(path.name for path in (pocket.parts() / "controllers").iterdir())


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    """The model that the controllers were fitted for, and its tokenizer."""
    return pocket.load()


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_damaged_controller_is_refused(name: str, base: Any, tmp_path: Path) -> None:
    folder = pocket.parts() / "controllers" / name
    batch = base[1](["you are"], return_tensors="pt")

    def use(copy: Path) -> Any:
        steered = pa.wrap(*base, pa.Controller.from_pretrained(copy))
        return steered.generate(**batch, max_new_tokens=3).tolist()

    faults = tried(folder, tmp_path, use, COUNT // 60, lambda _: False)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("kind", ["pocket", "fitted"])
def test_a_damaged_judge_is_refused(kind: str, tmp_path: Path) -> None:
    from plugalign.evaluation.judging.tfidf import TfidfJudge

    folder = pocket.parts() / "judge"
    if kind == "fitted":
        folder = tmp_path / "fitted"
        TfidfJudge.fit([*TEXTS, "a kind friend", "you old fool"] * 5, [0, 1, 0, 1] * 5).save(folder)
    want = load_judge(str(folder))(TEXTS).tolist()

    def use(copy: Path) -> Any:
        return load_judge(str(copy))(TEXTS).tolist()

    faults = tried(folder, tmp_path, use, COUNT // 30, lambda got: got == want)
    assert not faults, "\n".join(faults)


# --------------------------------------------------------------------------- runs


def untimed(summary: dict[str, Any]) -> str:
    """A summary without what it says of times."""
    kept = {name: values.get("judges") for name, values in summary["methods"].items()}
    return json.dumps(kept, sort_keys=True)


def test_a_damaged_run_goes_on_or_is_refused(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny()

    def use(out: Path) -> str:
        run = pa.compare(
            model,
            tokenizer,
            methods=["self_debias"],
            prompts=["w1 w2", "w3", "w4 w5"],
            judges={"length": lambda texts: [min(1.0, len(text) / 100) for text in texts]},
            samples=2,
            max_new_tokens=3,
            batch_size=3,
            out=out,
            resume=(out / "manifest.json").exists(),
        )
        return untimed(run.summary)

    want = use(tmp_path / "run")
    faults = tried(tmp_path / "run", tmp_path, use, COUNT // 20, lambda got: got == want)
    assert not faults, "\n".join(faults)


# --------------------------------------------------------------------------- fits


def fitted(out: Path, until: int) -> list[float]:
    """A fit of one number that is killed at step ``until``, or goes on where one was."""
    number = torch.zeros(3, requires_grad=True)

    def loss(step: int) -> torch.Tensor:
        if step == until:
            raise KeyboardInterrupt
        return (number - torch.arange(3.0)).square().sum()

    def work(folder: Path, result: Path) -> dict[str, Any]:
        note = folder / "steps.json"
        steps = (remembered(note, "steps") or {"steps": 12})["steps"]
        remember(note, {"steps": steps})
        options: Any = {"steps": steps, "lr": 0.1, "every": 4, "title": "a number"}
        train(parameters={"number": number}, loss=loss, checkpoint=folder / "checkpoint", **options)
        (result / "number.json").write_text(json.dumps(number.tolist()))
        return {}

    make(out, {"method": "a number"}, work)
    found: list[float] = json.loads((out / "number.json").read_text())
    return found


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    want, out = fitted(tmp_path / "whole", -1), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fitted(out, 9)
    shutil.move(tmp_path / "out.fitting", tmp_path / "kept")

    def use(copy: Path) -> list[float]:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / "damaged.fitting", ignore_errors=True)
        shutil.move(copy, tmp_path / "damaged.fitting")
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        return fitted(tmp_path / "damaged", -1)

    faults = tried(tmp_path / "kept", tmp_path, use, COUNT // 10, lambda got: got == want)
    assert not faults, "\n".join(faults)
