"""The pooled states of texts, kept in a file while a head is fitted: each text is read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.fitting.budget import remember, remembered
from plugalign.fitting.clock import Clock, now
from plugalign.fitting.progress import progress, say
from plugalign.fitting.states import estimated
from plugalign.values.discriminator.readers import Reader

CHUNK = 64  # texts between two writes


def keep_pooled_states(
    reader: Reader,
    texts: Sequence[str],
    statement: str,
    path: Path,
    clock: Clock | None = None,
    least: int = 1,
) -> FloatArray:
    """The states ``(n, L, D)`` of texts at all of a reader's layers, in ``path``.

    It is appended to chunk by chunk: a fit that is killed continues behind the last whole text.

    Args:
        texts: what should be left out first where the time is short stands last.
        clock: read no more than its time allows, by the speed so far, but so many at least.
    """
    width = reader.width
    size = len(reader.layers) * width * np.dtype(np.float32).itemsize
    note, clock, some = path.with_name(path.name + ".json"), clock or Clock(None), CHUNK
    known = remembered(note, "texts")
    wanted = most = len(texts) if known is None else int(known["texts"])
    first = done = path.stat().st_size // size if path.is_file() else 0
    started = now()
    with path.open("ab") as file, progress("states of texts", wanted, done) as bar:
        os.truncate(path, done * size)
        while done < wanted:
            here = texts[done : min(done + some, wanted)]
            file.write(reader.states(here, statement).numpy().tobytes())
            file.flush()
            each = (now() - started) / (done + len(here) - first)
            wanted = min(most, max(least, clock.fitting(each, done + len(here), most)))
            if done == first:
                say(estimated(each, wanted, most))
            done += len(here)
            bar.advance(len(here), total=wanted)
            some = clock.piece(each, CHUNK)
    remember(note, {"texts": wanted})
    flat = np.fromfile(path, dtype=np.float32, count=wanted * size // 4).astype(np.float64)
    return flat.reshape(wanted, len(reader.layers), width)
