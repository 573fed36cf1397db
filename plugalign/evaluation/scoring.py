"""Scoring what was generated: every judge, and the likelihood under an unsteered model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugalign.evaluation.judges import Judge
from plugalign.evaluation.metrics import Likelihood, nll, perplexity
from plugalign.evaluation.records import Journal, Record


@dataclass(frozen=True)
class Scorer:
    """The model under which perplexity is taken.

    Args:
        model: an unsteered causal language model in eval mode.
        encoded: token ids of every prompt if the model is the base itself, so that exactly the
            generated ids are scored; None for another model, which reads the text anew.
    """

    model: Any
    tokenizer: Any
    texts: Sequence[str]
    encoded: Sequence[Sequence[int]] | None
    ends: Sequence[int] = ()

    def __call__(self, unit: Sequence[Record]) -> Likelihood:
        """The likelihood of each answer; its end token does not count."""
        if self.encoded is None:
            prompts = [self.texts[r["prompt"]] for r in unit]
            return perplexity(self.model, self.tokenizer, prompts, [r["text"] for r in unit])
        answers = [[t for t in r["tokens"] if t not in self.ends] for r in unit]
        return nll(self.model, [self.encoded[r["prompt"]] for r in unit], answers)


def score(
    units: Sequence[Sequence[Record]],
    judges: Mapping[str, Judge],
    scorer: Scorer,
    journal: Journal,
) -> Iterator[None]:
    """Scores the units that the journal lacks, in the order of generation; yields after each."""
    for unit in units[journal.done :]:
        texts = [r["text"] for r in unit]
        verdicts = {name: judge.verdicts(texts) for name, judge in judges.items()}
        likelihood = scorer(unit)
        scored = []
        for i, record in enumerate(unit):
            given = {name: _present(v.scores[i]) for name, v in verdicts.items()}
            found: Record = {k: record[k] for k in ("method", "prompt", "sample")}
            found |= {"scores": given, "nll": _present(likelihood.nll[i])}
            found["scored_tokens"] = int(likelihood.tokens[i])
            if failed := {n: v.errors[i] for n, v in verdicts.items() if given[n] is None}:
                found["errors"] = failed
            scored.append(found)
        journal.append(scored)
        yield


def _present(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
