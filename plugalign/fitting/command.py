"""Fits any method by name: what ``plugalign fit`` does, as a function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plugalign.controller import Controller
from plugalign.fitting.data import Labelled
from plugalign.identity import model_name

FITTERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dexperts": ("plugalign.fitting.dexperts", "fit_dexperts", {}),
    "dexperts_lora": ("plugalign.fitting.dexperts", "fit_dexperts", {"lora": True}),
    "fudge": ("plugalign.fitting.fudge", "fit_fudge", {}),
    "fudge_head": ("plugalign.fitting.fudge_head", "fit_fudge_head", {}),
    "nullspace": ("plugalign.fitting.nullspace", "fit_nullspace", {}),
    "prefix": ("plugalign.fitting.prefix", "fit_prefix", {}),
    "prefix_contrast": ("plugalign.fitting.prefix", "fit_prefix", {"contrast": True}),
}
UNFITTED = ("self_debias", "self_critique")


def fitter(method: str) -> tuple[Callable[..., Controller], dict[str, Any]]:
    """The fit function of a method, and the settings that make it this method.

    Raises:
        ValueError: for a method that is unknown or has nothing to fit.
    """
    if method in UNFITTED:
        raise ValueError(f"{method} has nothing to fit: it needs settings only")
    if method not in FITTERS:
        raise ValueError(f"unknown method '{method}'; those that learn are {', '.join(FITTERS)}")
    module, name, settings = FITTERS[method]
    return getattr(importlib.import_module(module), name), settings


def parse_settings(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as keyword arguments of the method's fit function.

    Raises:
        ValueError: for a setting that the method does not have; lists those it has.
    """
    function, fixed = fitter(method)
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in fixed
    ]
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or name not in known:
            raise ValueError(
                f"--set takes NAME=VALUE with a setting of {method} ({', '.join(known)}), got "
                f"{pair!r}"
            )
        settings[name] = _number(value)
    return settings


def _number(value: str) -> Any:
    """YAML reads ``3``, ``true`` and ``null``, but takes ``5e-4`` for text."""
    try:
        return float(value) if "e" in value.lower() else yaml.safe_load(value)
    except ValueError:
        return yaml.safe_load(value)


def run_fit(
    method: str,
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Controller:
    """Fits a method and saves the controller in ``out``.

    Args:
        desired: the label of the desired class, for methods that go by one.
        settings: keyword arguments of the method's fit function.

    Raises:
        ValueError: for bad data or settings, before any work; or if ``out`` holds something else.
    """
    function, fixed = fitter(method)
    given = {**fixed, **(settings or {})}
    if desired is not None:
        if "desired" not in inspect.signature(function).parameters:
            raise ValueError(f"{method} learns from all labels alike; leave --desired out")
        given["desired"] = desired
    return function(model, tokenizer, data, out, **given)


def describe(controller: Controller, model: Any, out: Path) -> str:
    """One line that says what is there now and how to use it."""
    return (
        f"{type(controller).__name__} for {model_name(model)} is in {out}; try "
        f"plugalign compare --model … --controllers {controller.name}={out}"
    )
