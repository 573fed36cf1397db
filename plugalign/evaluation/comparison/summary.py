"""The summary: a pure function of a run's files, so that a resumed run ends with the same one.

Every metric is reduced to one number per prompt, and its mean over prompts comes with an interval
and with its difference to the base. Shares of prompts have Wilson's interval and Tango's for the
paired difference, all else a paired bootstrap. Metrics are tested against the base by sign flips,
with p-values adjusted over the methods; what a judge measures has a second set of figures of
answers cut to equal length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from plugalign.evaluation.comparison.alignment import alignment_of
from plugalign.evaluation.comparison.figures import FigureMaker, tested
from plugalign.evaluation.comparison.references import BASE, PLAIN
from plugalign.evaluation.metrics.metric import (
    TOXICITY,
    Measured,
    Metric,
    Metrics,
    measured,
    sorted_metrics,
)
from plugalign.evaluation.run_folder.answers import Answers, read_answers
from plugalign.evaluation.run_folder.manifest import Manifest, read_manifest
from plugalign.evaluation.run_folder.summary import (
    CORPUS,
    QUALITY,
    Cost,
    Costs,
    Judged,
    JudgeNotes,
    Row,
    Summary,
)
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.intervals import median_interval
from plugalign.evaluation.statistics.missing import equal_numbers
from plugalign.evaluation.statistics.paired import FloatArray, PairedBootstrap, missing

FEWEST = 6  # prompts of which a permutation test can have a p-value below .05

Numbers = Mapping[str, FloatArray]
"""By row, the numbers of its answers ``(P, S)``, or of its prompts ``(P,)``."""


def summarise(out: Path, metrics: Sequence[Metric] = TOXICITY) -> Summary:
    """What the run in ``out`` found.

    Args:
        metrics: see `plugalign.evaluation.metrics.metric.sorted_metrics`.

    Raises:
        ValueError: if its files are malformed; names the file and the line.
    """
    manifest = read_manifest(out)
    answers = read_answers(out, manifest)
    found = Findings(manifest, answers, sorted_metrics(metrics)).summary()
    return replace(found, alignment=alignment_of(out, manifest, answers))


@dataclass(frozen=True)
class Findings:
    """What a run's answers say."""

    manifest: Manifest
    answers: Mapping[str, Answers]
    metrics: Metrics

    def summary(self) -> Summary:
        """All of it."""
        settings, outside = self.manifest.settings, self.manifest.settings.perplexity_model
        judged = {judge: self._judged(judge) for judge in settings.judges}
        texts, costs = self._texts(), self._costs()
        rows = {
            name: Row(
                {judge: judged[judge][name] for judge in settings.judges},
                texts[name],
                costs[name],
                answers.revisions(),
            )
            for name, answers in self.answers.items()
        }
        return Summary(
            reference=BASE,
            prompts=len(self.answers[BASE].rows),
            samples=settings.samples,
            metrics=tuple(metric.record() for metric in self.metrics.every),
            judges={judge: self._notes(judge) for judge in settings.judges},
            scorer=settings.scorer,
            cut_alike=settings.cut_alike,
            warnings=tuple(self._warnings()),
            methods={name: rows[name] for name in settings.methods},
            references={n: row for n, row in rows.items() if n not in settings.methods},
            perplexity_model=outside.name if outside else None,
        )

    @cached_property
    def _make(self) -> FigureMaker:
        settings = self.manifest.settings
        bootstrap = PairedBootstrap(len(self.answers[BASE].rows), seed=settings.seed)
        return FigureMaker(bootstrap, settings.samples)

    @property
    def _tested(self) -> list[str]:
        """The methods; what they are compared with is not tested itself."""
        return [name for name in self.manifest.settings.methods if name != BASE]

    # ------------------------------------------------------------------ judges

    def _judged(self, judge: str) -> dict[str, Judged]:
        """Every metric of every row under one judge, and again at equal length."""
        scores = {name: answers.scores(judge) for name, answers in self.answers.items()}
        figures = {metric.name: self._rows(metric, scores) for metric in self.metrics.judged}
        matched = {metric.name: self._matched(metric, judge) for metric in self.metrics.judged}
        return {
            name: Judged(
                {metric: row[name] for metric, row in figures.items()},
                {metric: row[name] for metric, row in matched.items() if name in row},
            )
            for name in self.answers
        }

    def _rows(self, metric: Metric, numbers: Numbers) -> dict[str, Figure]:
        """A metric of every row, tested against the base."""
        equal = equal_numbers(numbers)
        row = {n: self._make.metric(metric, equal[n], missing(numbers[n])) for n in numbers}
        row = {n: self._compared(n, figure, metric, numbers) for n, figure in row.items()}
        return tested(row, metric, {name: (numbers[name], numbers[BASE]) for name in self._tested})

    def _compared(self, name: str, figure: Figure, metric: Metric, numbers: Numbers) -> Figure:
        """The figure with its differences to the base, and to the base that is cut alike."""
        if name == BASE:
            return figure
        alike = self.manifest.settings.cut_alike.get(name)
        difference = self._make.metric_difference
        return replace(
            figure,
            difference=difference(metric, numbers[name], numbers[BASE]),
            difference_cut_alike=None
            if alike is None
            else difference(metric, numbers[name], numbers[alike]),
        )

    def _matched(self, metric: Metric, judge: str) -> dict[str, Figure]:
        """A metric of answers and base's, both cut to the shorter of the two."""
        pairs = {
            n: a.matched(judge) for n, a in self.answers.items() if n != BASE and a.has_matched
        }
        row = {}
        for name, (scores, base) in pairs.items():
            both = equal_numbers({"method": scores, "base": base})
            before = self._make.metric(metric, both["base"], missing(base))
            row[name] = replace(
                self._make.metric(metric, both["method"], missing(scores)),
                base=before.value,
                difference=self._make.metric_difference(metric, scores, base),
            )
        return tested(row, metric, {n: pair for n, pair in pairs.items() if n in self._tested})

    def _notes(self, judge: str) -> JudgeNotes:
        """How often a judge failed, and how far it agrees with reference scores."""
        lost = {name: missing(a.scores(judge)) for name, a in self.answers.items()}
        errors = (a.first_error(judge) for a in self.answers.values())
        sets = self.manifest.every_agreement
        return JudgeNotes(
            missing=sum(lost.values()),
            missing_by_method=lost,
            first_error=next((error for error in errors if error), None),
            agreements=tuple(one for one in sets if judge in one.judges),
        )

    def _warnings(self) -> list[str]:
        """What a reader must know before comparing rows."""
        found = []
        if (prompts := len(self.answers[BASE].rows)) < FEWEST:
            found.append(
                f"There {'is one prompt' if prompts == 1 else f'are {prompts} prompts'} only, and "
                f"intervals are over prompts: of so few they say little, those of one are a point, "
                f"and no test of fewer than {FEWEST} can show a difference."
            )
        for judge in self.manifest.settings.judges:
            lost = {name: missing(a.scores(judge)) for name, a in self.answers.items()}
            if len(set(lost.values())) > 1:
                counts = ", ".join(f"{n} of {name}" for name, n in lost.items())
                found.append(
                    f"Scores of the judge {judge} are missing unevenly ({counts}). Figures are of "
                    f"equally many answers of every method, differences of answers that both have "
                    f"scores of; but if it fails on some kind of text, rows cannot be compared."
                )
        for metric, rows in self._measured.items():
            if lost_texts := sum(missing(row.numbers) for row in rows.values()):
                reason = next(row.first_error for row in rows.values() if row.first_error)
                found.append(
                    f"The metric {metric} has no number for {lost_texts} answers ({reason}); they "
                    f"are left out."
                )
        return found

    # ------------------------------------------------------------------ texts and costs

    @cached_property
    def _measured(self) -> dict[str, dict[str, Measured]]:
        """What each metric of texts measures, row by row."""
        texts = {name: answers.texts() for name, answers in self.answers.items()}
        return {
            metric.name: {name: measured(metric, rows) for name, rows in texts.items()}
            for metric in self.metrics.measured
        }

    def _texts(self) -> dict[str, dict[str, Figure]]:
        """The figures that need no judge."""
        quality = {name: answers.quality() for name, answers in self.answers.items()}
        sums = {name: answers.likelihoods() for name, answers in self.answers.items()}
        figures = {}
        for each in (name for name in QUALITY if name in quality[BASE]):
            values = {name: found[each] for name, found in quality.items()}
            figures[each] = {name: self._quality(name, each, values) for name in quality}
        for each in sums[BASE]:
            figures[CORPUS[each]] = {
                name: self._make.corpus_perplexity(
                    found[each], sums[BASE][each], self.answers[name].unscored(each)
                )
                for name, found in sums.items()
            }
        for metric in self.metrics.measured:
            numbers = {n: found.numbers for n, found in self._measured[metric.name].items()}
            figures[metric.name] = self._rows(metric, numbers)
        return {name: {each: row[name] for each, row in figures.items()} for name in quality}

    def _quality(self, name: str, metric: str, found: Numbers) -> Figure:
        """A row's figure of per-prompt numbers ``(P,)``, with its differences."""
        values, base, shares = found[name], found[BASE], metric == "empty"
        if shares:
            figure = self._make.shares(values, missing(values), self._make.samples)
        else:
            of_texts = metric in ("perplexity", "outside_perplexity")
            lost = self.answers[name].unscored(metric) if of_texts else missing(values)
            figure = self._make.mean(values, lost)
        if name == BASE:
            return figure
        alike = self.manifest.settings.cut_alike.get(name)
        longer = metric == "length" and np.nansum(base) > 0
        return replace(
            figure,
            difference=self._make.difference(values, base, shares=shares),
            difference_cut_alike=None
            if alike is None
            else self._make.difference(values, found[alike], shares=shares),
            ratio_to_plain=float(np.nansum(values) / np.nansum(base)) if longer else None,
        )

    def _costs(self) -> dict[str, Costs]:
        """Medians over batches, with the middle half of the batches and the median's interval:
        speed drifts, batches pair up.

        A batch runs to its longest answer, so a method with short answers has fewer tokens to
        divide its time by, not fewer steps: its cost is per decoding step and per answer, over
        base in the same loop. Per token it is beside plain generate, where that was run.
        """
        base, plain = self.answers[BASE], self.answers.get(PLAIN, self.answers[BASE])
        found = {}
        for name, a in self.answers.items():
            token, step, answer = (a.seconds() / n for n in (a.tokens(), a.steps(), a.sizes()))
            found[name] = Costs(
                ms_per_token=_median(1000 * token),
                ratio_to_plain=_median(token * plain.tokens() / plain.seconds()),
                ms_per_step=_median(1000 * step),
                ratio_per_step=_median(step * base.steps() / base.seconds()),
                ms_per_answer=_median(1000 * answer),
                ratio_per_answer=_median(answer * base.sizes() / base.seconds()),
            )
        return found


def _median(values: FloatArray) -> Cost:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    found = median_interval(values)
    interval = None if found is None else (found.low, found.high)
    return Cost(float(middle), (float(low), float(high)), interval)
