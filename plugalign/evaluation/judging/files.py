"""Folders of the package's own judges: config.json, which says the kind, and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from plugalign.files.json_text import read_object
from plugalign.files.pretrained import loading
from plugalign.files.shown import printable

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def kind_of(folder: Path) -> str | None:
    """Which of the package's judges a folder holds, None if none.

    Raises:
        ValueError: its config.json is damaged.
    """
    path = folder / CONFIG
    kind = read_object(path).get("judge") if path.is_file() else None
    return kind if isinstance(kind, str) else None


def read_arrays(path: Path, lengths: Mapping[str, int]) -> list[NDArray[Any]]:
    """Vectors of finite numbers from a safetensors file, in the order of ``lengths``.

    Raises:
        ValueError: naming the file, for one that is missing, damaged or of another length.
    """
    with loading("the weights", path):
        arrays = load_file(path)
    place = printable(str(path))
    if set(arrays) != set(lengths):
        raise ValueError(f"{place} holds {sorted(arrays)}, not {sorted(lengths)}")
    for name, length in lengths.items():
        if arrays[name].shape != (length,):
            raise ValueError(f"{place}: {name!r} has shape {arrays[name].shape}, not ({length},)")
        if (
            not np.issubdtype(arrays[name].dtype, np.floating)
            or not np.isfinite(arrays[name]).all()
        ):
            raise ValueError(f"{place}: {name!r} is no array of finite numbers")
    return [arrays[name] for name in lengths]
