"""Whether a call's steps are captured in CUDA graphs: an argument, or an environment variable."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

Capture = bool | Literal["auto"]
VARIABLE = "PLUGALIGN_CAPTURE"
VALUES: dict[str, Capture] = {"0": False, "1": True, "auto": "auto"}
WITHOUT = f"capture=False goes on without for a call, {VARIABLE}=0 for a process"


@dataclass(frozen=True)
class CaptureSwitch:
    """Whether steps are captured.

    Attributes:
        value: True, False, or "auto" to capture where it is possible and pays.
        origin: the argument or the variable that asked for it, for messages.
    """

    value: Capture = "auto"
    origin: str = 'capture="auto"'

    @property
    def required(self) -> bool:
        """Whether a call that cannot be captured is refused."""
        return self.value is True

    @property
    def why_off(self) -> str | None:
        """The argument or the variable that forbids a capture; None where neither does."""
        return self.origin if self.value is False else None

    def check(self, why: str | None) -> None:
        """Refuses a call that cannot be captured, where a capture is required.

        Args:
            why: the reason, or None.

        Raises:
            ValueError: naming the reason.
        """
        if self.required and why is not None:
            raise ValueError(f"{self.origin}, and no step can be captured: {why}; {WITHOUT}")


def capture_switch(capture: Any) -> CaptureSwitch:
    """The switch for the argument ``capture``; the environment variable says what "auto" means.

    Raises:
        TypeError: for an argument that is neither a bool nor a string.
        ValueError: for a string other than "auto", and for a variable that is none of 0, 1 and
            auto.
    """
    if isinstance(capture, bool):
        return CaptureSwitch(capture, f"capture={capture}")
    if not isinstance(capture, str):
        kind = type(capture).__name__
        raise TypeError(f'capture must be True, False or "auto", got {capture!r} ({kind})')
    if capture != "auto":
        raise ValueError(f'capture must be True, False or "auto", got {capture!r}')
    value = os.environ.get(VARIABLE, "auto")
    if value not in VALUES:
        raise ValueError(f"{VARIABLE} must be 0, 1 or auto, got {value!r}")
    if value == "auto":
        return CaptureSwitch()
    return CaptureSwitch(VALUES[value], f"{VARIABLE}={value}")
