"""Which class a name in a saved controller's config.json stands for."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Iterator
from typing import Any

from plugalign.catalogue import CLASSES

# Module and attribute of the package's own classes, which are imported when a name asks for them.
CONTROLLERS: dict[str, tuple[str, str]] = {
    **CLASSES,
    "composition": ("plugalign.algebra.controller", "Composition"),
    "gated": ("plugalign.algebra.controller", "Gated"),
}


def class_of(name: Any, base: type[Any], ours: dict[str, tuple[str, str]], where: str) -> type[Any]:
    """The class of a saved name: one of the package's, else the latest subclass of ``base`` with
    that name among those that have been imported.

    Args:
        ours: module and attribute of the package's classes by name.
        where: begins the error message.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(name, str) and name in ours:
        module, attribute = ours[name]
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    others = [kind for kind in _below(base) if name and vars(kind).get("name") == name]
    if not others:
        raise ValueError(
            f"{where} {reprlib.repr(name)}; known are {', '.join(sorted(ours))}; if it is of your "
            "own, import the module that defines it first"
        )
    return others[-1]


def _below(base: type[Any]) -> Iterator[type[Any]]:
    for child in base.__subclasses__():
        yield child
        yield from _below(child)


def check_named(thing: Any) -> None:
    """Refuses to save an object whose class could not be found again.

    Raises:
        ValueError: naming its class.
    """
    if not thing.name:
        raise ValueError(
            f"{type(thing).__name__} has no name to be saved under; give the class a `name`"
        )
