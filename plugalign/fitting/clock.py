"""The time that a fit may take: plans go by it, and long work looks at it as it goes."""

from __future__ import annotations

import math
import time

UNWATCHED = 0.1  # of what is left, before the next look at the clock


class Clock:
    """Runs down while a fit works. A fit that was killed and continues gets its time anew.

    Args:
        minutes: from now on; None is no bound.

    Attributes:
        minutes: of the whole fit, as they were given.

    Raises:
        ValueError: if they are not positive.
    """

    def __init__(self, minutes: float | None):
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be a positive number, got {minutes}")
        self.minutes = minutes
        self._end = math.inf if minutes is None else now() + 60 * minutes

    def left(self) -> float:
        """Seconds, below zero once the time is over, infinite without a bound."""
        return self._end - now()

    def part(self, share: float = 1.0, but: float = 0.0) -> Clock:
        """The clock of a piece of the work.

        Args:
            share: of what is left.
            but: seconds that are kept for what follows the piece.
        """
        found = Clock(None)
        found.minutes, found._end = self.minutes, now() + share * self.left() - but
        return found

    def fitting(self, seconds: float, done: int, most: int) -> int:
        """How many pieces of so many seconds to do in all; never fewer than are done.

        Args:
            most: without a bound.
        """
        left = self.left()
        if math.isinf(left):
            return most
        return min(most, done + max(0, int(left / max(seconds, 1e-9))))

    def piece(self, seconds: float, most: int, least: int = 1) -> int:
        """How many pieces of so many seconds to do before the clock is looked at again."""
        left = self.left()
        if math.isinf(left):
            return most
        return min(most, max(least, int(UNWATCHED * left / max(seconds, 1e-9))))


class Pace:
    """How many steps of a training fit into its time, by the speed that it shows.

    Args:
        steps: as many at most. done: made before.
        look_every: behind so many steps there is a look at held-out texts, and one in the end.
    """

    def __init__(self, clock: Clock, steps: int, done: int, look_every: int):
        self._clock, self._steps, self._first, self._every = clock, steps, done, look_every
        self._begun, self._looked = now(), list[float]()

    def looked(self, seconds: float) -> None:
        """Takes in how long a look took."""
        self._looked.append(seconds)

    def steps(self, done: int) -> int:
        """How many there are to be in all, of which so many are made; never fewer than those."""
        looked = sum(self._looked)
        step = (now() - self._begun - looked) / (done - self._first)
        look = looked / max(1, len(self._looked))
        return self._clock.part(but=look).fitting(step + look / self._every, done, self._steps)


def now() -> float:
    """Seconds on a clock that is never set."""
    return time.monotonic()
