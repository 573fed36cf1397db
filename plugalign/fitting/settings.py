"""What a fit's settings may be: types with bounds, checked before any work, in one clear error.

Each method has a class of settings, whose fields are the keyword arguments of its fit function;
``plugalign fit --set`` goes through the same check. A setting that is not known is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.fitting.data import Labelled
from plugalign.generation.chat_format import ChatMode

Count = Annotated[int, Field(ge=1, le=2**24)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Minutes = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]


class FitSettings(BaseModel):
    """The settings of a fit; a class of each method has its own as fields.

    Attributes:
        chat: whether texts are learnt as the assistant's answers in the tokenizer's chat template:
            "on", "off", or "auto", which is on for an instruct model
            (`plugalign.generation.chat_format`).
        system: a system message in front of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat: ChatMode = "auto"
    system: str | None = None

    def recorded(self) -> dict[str, Any]:
        """Those that the result depends on, for fit.json. How long it may take is none of them, and
        of chats there is a part of its own."""
        return self.model_dump(exclude={"minutes", "chat", "system"})


S_contra = TypeVar("S_contra", bound=FitSettings, contravariant=True)
C_co = TypeVar("C_co", bound=Controller, covariant=True)


class Fit(Protocol[C_co]):
    """A fit function: trains a controller for a model on data and saves it in a folder."""

    settings: type[FitSettings]

    def __call__(
        self, model: Any, tokenizer: Any, data: Labelled, out: Path, **settings: Any
    ) -> C_co: ...


class _Work(Protocol[S_contra, C_co]):
    """A fit function before it takes its settings as keyword arguments."""

    def __call__(
        self, model: Any, tokenizer: Any, data: Labelled, out: Path, settings: S_contra, /
    ) -> C_co: ...


def fit_function(
    kind: type[S_contra],
) -> Callable[[_Work[S_contra, C_co]], Fit[C_co]]:
    """Makes keyword arguments of the fields of a class of settings.

    The function that it decorates takes an object of that class behind model, tokenizer, data and
    folder. `inspect.signature` and ``help`` show the keyword arguments.

    Raises:
        ValueError: when called, for a setting that is not known, of another type or out of range,
            or a model in training mode.
    """

    def decorate(work: _Work[S_contra, C_co]) -> Fit[C_co]:
        @wraps(work)
        def call(model: Any, tokenizer: Any, data: Labelled, out: Path, **given: Any) -> C_co:
            settings = _parsed(kind, given)
            if model.training:
                raise ValueError("the model is in training mode; call model.eval() first")
            return work(model, tokenizer, data, out, settings)

        *first, _ = inspect.signature(work).parameters.values()
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
            for name, f in kind.model_fields.items()
        ]
        fit: Any = call
        fit.settings = kind
        fit.__signature__ = inspect.Signature([*first, *keywords])
        return fit  # type: ignore[no-any-return]

    return decorate


def validated(function: Fit[Controller], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given to a fit function, as values of their types.

    Args:
        given: by name; strings are read as what the setting is, as from a command line.

    Raises:
        ValueError: naming the first setting that is wrong, its value, what it may be and its
            default.
    """
    found = _parsed(function.settings, given)
    return {name: getattr(found, name) for name in given}


def settings_of(function: Fit[Controller]) -> dict[str, Any]:
    """The names of a fit function's settings, with their defaults."""
    return {name: field.default for name, field in function.settings.model_fields.items()}


def check_context(model: Any, max_length: int) -> None:
    """Raises a ValueError if training texts may be longer than the model can read."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ValueError(
            f"max_length {max_length} exceeds the context of '{model_name(model)}' "
            f"({context} tokens)"
        )


K = TypeVar("K", bound=FitSettings)


def _parsed(kind: type[K], given: Mapping[str, Any]) -> K:
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError(_explained(error, kind)) from error


def _explained(error: ValidationError, kind: type[FitSettings]) -> str:
    fault = error.errors()[0]
    name, known = str(fault["loc"][0]), kind.model_fields
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r:.60}; known are {', '.join(known)}"
    wrong = fault["msg"][0].lower() + fault["msg"][1:]
    got, default = f"{fault['input']!r:.60}", known[name].default
    return f"{name}: {wrong}, got {got}; its default is {default!r:.60}"
