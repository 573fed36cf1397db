"""Hugging Face folders and hub ids: one error in one line where one cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from plugalign.files.shown import one_line, shown_path

# What transformers and safetensors raise on damaged configurations, vocabularies and weights.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


NOWHERE = "there is no such folder, and the hub has no such names"


@contextmanager
def loading(what: str, source: object) -> Iterator[None]:
    """Turns what is raised while something is loaded into one ValueError that names it.

    Args:
        what: the kind of thing, such as "the model".
        source: its folder or hub id.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, DAMAGED) or is_bare(error)):
            raise
        if isinstance(error, UnicodeError):
            error = ValueError("a file in it is not UTF-8")
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = one_line(lines[0] if lines else "", 300)
        if is_nowhere(error):
            reason = NOWHERE
        if not isinstance(error, (OSError, ValueError)):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"cannot load {what} {shown_path(source)}: {reason}") from error


def is_bare(error: Exception) -> bool:
    """Whether an error is an Exception of no kind of its own, as tokenizers raises of a damaged
    file."""
    return type(error) is Exception


def is_nowhere(error: BaseException) -> bool:
    """Whether an error says that a name is neither a folder nor what the hub could have."""
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, HFValidationError) for cause in causes)
