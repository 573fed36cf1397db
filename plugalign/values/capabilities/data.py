"""What the four capabilities are measured on: users' files, checked before any work.

* **judgements**: rows of a text and whether it is right: ``{"text": "...", "label": 1}``, where 1
  is right and 0 is wrong. A "scenario" is a text too, and an "excuse" beside it follows it.
* **prompts**: texts to go on from or conversations to answer, as `plugalign compare` takes them.
* **texts**: one a line or a row, of which the perplexity is taken.
* **tasks**: ``{"question": "...", "choices": ["...", "..."], "answer": 0}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.files.messages import Prompt
from plugalign.files.rows import Row, read_rows
from plugalign.files.shown import printable, shown

TEXTS, MORE = ("text", "scenario"), "excuse"
LEAST = 2  # texts of a kind, for an AUC


@dataclass(frozen=True)
class Judgement:
    """A text, and whether what it says is right."""

    text: str
    right: bool


@dataclass(frozen=True)
class Task:
    """A question with several answers, of which one is correct."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class CapabilityData:
    """The data of all capabilities; an empty one is not measured.

    Raises:
        ValueError: if all are empty, or for too few judgements of a kind.
    """

    judgements: tuple[Judgement, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    texts: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        if not (self.judgements or self.prompts or self.texts or self.tasks):
            raise ValueError(
                "there is nothing to measure on; give judgements, prompts, texts or tasks"
            )
        _check_kinds("", self.judgements)


def load_data(
    judgements: str | Path | None,
    prompts: str | Path | None,
    texts: str | Path | None,
    tasks: str | Path | None,
    limit: int | None,
) -> CapabilityData:
    """The data in users' files.

    Args:
        limit: only so many of the first rows of each.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    return CapabilityData(
        () if judgements is None else _judgements(Path(judgements), limit),
        () if prompts is None else load_prompts(prompts, limit).every,
        () if texts is None else _texts(texts, limit),
        () if tasks is None else tuple(map(_task, read_rows(Path(tasks))))[:limit],
    )


def _texts(path: str | Path, limit: int | None) -> tuple[str, ...]:
    found = load_prompts(path, limit)
    if found.have_conversations:
        raise ValueError(
            f"{printable(str(path))}: the perplexity is of texts; give 'text', not 'messages'"
        )
    return found.texts


def _judgements(path: Path, limit: int | None) -> tuple[Judgement, ...]:
    found = tuple(map(_judgement, read_rows(path)))[:limit]
    if not found:
        raise ValueError(f"{printable(str(path))} holds no judgement; give one per line")
    _check_kinds(f"{printable(str(path))}: ", found)
    return found


def _check_kinds(place: str, found: Sequence[Judgement]) -> None:
    right = sum(each.right for each in found)
    if found and min(right, len(found) - right) < LEAST:
        raise ValueError(
            f"{place}{right} of {len(found)} judged texts are right; give {LEAST} or more of "
            "either kind"
        )


def _judgement(row: Row) -> Judgement:
    text, label = row.text(row.first(*TEXTS)), row.label("label")
    if label not in ("0", "1"):
        raise ValueError(f"{row.place}: 'label' must be 1 (right) or 0 (wrong), got {shown(label)}")
    return Judgement(f"{text} {row.text(MORE)}" if row.has(MORE) else text, label == "1")


def _task(row: Row) -> Task:
    choices, answer = row.texts(row.first("choices")), row.label(row.first("answer"))
    if len(choices) < 2:
        raise ValueError(f"{row.place}: 'choices' must be two texts or more, got {shown(choices)}")
    if not answer.isdecimal() or int(answer) >= len(choices):
        raise ValueError(
            f"{row.place}: 'answer' must be the place of a choice, from 0 to {len(choices) - 1}, "
            f"got {shown(answer)}"
        )
    return Task(row.text(row.first("question")), tuple(choices), int(answer))
