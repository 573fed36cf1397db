"""A run's answers, joined from its journals by address, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plugalign.evaluation.metrics.likelihood import Likelihood, pooled_perplexity
from plugalign.evaluation.metrics.texts import distinct_n, mean_length
from plugalign.evaluation.run_folder.folder import GENERATIONS, SCORES
from plugalign.evaluation.run_folder.journal import read_journal
from plugalign.evaluation.run_folder.manifest import Manifest
from plugalign.evaluation.run_folder.records import Answer, Generated, Scored, described, keys_of
from plugalign.evaluation.statistics.paired import FloatArray, missing


@dataclass(frozen=True)
class Answers:
    """One method's answers by prompt and sample, ``rows[prompt][sample]``."""

    rows: list[list[Answer]]

    def scores(self, judge: str) -> FloatArray:
        """``(P, S)``, NaN where the judge failed."""
        return self._numbers(lambda a: a.scored.scores[judge])

    def matched(self, judge: str) -> tuple[FloatArray, FloatArray]:
        """The scores ``(P, S)`` of these answers and of base's, both cut to the shorter."""
        return (
            self._numbers(lambda a: a.scored.matched and a.scored.matched.scores[judge]),
            self._numbers(lambda a: a.scored.matched and a.scored.matched.base[judge]),
        )

    @property
    def has_matched(self) -> bool:
        """Whether there are such scores."""
        return all(a.scored.matched is not None for row in self.rows for a in row)

    def texts(self) -> list[list[str]]:
        """The texts, ``[prompt][sample]``."""
        return [[a.generated.text for a in row] for row in self.rows]

    def quality(self) -> dict[str, FloatArray]:
        """Per-prompt numbers ``(P,)`` of everything that needs no judge."""
        texts = self.texts()
        tokens = [[a.generated.tokens for a in row] for row in self.rows]
        found = {name: pooled_perplexity(sums) for name, sums in self.likelihoods().items()}
        found |= {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
        return found | {"length": mean_length(tokens), "empty": self.empty}

    def likelihoods(self) -> dict[str, FloatArray]:
        """What perplexities are made of, by their names: `Likelihood.sums`, ``(P, 2)``."""
        found = {"perplexity": self._sums(lambda a: a.scored.nll, lambda a: a.scored.scored_tokens)}
        if all(a.scored.outside is not None for a in self._flat()):
            found["outside_perplexity"] = self._sums(
                lambda a: a.scored.outside.nll, lambda a: a.scored.outside.tokens
            )
        return found

    def _sums(self, nll: Callable[[Any], float | None], tokens: Callable[[Any], int]) -> FloatArray:
        counts = self._numbers(tokens).reshape(-1).astype(np.int64)
        return Likelihood(self._numbers(nll).reshape(-1), counts).sums(len(self.rows[0]))

    @property
    def empty(self) -> FloatArray:
        """The share of each prompt's answers without a word, ``(P,)``."""
        found: FloatArray = self._numbers(lambda a: not a.generated.text.strip()).mean(axis=1)
        return found

    def unscored(self, perplexity: str = "perplexity") -> int:
        """Answers without a perplexity, by its name: they are empty to the model that reads."""
        if perplexity == "outside_perplexity":
            return missing(self._numbers(lambda a: a.scored.outside and a.scored.outside.nll))
        return missing(self._numbers(lambda a: a.scored.nll))

    def first_error(self, judge: str) -> str | None:
        """Why the judge failed on the first answer on which it did."""
        errors = (a.scored.errors.get(judge) for row in self.rows for a in row)
        return next((error for error in errors if error), None)

    @cached_property
    def batches(self) -> dict[int, list[Generated]]:
        """The answers by the number of their batch, in the order of these."""
        found: dict[int, list[Generated]] = {}
        for answer in sorted((a.generated for row in self.rows for a in row), key=_batch):
            found.setdefault(answer.batch, []).append(answer)
        return found

    def seconds(self) -> FloatArray:
        """What each batch took."""
        return np.array([sum(a.seconds for a in batch) for batch in self.batches.values()])

    def tokens(self) -> FloatArray:
        """The tokens of each batch's answers, at least 1."""
        totals = (sum(len(a.tokens) for a in batch) for batch in self.batches.values())
        return np.array([max(1, total) for total in totals], dtype=np.float64)

    def steps(self) -> FloatArray:
        """The decoding steps of each batch: it runs until its longest answer has ended."""
        longest = (max(len(a.tokens) for a in batch) for batch in self.batches.values())
        return np.array([max(1, steps) for steps in longest], dtype=np.float64)

    def sizes(self) -> FloatArray:
        """The answers of each batch."""
        return np.array([len(batch) for batch in self.batches.values()], dtype=np.float64)

    def revisions(self) -> dict[str, int]:
        """What revisers counted in all batches, and how many answers they changed."""
        total: dict[str, int] = {}
        for batch in self.batches.values():
            for name, count in batch[0].revisions.items():
                total[name] = total.get(name, 0) + count
        if not total:
            return {}
        drafts = (any(r.draft is not None for r in a.generated.revised) for a in self._flat())
        return {**total, "changed": sum(drafts)}

    def _flat(self) -> list[Answer]:
        return [answer for row in self.rows for answer in row]

    def _numbers(self, get: Callable[[Answer], Any]) -> FloatArray:
        return np.array(
            [[np.nan if (x := get(a)) is None else x for a in row] for row in self.rows],
            dtype=np.float64,
        )


def read_answers(out: Path, manifest: Manifest) -> dict[str, Answers]:
    """Every method's answers with their scores, references first.

    Raises:
        ValueError: for a damaged line, or an answer or score that is missing; names the file.
    """
    settings, run = manifest.settings, manifest.run
    names = settings.rows()
    generated = read_journal(out / GENERATIONS, Generated, run)
    prompts = 1 + max((key[1] for key in generated), default=-1)
    keys = keys_of(names, prompts, settings.samples)
    scored = read_journal(out / SCORES, Scored, run)
    for file, found in ((GENERATIONS, set(generated)), (SCORES, set(scored))):
        _check(out / file, found, keys)
    wanted = set(settings.judges)
    if other := next((s for s in scored.values() if set(s.scores) != wanted), None):
        raise ValueError(
            f"{out / SCORES}: {described(other.key)} has scores of {sorted(other.scores)}, not of "
            f"{sorted(wanted)}"
        )
    return {
        name: Answers(
            [
                [Answer(generated[k], scored[k]) for k in keys_in(name, p, settings.samples)]
                for p in range(prompts)
            ]
        )
        for name in names
    }


def keys_in(method: str, prompt: int, samples: int) -> list[tuple[str, int, int]]:
    """The answers of a method to one prompt."""
    return [(method, prompt, sample) for sample in range(samples)]


def _check(path: Path, found: set[Any], wanted: set[Any]) -> None:
    if lost := sorted(wanted - found):
        raise ValueError(
            f"{path}: {described(lost[0])} is missing; run the same again with --resume"
        )
    if foreign := sorted(found - wanted):
        raise ValueError(f"{path}: {described(foreign[0])} does not belong to this run")


def _batch(answer: Generated) -> tuple[int, int, int]:
    return answer.batch, answer.prompt, answer.sample
