"""The pooled states of texts, kept in a file while a head is fitted: each text is read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.fitting.progress import progress
from plugalign.values.discriminator.readers import Reader

CHUNK = 64  # texts between two writes


def keep_pooled_states(
    reader: Reader, texts: Sequence[str], statement: str, path: Path
) -> FloatArray:
    """The states ``(n, L, D)`` of texts at all of a reader's layers, in ``path``.

    It is appended to chunk by chunk: a fit that is killed continues behind the last whole text.
    """
    width = reader.width
    size = len(reader.layers) * width * np.dtype(np.float32).itemsize
    done = path.stat().st_size // size if path.is_file() else 0
    with path.open("ab") as file, progress("states of texts", len(texts), done) as bar:
        os.truncate(path, done * size)
        while done < len(texts):
            some = texts[done : done + CHUNK]
            file.write(reader.states(some, statement).numpy().tobytes())
            file.flush()
            done += len(some)
            bar.advance(len(some))
    flat = np.fromfile(path, dtype=np.float32).astype(np.float64)
    return flat.reshape(len(texts), len(reader.layers), width)
