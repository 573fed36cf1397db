"""The controllers of a traced run: loaded, described, and found again later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Composition, Controller
from plugalign.algebra.data_sheet import README
from plugalign.evaluation.run_folder.describe import controller_fingerprint
from plugalign.files.fingerprint import file_hash, fingerprint
from plugalign.values.account.records import TracedController

HISTORY = "history.jsonl"  # feedback and what was learned from it, where a controller keeps that


def summed(controllers: Mapping[str, Controller]) -> Controller:
    """All controllers together, as one."""
    parts = [part for controller in controllers.values() for part in controller.parts()]
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Composition(*parts)


def labels(names: tuple[str, ...], controllers: Mapping[str, Controller]) -> tuple[str, ...]:
    """What to call the columns of a trace: the user's name where it says which part that is.

    Args:
        names: of a `plugalign.Trace`.
    """
    by_class: dict[str, list[str]] = {}
    for name, controller in controllers.items():
        for _, part in controller.parts():
            own = name if len(controller.parts()) == 1 else f"{name}.{part.display_name}"
            by_class.setdefault(part.display_name, []).append(own)
    return tuple(by_class[name][0] if len(by_class.get(name, ())) == 1 else name for name in names)


def described(
    controllers: Mapping[str, Controller], folders: Mapping[str, str | None]
) -> dict[str, TracedController]:
    """What a trace says of controllers, by name.

    Args:
        folders: where each was loaded from.
    """
    return {name: _described(each, folders.get(name)) for name, each in controllers.items()}


def _described(controller: Controller, folder: str | None) -> TracedController:
    path = None if folder is None else Path(folder)
    return TracedController(
        kind=controller.display_name,
        config=controller.config(),
        learned=controller_fingerprint(controller),
        folder=folder,
        files=None if path is None or not path.is_dir() else folder_hash(path),
        sheet=controller.data_sheet().to_json(),
    )


def folder_hash(folder: Path) -> str:
    """A hash of every file in a controller's folder but data sheets and hidden files (locks,
    repositories), which steer nothing: of all their bytes, where a fingerprint of weights looks at
    some."""
    every = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    hidden = [name for name in every if any(part.startswith(".") for part in name.parts)]
    files = sorted(every.keys() - {*hidden, *(name for name in every if name.name == README)})
    return fingerprint([(str(name), file_hash(every[name])) for name in files])


def differences(
    recorded: Mapping[str, TracedController], now: Mapping[str, TracedController]
) -> dict[str, str]:
    """What has changed in controllers since they were recorded, in words by name."""
    found = {}
    for name, before in recorded.items():
        if (after := now.get(name)) is None:
            found[name] = "it is not there now"
        elif (what := _changed(before, after)) is not None:
            found[name] = what
    return found


def _changed(before: TracedController, after: TracedController) -> str | None:
    """What differs between two records of one controller, or None."""
    comparisons: tuple[tuple[str, Any, Any], ...] = (
        ("class", before.kind, after.kind),
        ("settings", before.config, after.config),
        ("fingerprint of what it learned", before.learned, after.learned),
        ("files", before.files, after.files),
    )
    changed = [
        what for what, one, other in comparisons if one != other and None not in (one, other)
    ]
    return f"its {' and '.join(changed)} changed" if changed else None
