"""Where a fit works, and how its result appears: as a whole or not at all.

Beside the result, ``OUT.fitting`` holds a record of what is being fitted (method, model, settings,
data), checkpoints, and the result while it is made. When that is complete it is renamed to ``OUT``,
with the record and what was measured in its ``fit.json``. A fit that was killed at any moment and
is started again continues; another fit with the same ``OUT`` is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.data_sheet import README
from plugalign.algebra.identity import identify
from plugalign.files.fingerprint import fingerprint
from plugalign.files.replacing import HALF, replace_text, sync
from plugalign.fitting.data import Labelled

RECORD, FINISHED = "fit.json", "finished"


def record(
    method: str,
    model: Any,
    tokenizer: Any,
    data: Labelled,
    settings: Mapping[str, Any],
    chat: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is fitted, as JSON values: equal for two fits that give the same result.

    Args:
        chat: whether texts are answers in a chat, and which.
    """
    identity = identify(model, tokenizer)
    return {
        "method": method,
        "model": {
            "name": identity.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": fingerprint(identity.vocabulary, identity.probe)[:16],
        },
        "data": {
            "texts": {name: data.labels.count(name) for name in sorted(set(data.labels))},
            "sha256": fingerprint(data.texts, data.labels),
            **({"one_style": True} if data.one_style else {}),
        },
        "settings": json.loads(json.dumps(settings, sort_keys=True)),
        "chat": dict(chat or {}),
    }


def fitted_on_chats(out: Path) -> bool | None:
    """Whether what is in a controller's folder was fitted on answers in chats; None where the
    folder does not say.

    Raises:
        ValueError: for a damaged record, naming its file.
    """
    about = (_read(out / RECORD) or {}).get("chat")
    return bool(about["used"]) if isinstance(about, dict) and "used" in about else None


def make(
    out: Path,
    fit: Mapping[str, Any],
    work: Callable[[Path, Path], Mapping[str, Any]],
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Makes a result in ``out``, which must be free, or continues where a killed fit stopped.

    Args:
        fit: what is fitted, see `record`.
        work: gets a folder for checkpoints, which may hold some, and an empty folder for the
            result; fills the latter and returns what was measured.
        finish: gets the result once its fit.json is there.

    Raises:
        ValueError: if ``out`` holds something, or the folder beside it another fit's checkpoints.
    """
    out, folder = _places(out)
    result = folder / "result"
    known = _read(folder / RECORD)
    finished = known is not None and bool(known.pop(FINISHED, False)) and not result.exists()
    if finished and out.is_dir() and any(out.iterdir()):
        _check_same(folder, known, fit)
        _remove(folder)  # killed behind the last rename
        return
    _check_free(out)
    if finished:  # what it had made is gone
        _remove(folder)
        known = None
    _check_same(folder, known, fit)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RECORD, fit)
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    try:
        measured = work(folder, result)
    except BaseException:
        if {path.name for path in folder.iterdir()} == {RECORD, "result"}:
            _remove(folder)  # it holds nothing to continue from
        raise
    _write(result / RECORD, {**fit, "measured": dict(measured)})
    if finish is not None:
        finish(result)
    sync(result)
    _write(folder / RECORD, {**fit, FINISHED: True})
    if out.is_dir():
        out.rmdir()  # it is empty
    os.replace(result, out)
    _remove(folder)


def check_out(out: Path) -> None:
    """Refuses a folder that holds something, before any work; one that a fit had filled when it was
    killed is left to `make`.

    Raises:
        ValueError: naming it.
    """
    out, folder = _places(out)
    if not (folder / RECORD).is_file():
        _check_free(out)


def write_data_sheet(result: Path) -> None:
    """Writes a controller's data sheet again: at first nothing had been measured."""
    Controller.from_pretrained(result).generate_model_card().save(result / README)


def _places(out: Path) -> tuple[Path, Path]:
    """The folder of a result, where a link leads, and that in which it is made."""
    out = out.resolve()
    return out, out.with_name(out.name + ".fitting")


def _check_free(out: Path) -> None:
    if out.is_file():
        raise ValueError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name another folder or remove it")


def _check_same(folder: Path, known: Mapping[str, Any] | None, fit: Mapping[str, Any]) -> None:
    if known is None:
        # Half a record is what a fit leaves that was killed before it had begun.
        if folder.exists() and {path.name for path in folder.iterdir()} - {RECORD + HALF}:
            raise ValueError(
                f"{folder} does not say what is being fitted in it; remove it to start anew"
            )
        return
    before, now = dict(_flat(known)), dict(_flat(fit))
    other = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if other:
        raise ValueError(
            f"{folder} holds the checkpoint of another fit: {'; '.join(other)}. Remove it to start "
            "anew, name another folder, or fit what it was made for"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``a.b`` and its value for each entry of nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path) -> dict[str, Any] | None:
    """The record in a working folder, or None where there is none."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove its folder to start anew") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged; remove its folder to start anew")
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _remove(folder: Path) -> None:
    """Removes a working folder, its record last: while that is there, nothing is taken for another
    fit's."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != RECORD:
            path.unlink()
    (folder / RECORD).unlink(missing_ok=True)
    folder.rmdir()
