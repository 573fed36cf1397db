"""Maxims, the situations in which they are followed, and who follows them.

Everything here can be replaced: an agent is whatever chooses an option of a situation, a world
whatever makes situations and counts what comes of the choices.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Maxim:
    """A rule that somebody might act by, in the first person.

    Attributes:
        name: by which situations know what it commands.
        text: as it stands in the prompt of an agent that reads.
        contrary: the name of the maxim that forbids what this one commands, None if there is none.
    """

    name: str
    text: str
    contrary: str | None = None


LIE = Maxim(
    "lie",
    "When I need something, I promise to give it back, although I know that I never will.",
    contrary="truth",
)
TRUTH = Maxim("truth", "I promise only what I am going to keep, and keep it.", contrary="lie")
GREED = Maxim("greed", "Of what belongs to all I take as much as I can get.", contrary="share")
SHARE = Maxim("share", "Of what belongs to all I take my share and no more.", contrary="greed")
MAXIMS = {maxim.name: maxim for maxim in (LIE, TRUTH, GREED, SHARE)}


@dataclass(frozen=True)
class Situation:
    """A choice that a member of a world has to make.

    Attributes:
        text: the situation in words.
        options: what can be done, in words.
        usual: the probability of each option for somebody without a maxim who understands the
            situation; sums to 1.
        commanded: by the name of a maxim the option that it commands here.
    """

    text: str
    options: tuple[str, ...]
    usual: tuple[float, ...]
    commanded: Mapping[str, int] = field(default_factory=dict)


class Agent(Protocol):
    """Whoever chooses.

    One that follows a single maxim whatever it is given has ``is_the_maxim = True``.

    Attributes:
        name: what tables call it.
    """

    @property
    def name(self) -> str: ...

    @abstractmethod
    def choose(self, situation: Situation, maxim: Maxim | None, draw: float) -> int:
        """The number of an option.

        Args:
            maxim: the one that it follows, if it follows one.
            draw: in [0, 1), all of its chance: equal draws give equal choices.
        """


@dataclass(frozen=True)
class Outcome:
    """What came of a world's run.

    Attributes:
        success: of each member ``(N,)`` in [0, 1], how far it reached the maxim's own purpose.
        welfare: of each member ``(N,)``.
    """

    success: FloatArray
    welfare: FloatArray


class World(Protocol):
    """A task: members, situations, and what comes of choices.

    Attributes:
        name: what tables call it.
        members: N.
        maxims: the names of those that can be followed in it.
    """

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> int: ...

    @property
    def maxims(self) -> Sequence[str]: ...

    @abstractmethod
    def play(self, agent: Agent, maxim: Maxim, followers: Sequence[bool], seed: int) -> Outcome:
        """Runs the world, whose members all choose as the agent does.

        Args:
            followers: which of the N members follow the maxim.
            seed: of all chance: who meets whom, who is in need, what is drawn. It does not depend
                on what is chosen, so that runs with equal seeds differ by choices alone.
        """

    @abstractmethod
    def checks(self) -> Sequence[tuple[Situation, Maxim | None, int]]:
        """Situations with the one option that whoever understands them takes, for the gate."""


@dataclass(frozen=True)
class ScriptedAgent:
    """Does what its maxim commands, and what is usual where it has none: a demonstration, and the
    measure of the test itself."""

    name: str = "scripted"

    def choose(self, situation: Situation, maxim: Maxim | None, draw: float) -> int:
        """See `Agent`."""
        if maxim is not None and maxim.name in situation.commanded:
            return situation.commanded[maxim.name]
        return drawn(situation.usual, draw)


def drawn(probabilities: Sequence[float], draw: float) -> int:
    """The option in whose part of [0, 1) a draw lies."""
    reached = 0.0
    for option, probability in enumerate(probabilities):
        reached += probability
        if draw < reached:
            return option
    return max(range(len(probabilities)), key=probabilities.__getitem__)  # for rounding
