"""The options of a comparison as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plugalign.files.precision import Precision
from plugalign.files.shown import check_name, printable, shown
from plugalign.files.typed import read_yaml, validated
from plugalign.generation.chat_format import ChatMode

MOST_BEAMS = 1000
MOST = 100_000  # of samples, tokens or answers at a time: a number beyond it is a slip


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a name, a path or a text is needed")
    return text


def _name(text: str) -> str:
    return check_name(text, "a method, a judge or a reference set")


Text = Annotated[str, AfterValidator(_not_blank)]
Name = Annotated[str, AfterValidator(_name)]
Count = Annotated[int, Field(ge=1, le=MOST)]


class CompareSpec(BaseModel):
    """What ``plugalign compare --spec FILE`` understands: the arguments of `compare`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text | None = None
    prompts: Text | list[Text] | None = None
    limit: int | None = Field(None, ge=1)
    chat: ChatMode = "auto"
    system: Text | None = None
    methods: list[Name] | None = Field(None, min_length=1)
    controllers: dict[Name, Text] | None = None
    settings: dict[Text, Any] | None = None
    judges: list[Text] | dict[Name, Text] | None = Field(None, min_length=1)
    scorer: Text | None = None
    perplexity_model: Text | None = None
    agreement: Text | list[Text] | dict[Name, Text] | None = None
    human_texts: Text | None = None
    human_labels: Text | None = None
    samples: Count = 25
    max_new_tokens: Count = 20
    min_new_tokens: int = Field(0, ge=0)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MOST)
    greedy: bool = False
    num_beams: int = Field(1, ge=1, le=MOST_BEAMS)
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    batch_size: Count = 32
    seed: int = Field(0, ge=0)
    out: Text | None = None
    resume: bool = False
    dtype: Precision = "auto"
    threads: int | None = Field(None, ge=1, le=1024)


def read_spec(
    path: Path | None, given: Mapping[str, Any], *, trust: bool = False
) -> dict[str, Any]:
    """The options in a YAML file, with those in ``given`` in their place; only what was set.

    Args:
        trust: whether the file may name a judge that is code.

    Raises:
        ValueError: naming the file and the line, or the option and what is wrong with it.
    """
    typed = validated(CompareSpec, given, None)
    if path is not None:
        written = validated(CompareSpec, read_yaml(path), printable(str(path)))
        if not trust:
            _refuse_code(written.judges, path)
        typed = written.model_copy(update=typed.model_dump(exclude_unset=True))
    return typed.model_dump(exclude_unset=True, exclude_none=True)


def _refuse_code(judges: list[str] | dict[str, str] | None, path: Path) -> None:
    """A file of options that came from somebody else must not run what it names."""
    from plugalign.evaluation.judging.load import is_code

    specs = list(judges.values() if isinstance(judges, dict) else judges or ())
    if code := [spec for spec in specs if is_code(spec)]:
        raise ValueError(
            f"{printable(str(path))}: the judge {shown(code[0])} is code, which a spec may name "
            f"only with --trust; or give it as --judge"
        )
