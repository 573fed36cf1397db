"""Controllers with other settings: which settings can be changed, and the controller with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from plugalign.files.shown import shown

if TYPE_CHECKING:
    from plugalign.algebra.saving import Saveable

Kind = TypeVar("Kind", bound="Saveable")

SCALARS = (bool, int, float, str, NoneType)
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def scalar_settings(kind: type[Saveable]) -> dict[str, Any]:
    """The types of the settings that are one number, word or yes and no, by name: what is left are
    lists, and what the learned parts decide."""
    return {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in kind.settings.model_fields.items()
        if name not in ("controller", *kind.hub_parts) and _is_scalar(field.annotation)
    }


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(map(_is_scalar, get_args(annotation)))
    return annotation in SCALARS or get_origin(annotation) is Literal


def checked_settings(
    name: str, known: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The changed settings as values of their types.

    Args:
        name: of the controller, for messages.
        known: the types of the settings that can be changed, by name.

    Raises:
        ValueError: for a setting that is unknown, or a value of another type; names both.
    """
    found = {}
    for setting, value in changes.items():
        if setting not in known:
            cure = f"known are {', '.join(known)}" if known else "none of its settings can be set"
            raise ValueError(f"{name} has no setting {shown(setting)}; {cure}")
        try:
            found[setting] = TypeAdapter(known[setting], config=STRICT).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{setting}: {_fault(error)}, got {shown(value)}") from error
    return found


def typed_value(text: str, annotation: Any) -> Any:
    """A setting's value as it is typed on a command line; ``null`` is None.

    Raises:
        ValueError: for a text that is no such value.
    """
    if text == "null":
        return None
    try:
        return TypeAdapter(annotation).validate_python(text)
    except ValidationError as error:
        raise ValueError(f"{_fault(error)}, got {shown(text)}") from error


def rebuilt(controller: Kind, changes: Mapping[str, Any]) -> Kind:
    """A controller made anew with other settings, of the same tensors and parts.

    Raises:
        ValueError: if the settings do not fit together.
    """
    kind = type(controller)
    text = json.dumps({"controller": controller.name, **controller.config()})
    config = kind.settings.model_validate_json(text).model_dump(exclude={"controller"})
    hub = {name: part for name, part in kind.on_hub(config).items() if part is not None}
    config |= changes
    if kind.runs_models:
        config["trust_remote_code"] = getattr(controller, "trust_remote_code", False)
    parts = {**hub, **controller.saved_parts()}
    made = kind.build(config, dict(controller.tensors()), parts)
    object.__setattr__(made, "provenance", controller.provenance)
    return made


def _fault(error: ValidationError) -> str:
    """The first fault, in lower case."""
    message = str(error.errors(include_url=False)[0]["msg"])
    return message[0].lower() + message[1:]
