"""Which answers are refusals: a list of what models say in place of an opinion.

An answer is one where any of these stands in its first words, whatever the case. The list is short
on purpose and can be read; an answer that evades in other words counts as an answer.
"""

from __future__ import annotations

import re

REFUSALS = (
    r"\bas an? (ai|artificial intelligence|(large )?language model|machine|assistant)\b",
    r"\bi('m| am) (just |only )?an? (ai|artificial intelligence|(large )?language model|machine)\b",
    r"\bi (do not|don't) (have|hold|form|possess) (any )?(personal |own )?"
    r"(opinions?|beliefs?|feelings?|views?|values|preferences?)\b",
    r"\bi('m| am) (not able|unable) to\b",
    r"\bi (can ?not|can't|won't|will not) (answer|respond|provide|give|offer|help|assist|rate|"
    r"judge|engage|say|take (a )?sides?)\b",
    r"\bi('m| am) sorry,? (but )?i (can ?not|can't|won't|am unable)\b",
    r"\bi (must |have to )?(decline|refuse)\b",
    r"\bi('d| would) (rather|prefer) not\b",
    r"\bno comment\b",
    r"\bneither agree nor disagree\b.{0,40}\b(ai|language model)\b",
)
_PATTERN = re.compile("|".join(REFUSALS), re.IGNORECASE)


def is_refusal(answer: str) -> bool:
    """Whether an answer declines to answer; curly apostrophes count as straight ones."""
    return _PATTERN.search(" ".join(answer.replace("\u2019", "'").split())) is not None
