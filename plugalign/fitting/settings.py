"""What a fit's settings may be: types with bounds, checked before any work, in one clear error.

A fit function annotates its keyword arguments with the types here and is decorated with `checked`;
``plugalign fit --set`` goes through the same check. A setting that is not known is refused.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from plugalign.algebra.identity import model_name

Count = Annotated[int, Field(ge=1, le=2**24)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Minutes = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A fit function that checks its settings by their annotations when it is called.

    Raises:
        ValueError: when called, for a setting that is not known, of another type or out of range.
    """

    @wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        return function(*args, **validated(function, given))

    return call


def validated(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given to a fit function, as values of their types.

    Args:
        given: by name; strings are read as what the setting is, as from a command line.

    Raises:
        ValueError: naming the first setting that is wrong, its value, what it may be and its
            default.
    """
    try:
        model = _schema(inspect.unwrap(function)).model_validate(dict(given))
    except ValidationError as error:
        raise ValueError(_explained(error, function)) from error
    return {name: getattr(model, name) for name in given}


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The names of a fit function's settings, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_context(model: Any, max_length: int) -> None:
    """Raises a ValueError if training texts may be longer than the model can read."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ValueError(
            f"max_length {max_length} exceeds the context of '{model_name(model)}' "
            f"({context} tokens)"
        )


@cache
def _schema(function: Callable[..., Any]) -> type[BaseModel]:
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], default) for name, default in settings_of(function).items()
    }
    config = ConfigDict(extra="forbid")
    return create_model(f"{function.__name__} settings", __config__=config, **fields)


def _explained(error: ValidationError, function: Callable[..., Any]) -> str:
    fault = error.errors()[0]
    name, known = str(fault["loc"][0]), settings_of(function)
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r:.60}; known are {', '.join(known)}"
    wrong = fault["msg"][0].lower() + fault["msg"][1:]
    got, default = f"{fault['input']!r:.60}", known[name]
    return f"{name}: {wrong}, got {got}; its default is {default!r:.60}"
