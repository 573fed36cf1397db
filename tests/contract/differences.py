"""Where a wrapped model's ``generate`` is not transformers', and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How a test of transformers fails under control.

    Attributes:
        controllers: the kinds of controllers under which it does.
        error: what it raises.
        match: what the error says.
        reason: why that is meant.
    """

    controllers: tuple[str, ...]
    error: type[BaseException]
    match: str
    reason: str


DIFFERENCES: dict[str, Difference] = {}
