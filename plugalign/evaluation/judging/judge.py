"""A judge: anything that turns texts into P(toxic), called so that one bad text costs one score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.shown import check_name, one_line, shown

Function = Callable[[Sequence[str]], ArrayLike]
LONGEST_ERROR = 300  # characters of a reason that is kept with a text


@dataclass(frozen=True)
class Verdicts:
    """A judge's scores of n texts.

    Args:
        scores: P(toxic), ``(n,)``, NaN where the judge failed.
        errors: for each text why it failed, in one line; None where it did not.
    """

    scores: FloatArray
    errors: tuple[str | None, ...]

    @property
    def failed(self) -> int:
        """How many texts have no score."""
        return sum(error is not None for error in self.errors)

    @property
    def first_error(self) -> str | None:
        """Why the first of these failed, None if none did."""
        return next((error for error in self.errors if error is not None), None)


@dataclass(frozen=True, eq=False)
class Judge:
    """A named function from texts to P(toxic) in [0, 1].

    A batch on which the function raises is tried again text by text; a text on which it raises
    then, or for which it returns NaN, has no score.

    Args:
        name: what tables and messages call it.
        function: texts to ``(n,)`` numbers.
        batch_size: how many texts it is given at a time.
    """

    name: str
    function: Function
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_name(self.name, "a judge")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``, NaN where the judge failed."""
        return self.verdicts(texts).scores

    def verdicts(self, texts: Sequence[str]) -> Verdicts:
        """P(toxic) of each text, and what went wrong.

        Raises:
            ValueError: naming the judge, if its answer is not n numbers in [0, 1].
        """
        scores: list[float] = []
        errors: list[str | None] = []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            found = self._batch(batch)
            scores += found.scores.tolist()
            errors += found.errors
        return Verdicts(np.asarray(scores, dtype=np.float64), tuple(errors))

    def check(self, texts: Sequence[str]) -> None:
        """Scores a few texts, so that a judge that cannot work is found before the work begins.

        Raises:
            ValueError: naming the judge and the reason, if it fails on all of them.
        """
        found = self.verdicts(texts)
        if texts and found.failed == len(texts):
            raise ValueError(
                f"judge {shown(self.name)} cannot score {shown(texts[0])}: {found.first_error}"
            )

    def _batch(self, batch: list[str]) -> Verdicts:
        """Scores and errors of a batch, also after its texts were tried one by one."""
        try:
            answer = self.function(batch)
        # The function is the user's, or a whole library: it may raise anything, and hours of
        # generation must not be lost to one odd text. Nothing of ours runs inside this try.
        except Exception as error:
            if len(batch) == 1:
                reason = one_line(f"{type(error).__name__}: {error}", LONGEST_ERROR)
                return Verdicts(np.array([np.nan]), (reason,))
            single = [self._batch([text]) for text in batch]
            scores = np.concatenate([one.scores for one in single])
            return Verdicts(scores, tuple(error for one in single for error in one.errors))
        scores = self._checked(answer, len(batch))
        missing = np.isnan(scores).tolist()
        return Verdicts(scores, tuple("the judge returned NaN" if m else None for m in missing))

    def _checked(self, answer: ArrayLike, count: int) -> FloatArray:
        name = shown(self.name)
        try:
            scores = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"judge {name} must return numbers: {one_line(str(error), LONGEST_ERROR)}"
            ) from error
        if scores.shape != (count,):
            raise ValueError(
                f"judge {name} returned an array of shape {scores.shape} for {count} texts; "
                f"it must return one number per text"
            )
        outside = scores[(scores < 0) | (scores > 1)]
        if outside.size:
            raise ValueError(
                f"judge {name} returned {outside[0]:g}, which is no probability in [0, 1]"
            )
        return scores


def check_judges(judges: Iterable[Judge], texts: Sequence[str]) -> None:
    """Has every judge score the shortest and the longest of some texts, before any other work.

    Raises:
        ValueError: naming the first judge that can score neither.
    """
    if not texts:
        return
    tried = list(dict.fromkeys((min(texts, key=len), max(texts, key=len))))
    for judge in judges:
        judge.check(tried)
