"""Whether the steps of a call are to be captured: an argument, and a variable for a process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

Capture = bool | Literal["auto"]
VARIABLE = "PLUGALIGN_CAPTURE"
VALUES: dict[str, Capture] = {"0": False, "1": True, "auto": "auto"}
WITHOUT = f"capture=False goes on without for a call, {VARIABLE}=0 for a process"


@dataclass(frozen=True)
class Switch:
    """What was asked for.

    Attributes:
        value: "auto" captures where nothing stands in the way and it pays.
        said: who asked for it, in words.
    """

    value: Capture = "auto"
    said: str = 'capture="auto"'

    @classmethod
    def of(cls, capture: Any) -> Switch:
        """From the argument ``capture``; the environment variable says what "auto" means.

        Raises:
            TypeError, ValueError: for anything but True, False and "auto", and for a variable that
                is none of 0, 1 and auto.
        """
        if isinstance(capture, bool):
            return cls(capture, f"capture={capture}")
        if not isinstance(capture, str):
            kind = type(capture).__name__
            raise TypeError(f'capture must be True, False or "auto", got {capture!r} ({kind})')
        if capture != "auto":
            raise ValueError(f'capture must be True, False or "auto", got {capture!r}')
        told = os.environ.get(VARIABLE, "auto")
        if told not in VALUES:
            raise ValueError(f"{VARIABLE} must be 0, 1 or auto, got {told!r}")
        return cls() if told == "auto" else cls(VALUES[told], f"{VARIABLE}={told}")

    @property
    def wanted(self) -> bool:
        """Whether a call that cannot be captured is refused."""
        return self.value is True

    @property
    def off(self) -> str | None:
        """Who forbids a capture, in words, if anybody does."""
        return self.said if self.value is False else None

    def check(self, why: str | None) -> None:
        """Refuses what cannot be captured for a reason ``why``, where a capture was asked for.

        Raises:
            ValueError: naming the reason.
        """
        if self.wanted and why is not None:
            raise ValueError(f"{self.said}, and no step can be captured: {why}; {WITHOUT}")
