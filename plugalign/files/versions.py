"""The installed versions that results may depend on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("plugalign", "torch", "transformers")


def versions(names: Iterable[str] = VERSIONS) -> dict[str, str]:
    """The installed version of each package, by its name."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
