"""Puts all questions to respondents and keeps every answer as it comes, so that a run resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from plugalign.evaluation.comparison.progress import Progress
from plugalign.evaluation.run_folder.journal import Journal
from plugalign.evaluation.run_folder.records import Addressed, Finite, Key
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.questions import Format, Question, question, questions
from plugalign.values.questionnaire.respondent import ROWS, Respondent
from plugalign.values.questionnaire.scoring import Readings, tabulate

READINGS, ANSWERS = "readings.jsonl", "answers.jsonl"


class Reading(Addressed):
    """How probable the answers to one question are; its number is the record's ``prompt``."""

    log_p: tuple[Finite, ...]


class Said(Addressed):
    """What was answered in words to one item, whose number is the record's ``prompt``."""

    text: str


@dataclass(frozen=True)
class Survey:
    """The questions of a run.

    Attributes:
        formats: in which items are asked; the first one scores.
        in_words: whether items are also asked in words, to count refusals.
    """

    instrument: Instrument
    formats: tuple[Format, ...]
    in_words: bool = True

    @property
    def scored(self) -> Format:
        return self.formats[0]

    @property
    def asked(self) -> list[Question]:
        return questions(self.instrument, self.formats, self.scored)

    @property
    def worded(self) -> dict[int, str]:
        """The prompts of what is asked in words, by the item's number: in the first wording."""
        numbers = self.instrument.numbers("item") + self.instrument.numbers("catch")
        if not self.in_words:
            return {}
        return {n: question(self.instrument, n, 0, None).prompt for n in numbers}


@dataclass(frozen=True)
class Answered:
    """What one respondent answered: readings by format, and words by the item's number."""

    readings: dict[Format, Readings]
    words: dict[int, str]


def ask(
    survey: Survey, respondents: Mapping[str, Respondent], out: Path, run: str
) -> dict[str, Answered]:
    """Everything that all respondents answer, by their names.

    Args:
        out: the run's folder; what it has is not asked again. run: the run's name, see `Journal`.
    """
    asked, worded = survey.asked, survey.worded
    blocks = _blocks(asked)
    units = [[(name, n, 0) for n in block] for name in respondents for block in blocks]
    readings = Journal(out / READINGS, Reading, units, run)
    batches = [list(worded)[first : first + ROWS] for first in range(0, len(worded), ROWS)]
    rows = [[(name, n, 0) for n in batch] for name in respondents for batch in batches]
    said = Journal(out / ANSWERS, Said, rows, run)
    with Progress(out) as progress:
        work = _read(asked, respondents, readings)
        total = len(asked) * len(respondents)
        progress.stage("reading", total, lambda: len(readings.records), work)
        total = len(worded) * len(respondents)
        words = _said(worded, respondents, said)
        progress.stage("refusals", total, lambda: len(said.records), words)
    found = {}
    for name in respondents:
        log_p = [readings.records[name, n, 0].log_p for n in range(len(asked))]
        found[name] = Answered(
            {f: tabulate(survey.instrument, f, asked, log_p) for f in survey.formats},
            {n: said.records[name, n, 0].text for n in worded},
        )
    return found


def _blocks(asked: Sequence[Question]) -> list[list[int]]:
    """The numbers of questions that begin alike: one instruction, one order of the answers."""

    def beginning(number: int) -> tuple[str, object]:
        return asked[number].prompt.split("\n\n")[0], asked[number].order

    return [list(block) for _, block in groupby(range(len(asked)), beginning)]


def _read(
    asked: Sequence[Question], respondents: Mapping[str, Respondent], journal: Journal[Reading]
) -> Iterator[None]:
    for unit in journal.missing:
        found = []
        for name, number, _ in journal.units[unit]:
            each = asked[number]
            log_p = respondents[name].log_probs(each.prompt, each.answers)
            found.append(Reading(method=name, prompt=number, sample=0, log_p=tuple(log_p)))
        journal.append(found)
        yield


def _said(
    worded: Mapping[int, str], respondents: Mapping[str, Respondent], journal: Journal[Said]
) -> Iterator[None]:
    for unit in journal.missing:
        keys: Sequence[Key] = journal.units[unit]
        texts = respondents[keys[0][0]].say([worded[number] for _, number, _ in keys])
        journal.append(
            [
                Said(method=name, prompt=number, sample=0, text=text)
                for (name, number, _), text in zip(keys, texts, strict=True)
            ]
        )
        yield
