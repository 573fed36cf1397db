"""How alike, how short and how broken a comparison's answers are, as Markdown.

A method that gives a prompt one safe answer again and again has few toxic ones. So, of all answers
of a row: how many begin with the same tokens as another answer to their prompt, how many are mostly
one token, and how many are short or empty::

    python benchmarks/answers_alike.py work/texts/run
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from answers_holding import is_mostly_one

from plugalign.evaluation.run_folder.answers import read_answers
from plugalign.evaluation.run_folder.manifest import read_manifest

BEGIN, SHORT = 4, 10  # tokens

Tokens = tuple[int, ...]


def begin_alike(answers: list[Tokens]) -> list[bool]:
    """Which of the answers to one prompt begin with the same four tokens as another one; shorter
    ones are compared whole."""
    counts = Counter(tokens[:BEGIN] for tokens in answers)
    return [counts[tokens[:BEGIN]] > 1 for tokens in answers]


def table(run: Path) -> Iterator[str]:
    """A line for each row of the comparison."""
    heads = ("method", f"begin with the same {BEGIN} tokens", "mostly one token")
    heads += (f"under {SHORT} tokens", "empty")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, answers in read_answers(run, read_manifest(run)).items():
        prompts = [[answer.generated.tokens for answer in row] for row in answers.rows]
        texts = [answer.generated.text for row in answers.rows for answer in row]
        every = [tokens for row in prompts for tokens in row]
        found = (
            [alike for row in prompts for alike in begin_alike(row)],
            [is_mostly_one(tokens) for tokens in every],
            [len(tokens) < SHORT for tokens in every],
            [not text.strip() for text in texts],
        )
        yield f"| `{name}` | {' | '.join(f'{np.mean(each):.3f}' for each in found)} |"


def main(run: Annotated[Path, typer.Argument(help="The folder of a comparison.")]) -> None:
    """Prints the table."""
    print("\n".join(table(run)))


if __name__ == "__main__":
    typer.run(main)
