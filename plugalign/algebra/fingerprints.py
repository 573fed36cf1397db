"""Fingerprints of controllers: equal for two that decide alike, whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import vocabulary_hash
from plugalign.files.fingerprint import file_hash, fingerprint, weights_fingerprint
from plugalign.trace import distinct_names


def controller_fingerprint(controller: Controller) -> str:
    """A hash of a controller's tensors and settings and, in turn, of all its parts.

    Raises:
        ValueError: for a part that cannot be saved by itself, such as an adapter in memory.
    """
    parts = {name: _part(part) for name, part in controller.saved_parts().items()}
    return fingerprint(controller.tensors(), parts, repr(controller.config()))[:16]


def named_fingerprints(controllers: Sequence[Controller]) -> dict[str, str | None]:
    """Of each controller, by the name that a trace gives it; None of one with parts that no hash
    can tell apart."""
    names = distinct_names([controller.display_name for controller in controllers])
    return dict(zip(names, map(_known, controllers), strict=True))


def _known(controller: Controller) -> str | None:
    try:
        return controller_fingerprint(controller)
    except (OSError, TypeError, ValueError):
        return None


def _part(part: Any) -> str:
    if isinstance(part, Controller):
        return controller_fingerprint(part)
    if isinstance(part, nn.Module):
        return weights_fingerprint(part)
    if hasattr(part, "get_vocab"):
        return vocabulary_hash(part)
    folder = Path(part)
    return fingerprint([(p.name, file_hash(p)) for p in sorted(folder.rglob("*")) if p.is_file()])
