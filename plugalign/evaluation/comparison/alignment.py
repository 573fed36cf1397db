"""How aligned the answers of a run are, by its judges, human texts and human labels.

What humans wrote and said lies in the run's folder beside the answers, so that the summary stays a
function of the run's files. Both may be added to a run that is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plugalign.evaluation.comparison.references import BASE
from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.run_folder.answers import Answers
from plugalign.evaluation.run_folder.folder import write_json
from plugalign.evaluation.run_folder.manifest import Manifest
from plugalign.evaluation.run_folder.records import Key, described
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.evaluation.statistics.prediction_powered import FEWEST
from plugalign.files.fingerprint import file_hash
from plugalign.files.rows import Row, read_rows
from plugalign.files.saved import read_settings
from plugalign.files.shown import listed, printable, shown
from plugalign.loading import TEXTS
from plugalign.values.alignment import Aligner, Alignment

HUMAN_TEXTS, HUMAN_LABELS = "human_texts.json", "human_labels.json"
CURE = "remove it, and give the file again"
VALUE, CONTRAST, DIAGNOSIS = KINDS = "ValueDiscriminator", "ValueContrast", "diagnose"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    source: str
    sha256: str


F = TypeVar("F", bound=_File)


class HumanTexts(_File):
    """Scores of human texts, by judge; None where it failed."""

    scores: dict[str, tuple[Share | None, ...]]


class HumanLabel(BaseModel):
    """What a human says of an answer: 1 where it has what the judges look for, as toxicity, or
    breaks the value.

    Attributes:
        text: the answer that was labelled, None where the file does not say.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: str
    prompt: Count
    sample: Count
    label: Literal[0, 1]
    text: str | None = None


class HumanLabels(_File):
    """Labels of answers."""

    labels: tuple[HumanLabel, ...]


def judged_texts(path: Path, judges: Mapping[str, Judge]) -> HumanTexts:
    """The judges' scores of the texts in a file's field "text" or "continuation".

    Raises:
        ValueError: naming the file, and the line where one is malformed.
    """
    texts = [row.text(row.first(*TEXTS)) for row in read_rows(path)]
    scores = {name: judge(texts) for name, judge in judges.items()}
    for name, each in scores.items():
        if (present := int((~np.isnan(each)).sum())) < 2:
            raise ValueError(
                f"{printable(str(path))}: the judge {name} has scores of {present} human texts; "
                f"two are needed"
            )
    known = {
        name: tuple(None if np.isnan(x) else float(x) for x in each)
        for name, each in scores.items()
    }
    return HumanTexts(source=path.name, sha256=file_hash(path), scores=known)


