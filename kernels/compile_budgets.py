"""What each kernel may use: about a tenth above what it took when it was written.

Of the figures of all targets and dtypes the largest counts. A row of the table is for one class of
vocabulary, or for all of them. Main loops that a call hardly ever enters, or that read a short row,
have no budget of instructions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What a kernel may use.

    Args:
        registers: of a thread.
        shared: bytes of shared memory.
        load: bytes that the narrowest load in the main loop takes at least.
        instructions: in the main loop for one vocabulary entry.
    """

    registers: int
    shared: int
    load: int = 0
    instructions: float = math.inf


BUDGETS: dict[tuple[str, str], Budget] = {}


def budget_of(kernel: str, kind: str) -> Budget:
    """The budget of a kernel for a class of vocabulary."""
    return BUDGETS.get((kernel, kind)) or BUDGETS[kernel, "any"]
