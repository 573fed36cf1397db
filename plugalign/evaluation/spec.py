"""The options of a comparison as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class CompareSpec(BaseModel):
    """What ``plugalign compare --spec FILE`` understands: the arguments of `compare`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompts: str | list[str] | None = None
    limit: int | None = Field(None, ge=1)
    methods: list[str] | None = None
    controllers: dict[str, str] | None = None
    judges: list[str] | dict[str, str] | None = None
    scorer: str | None = None
    agreement: str | list[str] | None = None
    samples: int = Field(25, ge=1)
    max_new_tokens: int = Field(20, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)
    out: str | None = None
    resume: bool = False


def read_spec(path: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a YAML file, with those in ``given`` in their place; only what was set.

    Raises:
        ValueError: naming the file and the line, or the option and what is wrong with it.
    """
    options = {**({} if path is None else _read(path)), **given}
    try:
        return CompareSpec.model_validate(options).model_dump(exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        raise ValueError(_explained(error, path)) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: malformed YAML ({error.problem})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected options such as 'samples: 25', got {content!r:.60}")
    return content


def _explained(error: ValidationError, path: Path | None) -> str:
    """The first fault in one line."""
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"])
    place = "" if path is None else f" (in {path} or among the options)"
    if fault["type"] == "extra_forbidden":
        return f"unknown option {name!r}{place}; known are {', '.join(CompareSpec.model_fields)}"
    wrong = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{name}: {wrong}, got {fault['input']!r}{place}"
