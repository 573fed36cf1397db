"""Errors that say what was running when they arose, and keep nothing of a call alive."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from transformers.cache_utils import Cache

P = ParamSpec("P")
R = TypeVar("R")
NOTE = "while running"


class Running:
    """A block whose errors, whatever their kind, leave it with a note.

    Args:
        what: completes "while running ...".
        unless_noted: whether a note from further inside is enough.
    """

    def __init__(self, what: str, unless_noted: bool = False):
        self._what, self._unless_noted = what, unless_noted

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and not (self._unless_noted and is_noted(error)):
            error.add_note(f"{NOTE} {self._what}")


def is_noted(error: BaseException) -> bool:
    """Whether an error says what was running when it arose."""
    return any(note.startswith(NOTE) for note in getattr(error, "__notes__", ()))


class Calling:
    """A call of transformers' ``generate``. An error without a note gets one, found on its way:
    which of the caller's processors, stopping criteria or streamer raised it, or the base, and at
    which step. Nothing is wrapped, since transformers goes by the types of processors. The base's
    cache is emptied, unless it is the caller's.

    Args:
        model: the base.
        options: arguments of ``generate``, as the caller gave them.
        length: columns of the prompts, to count steps from.
    """

    def __init__(self, model: Any, options: dict[str, Any], length: int):
        self._model, self._length = model, length
        self._own_cache = options.get("past_key_values")
        streamer = options.get("streamer")
        self._parts = [
            *(("logits processor", p) for p in options.get("logits_processor") or ()),
            *(("stopping criterion", c) for c in options.get("stopping_criteria") or ()),
            *([("streamer", streamer)] if streamer is not None else []),
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        columns, named = None, is_noted(error)
        for frame, _ in traceback.walk_tb(trace):
            who = None if named else self._running(frame)
            if who is not None:
                error.add_note(f"{NOTE} {self._placed(who, columns)}")
                named = True
            columns = _columns(frame, columns)
            self._empty(frame)

    def _empty(self, frame: FrameType) -> None:
        """Frees the keys and values that a frame of transformers' loops holds."""
        inputs = frame.f_locals.get("model_kwargs")
        cache = inputs.get("past_key_values") if isinstance(inputs, dict) else None
        if cache is not self._own_cache and isinstance(cache, Cache):
            cache.layers.clear()

    def _running(self, frame: FrameType) -> tuple[str, str] | None:
        """The kind and name of what a frame runs, if it is one of the call's parts."""
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if first is self._model and code.co_name == "_wrapped_call_impl":
            return "base model", ""
        for kind, part in self._parts:
            inner = getattr(part, "func", part)  # of functools.partial
            if first is inner or code is getattr(inner, "__code__", None):
                return kind, f" {name_of(part)}"
        return None

    def _placed(self, who: tuple[str, str], columns: int | None) -> str:
        kind, name = who
        if columns is None:
            return f"the {kind}{name}"
        # Criteria and streamers see a step's token, and a streamer the prompts before step 0.
        step = columns - self._length - (kind in ("stopping criterion", "streamer"))
        return f"the {kind}{name} at {'the prompts' if step < 0 else f'step {step}'}"


class EndingStreamer:
    """A block whose errors end the call's streamer, so that whoever reads from it in another thread
    does not wait for ever.

    Args:
        streamer: of the call, or None.
    """

    def __init__(self, streamer: Any):
        self._streamer = streamer

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        end = getattr(self._streamer, "end", None)
        if error is None or end is None:
            return
        try:
            end()
        except Exception as second:  # whatever a streamer raises, the first error is the one to see
            error.add_note(f"the streamer {name_of(self._streamer)} raised at its end: {second!r}")


def freeing(call: Callable[P, R]) -> Callable[P, R]:
    """A function whose errors keep nothing alive that lived in it, keys and values above all,
    however long they are kept themselves: the frames that they came through are emptied. (A
    debugger that comes after the fact sees no variables below the call.)"""

    @wraps(call)
    def called(*args: P.args, **options: P.kwargs) -> R:
        with Freeing():
            return call(*args, **options)

    return called


class Freeing:
    """The block of `freeing`; what is in its own frame stays."""

    def __enter__(self) -> None:
        self._outer = sys.exception()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for each in _chain(error, self._outer):
            for frame, _line in traceback.walk_tb(each.__traceback__):
                with suppress(RuntimeError):  # it still runs
                    frame.clear()
                    frame.f_locals  # noqa: B018  # a look at them is remembered until the next one


def name_of(part: Any) -> str:
    """What a processor, criterion or streamer is called in messages."""
    inner = getattr(part, "func", part)  # of functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _columns(frame: FrameType, columns: int | None) -> int | None:
    """The columns of the texts that a frame of a decoding loop has at hand, else those known."""
    beams = frame.f_locals.get("cur_len")  # beam search keeps its texts under other names
    if isinstance(beams, int):
        return beams
    ids = frame.f_locals.get("input_ids", frame.f_locals.get("ids"))
    return ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else columns


def _chain(error: BaseException | None, outer: BaseException | None) -> Iterator[BaseException]:
    """An error and those it arose from, but for what was being handled before."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each is not outer and each not in found:
            found.append(each)
            waiting += [each.__cause__, each.__context__]
    yield from found
