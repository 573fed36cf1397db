"""Respondents of questionnaires that are no models, and small instruments."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugalign.values.questionnaire.asking import Survey, ask
from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.measurement import summed_up
from plugalign.values.questionnaire.scoring import Readings


class Stub:
    """Answers by the item's text alone, whatever the letters.

    Args:
        answer: of the item's text the log p of each answer, from low to high.
        words: what it says when it is asked in words.
    """

    def __init__(
        self,
        instrument: Instrument,
        answer: Callable[[str], Sequence[float]],
        words: str = "I think so.",
    ):
        self.instrument, self._answer, self.words = instrument, answer, words
        self.prompts: list[str] = []

    def log_probs(self, prompt: str, answers: Sequence[str]) -> list[float]:
        self.prompts.append(prompt)
        texts = [item.text for item in self.instrument.items if item.text in prompt]
        own = list(self._answer(max(texts, key=len)))
        return own if answers[0] != "A" else [own[k] for k in self._shown(prompt)]

    def say(self, prompts: Sequence[str]) -> list[str]:
        return [self.words] * len(prompts)

    def _shown(self, prompt: str) -> list[int]:
        """Which place of the scale each letter shows."""
        scales = [part.scale for part in self.instrument.parts.values()]
        places = {label: place for scale in scales for place, label in enumerate(scale)}
        return [places[line[3:]] for line in prompt.split("\n") if line[1:3] == ". "]


class ByLetter(Stub):
    """Says A wherever letters are shown, and of unseen answers always the same."""

    def log_probs(self, prompt: str, answers: Sequence[str]) -> list[float]:
        if answers[0] == "A":
            return [-0.01, *[-9.0] * (len(answers) - 1)]
        return [-float(len(answer)) for answer in answers]


def table_of(instrument: Instrument) -> dict[str, np.ndarray]:
    """An answer distribution for every item, by its text: a reader's where that is known, even
    for items without content, else drawn."""
    rng, levels, found = np.random.default_rng(5), instrument.levels, {}
    for item in instrument.items:
        weight = rng.dirichlet(np.ones(levels))
        if item.kind == "content-free":
            weight = np.ones(levels)
        elif item.expected is not None:
            weight = np.exp(np.arange(levels, dtype=float))
            weight = weight if item.expected == "high" else weight[::-1]
        found[item.text] = weight / weight.sum()
    return found


def oracle(instrument: Instrument, words: str = "I think so.") -> Stub:
    """Answers by `table_of`."""
    table = table_of(instrument)
    return Stub(instrument, lambda text: [math.log(p) for p in table[text]], words)


def readings_of(instrument: Instrument, stub: Stub, out: Path, format: Any) -> Readings:
    """What a stub answers in one format."""
    out.mkdir(exist_ok=True)
    answered = ask(Survey(instrument, (format,)), {"stub": stub}, out, "run")
    return answered["stub"].readings[format]


def profile_of(
    instrument: Instrument, stub: Stub, out: Path, formats: Any = ("options", "letters")
) -> Profile:
    """What is found of a stub."""
    out.mkdir(exist_ok=True)
    survey = Survey(instrument, formats)
    return summed_up(survey, ask(survey, {"stub": stub}, out, "run"), {"stub": None})["stub"]


def small(**changes: Any) -> dict[str, Any]:
    """The content of an instrument file with two dimensions."""
    items = [
        {"id": n, "dimension": "ab"[n % 2], "text": f"Statement number {n}."} for n in range(4)
    ]
    scale = ["no", "rather not", "rather", "yes"]
    return {"name": "small", "scale": scale, "items": items, **changes}


def written(path: Path, content: dict[str, Any]) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
