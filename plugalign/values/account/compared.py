"""What an account says of a comparison's folder: every method by stratum, beside the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plugalign.evaluation.comparison.prompts import Prompts, prompts_of_run
from plugalign.evaluation.comparison.references import BASE
from plugalign.evaluation.run_folder.answers import Answers, read_answers
from plugalign.evaluation.run_folder.manifest import Manifest, read_manifest
from plugalign.evaluation.statistics.intervals import share_interval
from plugalign.evaluation.statistics.paired import FloatArray, Interval, PairedBootstrap
from plugalign.evaluation.statistics.score_means import score_change, score_mean
from plugalign.values.account.figures import FEW
from plugalign.values.account.strata import ALL, Strata, make_strata


@dataclass(frozen=True)
class JudgedMethod:
    """Mean scores of a method's answers under one judge, and their change from the base's; None
    where there is none."""

    mean: Interval | None
    change: Interval | None


@dataclass(frozen=True)
class MethodStratum:
    """A method in one stratum.

    Attributes:
        changed: the share of answers whose tokens are not those of the base with the same noise;
            None for the base.
    """

    method: str
    stratum: str
    prompts: int
    answers: int
    tokens: int
    changed: Interval | None
    judged: Mapping[str, JudgedMethod]

    @property
    def few(self) -> bool:
        return self.prompts < FEW


@dataclass(frozen=True)
class Compared:
    """A comparison, read for an account."""

    manifest: Manifest
    strata: str
    figures: tuple[MethodStratum, ...]


def read_comparison(out: Path, by_hash: Mapping[str, str] | None, strata: str) -> Compared:
    """The figures of a comparison by method and stratum.

    Args:
        by_hash: the stratum by the hash of a prompt; None is one stratum.
        strata: in words, how prompts were sorted.

    Raises:
        ValueError: for a damaged file, or a prompt that has no stratum; names it.
    """
    manifest = read_manifest(out)
    rows, prompts = read_answers(out, manifest), prompts_of_run(out)
    hashes = enumerate(prompts.hashes())
    names = [stratum_of(sha256, number, by_hash) for number, sha256 in hashes]
    judges = manifest.settings.judges
    found = [
        _figures(method, stratum, answers, rows[BASE], judges, [n == stratum for n in names])
        for method, answers in rows.items()
        if method in manifest.settings.methods
        for stratum in sorted(set(names))
    ]
    return Compared(manifest, strata, tuple(found))


def strata_of_comparison(
    out: Path, risk: object, cuts: tuple[float, ...] | None
) -> tuple[Strata, Prompts]:
    """Its prompts, sorted by a judge of risk."""
    prompts = prompts_of_run(out)
    return make_strata(prompts, None, risk, cuts), prompts


def stratum_of(sha256: str, number: int, by_hash: Mapping[str, str] | None) -> str:
    """The stratum of a prompt.

    Raises:
        ValueError: for a prompt that is not among those that were sorted.
    """
    if by_hash is None:
        return ALL
    if sha256 not in by_hash:
        raise ValueError(
            f"prompt {number} of the run is not in the prompts' file, so it has no stratum; give "
            "the file that the run was made with"
        )
    return by_hash[sha256]


def _figures(
    method: str,
    stratum: str,
    answers: Answers,
    base: Answers,
    judges: tuple[str, ...],
    inside: list[bool],
) -> MethodStratum:
    rows = [row for row, kept in zip(answers.rows, inside, strict=True) if kept]
    others = [row for row, kept in zip(base.rows, inside, strict=True) if kept]
    own, theirs = Answers(rows), Answers(others)
    changed = np.array(
        [
            np.mean([a.generated.tokens != b.generated.tokens for a, b in zip(x, y, strict=True)])
            for x, y in zip(rows, others, strict=True)
        ]
    )
    return MethodStratum(
        method=method,
        stratum=stratum,
        prompts=len(rows),
        answers=sum(map(len, rows)),
        tokens=sum(len(answer.generated.tokens) for row in rows for answer in row),
        changed=None if method == BASE else share_interval(changed, len(rows[0])),
        judged={
            judge: _judged(own.scores(judge), None if method == BASE else theirs.scores(judge))
            for judge in judges
        },
    )


def _judged(own: FloatArray, base: FloatArray | None) -> JudgedMethod:
    bootstrap = PairedBootstrap(len(own), resamples=2000)
    change = None if base is None else score_change(own, base, bootstrap)
    return JudgedMethod(score_mean(own, bootstrap), change)
