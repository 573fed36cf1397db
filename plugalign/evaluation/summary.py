"""The summary: a pure function of a run's files, so that a resumed run ends with the same one.

Every metric is reduced to one number per prompt; its mean over prompts comes with a paired
bootstrap interval, its difference to the base with another, and toxicity with a sign-flip test
whose p-values are adjusted over the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plugalign.evaluation.metrics import Likelihood, distinct_n, mean_length
from plugalign.evaluation.records import (
    GENERATIONS,
    MANIFEST,
    SCORES,
    Record,
    read_json,
    read_whole,
)
from plugalign.evaluation.statistics import (
    TOXICITY,
    Interval,
    PairedBootstrap,
    adjust,
    missing,
    sign_flip_test,
)

FloatArray = NDArray[np.float64]
BASE = "base"
QUALITY = ("perplexity", "distinct_1", "distinct_2", "distinct_3", "length")


@dataclass
class Answers:
    """One method's answers by prompt and sample, and what they took by batch."""

    records: list[list[Record]]
    seconds: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def scores(self, judge: str) -> FloatArray:
        """``(P, S)``, NaN where the judge failed."""
        return self._numbers(lambda r: r["scores"][judge])

    def quality(self) -> dict[str, FloatArray]:
        """Per-prompt numbers ``(P,)`` of everything that needs no judge."""
        texts = [[r["text"] for r in row] for row in self.records]
        nll = self._numbers(lambda r: r["nll"]).reshape(-1)
        counts = self._numbers(lambda r: r["scored_tokens"]).reshape(-1).astype(np.int64)
        found = {"perplexity": Likelihood(nll, counts).per_prompt(len(self.records[0]))}
        found |= {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
        return found | {"length": mean_length([[r["tokens"] for r in row] for row in self.records])}

    def unscored(self) -> int:
        """Answers without a perplexity: they are empty."""
        return missing(self._numbers(lambda r: r["nll"]))

    def per_token(self) -> FloatArray:
        """Seconds per generated token of each batch."""
        return np.array([self.seconds[b] / max(1, self.tokens[b]) for b in sorted(self.seconds)])

    def _numbers(self, get: Callable[[Record], float | None]) -> FloatArray:
        return np.array(
            [[np.nan if (x := get(r)) is None else x for r in row] for row in self.records]
        )


def summarise(out: Path) -> dict[str, Any]:
    """What the run in ``out`` found: the content of its summary.json.

    Raises:
        ValueError: if its files are malformed.
    """
    manifest = read_json(out / MANIFEST)
    settings = manifest["settings"]
    answers = read_answers(out, list(settings["methods"]))
    judges: list[str] = settings["judges"]
    bootstrap = PairedBootstrap(len(answers[BASE].records), seed=settings["seed"])
    methods: dict[str, dict[str, Any]] = {name: {} for name in answers}
    for judge in judges:
        found = _toxicity(answers, judge, bootstrap)
        for name, figures in found.items():
            home = methods[name] if judge == judges[0] else methods[name].setdefault("judges", {})
            home.update(figures if judge == judges[0] else {judge: figures})
    _add_quality(methods, answers, bootstrap)
    _add_cost(methods, answers)
    return {
        "reference": BASE,
        "prompts": len(answers[BASE].records),
        "samples": settings["samples"],
        "primary_judge": judges[0],
        "judges": {judge: _judged(judge, answers, manifest) for judge in judges},
        "scorer": settings["scorer"],
        "methods": methods,
    }


def read_answers(out: Path, methods: Sequence[str]) -> dict[str, Answers]:
    """Every method's answers with their scores, by prompt and sample."""
    generations, scores = read_whole(out / GENERATIONS), read_whole(out / SCORES)
    table: dict[str, dict[int, dict[int, Record]]] = {name: {} for name in methods}
    for generated, scored in zip(generations, scores, strict=True):
        rows = table[generated["method"]].setdefault(generated["prompt"], {})
        rows[generated["sample"]] = {**scored, **generated}
    answers = {}
    for name, prompts in table.items():
        answers[name] = Answers(
            [[row[s] for s in sorted(row)] for _, row in sorted(prompts.items())]
        )
    for record in generations:
        method, batch = answers[record["method"]], record["batch"]
        method.seconds[batch] = method.seconds.get(batch, 0.0) + record["seconds"]
        method.tokens[batch] = method.tokens.get(batch, 0) + len(record["tokens"])
    return answers


def _judged(
    judge: str, answers: Mapping[str, Answers], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """How often a judge failed, and how far it agrees with reference scores if there were any."""
    found: dict[str, Any] = {"missing": sum(missing(a.scores(judge)) for a in answers.values())}
    if agreement := manifest.get("agreement"):
        found["agreement"] = agreement["judges"][judge]
    return found


def _toxicity(
    answers: Mapping[str, Answers], judge: str, bootstrap: PairedBootstrap
) -> dict[str, dict[str, Any]]:
    """Every toxicity metric of every method under one judge, with tests against the base."""
    scores = {name: a.scores(judge) for name, a in answers.items()}
    found: dict[str, dict[str, Any]] = {name: {} for name in answers}
    for metric, reduce in TOXICITY.items():
        values = {name: reduce(s) for name, s in scores.items()}
        p_values = {
            name: sign_flip_test(v, values[BASE])
            for name, v in values.items()
            if name != BASE and not np.isnan(v - values[BASE]).all()
        }
        adjusted = adjust(p_values)
        for name, v in values.items():
            figures = _figures(v, values[BASE], missing(scores[name]), bootstrap, name == BASE)
            if name in p_values:
                figures |= {"p_value": p_values[name], "p_adjusted": adjusted[name]}
            found[name][metric] = figures
    return found


def _add_quality(
    methods: dict[str, dict[str, Any]], answers: Mapping[str, Answers], bootstrap: PairedBootstrap
) -> None:
    found = {name: a.quality() for name, a in answers.items()}
    for name, values in found.items():
        for metric in QUALITY:
            lost = answers[name].unscored() if metric == "perplexity" else missing(values[metric])
            base = found[BASE][metric]
            figures = _figures(values[metric], base, lost, bootstrap, name == BASE)
            if metric == "length" and name != BASE and np.nansum(base) > 0:
                figures["ratio_to_plain"] = float(np.nansum(values[metric]) / np.nansum(base))
            methods[name][metric] = figures


def _add_cost(methods: dict[str, dict[str, Any]], answers: Mapping[str, Answers]) -> None:
    """Medians over batches with the middle half of the batches: speed drifts, batches pair up."""
    plain = answers[BASE].per_token()
    for name, method in answers.items():
        per_token = method.per_token()
        methods[name]["ms_per_token"] = _median(1000 * per_token)
        methods[name]["ratio_to_plain"] = _median(per_token / plain)


def _figures(
    values: FloatArray, base: FloatArray, lost: int, bootstrap: PairedBootstrap, is_base: bool
) -> dict[str, Any]:
    """A metric's mean with its interval, and its difference to the base."""
    if np.isnan(values).all():
        return {"value": None, "low": None, "high": None, "missing": lost}
    figures: dict[str, Any] = {**_interval(bootstrap.mean(values)), "missing": lost}
    if not is_base and not np.isnan(values - base).all():
        figures["difference"] = _interval(bootstrap.difference(values, base))
    return figures


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _median(values: FloatArray) -> dict[str, Any]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"value": float(middle), "quartiles": [float(low), float(high)]}
