"""What people report of a run: incidents, and where a person overrode what was generated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from plugalign.evaluation.run_folder.folder import locked
from plugalign.files.saved import described
from plugalign.files.text import check_unicode
from plugalign.values.account.chain import Chain, read_chain
from plugalign.values.account.records import NoteLine, content_of, now

FILE = "incidents.jsonl"  # beside the run, hash-chained too
Kind = Literal["incident", "override"]


def add_note(
    run: Path, kind: Kind, text: str, by: str | None = None, head: str | None = None
) -> None:
    """Appends a note to the file beside a run.

    Args:
        run: the run's folder.
        by: who reports it.
        head: the last hash of the run's own file.

    Raises:
        ValueError: see `check_note`; or for a file whose chain does not hold, or a folder in which
            another process is at work.
    """
    check_note(kind, text, by)
    line = NoteLine(kind=kind, time=now(), text=text, by=by, head=head)
    with locked(run):  # two that read one last line would both follow it
        Chain(run / FILE).append([content_of(line)])


def check_note(kind: Kind, text: str, by: str | None) -> None:
    """Refuses what cannot be a note.

    Raises:
        ValueError: for a text or a name that is blank or cannot be written.
    """
    for what, said in ((f"an {kind}", text), ("the name of who reports it", by)):
        if said is not None and not check_unicode(said, what).strip():
            raise ValueError(f"{what} needs words, got {said!r}")


def read_notes(run: Path) -> list[NoteLine]:
    """The notes beside a run.

    Raises:
        ValueError: for a line that is damaged, or was changed or removed; names it.
    """
    found = []
    for link in read_chain(run / FILE) if (run / FILE).is_file() else ():
        try:
            found.append(NoteLine.model_validate(link.content))
        except ValidationError as error:
            raise ValueError(f"{link.place}: no note: {described(error)}") from error
    return found
