"""Methods with settings of the caller's: one value changes a method, several make a row of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plugalign.algebra.adjusting import typed_value
from plugalign.algebra.controller import Controller
from plugalign.files.shown import check_name, shown

MOST = 100  # rows of one method: more of them are a slip

Settings = Mapping[str, Any]
"""By "method.setting" a value, or several in a list; texts are read as the setting's type."""


def named_settings(
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None, settings: Settings | None
) -> tuple[list[str] | None, dict[str, Any]]:
    """The names of methods, and all settings by "method.setting".

    Args:
        methods: names, or by name the settings of each: ``{"dexperts": {"alpha": [0, 1, 2]}}``.

    Raises:
        ValueError: for a setting that is given in both.
    """
    found = dict(settings or {})
    if not isinstance(methods, Mapping):
        return None if methods is None else list(methods), found
    for method, own in methods.items():
        for setting, value in own.items():
            name = f"{method}.{setting}"
            if name in found:
                raise ValueError(f"{name} is set twice; keep one of them")
            found[name] = value
    return list(methods), found


def varied(controllers: Mapping[str, Controller], settings: Settings) -> dict[str, Controller]:
    """The controllers with these settings, in their order.

    Where a method has several values of a setting, each combination is a controller of its own,
    called ``method[setting=value]``.

    Raises:
        ValueError: for an unknown method or setting, or a value that the setting cannot have.
    """
    wanted = by_method(controllers, settings)
    found: dict[str, Controller] = {}
    for name, controller in controllers.items():
        for row, changes in variants(name, controller, wanted.get(name, {})).items():
            if row in found or (row != name and row in controllers):
                raise ValueError(f"two rows are called {shown(row)}; rename that controller")
            found[row] = changed(name, controller, changes)
    return found


def variants(name: str, controller: Controller, settings: Settings) -> dict[str, dict[str, Any]]:
    """What each row of one method changes, by the name of the row.

    Args:
        settings: by setting a value or a list of values.

    Raises:
        ValueError: for a text that is no value of its setting, a value that stands there twice, or
            too many rows.
    """
    values = {s: _values(name, controller, s, given) for s, given in settings.items()}
    if (count := math.prod(map(len, values.values()))) > MOST:
        raise ValueError(f"the settings of {name} make {count} rows, more than {MOST}; give fewer")
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*values.values()):
        changes = dict(zip(values, combination, strict=True))
        varying = ",".join(f"{s}={_short(changes[s])}" for s in values if len(values[s]) > 1)
        row = check_name(f"{name}[{varying}]" if varying else name, "a method")
        if row in found:
            raise ValueError(f"{row} stands there twice; give each value once")
        found[row] = changes
    return found


def changed(name: str, controller: Controller, changes: Mapping[str, Any]) -> Controller:
    """The controller with other settings; itself, without any.

    Raises:
        ValueError: naming the method, the settings and their values, if it cannot have them.
    """
    if not changes:
        return controller
    try:
        return controller.with_settings(**changes)
    except ValueError as error:
        said = ", ".join(f"{setting}={shown(value)}" for setting, value in changes.items())
        raise ValueError(f"{name} cannot have {said}: {error}") from error


def by_method(controllers: Mapping[str, Controller], settings: Settings) -> dict[str, Settings]:
    """The settings of each method, by method and setting.

    Args:
        settings: by "method.setting".

    Raises:
        ValueError: for another name, or a method that is not there.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        method, dot, setting = name.rpartition(".")
        if not (method and dot and setting):
            raise ValueError(
                f"a setting is named METHOD.SETTING, as in dexperts.alpha, got {shown(name)}"
            )
        if method not in controllers:
            raise ValueError(
                f"{shown(name)} is of the method {shown(method)}, which is not compared; compared "
                f"are {', '.join(controllers) or 'none'}"
            )
        found.setdefault(method, {})[setting] = value
    return dict(found)


def _values(method: str, controller: Controller, setting: str, given: Any) -> list[Any]:
    """The values of one setting, texts as what the setting is."""
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    if not values:
        raise ValueError(f"{method}.{setting} has no value; give at least one")
    annotation = controller.adjustable().get(setting)
    if annotation is None:  # with_settings says what there is
        return values
    try:
        return [typed_value(v, annotation) if isinstance(v, str) else v for v in values]
    except ValueError as error:
        raise ValueError(f"{method}.{setting}: {error}") from error


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
