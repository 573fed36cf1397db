"""summary.json: what a run found, as `plugalign.evaluation.comparison.summary` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from plugalign.evaluation.run_folder.manifest import AgreementSet, MetricRecord, ScorerRecord
from plugalign.evaluation.statistics.figure import Figure
from plugalign.values.alignment import Alignment

QUALITY = (
    "perplexity",
    "outside_perplexity",
    "corpus_perplexity",
    "outside_corpus_perplexity",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "length",
    "empty",
)
# Of all tokens together. The others are means over prompts, and a few prompts on which a method
# breaks down may be most of such a mean.
CORPUS = {
    "perplexity": "corpus_perplexity",
    "outside_perplexity": "outside_corpus_perplexity",
}
INTERVALS = {
    "shares": "Wilson score interval; of answers at their effective sample size",
    "differences of shares": "Tango score interval; of answers normal, with two prompts more",
    "others": "percentile bootstrap over prompts, paired",
    "costs": "order statistics of the median over batches (sign test)",
    "level": 0.95,
}


Figures = Mapping[str, Figure]
"""By the name of the metric."""


@dataclass(frozen=True)
class Judged:
    """A method under one judge.

    Attributes:
        figures: of its answers.
        length_matched: of its answers and base's, both cut to the shorter; empty for base.
    """

    figures: Figures
    length_matched: Figures = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        found: dict[str, Any] = _figures(self.figures)
        if self.length_matched:
            found["length_matched"] = _figures(self.length_matched)
        return found


@dataclass(frozen=True)
class Cost:
    """A median over batches, the quartiles, and the median's interval.

    Attributes:
        interval: None for fewer than six batches, which cannot make sure of one.
    """

    value: float
    quartiles: tuple[float, float]
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        found = {"value": self.value, "quartiles": list(self.quartiles)}
        if self.interval is None:
            return found
        return found | {"low": self.interval[0], "high": self.interval[1]}


@dataclass(frozen=True)
class Costs:
    """What a method takes: per token beside plain generate, per step and answer beside base."""

    ms_per_token: Cost
    ratio_to_plain: Cost
    ms_per_step: Cost
    ratio_per_step: Cost
    ms_per_answer: Cost
    ratio_per_answer: Cost

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {each.name: getattr(self, each.name).to_json() for each in fields(self)}


@dataclass(frozen=True)
class Row:
    """A method, or what methods are compared with.

    Attributes:
        judged: by judge, the primary one first.
        texts: the figures of `QUALITY` that there are, and of the metrics that measure texts.
        revisions: what controllers that rewrite answers counted; empty where there is none.
    """

    judged: Mapping[str, Judged]
    texts: Figures
    costs: Costs
    revisions: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file has it: the primary judge's figures stand among the others."""
        (_, first), *others = self.judged.items()
        found = first.to_json()
        if others:
            found["judges"] = {name: judged.to_json() for name, judged in others}
        found |= _figures(self.texts) | self.costs.to_json()
        if self.revisions:
            found["revisions"] = dict(self.revisions)
        return found


# What a row has beside the figures of metrics: no metric can have such a name.
RESERVED = frozenset(
    {*QUALITY, "judges", "length_matched", "revisions", *(each.name for each in fields(Costs))}
)


@dataclass(frozen=True)
class JudgeNotes:
    """How far a judge can be trusted.

    Attributes:
        missing: answers without a score, also by method.
        first_error: why the first of them has none.
        agreements: with reference scores, set by set.
    """

    missing: int
    missing_by_method: Mapping[str, int]
    first_error: str | None
    agreements: tuple[AgreementSet, ...] = ()

    def to_json(self, judge: str) -> dict[str, Any]:
        """As the file has it, of the judge of this name."""
        found: dict[str, Any] = {
            "missing": self.missing,
            "missing_by_method": dict(self.missing_by_method),
            "first_error": self.first_error,
        }
        sets = [one.model_dump(mode="json", exclude_unset=True) for one in self.agreements]
        if sets:
            found["agreement"] = sets[0]["judges"][judge]
            found["agreements"] = [_of_judge(one, judge) for one in sets]
        return found


@dataclass(frozen=True)
class Summary:
    """The content of summary.json.

    Attributes:
        metrics: of judges' scores, the primary one first, then those of texts.
        judges: the primary one first.
        cut_alike: by the name of a method with a support, the reference within that support.
        warnings: what a reader must know before comparing rows.
        methods: base first.
        alignment: with values, where something in the run is about these.
        perplexity_model: the outside model of a second perplexity.
    """

    reference: str
    prompts: int
    samples: int
    metrics: tuple[MetricRecord, ...]
    judges: Mapping[str, JudgeNotes]
    scorer: ScorerRecord
    cut_alike: Mapping[str, str]
    warnings: tuple[str, ...]
    methods: Mapping[str, Row]
    references: Mapping[str, Row]
    alignment: Alignment | None = None
    perplexity_model: str | None = None

    @property
    def judged_metrics(self) -> list[MetricRecord]:
        """Of judges' scores; the first is the primary metric."""
        return [metric for metric in self.metrics if metric.measure is None]

    @property
    def text_metrics(self) -> list[MetricRecord]:
        """Of texts."""
        return [metric for metric in self.metrics if metric.measure is not None]

    @property
    def primary(self) -> MetricRecord:
        """The metric that charts and the finding are about."""
        return self.judged_metrics[0]

    @property
    def primary_judge(self) -> str:
        """The judge whose figures charts and the finding show."""
        return next(iter(self.judges))

    @property
    def perplexity(self) -> str:
        """The perplexity that charts and the finding are about: the outside model's where there is
        one, since a model prefers its own texts."""
        return "perplexity" if self.perplexity_model is None else "outside_perplexity"

    @property
    def corpus_perplexity(self) -> str:
        """The same, of all tokens together."""
        return CORPUS[self.perplexity]

    @property
    def base(self) -> Row:
        """What methods are compared with."""
        return self.methods[self.reference]

    @property
    def rows(self) -> dict[str, Row]:
        """All rows in the order of a table: base, the other references, the methods."""
        return {self.reference: self.base, **self.references, **self.methods}

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "reference": self.reference,
            "prompts": self.prompts,
            "samples": self.samples,
            "primary_judge": self.primary_judge,
            "primary_metric": self.primary.name,
            "metrics": [metric.model_dump(exclude_unset=True) for metric in self.metrics],
            "judges": {name: notes.to_json(name) for name, notes in self.judges.items()},
            "scorer": self.scorer.model_dump(by_alias=True, exclude_unset=True),
            **({"perplexity_model": self.perplexity_model} if self.perplexity_model else {}),
            "intervals": INTERVALS,
            "cut_alike": dict(self.cut_alike),
            "warnings": list(self.warnings),
            "methods": {name: row.to_json() for name, row in self.methods.items()},
            "references": {name: row.to_json() for name, row in self.references.items()},
            **({} if self.alignment is None else {"alignment": self.alignment.to_json()}),
        }


def _figures(figures: Figures) -> dict[str, Any]:
    return {name: figure.to_json() for name, figure in figures.items()}


def _of_judge(agreements: Mapping[str, Any], judge: str) -> dict[str, Any]:
    """One judge's agreement with one set of reference scores."""
    about = {name: value for name, value in agreements.items() if name != "judges"}
    return {**about, **agreements["judges"][judge]}
