"""Strata: the groups of prompts that an account is given for.

A user names them, in a field of the prompts' file, or a judge's score of the prompt sorts them. The
names of the latter are numbers: how risky a *use* is, is for people to say, and a law that sorts
systems into classes says nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from plugalign.evaluation.comparison.prompts import Prompts
from plugalign.evaluation.judging.load import load_judge
from plugalign.files.rows import read_rows
from plugalign.files.shown import check_name, printable, shown

ALL = "all prompts"


@dataclass(frozen=True)
class Strata:
    """The stratum of each prompt.

    Attributes:
        how: in words, how they were sorted.
        names: of each prompt its stratum.
        risks: of each prompt the judge's score, None where no judge sorted them.
    """

    how: str
    names: tuple[str, ...]
    risks: tuple[float | None, ...]

    def by_hash(self, prompts: Prompts) -> dict[str, str]:
        """The stratum by the hash of a prompt.

        Raises:
            ValueError: if one prompt stands in two strata, which a hash cannot tell apart.
        """
        found: dict[str, str] = {}
        for number, (sha256, name) in enumerate(zip(prompts.hashes(), self.names, strict=True)):
            if found.setdefault(sha256, name) != name:
                raise ValueError(
                    f"prompt {number} stands in the stratum {shown(name)} and, word for word, in "
                    f"{shown(found[sha256])}; keep one of them, or sort prompts when they are "
                    "traced"
                )
        return found


def make_strata(
    prompts: Prompts,
    field: str | None = None,
    risk: Any = None,
    cuts: Sequence[float] | None = None,
) -> Strata:
    """Sorts prompts into strata.

    Args:
        field: of the prompts' file, whose values name the strata.
        risk: a judge, see `load_judge`; its score of each prompt sorts them.
        cuts: where the scores are cut; the default is into 0 to 0.5 and 0.5 to 1.

    Raises:
        ValueError: for a field that a row lacks, a judge that cannot score a prompt, or cuts that
            are no rising numbers within 0 and 1.
    """
    count = len(prompts.texts)
    if field is not None and risk is not None:
        raise ValueError("strata come from a field or from a judge of risk, not from both")
    if cuts is not None and risk is None:
        raise ValueError("cuts are of a judge's scores; name the judge too")
    if field is not None:
        names = _named(prompts, field)
        return Strata(f"the field {field!r} of the prompts' file", names, (None,) * count)
    if risk is not None:
        return _by_risk(prompts, risk, (0.5,) if cuts is None else tuple(cuts))
    return Strata("all prompts are one stratum", (ALL,) * count, (None,) * count)


def _named(prompts: Prompts, field: str) -> tuple[str, ...]:
    if prompts.path is None or Path(prompts.path).suffix.lower() == ".txt":
        place = "given as texts" if prompts.path is None else printable(prompts.path)
        raise ValueError(f"the prompts ({place}) have no fields; give a .jsonl or .csv file")
    names = []
    for row in list(read_rows(Path(prompts.path)))[: len(prompts.texts)]:
        names.append(check_name(row.label(row.first(field)), "a stratum"))
    return tuple(names)


def _by_risk(prompts: Prompts, risk: Any, cuts: tuple[float, ...]) -> Strata:
    edges = (0.0, *cuts, 1.0)
    if not cuts or not all(low < high for low, high in pairwise(edges)):
        raise ValueError(f"cuts must be rising numbers between 0 and 1, got {shown(list(cuts))}")
    judge = load_judge(risk)
    verdicts = judge.verdicts(prompts.texts)
    for number, error in enumerate(verdicts.errors):
        if error is not None:
            raise ValueError(f"{judge.name} cannot score the risk of prompt {number}: {error}")
    scores = [float(score) for score in verdicts.scores]
    # The last stratum holds 1 itself.
    indices = [sum(score >= cut for cut in cuts) for score in scores]
    names = tuple(f"risk {edges[i]:g} to {edges[i + 1]:g}" for i in indices)
    how = f"the score of {judge.name} on the prompt, cut at {', '.join(f'{cut:g}' for cut in cuts)}"
    return Strata(how, names, tuple(scores))
