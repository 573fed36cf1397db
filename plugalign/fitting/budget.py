"""How long a fit will take, said before it begins, and how much of it a time allows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plugalign.files.replacing import replace_text
from plugalign.fitting.clock import Clock, now
from plugalign.fitting.held_out import LOOKS
from plugalign.fitting.progress import duration, say
from plugalign.fitting.training import adamw, descend

TIMED, MOST_TIMED = 2, 20  # steps, behind one that warms up
TIMING = 1 / 30  # of a fit's time, for timing more than two of them
LOOKING = 0.2  # of a fit's time, at most, for looks at held-out texts; but for two of them
TRIED, FEWEST = 32, 64  # held-out texts that are timed, and that a short fit looks at
AT_LEAST = 4  # looks that must fit into it: two, one at the end, and one that measures the fit


class Looking(NamedTuple):
    """What a time allows of looks: the held-out texts of one, and its seconds."""

    texts: int
    seconds: float

    @property
    def each(self) -> float:
        """Seconds a text."""
        return self.seconds / max(1, self.texts)


class Affordable(NamedTuple):
    """What a time allows of a training: steps, and looks at held-out texts among them."""

    steps: int
    looks: int


def affordable_steps(
    loss: Callable[[int], Tensor],
    parameters: Mapping[str, Tensor],
    steps: int,
    clock: Clock,
    *,
    title: str,
    note: Path | None = None,
    runs: int = 1,
    share: float = 1.0,
    spare: Callable[[], None] | None = None,
    looking: Callable[[], float] | None = None,
) -> Affordable:
    """How many steps of a training to make, after timing some of them, which change nothing.

    Args:
        steps: as many at most.
        clock: of this training.
        note: a file that remembers the answer for a fit that is killed and continues: then it must
            be the same, whatever the machine does beside. None for one that does not continue.
        runs: so many trainings of as many steps, and share: what this one takes of their time; for
            what is said.
        spare: makes a step need less memory; called where one does not fit into the device's.
        looking: the seconds that a look at held-out texts takes, see `time_of`; a training looks
            `LOOKS` times, less often where that would take much of its time, and once more at its
            end.
    """
    if note is not None and (known := remembered(note, "steps", "looks", "spared")) is not None:
        if known["spared"] and spare is not None:
            spare()
        return Affordable(int(known["steps"]), int(known["looks"]))
    seconds, spared = None, False
    try:
        seconds = _seconds_a_step(loss, parameters, clock, title)
    except torch.OutOfMemoryError:
        if spare is None:
            raise
    if seconds is None and spare is not None:
        say(f"{title}: the memory is short, so activations are computed twice instead of kept")
        spare()
        seconds, spared = _seconds_a_step(loss, parameters, clock, title), True
    assert seconds is not None
    look = 0.0 if looking is None else looking()
    chosen = _within(clock.left(), steps, seconds, look)
    each = f" for each of {runs}" if runs > 1 else ""
    whole = duration((seconds * steps + look * (LOOKS + 1)) / share)
    text = f"{title}: {steps} steps{each} take about {whole}"
    if chosen.steps < steps:
        text += f"; {chosen.steps} fit into --minutes {clock.minutes:g}"
    say(text)
    if note is not None:
        remember(note, {**chosen._asdict(), "spared": spared})
    return chosen


def affordable_look(
    look: Callable[[int], object],
    texts: int,
    parameters: Mapping[str, Tensor],
    clock: Clock,
    *,
    read: int,
    note: Path,
) -> Looking:
    """At how many held-out texts to look in a training, after timing a look at a few: at all where
    `AT_LEAST` looks fit into `LOOKING` of its time, and `LOOKS` of them read no more texts than it
    does, else at fewer, down to `FEWEST`.

    Args:
        look: at the first so many texts, which are a fair sample of all.
        texts: how many there are.
        clock: of the training.
        read: the texts that all of its steps read, each as often as it is.
        note: a file that remembers the answer, once the training is planned (`remember`).
    """
    if (known := remembered(note, *Looking._fields)) is not None:
        return Looking(int(known["texts"]), float(known["seconds"]))
    if not texts:
        return Looking(0, 0.0)
    tried = min(TRIED, texts)
    seconds = time_of(lambda: look(tried), parameters)
    assert seconds is not None
    each, count, time = seconds() / tried, read // LOOKS, clock.left()
    if math.isfinite(time) and each:
        count = min(count, int(LOOKING * time / (AT_LEAST * each)))
    count = min(texts, max(FEWEST, count))
    return Looking(count, each * count)


def time_of(
    look: Callable[[], object] | None, parameters: Mapping[str, Tensor]
) -> Callable[[], float] | None:
    """The seconds that a look at held-out texts takes, behind one that warms up: measured when they
    are first asked for. None where there is nothing to look at."""
    if look is None:
        return None
    devices = {p.device for p in parameters.values() if p.device.type == "cuda"}

    @cache
    def seconds() -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            look()
            started = _now(devices)
            look()
            return _now(devices) - started

    return seconds


def _within(time: float, steps: int, step: float, look: float) -> Affordable:
    """What fits into a time, in seconds; at least one step and two looks.

    Args:
        steps: at most. step, look: seconds of one.
    """
    looks = LOOKS
    if steps * step + (looks + 1) * look <= time:
        return Affordable(steps, looks)
    looks = max(2, min(looks, int(LOOKING * time / look) - 1 if look else looks))
    return Affordable(max(1, min(steps, int((time - (looks + 1) * look) / max(step, 1e-9)))), looks)


def remembered(note: Path, *names: str) -> dict[str, Any] | None:
    """What `remember` wrote there under these names, None where there is no such file.

    Raises:
        ValueError: if it holds something else; names the file and the cure.
    """
    if not note.is_file():
        return None
    try:
        values = json.loads(note.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{note} is damaged ({error}); remove it to start anew") from error
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"{note} is damaged (no {' and '.join(names)}); remove it to start anew")
    return values


def remember(note: Path, values: Mapping[str, Any]) -> None:
    """Writes a file that is complete or not there."""
    replace_text(note, json.dumps(values))


def _seconds_a_step(
    loss: Callable[[int], Tensor],
    parameters: Mapping[str, Tensor],
    clock: Clock,
    title: str,
) -> float:
    """The mean time of a step that moves nothing: of two steps, and of more where there is time for
    it, since steps differ by the lengths of their texts."""
    devices = {p.device for p in parameters.values() if p.device.type == "cuda"}
    still = adamw(parameters, lr=0.0)
    step, spent, allowed = 0, 0.0, clock.left()
    enough = TIMING * allowed if math.isfinite(allowed) else 0.0
    with torch.random.fork_rng(devices=list(devices)):
        descend(loss, 0, title, parameters, still)
        started = _now(devices)
        while step < TIMED or (spent < enough and step < MOST_TIMED):
            step += 1
            descend(loss, step, title, parameters, still)
            spent = _now(devices) - started
    for parameter in parameters.values():
        parameter.grad = None
    return spent / step


def _now(devices: set[torch.device]) -> float:
    for device in devices:
        torch.cuda.synchronize(device)
    return now()
