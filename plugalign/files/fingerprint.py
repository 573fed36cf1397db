"""Hashes of settings, data, weights and files, by which two runs are known to be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROBE = 64  # numbers of each parameter that go into a fingerprint of weights


def fingerprint(*parts: Any) -> str:
    """A hash of settings and data, equal in every process.

    Strings, numbers and tensors, in tuples, lists and mappings, are hashed by value.
    """
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, Tensor):
        yield str((value.dtype, tuple(value.shape))).encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield from _pieces(tuple(value.items()))
    elif isinstance(value, (tuple, list)):
        yield str(len(value)).encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, (str, int, float, Path)) or value is None:
        yield f"{type(value).__name__}:{value!r}".encode()
    else:
        raise TypeError(f"cannot take the fingerprint of a {type(value).__name__}")


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """A hash of every parameter's name, shape and some of its numbers: quick for large models.

    Args:
        dtype: a precision that the numbers are rounded to; None takes them as they are.
    """
    probes = []
    for name, parameter in module.named_parameters():
        some = parameter.detach().flatten()[:: max(1, parameter.numel() // PROBE)]
        probes.append((name, str(tuple(parameter.shape)), some.to(dtype or some.dtype).float()))
    return fingerprint(probes)[:16]
