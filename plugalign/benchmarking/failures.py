"""What ends one measurement of many, and how a report says so."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec

# What CUDA (out of memory too), compilers and models that do not fit a method raise. An interrupt
# and an exit are none of them.
FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    subprocess.SubprocessError,
)
if find_spec("triton"):
    from triton.errors import TritonError

    FAILURES += (TritonError,)

LONGEST = 300  # characters of a reason


def reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:LONGEST]}"
