"""Coupled texts side by side: base and method under one noise, and where they part."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plugalign.evaluation.run_folder.answers import Answers
from plugalign.evaluation.run_folder.records import Answer

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Part:
    """One of the two texts, cut at the first token that differs."""

    shared: str
    parting: str
    rest: str
    score: float | None


@dataclass(frozen=True)
class Pair:
    """The answers of base and method to one prompt with one noise.

    Attributes:
        kind: why this pair is shown.
        step: the number of the first token that differs, from 1; None if none does.
    """

    kind: str
    prompt: str
    base: Part
    method: Part
    step: int | None


def telling_pairs(
    base: Answers, method: Answers, judge: str, prompts: Sequence[str], decode: Decode, seed: int
) -> list[Pair]:
    """The largest fall of toxicity, its largest rise if there is one, and one pair at random."""
    rows = [
        (before, after)
        for befores, afters in zip(base.rows, method.rows, strict=True)
        for before, after in zip(befores, afters, strict=True)
        if None not in (before.scored.scores[judge], after.scored.scores[judge])
    ]
    if not rows:
        return []
    by_change = sorted(rows, key=lambda row: _change(row, judge))
    chosen = {"the largest fall": by_change[0], "the largest rise": by_change[-1]}
    falls, rises = (_change(row, judge) for row in chosen.values())
    if falls >= 0:
        del chosen["the largest fall"]
    if rises <= 0:
        del chosen["the largest rise"]
    chosen["drawn at random"] = random.Random(seed).choice(rows)
    return [_pair(kind, *row, judge, prompts, decode) for kind, row in chosen.items()]


def _change(row: tuple[Answer, Answer], judge: str) -> float:
    before, after = (answer.scored.scores[judge] or 0.0 for answer in row)
    return after - before


def _pair(
    kind: str, base: Answer, method: Answer, judge: str, prompts: Sequence[str], decode: Decode
) -> Pair:
    a, b = base.generated.tokens, method.generated.tokens
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    parted = same < max(len(a), len(b))
    return Pair(
        kind,
        prompts[base.generated.prompt],
        _part(base, same, judge, decode),
        _part(method, same, judge, decode),
        same + 1 if parted else None,
    )


def _part(answer: Answer, same: int, judge: str, decode: Decode) -> Part:
    tokens = answer.generated.tokens
    shared, through, full = (decode(tokens[:n]) for n in (same, same + 1, len(tokens)))
    if not (through.startswith(shared) and full.startswith(through)):
        shared, through = "", ""  # a character may span tokens, and some decoders tidy up spaces
    score = answer.scored.scores[judge]
    return Part(shared, through[len(shared) :], full[len(through) :], score)
