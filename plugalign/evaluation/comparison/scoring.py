"""Scoring what was generated: every judge, and the likelihood under an unsteered model.

A short answer has less room for anything toxic, and an empty one none. So beside its own score
each answer of a method has another: it and base's answer to the same prompt with the same noise
are cut to the shorter of the two, and both are judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugalign.evaluation.comparison.references import BASE
from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.metrics.likelihood import Likelihood, nll, perplexity
from plugalign.evaluation.run_folder.journal import Journal
from plugalign.evaluation.run_folder.records import (
    Generated,
    Key,
    Matched,
    Outside,
    Scored,
    Scores,
    answer_hash,
)

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Scorer:
    """The model under which perplexity is taken.

    Args:
        model: an unsteered causal language model in eval mode.
        encoded: token ids of every prompt if the model is the base itself, so that exactly the
            generated ids are scored; None for another model, which reads the text anew.
        ends: the tokens that end an answer.
    """

    model: Any
    tokenizer: Any
    texts: Sequence[str]
    encoded: Sequence[Sequence[int]] | None
    ends: Sequence[int] = ()

    def __call__(self, unit: Sequence[Generated]) -> Likelihood:
        """The likelihood of each answer; its end token does not count."""
        if self.encoded is None:
            prompts = [self.texts[r.prompt] for r in unit]
            return perplexity(self.model, self.tokenizer, prompts, [r.text for r in unit])
        answers = [words(r, self.ends) for r in unit]
        return nll(self.model, [self.encoded[r.prompt] for r in unit], answers)


@dataclass(frozen=True)
class Scoring:
    """Scores the answers of a run, unit by unit.

    Args:
        answers: what was generated, by key.
        judges: by name.
        likelihood: the scoring model.
        outside: an outside model, which scores the answers too; None for none.
        decode: token ids to the text that a judge is given.
        ends: the tokens that end an answer.
    """

    answers: Mapping[Key, Generated]
    judges: Mapping[str, Judge]
    likelihood: Scorer
    decode: Decode
    ends: Sequence[int] = ()
    outside: Scorer | None = None

    def fits(self, found: Scored) -> bool:
        """Whether a score that was found is by these judges, and of these answers."""
        return set(found.scores) == set(self.judges) and found.answer == self._hash(found.key)

    def run(self, journal: Journal[Scored]) -> Iterator[None]:
        """Scores the units that the journal lacks, in order; yields after each."""
        for number in journal.missing:
            unit = [self.answers[key] for key in journal.units[number]]
            journal.append(self._unit(unit, journal.records))
            yield

    def _unit(self, unit: Sequence[Generated], known: Mapping[Key, Scored]) -> list[Scored]:
        """The scores of a unit; an answer that is base's own has base's scores."""
        found = {one.key: one for one in self._scored([r for r in unit if not self._is_base(r)])}
        for record in unit:
            if record.key not in found:
                base = known[BASE, record.prompt, record.sample]
                found[record.key] = base.model_copy(update={"method": record.method})
        matched = self._matched(unit, [found[r.key].scores for r in unit], known)
        return [
            found[r.key].model_copy(update={"matched": each, "answer": self._hash(r.key)})
            for r, each in zip(unit, matched, strict=True)
        ]

    def _is_base(self, record: Generated) -> bool:
        """Whether a method's answer is what base answered with the same noise."""
        base = self.answers[BASE, record.prompt, record.sample]
        same = (record.tokens, record.text) == (base.tokens, base.text)
        return same and record.method != BASE

    def _scored(self, records: Sequence[Generated]) -> list[Scored]:
        """Answers by themselves, scored anew."""
        if not records:
            return []
        scores, errors = self._judged([r.text for r in records])
        found, outside = self.likelihood(records), self._outside(records)
        return [
            Scored(
                method=record.method,
                prompt=record.prompt,
                sample=record.sample,
                scores=scores[i],
                nll=_present(found.nll[i]),
                scored_tokens=int(found.tokens[i]),
                errors={n: errors[i][n] for n, score in scores[i].items() if score is None},
                outside=outside[i],
            )
            for i, record in enumerate(records)
        ]

    def _outside(self, unit: Sequence[Generated]) -> list[Outside | None]:
        if self.outside is None:
            return [None] * len(unit)
        found = self.outside(unit)
        pairs = zip(found.nll, found.tokens, strict=True)
        return [Outside(nll=_present(nll), tokens=int(count)) for nll, count in pairs]

    def _judged(self, texts: Sequence[str]) -> tuple[list[Scores], list[dict[str, str | None]]]:
        """Each text's scores, and why it has none, by judge."""
        verdicts = {name: judge.verdicts(texts) for name, judge in self.judges.items()}
        scores = [
            {name: _present(v.scores[i]) for name, v in verdicts.items()} for i in range(len(texts))
        ]
        errors = [{n: v.errors[i] for n, v in verdicts.items()} for i in range(len(texts))]
        return scores, errors

    def _matched(
        self, unit: Sequence[Generated], scores: Sequence[Scores], known: Mapping[Key, Scored]
    ) -> list[Matched | None]:
        """The unit's answers beside base's at equal length. Only what was cut is judged anew."""
        if unit[0].method == BASE:
            return [None] * len(unit)
        pairs = [(r, self.answers[BASE, r.prompt, r.sample]) for r in unit]
        lengths = [min(len(words(r, self.ends)) for r in pair) for pair in pairs]
        cut = [
            (i, side)
            for i, pair in enumerate(pairs)
            for side in (0, 1)
            if len(words(pair[side], self.ends)) > lengths[i]
        ]
        texts = [self.decode(words(pairs[i][side], self.ends)[: lengths[i]]) for i, side in cut]
        judged = dict(zip(cut, self._judged(texts)[0] if texts else [], strict=True))
        return [
            Matched(
                tokens=lengths[i],
                scores=judged.get((i, 0), scores[i]),
                base=judged.get((i, 1), known[base.key].scores),
            )
            for i, (_, base) in enumerate(pairs)
        ]

    def _hash(self, key: Key) -> str:
        return answer_hash(self.answers[key], self.answers[BASE, key[1], key[2]])


def words(answer: Generated, ends: Sequence[int]) -> list[int]:
    """An answer's tokens without those that end it."""
    return [t for t in answer.tokens if t not in ends]


def _present(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
