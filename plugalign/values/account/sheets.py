"""The controllers in an account: data sheets, whether they are as they were, what they learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.data_sheet import Notes, read_provenance
from plugalign.algebra.saving import CONFIG
from plugalign.evaluation.run_folder.describe import describe_controller
from plugalign.evaluation.run_folder.manifest import ControllerRecord
from plugalign.files.fingerprint import file_hash
from plugalign.files.rows import read_rows
from plugalign.values.account.controllers import HISTORY, folder_hash
from plugalign.values.account.records import TracedController

SAME = "as in the run"
LATEST = 10  # rows of a history that are shown
WIDEST = 8  # columns of it


@dataclass(frozen=True)
class History:
    """What a controller's folder keeps of feedback and of what was learned from it.

    Attributes:
        path: the file; sha256: of its bytes.
        rows: how many there are.
        columns: the fields of the latest rows; latest: their values as texts.
    """

    path: str
    sha256: str
    rows: int
    columns: tuple[str, ...]
    latest: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ControllerAccount:
    """A controller of a run.

    Attributes:
        status: `SAME`, or what changed since, or why nobody looked.
        sheet: its data sheet, None where there is none.
        learned: a fingerprint of what it learned; files: the hash of its files.
    """

    name: str
    kind: str
    folder: str | None
    status: str
    sheet: Mapping[str, Any] | None
    config: Mapping[str, Any]
    learned: str
    files: str | None
    histories: tuple[History, ...] = ()

    def component(self) -> dict[str, Any]:
        """As a component of a CycloneDX bill of materials, with its modelCard."""
        sheet = self.sheet or {}
        found: dict[str, Any] = {
            "type": "machine-learning-model",
            "name": self.name,
            "version": self.learned,
            "modelCard": _model_card(self.kind, sheet),
        }
        if self.files is not None:
            found["hashes"] = [{"alg": "SHA-256", "content": self.files}]
        if sheet:
            found["licenses"] = [{"license": {"name": sheet["license"]}}]
        return found


def _model_card(kind: str, sheet: Mapping[str, Any]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": {"task": "text-generation", "architectureFamily": kind}
    }
    if sheet.get("n"):
        card["modelParameters"]["approach"] = {"type": "supervised"}
        about = f"{sheet['training_data']}; n = {sheet['n']}, SHA-256 {sheet['data_sha256']}"
        card["modelParameters"]["datasets"] = [{"type": "dataset", "name": about}]
    if sheet.get("held_out"):
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": name, "value": f"{value:g}", "slice": "held out"}
                for name, value in sheet["held_out"].items()
            ]
        }
    if sheet:
        card["considerations"] = {
            "useCases": [sheet["intended_use"]],
            "technicalLimitations": [sheet["limitations"]],
        }
    return card


def of_trace(recorded: Mapping[str, TracedController]) -> list[ControllerAccount]:
    """The controllers of a traced run."""
    return [_of_trace(name, record) for name, record in recorded.items()]


def _of_trace(name: str, record: TracedController) -> ControllerAccount:
    folder = None if record.folder is None else Path(record.folder)
    sheet, status = dict(record.sheet), "it was given in Python; not checked"
    histories: tuple[History, ...] = ()
    # A trace that somebody else has written may name any folder.
    if folder is not None and not (folder / CONFIG).is_file():
        status = "its folder is not there now; not checked"
    elif folder is not None:
        same = record.files == folder_hash(folder)
        status = SAME if same else "its files have changed since the run"
        stated = read_provenance(folder).notes
        # What people have written since counts too.
        sheet |= {k: v for k, v in asdict(stated).items() if v != asdict(Notes())[k]}
        histories = read_histories(folder)
    return ControllerAccount(
        name=name,
        kind=record.kind,
        folder=record.folder,
        status=status,
        sheet=sheet,
        config=record.config,
        learned=record.learned,
        files=record.files,
        histories=histories,
    )


def of_comparison(
    recorded: Mapping[str, ControllerRecord | None], folders: Mapping[str, str | Path]
) -> list[ControllerAccount]:
    """The controllers of a comparison, of which the manifest knows no folders.

    Args:
        folders: where they lie, by name, as far as that is known.
    """
    return [
        _of_comparison(name, record, folders.get(name))
        for name, record in recorded.items()
        if record is not None
    ]


def _of_comparison(
    name: str, record: ControllerRecord, given: str | Path | None
) -> ControllerAccount:
    if given is None:
        why = "no folder was given, so there is no data sheet and nobody looked"
        return ControllerAccount(
            name, record.kind, None, why, None, record.config, record.learned, None
        )
    controller = Controller.from_pretrained(str(given))
    now, folder = describe_controller(controller), Path(given)
    same = (now.learned, now.kind) == (record.learned, record.kind)
    status = SAME if same else "what it learned has changed since the run"
    if same and now.config != record.config:
        status = "what it learned is as in the run, where it had other settings"
    return ControllerAccount(
        name=name,
        kind=record.kind,
        folder=str(given),
        status=status,
        sheet=controller.data_sheet().to_json(),
        config=record.config,
        learned=record.learned,
        files=folder_hash(folder) if folder.is_dir() else None,
        histories=read_histories(folder),
    )


def read_histories(folder: Path) -> tuple[History, ...]:
    """Every history in a controller's folder; a sum has those of its parts.

    Raises:
        ValueError: for a damaged line; names file and line.
    """
    return tuple(_history(path) for path in sorted(folder.rglob(HISTORY)))


def _history(path: Path) -> History:
    rows = [row.fields for row in read_rows(path)]
    latest = rows[-LATEST:]
    columns = tuple(dict.fromkeys(name for row in latest for name in row))[:WIDEST]
    cells = tuple(tuple(_cell(row.get(name)) for name in columns) for row in latest)
    return History(str(path), file_hash(path), len(rows), columns, cells)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list)):
        text = json.dumps(_short(value), ensure_ascii=False)
        return text if len(text) <= 120 else text[:120] + "…"
    return "" if value is None else str(value)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
