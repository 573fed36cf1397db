"""The summary: a pure function of a run's files, so that a resumed run ends with the same one.

Every metric is reduced to one number per prompt, and its mean over prompts comes with an interval
and with its difference to the base. Shares of prompts have Wilson's interval and Tango's for the
paired difference, all else a paired bootstrap. What a judge measures is tested against the base by
sign flips, with p-values adjusted over the methods; it has a second set of figures of answers cut
to equal length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plugalign.evaluation.comparison.references import BASE, PLAIN
from plugalign.evaluation.metrics.judged import TOXICITY, Metric, equal_numbers
from plugalign.evaluation.run_folder.answers import Answers, read_answers
from plugalign.evaluation.run_folder.folder import MANIFEST, read_json
from plugalign.evaluation.run_folder.manifest import agreements
from plugalign.evaluation.statistics.figures import Figure, Figures, tested
from plugalign.evaluation.statistics.paired import FloatArray, PairedBootstrap, missing

QUALITY = ("perplexity", "distinct_1", "distinct_2", "distinct_3", "length", "empty")
INTERVALS = {
    "shares": "Wilson score interval; of answers at their effective sample size",
    "differences of shares": "Tango score interval; of answers normal, with two prompts more",
    "others": "percentile bootstrap over prompts, paired",
    "level": 0.95,
}


def summarise(out: Path, metrics: Sequence[Metric] = TOXICITY) -> dict[str, Any]:
    """What the run in ``out`` found: the content of its summary.json.

    Args:
        metrics: what is made of a judge's scores; the first is the primary one.

    Raises:
        ValueError: if its files are malformed; names the file and the line.
    """
    manifest = read_json(out / MANIFEST)
    answers = read_answers(out, manifest)
    return Summary.of(manifest, answers, metrics).to_dict()


@dataclass(frozen=True)
class Summary:
    """What is needed to sum a run up."""

    manifest: Mapping[str, Any]
    answers: Mapping[str, Answers]
    metrics: Sequence[Metric]
    figures: Figures

    @classmethod
    def of(
        cls, manifest: Mapping[str, Any], answers: Mapping[str, Answers], metrics: Sequence[Metric]
    ) -> Summary:
        settings = manifest["settings"]
        bootstrap = PairedBootstrap(len(answers[BASE].rows), seed=settings["seed"])
        return cls(manifest, answers, metrics, Figures(bootstrap, settings["samples"]))

    @property
    def judges(self) -> list[str]:
        return list(self.manifest["settings"]["judges"])

    def to_dict(self) -> dict[str, Any]:
        settings = self.manifest["settings"]
        rows: dict[str, dict[str, Any]] = {name: {} for name in self.answers}
        for judge in self.judges:
            for name, found in self._judged(judge).items():
                if judge == self.judges[0]:
                    rows[name].update(found)
                else:
                    rows[name].setdefault("judges", {})[judge] = found
        for part in (self._quality(), self._costs(), self._revisions()):
            for name, found in part.items():
                rows[name].update(found)
        return {
            "reference": BASE,
            "prompts": len(self.answers[BASE].rows),
            "samples": settings["samples"],
            "primary_judge": self.judges[0],
            "primary_metric": self.metrics[0].name,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "judges": {judge: self._failures(judge) for judge in self.judges},
            "scorer": settings["scorer"],
            "intervals": INTERVALS,
            "cut_alike": settings.get("cut_alike", {}),
            "warnings": self._warnings(),
            "methods": {name: rows[name] for name in settings["methods"]},
            "references": {n: row for n, row in rows.items() if n not in settings["methods"]},
        }

    # ------------------------------------------------------------------ judges

    @property
    def _tested(self) -> list[str]:
        """The methods; what they are compared with is not tested itself."""
        return [name for name in self.manifest["settings"]["methods"] if name != BASE]

    def _judged(self, judge: str) -> dict[str, dict[str, Any]]:
        """Every metric of every row under one judge, and again at equal length."""
        raw = {name: a.scores(judge) for name, a in self.answers.items()}
        equal = equal_numbers(raw)
        found: dict[str, dict[str, Any]] = {name: {} for name in raw}
        for metric in self.metrics:
            row = {n: self.figures.judged(metric, equal[n], missing(raw[n])) for n in raw}
            row = {n: self._compared(n, figure, metric, raw) for n, figure in row.items()}
            pairs = {name: (raw[name], raw[BASE]) for name in self._tested}
            for name, figure in tested(row, metric, pairs).items():
                found[name][metric.name] = figure.to_dict()
        for name, figures in self._matched(judge).items():
            found[name]["length_matched"] = figures
        return found

    def _compared(
        self, name: str, figure: Figure, metric: Metric, scores: Mapping[str, FloatArray]
    ) -> Figure:
        """The figure with its differences to the base, and to the base that is cut alike."""
        if name == BASE:
            return figure
        alike = self._alike(name)
        difference = self.figures.judged_difference
        return replace(
            figure,
            difference=difference(metric, scores[name], scores[BASE]),
            difference_cut_alike=None
            if alike is None
            else difference(metric, scores[name], scores[alike]),
        )

    def _matched(self, judge: str) -> dict[str, dict[str, Any]]:
        """Every metric of answers and base's, both cut to the shorter of the two."""
        pairs = {
            n: a.matched(judge) for n, a in self.answers.items() if n != BASE and a.has_matched
        }
        found: dict[str, dict[str, Any]] = {name: {} for name in pairs}
        for metric in self.metrics:
            row = {}
            for name, (scores, base) in pairs.items():
                both = equal_numbers({"method": scores, "base": base})
                before = self.figures.judged(metric, both["base"], missing(base))
                row[name] = replace(
                    self.figures.judged(metric, both["method"], missing(scores)),
                    base=before.value,
                    difference=self.figures.judged_difference(metric, scores, base),
                )
            methods = {name: pair for name, pair in pairs.items() if name in self._tested}
            for name, figure in tested(row, metric, methods).items():
                found[name][metric.name] = figure.to_dict()
        return found

    def _failures(self, judge: str) -> dict[str, Any]:
        """How often a judge failed, and how far it agrees with reference scores."""
        lost = {name: missing(a.scores(judge)) for name, a in self.answers.items()}
        errors = (a.first_error(judge) for a in self.answers.values())
        found: dict[str, Any] = {
            "missing": sum(lost.values()),
            "missing_by_method": lost,
            "first_error": next((error for error in errors if error), None),
        }
        sets = agreements(self.manifest)
        every = [{**s, **s["judges"][judge]} for s in sets if judge in s["judges"]]
        for one in every:
            del one["judges"]
        if every:
            found["agreement"] = sets[0]["judges"][judge]
            found["agreements"] = every
        return found

    def _warnings(self) -> list[str]:
        """What a reader must know before comparing rows."""
        found = []
        for judge in self.judges:
            lost = {name: missing(a.scores(judge)) for name, a in self.answers.items()}
            if len(set(lost.values())) > 1:
                counts = ", ".join(f"{n} of {name}" for name, n in lost.items())
                found.append(
                    f"Scores of the judge {judge} are missing unevenly ({counts}). Figures are of "
                    f"equally many answers of every method, differences of answers that both have "
                    f"scores of; but if it fails on some kind of text, rows cannot be compared."
                )
        return found

    # ------------------------------------------------------------------ the rest

    def _alike(self, name: str) -> str | None:
        """The base that is cut as a method is, None where there is no support."""
        found: str | None = self.manifest["settings"].get("cut_alike", {}).get(name)
        return found

    def _quality(self) -> dict[str, dict[str, Any]]:
        found = {name: a.quality() for name, a in self.answers.items()}
        return {
            name: {metric: self._figure(name, metric, found) for metric in QUALITY}
            for name in found
        }

    def _figure(
        self, name: str, metric: str, found: Mapping[str, Mapping[str, FloatArray]]
    ) -> dict[str, Any]:
        values, base = found[name][metric], found[BASE][metric]
        shares = metric == "empty"
        lost = self.answers[name].unscored() if metric == "perplexity" else missing(values)
        if shares:
            figure = self.figures.of_shares(values, lost, self.figures.samples)
        else:
            figure = self.figures.mean(values, lost)
        if name != BASE:
            alike = self._alike(name)
            figure = replace(
                figure,
                difference=self.figures.difference(values, base, shares=shares),
                difference_cut_alike=None
                if alike is None
                else self.figures.difference(values, found[alike][metric], shares=shares),
            )
            if metric == "length" and np.nansum(base) > 0:
                ratio = float(np.nansum(values) / np.nansum(base))
                figure = replace(figure, ratio_to_plain=ratio)
        return figure.to_dict()

    def _costs(self) -> dict[str, dict[str, Any]]:
        """Medians over batches with the middle half of the batches: speed drifts, batches pair up.

        A batch runs to its longest answer, so a method with short answers has fewer tokens to
        divide its time by, not fewer steps: its cost is per decoding step and per answer, over
        base in the same loop. Per token it is beside plain generate, where that was run.
        """
        base, plain = self.answers[BASE], self.answers.get(PLAIN, self.answers[BASE])
        found = {}
        for name, a in self.answers.items():
            token, step, answer = (a.seconds() / n for n in (a.tokens(), a.steps(), a.sizes()))
            found[name] = {
                "ms_per_token": _median(1000 * token),
                "ratio_to_plain": _median(token * plain.tokens() / plain.seconds()),
                "ms_per_step": _median(1000 * step),
                "ratio_per_step": _median(step * base.steps() / base.seconds()),
                "ms_per_answer": _median(1000 * answer),
                "ratio_per_answer": _median(answer * base.sizes() / base.seconds()),
            }
        return found

    def _revisions(self) -> dict[str, dict[str, Any]]:
        found = {name: a.revisions() for name, a in self.answers.items()}
        return {name: {"revisions": counts} for name, counts in found.items() if counts}


def _median(values: FloatArray) -> dict[str, Any]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"value": float(middle), "quartiles": [float(low), float(high)]}
