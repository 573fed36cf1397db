"""A figure: a mean over prompts, its interval, its difference to the base."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from plugalign.evaluation.statistics.paired import Interval
from plugalign.evaluation.statistics.power import Power


@dataclass(frozen=True)
class Figure:
    """One figure of one method.

    Attributes:
        value: the mean over prompts, None where there is none; low, high: its interval.
        missing: what it lacks, counted.
        difference: to the base, over what both have.
        difference_cut_alike: the difference to the base with this method's support.
        p_value: that method and base are exchangeable; p_adjusted: over the methods.
        ratio_to_plain: of the value to the base's.
        base: the base's value where it is another than in the base's own row.
        power: what so many prompts can show of the difference.
    """

    value: float | None
    low: float | None
    high: float | None
    missing: int = 0
    difference: Interval | None = None
    difference_cut_alike: Interval | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    ratio_to_plain: float | None = None
    base: float | None = None
    power: Power | None = None

    def to_json(self) -> dict[str, Any]:
        """As the file has it: without what there is none of, but for the value itself."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Interval):
                found[each.name] = {"value": value.value, "low": value.low, "high": value.high}
            elif isinstance(value, Power):
                found[each.name] = asdict(value)
            elif value is not None or each.name in ("value", "low", "high"):
                found[each.name] = value
        return found