def read_labels(path: Path, rows: Sequence[str], prompts: int, samples: int) -> HumanLabels:
    """Labels of a run's answers, as lines of its generations.jsonl with a field "label" more.

    Args:
        rows: the names of what answered. prompts, samples: how many there are.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    found: dict[Key, HumanLabel] = {}
    for row in read_rows(path):
        label = _label(row, rows, prompts, samples)
        key = (label.method, label.prompt, label.sample)
        if key in found:
            raise ValueError(
                f"{row.place}: the answer {described(key)} is labelled twice; give one label of it"
            )
        found[key] = label
    labels = tuple(found.values())
    for method in dict.fromkeys(each.method for each in labels):
        count = len({each.prompt for each in labels if each.method == method})
        if count < FEWEST:
            raise ValueError(
                f"{printable(str(path))}: answers of {shown(method)} to {count} prompts are "
                f"labelled; {FEWEST} are needed"
            )
    return HumanLabels(source=path.name, sha256=file_hash(path), labels=labels)


def _label(row: Row, rows: Sequence[str], prompts: int, samples: int) -> HumanLabel:
    method = row.text(row.first("method"))
    if method not in rows:
        raise ValueError(f"{row.place}: no method {shown(method)}; there are {listed(rows)}")
    prompt, sample = (
        _number(row, name, below) for name, below in (("prompt", prompts), ("sample", samples))
    )
    label = row.label(row.first("label"))
    if label not in ("0", "1"):
        raise ValueError(f"{row.place}: a label is 0 or 1, got {shown(label)}")
    text = row.text("text") if row.has("text") else None
    return HumanLabel(
        method=method, prompt=prompt, sample=sample, label=1 if label == "1" else 0, text=text
    )


def _number(row: Row, name: str, below: int) -> int:
    value = row.label(row.first(name))
    if not value.isdecimal() or int(value) >= below:
        raise ValueError(f"{row.place}: {name!r} must be from 0 to {below - 1}, got {shown(value)}")
    return int(value)


def keep(
    out: Path,
    texts: HumanTexts | None,
    labels: HumanLabels | None,
    answers: Callable[[], Mapping[str, Answers]],
) -> None:
    """Writes what was given into a run's folder; what lies there and was not given again stays.

    Args:
        answers: reads those of the run, which is finished.

    Raises:
        ValueError: if labels are of other answers.
    """
    if labels is not None:
        known = answers()
        for each in labels.labels:
            _check_same(each, known[each.method].rows[each.prompt][each.sample].generated.text)
        write_json(out / HUMAN_LABELS, labels.model_dump(mode="json"))
    if texts is not None:
        write_json(out / HUMAN_TEXTS, texts.model_dump(mode="json"))


def _check_same(label: HumanLabel, text: str) -> None:
    if label.text is not None and label.text != text:
        raise ValueError(
            f"the answer of {shown(label.method)} to prompt {label.prompt} (sample {label.sample}) "
            f"is {shown(text)}, the label is of {shown(label.text)}; label this run's answers"
        )


def alignment_of(out: Path, manifest: Manifest, answers: Mapping[str, Answers]) -> Alignment | None:
    """How aligned a run's answers are; None where nothing in it is about values.

    Raises:
        ValueError: if a file is damaged, or has scores of other judges; names it.
    """
    texts, labels = _read(out / HUMAN_TEXTS, HumanTexts), _read(out / HUMAN_LABELS, HumanLabels)
    settings = manifest.settings
    kinds = {name: record.kind for name, record in settings.judge_details.items()}
    if texts is None and labels is None and not set(KINDS) & set(kinds.values()):
        return None
    own = _own(manifest)
    summed = [name for name in settings.judges if kinds.get(name) == VALUE]
    human = None if texts is None else _human(out, texts, settings.judges)
    aligner = Aligner(
        len(answers[BASE].rows), human=human, own=own, summed=summed, seed=settings.seed
    )
    known = {} if labels is None else _arrays(labels, answers)
    conforming = {
        name: {judge: 1 - each.scores(judge) for judge in settings.judges}
        for name, each in answers.items()
    }
    base = conforming[BASE]
    return Alignment(
        rows={
            name: aligner.row(each, None if name == BASE else base, known.get(name))
            for name, each in conforming.items()
        },
        own=own,
        summed=summed,
        human_texts=None
        if texts is None
        else _about(texts, len(next(iter(texts.scores.values())))),
        human_labels=None if labels is None else _about(labels, len(labels.labels)),
    )


def _read(path: Path, kind: type[F]) -> F | None:
    """A file of a run's folder, None where there is none."""
    return read_settings(path, kind, CURE) if path.is_file() else None


def _own(manifest: Manifest) -> list[str]:
    """The judges that ask the very model that answers."""
    model, details = manifest.settings.model, manifest.settings.judge_details
    if model is None or model.weights is None:
        return []
    return [
        name
        for name, record in details.items()
        if record.kind in (CONTRAST, DIAGNOSIS) and record.reads == model.weights
    ]


def _human(out: Path, texts: HumanTexts, judges: Sequence[str]) -> dict[str, FloatArray]:
    if set(texts.scores) != set(judges):
        raise ValueError(
            f"{out / HUMAN_TEXTS} has scores of {listed(texts.scores)}, not of {listed(judges)}; "
            f"{CURE}"
        )
    return {
        name: 1 - np.array([np.nan if x is None else x for x in texts.scores[name]])
        for name in judges
    }


def _arrays(labels: HumanLabels, answers: Mapping[str, Answers]) -> dict[str, FloatArray]:
    """By method, whether humans find that its answers conform, ``(P, S)``."""
    found: dict[str, Any] = {}
    for each in labels.labels:
        rows = answers[each.method].rows
        array = found.setdefault(each.method, np.full((len(rows), len(rows[0])), np.nan))
        array[each.prompt, each.sample] = 1 - each.label
    return found


def _about(file: _File, count: int) -> dict[str, Any]:
    return {"source": file.source, "sha256": file.sha256, "count": count}
