"""Options and configurations: YAML and JSON files as pydantic models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from plugalign.files.json_text import read_object
from plugalign.files.shown import printable, shown
from plugalign.files.text import check_unicode, read_text

Model = TypeVar("Model", bound=BaseModel)
TYPE = re.compile(r"(str|list|dict|constrained-str|\[key\])$|[a-z-]+\[")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        ValueError: naming the file and the line.
    """
    content, place = read_text(path), printable(str(path))
    try:
        found = yaml.load(content, Loader=_Options)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(
            f"{place}{line}: malformed YAML ({printable(str(error.problem))})"
        ) from error
    except yaml.reader.ReaderError as error:
        number = content.count("\n", 0, error.position) + 1
        character = shown(content[error.position : error.position + 1])
        raise ValueError(f"{place}, line {number}: YAML has no character {character}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: YAML nested too deeply: {shown(content)}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date, or an integer of too many digits
        raise ValueError(f"{place}: malformed YAML ({printable(str(error))})") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{place}: expected options such as 'samples: 25', got {shown(found)}")
    return found


def read_config(path: Path, model: type[Model]) -> Model:
    """A configuration in a JSON file.

    Raises:
        ValueError: naming the file, the field and what is wrong with it.
    """
    return validated(model, read_object(path), printable(str(path)))


def validated(model: type[Model], content: Mapping[str, Any], place: str | None) -> Model:
    """The content as a model.

    Raises:
        ValueError: the first fault, with the field, the value and the place.
    """
    for name, value in content.items():
        check_texts(value, f"{printable(str(name))}{'' if place is None else f' (in {place})'}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
    known = ", ".join(model.model_fields)
    name = _field(fault["loc"])
    where = "" if place is None else f" (in {place})"
    if fault["type"] == "extra_forbidden":
        raise ValueError(f"unknown option {shown(name)}{where}; known are {known}")
    if fault["type"] == "missing":
        raise ValueError(f"{name} is missing{where}")
    wrong = fault["msg"].removeprefix("Value error, ")
    raise ValueError(f"{name}: {wrong[0].lower() + wrong[1:]}, got {shown(fault['input'])}{where}")


def _field(location: tuple[int | str, ...]) -> str:
    """A field's dotted name, without what pydantic adds of its types."""
    first, *rest = map(str, location)
    named = [part for part in rest if not TYPE.match(part)]
    return printable(".".join([first, *named]))[:200]


def check_texts(value: Any, what: str) -> None:
    """Refuses texts, at any depth, with characters that no name, path or text may have.

    Raises:
        ValueError: naming the value, for half a surrogate pair or a NUL character.
    """
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                check_unicode(text, what)
            case dict(mapping):
                waiting += [*mapping, *mapping.values()]
            case list(values) | tuple(values):
                waiting += values


class _Options(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without what options have no need of: names given twice, and copies of whole lists.

    A list of aliases of lists of aliases … is a few bytes for billions of values.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor} repeats a whole list; write it out", event.start_mark
            )
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{shown(name)} stands there twice",
                    node.value[number][0].start_mark,
                )
        return dict(super().construct_mapping(node, deep))
