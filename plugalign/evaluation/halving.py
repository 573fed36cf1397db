"""Successive halving of a controller's settings, within budgets of perplexity, length and cost.

All settings answer a few prompts, the better half of them four times as many, until two are left,
which answer all (after Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and
hyperparameter optimization"). So the last choice is between two settings on all prompts, and all
rounds together cost two or three times the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plugalign.evaluation.report.numbers import SIGNIFICANT
from plugalign.evaluation.run_folder.summary import CORPUS
from plugalign.files.messages import Prompt

FEWEST = 20  # prompts of a round, where there are so many: of ten, chance has the say
GROWTH = 4  # of the prompts from one round to the next; settings are halved


@dataclass(frozen=True)
class Budgets:
    """What a setting may cost.

    Args:
        max_perplexity: the largest perplexity of all tokens together, over the base's; an outside
            model's where there is one.
        max_length_change: by how much of the base's length answers may be longer or shorter.
        max_cost: the longest that an answer may take, over the base's; None is no bound. Times are
            of the comparison's own batches, and a busy machine makes them rough.
        max_perplexity_cut_alike: the largest perplexity over that of the base within the method's
            own support, where it has one. A narrow choice of tokens lowers perplexity by itself, so
            the first bound alone lets texts break there. By default 2: of the settings that
            were chosen by the first bound alone, those whose texts broke on other prompts had 2.9
            and more, all others 2.1 and less (benchmarks/results).

    Raises:
        ValueError: for a number outside its range.
    """

    max_perplexity: float = 1.15
    max_length_change: float = 0.2
    max_cost: float | None = None
    max_perplexity_cut_alike: float = 2.0

    def __post_init__(self) -> None:
        if self.max_cost is not None and not 0 < self.max_cost < math.inf:
            raise ValueError(f"max_cost is a ratio to the base's above 0, got {self.max_cost}")
        for name in ("max_perplexity", "max_perplexity_cut_alike"):
            if not 0 < (bound := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is a ratio to the base's above 0, got {bound}")
        if not 0 <= self.max_length_change < math.inf:
            raise ValueError(
                "max_length_change is a part of the base's length, not negative, got "
                f"{self.max_length_change}"
            )

    def over(self, found: Mapping[str, float | None]) -> dict[str, float | None]:
        """By how much each budget that is not kept is exceeded, by its name; None where what it
        bounds is not known.

        Args:
            found: what each budget bounds, by its name.
        """
        bounds = {name: getattr(self, name) for name in found}
        every = {
            name: None if value is None else value - bounds[name]
            for name, value in found.items()
            if bounds[name] is not None
        }
        return {name: each for name, each in every.items() if each is None or each > 0}


@dataclass(frozen=True)
class Trial:
    """What one setting did in the last round that it was in.

    Attributes:
        row: its name in the comparisons.
        settings: what it changes.
        prompts: how many it answered.
        figures: the judged figures, as in summary.json, the primary one first.
        perplexity: as in summary.json; under the outside model where there is one.
        perplexity_ratio, length_ratio: to the base.
        perplexity_ratio_cut_alike: to the base within the setting's own support; None without one.
        cost_ratio: the time of an answer, to the base's; not where it was not measured.
        over: the budgets that are not kept, see `Budgets.over`.
        efficient: whether no other setting has both a lower perplexity and a better figure.
    """

    row: str
    settings: dict[str, Any]
    prompts: int
    figures: dict[str, dict[str, Any]]
    perplexity: dict[str, Any]
    perplexity_ratio: float | None
    perplexity_ratio_cut_alike: float | None
    length_ratio: float | None
    cost_ratio: float | None
    over: dict[str, float | None]
    efficient: bool = False

    @property
    def within(self) -> bool:
        """Whether it keeps the budgets."""
        return not self.over

    @property
    def excess(self) -> float:
        """The largest of `over`, infinite where one is not known; 0 within all budgets."""
        return max((math.inf if x is None else x for x in self.over.values()), default=0.0)

    def improves(self, metric: Mapping[str, Any]) -> bool:
        """Whether the whole interval of its figure's difference to base is better than none, and
        the test against base says so too: of few prompts an interval may be a point."""
        figure = self.figures[metric["name"]]
        difference, p_value = figure.get("difference") or {}, figure.get("p_value")
        low, high = difference.get("low"), difference.get("high")
        if low is None or high is None or p_value is None or p_value >= SIGNIFICANT:
            return False
        return bool(high < 0 if metric["better"] == "lower" else low > 0)


class Search:
    """Successive halving over the rows of one method.

    Args:
        rows: what each row changes, by its name.
        prompts: in the order in which rounds take them.
    """

    def __init__(
        self, rows: Mapping[str, dict[str, Any]], budgets: Budgets, prompts: Sequence[Prompt]
    ):
        self.rows, self.budgets, self.prompts = rows, budgets, prompts
        self.summaries: list[Mapping[str, Any]] = []
        self._trials: dict[str, Trial] = {}

    def rounds(self) -> Iterator[tuple[int, list[str]]]:
        """The number of prompts of each round, and the rows that are in it. What a round found must
        be noted before the next one is asked for."""
        kept, every, asked = list(self.rows), len(self.prompts), 0
        for later in reversed(range(max(1, math.ceil(math.log2(len(kept)))))):
            count = min(every, max(FEWEST, math.ceil(every / GROWTH**later)))
            if count > asked:  # the same prompts would give the same answers
                yield count, kept
            asked, kept = count, [t.row for t in self.ranked()][: math.ceil(len(kept) / 2)]

    def note(self, summary: Mapping[str, Any], kept: Sequence[str]) -> None:
        """What the rows did in a round, by its summary."""
        self.summaries.append(summary)
        for row in kept:
            self._trials[row] = _trial(row, self.rows[row], summary, self.budgets)

    @property
    def metric(self) -> dict[str, Any]:
        """The primary metric."""
        metric: dict[str, Any] = self.summaries[-1]["metrics"][0]
        return metric

    def ranked(self) -> tuple[Trial, ...]:
        """All rows: those of the last rounds first, of a round those within the budgets, of these
        the ones with the best figures."""
        metrics = self.summaries[-1]["metrics"]
        sign = {each["name"]: 1 if each["better"] == "lower" else -1 for each in metrics}

        def rank(trial: Trial) -> tuple[float, ...]:
            values = [
                math.inf if f["value"] is None else sign[name] * f["value"]
                for name, f in trial.figures.items()
            ]
            return (-trial.prompts, trial.excess, *values)

        return tuple(sorted(_marked(list(self._trials.values()), self.metric), key=rank))

    @property
    def chosen(self) -> Trial | None:
        """The best row of those that answered all prompts, None if it exceeds the budgets."""
        best = self.ranked()[0]
        return best if best.within else None

    def points(self) -> list[tuple[str, dict[str, Any], dict[str, Any], str]]:
        """The base and all rows for the picture: name, perplexity, primary figure, kind."""
        summary, metric = self.summaries[-1], self.metric["name"]
        base = summary["methods"][summary["reference"]]
        perplexity = base[perplexity_of(summary)]
        found = [(summary["reference"], perplexity, base[metric], "base")]
        for trial in self.ranked():
            kind = "chosen" if trial == self.chosen else "efficient" if trial.efficient else "other"
            found.append((trial.row, trial.perplexity, trial.figures[metric], kind))
        return [point for point in found if None not in (point[1]["value"], point[2]["value"])]


def perplexity_of(summary: Mapping[str, Any]) -> str:
    """The name of the perplexity that budgets are about: the outside model's where there is one,
    since a model prefers its own texts, and of all tokens together, since of so few prompts a mean
    is that of the worst of them."""
    return CORPUS["outside_perplexity" if summary.get("perplexity_model") else "perplexity"]


def _trial(
    row: str, settings: dict[str, Any], summary: Mapping[str, Any], budgets: Budgets
) -> Trial:
    mine, base = (summary["methods"][name] for name in (row, summary["reference"]))
    name, alike = perplexity_of(summary), summary["cut_alike"].get(row)
    perplexity = _ratio(mine[name]["value"], base[name]["value"])
    cut = None if alike is None else summary["references"][alike][name]["value"]
    cut_alike = _ratio(mine[name]["value"], cut)
    length = _ratio(mine["length"]["value"], base["length"]["value"])
    cost = mine.get("ratio_per_answer", {}).get("value")
    found = {"max_perplexity": perplexity, "max_cost": cost}
    found["max_length_change"] = None if length is None else abs(length - 1)
    if alike is not None:
        found["max_perplexity_cut_alike"] = cut_alike
    return Trial(
        row=row,
        settings=settings,
        prompts=summary["prompts"],
        figures={m["name"]: mine[m["name"]] for m in summary["metrics"]},
        perplexity=mine[name],
        perplexity_ratio=perplexity,
        perplexity_ratio_cut_alike=cut_alike,
        length_ratio=length,
        cost_ratio=cost,
        over=budgets.over(found),
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _marked(trials: Sequence[Trial], metric: Mapping[str, Any]) -> list[Trial]:
    """The trials with those marked that no other one is better than in both figures."""
    sign = 1 if metric["better"] == "lower" else -1
    places = [
        (trial.perplexity["value"], trial.figures[metric["name"]]["value"]) for trial in trials
    ]
    known = [(p, sign * v) for p, v in places if p is not None and v is not None]

    def efficient(place: tuple[float | None, float | None]) -> bool:
        if place[0] is None or place[1] is None:
            return False
        p, v = place[0], sign * place[1]
        return not any(q <= p and w <= v and (q, w) != (p, v) for q, w in known)

    return [replace(t, efficient=efficient(p)) for t, p in zip(trials, places, strict=True)]
