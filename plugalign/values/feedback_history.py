"""What an equilibrium has been taught, step by step, beside it in its folder.

``history.jsonl`` has a line for each piece of feedback: when, of what (a hash), how, and theta with
its covariance afterwards. Each line holds the hash of the line before, so that one that was changed
or taken out shows. The last line is what theta is; the saved tensors follow it, also where a kill
came in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from torch import Tensor

from plugalign.controllers.equilibrium import Equilibrium
from plugalign.evaluation.run_folder.folder import replace_text
from plugalign.files.json_text import parse_object
from plugalign.files.shown import printable, shown
from plugalign.files.text import read_text
from plugalign.files.typed import validated

HISTORY = "history.jsonl"
FIRST = "0" * 64  # stands for the line before the first

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Feedback(BaseModel):
    """What was learned from: a file by its name and hash, and how many choices of each kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: Hash
    pairs: Count
    likes: Count
    edits: Count


class Lesson(BaseModel):
    """One line of the history.

    Attributes:
        time: when it was learned.
        model: whose texts the evidence was read of.
        chat: whether their prompts stood in its chat template; system: behind which message.
        learner: "map" or "gradient", see `plugalign.values.preferences`.
        keep: the share of earlier evidence that was kept.
        ridge: the precision of the prior of a first lesson; None where what was known before was
            the prior.
        theta: by feature. covariance: of theta, in the order of the features.
        agreement: the share of these choices that theta would have made, before and after.
        outside: the share of their tokens that the reference could not have chosen.
        previous: the hash of the line before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: AwareDatetime
    feedback: Feedback
    model: str
    chat: bool = False
    system: str | None = None
    learner: Literal["map", "gradient"]
    keep: Annotated[float, Field(gt=0, le=1)]
    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    theta: dict[str, Finite]
    covariance: list[list[Finite]]
    agreement: tuple[Finite, Finite]
    outside: Finite
    previous: Hash

    def learned(self) -> tuple[Tensor, Tensor]:
        """Theta ``(F,)`` and its covariance ``(F, F)``, float64."""
        theta = torch.tensor(list(self.theta.values()), dtype=torch.float64)
        return theta, torch.tensor(self.covariance, dtype=torch.float64)


def read_history(folder: Path) -> list[Lesson]:
    """All lessons, the first first.

    Raises:
        ValueError: naming the line that is damaged, or before which one was changed or taken out.
    """
    path, before, found = folder / HISTORY, FIRST, list[Lesson]()
    if not path.is_file():
        return []
    for number, line in enumerate(_lines(path), start=1):
        place = f"{printable(str(path))}, line {number}"
        lesson = validated(Lesson, parse_object(line, place), place)
        if lesson.previous != before:
            raise ValueError(
                f"{place}: the line before it was changed, moved or taken out; restore the file "
                "from a copy, or move it away to begin a new history"
            )
        before, found = line_hash(line), [*found, lesson]
    return found


def line_hash(line: str) -> str:
    """The SHA-256 of a line without its end."""
    return hashlib.sha256(line.encode("utf-8")).hexdigest()


def last_hash(folder: Path) -> str:
    """The hash that the next line holds."""
    path = folder / HISTORY
    lines = _lines(path) if path.is_file() else []
    return line_hash(lines[-1]) if lines else FIRST


def _lines(path: Path) -> list[str]:
    """The lines of a file; names in it may hold what other alphabets end a line with."""
    return read_text(path).removesuffix("\n").split("\n")


def append(folder: Path, lesson: Lesson) -> None:
    """Adds a line; a kill leaves the file with it or without it."""
    path = folder / HISTORY
    before = read_text(path) if path.is_file() else ""
    line = json.dumps(lesson.model_dump(mode="json"), ensure_ascii=False)
    replace_text(path, f"{before}{line}\n")


def check_new(history: Sequence[Lesson], sha256: str) -> None:
    """Refuses feedback that was learned already.

    Raises:
        ValueError: naming the line of the history.
    """
    for number, lesson in enumerate(history, start=1):
        if lesson.feedback.sha256 == sha256:
            when = lesson.time.isoformat(sep=" ", timespec="seconds")
            raise ValueError(
                f"this feedback was learned already, as {shown(lesson.feedback.file)} at {when} "
                f"({HISTORY}, line {number}); give what is new"
            )


def following(equilibrium: Equilibrium, history: Sequence[Lesson], folder: Path) -> Equilibrium:
    """The equilibrium with what the last lesson taught.

    Raises:
        ValueError: if that was of other features.
    """
    if not history:
        return equilibrium
    last, names = history[-1], list(equilibrium.preferences.features)
    if list(last.theta) != names:
        raise ValueError(
            f"{printable(str(folder / HISTORY))} is of the features {', '.join(last.theta)}, and "
            f"the equilibrium has {', '.join(names)}; move the file away to begin a new history"
        )
    return equilibrium.taught(equilibrium.preferences.learned(*last.learned()))
