"""Fits any method by name: what ``plugalign fit`` does, as a function."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.catalogue import ALONE, FITTERS
from plugalign.files.precision import chosen_dtype, explained
from plugalign.fitting import workspace
from plugalign.fitting.data import Labelled, load_data
from plugalign.fitting.progress import say
from plugalign.fitting.settings import Fit, settings_of, validated
from plugalign.fitting.style import differences, in_one_style
from plugalign.loading import load_model
from plugalign.threads import torch_threads

CURE = "A contrast of both classes may learn from --one-style."
OWN_OPTIONS = ("desired", "minutes", "chat", "system")  # of the command, not of --set


def fitter(method: str) -> tuple[Fit[Controller], Mapping[str, Any]]:
    """The fit function of a method, and the settings that make it this method.

    Raises:
        ValueError: for a method that is unknown or has nothing to fit.
    """
    if method in ALONE:
        raise ValueError(f"{method} has nothing to fit: it needs settings only")
    if method not in FITTERS:
        raise ValueError(f"unknown method '{method}'; those that learn are {', '.join(FITTERS)}")
    found = FITTERS[method]
    return getattr(importlib.import_module(found.module), found.function), found.fixed


def parse_settings(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as keyword arguments of the method's fit function.

    Raises:
        ValueError: for a setting that the method does not have, naming those it has, or a value
            that it cannot have, naming what it may be.
    """
    function, fixed = fitter(method)
    known = [name for name in settings_of(function) if name not in (*fixed, *OWN_OPTIONS)]
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or name not in known:
            raise ValueError(
                f"--set takes NAME=VALUE with a setting of {method} ({', '.join(known)}), got "
                f"{pair!r:.60}"
            )
        settings[name] = _value(value)
    try:
        return validated(function, settings)
    except ValueError as error:
        raise ValueError(f"--set {error}") from error


def _value(text: str) -> Any:
    """Lists and null as YAML has them; anything else is text that its setting's type reads."""
    if text != "null" and not text.startswith("["):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def fit_files(
    method: str,
    name: str,
    paths: Sequence[Path],
    out: Path,
    *,
    columns: Mapping[str, str],
    limit: int | None,
    desired: str | None,
    settings: Sequence[str],
    minutes: float,
    dtype: str,
    threads: int | None,
    chat: str = "auto",
    system: str | None = None,
    one_style: bool = False,
) -> str:
    """What the command does with its options: says what it does as it goes, and returns what there
    is to say at the end.

    Args:
        name: of the model, a hub id or folder.
        columns: of the data, see `load_data`.
        settings: ``NAME=VALUE`` pairs.
        dtype: see `chosen_dtype`.
        chat, system: see `FitSettings`.
        one_style: whether texts are put into one style, see `plugalign.fitting.style`.

    Raises:
        ValueError: see `run_fit`, `load_data`, `load_model` and `chosen_dtype`.
    """
    chosen = parse_settings(method, settings)
    function, _ = fitter(method)
    chosen |= validated(function, {"chat": chat, "system": system})
    validated(function, {"minutes": minutes})
    _check_desired(method, function, desired)
    workspace.check_out(out)
    precision = chosen_dtype(dtype)
    with torch_threads(threads):
        data = load_data(paths, limit=limit, **columns)
        if one_style:
            data = in_one_style(data)
        if "desired" in settings_of(function):
            sides = data.binary(desired)  # says now what a fit would say once the model is there
            if not one_style and (found := "; ".join(differences(*sides))):
                say(f"the classes differ in style, which will be steered too: {found}. {CURE}")
        say(f"loading {name} in {explained(dtype)}")
        model, tokenizer = load_model(name, precision)
        given: dict[str, Any] = {"desired": desired, "minutes": minutes, "settings": chosen}
        controller = run_fit(method, model, tokenizer, data, out, **given)
        return describe(controller, model, name, out)


def run_fit(
    method: str,
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Controller:
    """Fits a method and saves the controller in ``out``.

    Args:
        desired: the label of the desired class, for methods that go by one.
        minutes: what it may take; None is no bound.
        settings: keyword arguments of the method's fit function.

    Raises:
        ValueError: for bad data or settings, before any work; if ``out`` holds something; or if
            another fit was begun there.
    """
    function, fixed = fitter(method)
    given = {**fixed, **(settings or {}), "minutes": minutes}
    _check_desired(method, function, desired)
    if desired is not None:
        given["desired"] = desired
    return function(model, tokenizer, data, out, **given)


def _check_desired(method: str, function: Fit[Controller], desired: str | None) -> None:
    if desired is not None and "desired" not in settings_of(function):
        raise ValueError(f"{method} learns from all labels alike; leave --desired out")


PLAIN_PROMPT = 'ids = tokenizer("I think that", return_tensors="pt")'
CHAT_PROMPT = """\
hello = [{"role": "user", "content": "Hello"}]
options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
ids = tokenizer.apply_chat_template(hello, **options)"""
TRIAL = """\
import plugalign, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({model!r})
tokenizer = transformers.AutoTokenizer.from_pretrained({model!r})
steered = plugalign.wrap(model, tokenizer, plugalign.Controller.from_pretrained({out!r}))
{prompt}
print(tokenizer.decode(steered.generate(**ids, max_new_tokens=20)[0]))"""


def describe(controller: Controller, model: Any, name: str, out: Path) -> str:
    """What is there now and what was measured of it, how to compare it, and a command that tries it
    when it is typed.

    Args:
        name: the model's hub id or folder, as it was given.
    """
    prompt = CHAT_PROMPT if workspace.fitted_on_chats(out) else PLAIN_PROMPT
    trial = shlex.quote(TRIAL.format(model=name, out=str(out), prompt=prompt))
    sheet = controller.data_sheet()
    guessing = " Guessing has an auc of 0.5." if "auc" in sheet.held_out else ""
    return (
        f"{type(controller).__name__} for {model_name(model)} is in {out}. {sheet.evaluation}"
        f"{guessing}\nplugalign compare takes it as --controllers {controller.name}={out}, and "
        f"this tries it:\npython -c {trial}"
    )
