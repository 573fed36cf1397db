"""The lines of a trace file: one that begins the run, one a token, one an answer, one that ends it.

Settings and counts have the names of OpenTelemetry's attributes for generative AI (``gen_ai.*``)
where these exist, so that they can be exported as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from plugalign.evaluation.comparison.decoding import Decoding
from plugalign.evaluation.run_folder.manifest import ChatRecord, Conditions, ModelRecord
from plugalign.files.saved import described
from plugalign.values.account.chain import Link

Count = Annotated[int, Field(ge=0)]
Number = float | None  # None for what is not finite
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
OPERATION = "text_completion"
SETTINGS = {  # OpenTelemetry's names of what decides an answer; the others are our own
    "gen_ai.request.choice.count": "samples",
    "gen_ai.request.max_tokens": "max_new_tokens",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.seed": "seed",
    "plugalign.batch_size": "batch_size",
    "plugalign.min_new_tokens": "min_new_tokens",
}


def _named(name: str) -> Any:
    """A field that has another name in the file."""
    return Field(validation_alias=name, serialization_alias=name)


class _Line(BaseModel):
    model_config = ConfigDict(
        protected_namespaces=(), extra="forbid", frozen=True, populate_by_name=True
    )


class TracedController(_Line):
    """A controller of a traced run.

    Attributes:
        kind: its class.
        config: its settings.
        learned: a fingerprint of its tensors and parts.
        folder: where it was loaded from, None for one that was given in Python.
        files: the SHA-256 of all files there.
        sheet: its data sheet.
    """

    kind: str = _named("class")
    config: dict[str, Any]
    learned: str
    folder: str | None = None
    files: Sha256 | None = None
    sheet: dict[str, Any]


class RunLine(_Line):
    """What a run depends on.

    Attributes:
        time: when it began, in UTC.
        model_path: what the model was loaded by, None where it was given in Python or is pocket's.
        request: the settings, by the names in `SETTINGS`.
        prompts: a hash of all texts together; prompts_path: of their file, if there is one.
        strata: how prompts were sorted into strata, in words.
        chat: the chat template's turns that prompts were put into, None for plain texts.
        controllers: by name; all of them steer together.
        pocket: whether it is the pocket world.
    """

    kind: Literal["run"] = "run"
    time: str
    model: ModelRecord
    model_path: str | None = None
    controllers: dict[str, TracedController]
    request: dict[str, int | float | str]
    count: Count
    prompts: Sha256
    prompts_path: str | None
    strata: str
    chat: ChatRecord | None = None
    versions: dict[str, str]
    conditions: Conditions
    pocket: bool = False

    @property
    def decoding(self) -> Decoding:
        """The settings with which answers were sampled."""
        return Decoding(**{ours: self.request[name] for name, ours in SETTINGS.items()})  # type: ignore[arg-type]


class TokenLine(_Line):
    """One token of an answer; see `plugalign.Trace` for what the numbers are.

    Attributes:
        prompt, sample, step: its address.
        log_p, log_q: of the base, and under all controllers.
        contributions, certificates: by controller.
        time: seconds since 1970.
    """

    kind: Literal["token"] = "token"
    prompt: Count
    sample: Count
    step: Count
    token: Count
    log_p: Number
    log_q: Number
    contributions: dict[str, Number]
    joint: Number
    changed: bool
    support: Count
    kl: Number
    certificates: dict[str, dict[str, Number]] = {}
    time: float


class AnswerLine(_Line):
    """An answer; its tokens stand in the lines before it.

    Attributes:
        prompt_sha256: of the prompt's text, or of its conversation as JSON; prompt_text: the text
            itself, where that was asked for, with one line a message for a conversation.
        stratum: of the prompt; risk: a judge's score of the prompt, if strata go by it.
        pieces: the text of each token, as far as a token has one by itself.
        text: of the answer as it was given; it is no longer that of the tokens where revised.
    """

    kind: Literal["answer"] = "answer"
    prompt: Count
    sample: Count
    prompt_sha256: Sha256
    prompt_text: str | None = None
    stratum: str
    risk: float | None = None
    pieces: tuple[str, ...]
    text: str
    revised: bool = False
    input_tokens: Count = _named("gen_ai.usage.input_tokens")
    output_tokens: Count = _named("gen_ai.usage.output_tokens")
    finish_reasons: tuple[Literal["stop", "length"]] = _named("gen_ai.response.finish_reasons")


class ResumedLine(_Line):
    """A killed run goes on; tokens in front of this line without an answer count for nothing."""

    kind: Literal["resumed"] = "resumed"
    time: str
    versions: dict[str, str]


class EndLine(_Line):
    """The run is complete."""

    kind: Literal["end"] = "end"
    time: str
    answers: Count
    tokens: Count


class NoteLine(_Line):
    """What a person reports of a run.

    Attributes:
        by: who, if that was said.
        head: the last hash of the run's file at that time.
    """

    kind: Literal["incident", "override"]
    time: str
    text: str
    by: str | None = None
    head: str | None = None


Line = RunLine | TokenLine | AnswerLine | ResumedLine | EndLine
_LINES: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def line_of(link: Link) -> Line:
    """A line of a trace file.

    Raises:
        ValueError: if it is none; names the file, the line and the field.
    """
    try:
        return _LINES.validate_python(link.content)
    except ValidationError as error:
        raise ValueError(f"{link.place}: no line of a trace: {described(error)}") from error


def content_of(line: Line | NoteLine) -> dict[str, Any]:
    """A line as JSON values."""
    return line.model_dump(mode="json", by_alias=True)


def request_of(model: str, decoding: Decoding) -> dict[str, int | float | str]:
    """The settings under OpenTelemetry's names."""
    found = {name: getattr(decoding, ours) for name, ours in SETTINGS.items()}
    about = {"gen_ai.operation.name": OPERATION, "gen_ai.provider.name": "plugalign"}
    return {**about, "gen_ai.request.model": model, **found}


def finite(value: float) -> Number:
    """A number with seven digits, None where it is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def rounded(values: Mapping[str, float]) -> dict[str, Number]:
    """`finite` of each."""
    return {name: finite(value) for name, value in values.items()}


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
