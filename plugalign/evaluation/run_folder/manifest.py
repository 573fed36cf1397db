"""manifest.json: every model, controller, data file and version that a run depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plugalign.evaluation.judging.agreement import Agreement
from plugalign.evaluation.run_folder.folder import MANIFEST, read_json
from plugalign.files.fingerprint import fingerprint
from plugalign.files.saved import described
from plugalign.files.shown import shown

Number = int | float
"""A number that stays as it was given: 1 and 1.0 are written differently."""


class _Part(BaseModel):
    """A part of the manifest. "class" is called `kind` here, since it is a word of Python's."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelRecord(_Part):
    """A model: its name, and fingerprints of its weights and its vocabulary."""

    name: str
    kind: str | None = Field(None, validation_alias="class", serialization_alias="class")
    dtype: str | None = None
    weights: str | None = None
    vocabulary: str | None = None


class ScorerRecord(ModelRecord):
    """The model under which perplexity is taken."""

    is_base: bool


class ControllerRecord(_Part):
    """A controller.

    Attributes:
        config: its settings, whatever these are.
        learned: a fingerprint of its tensors and parts.
        parts: of a sum, its controllers.
    """

    kind: str = Field(validation_alias="class", serialization_alias="class")
    config: dict[str, Any]
    learned: str
    parts: tuple[WeightedRecord, ...] = ()


class WeightedRecord(ControllerRecord):
    """A controller of a sum."""

    weight: Number


class PromptsRecord(_Part):
    """How many prompts there are, and a hash of their texts."""

    count: int
    sha256: str


class ChatRecord(_Part):
    """Whether prompts were put into turns of the tokenizer's chat template.

    Attributes:
        asked: "auto", "on" or "off". used: what became of it. why: the reason.
        system: the system message that was given.
        template: a hash of the chat template.
    """

    asked: Literal["auto", "on", "off"]
    used: bool
    why: str
    system: str | None = None
    template: str | None = None


class JudgeRecord(_Part):
    """A judge.

    Attributes:
        sha256: of what its scores depend on, None where nothing is known of that.
        label: of a text-classification model, the number of the label that counts as toxic.
        threshold: from which score on a text counts as toxic.
        reads: of one that reads with a model, a fingerprint of its weights.
    """

    kind: str = Field(validation_alias="class", serialization_alias="class")
    sha256: str | None
    label: int | None = None
    threshold: Number | None = None
    reads: str | None = None


class MetricRecord(_Part):
    """A metric, see `plugalign.evaluation.metrics.metric.Metric`; functions by their names."""

    name: str
    reduce: str
    better: Literal["lower", "higher"]
    threshold: Number | None
    measure: str | None = None
    of_answers: bool = False


class Settings(_Part):
    """What a run's results depend on.

    Attributes:
        methods: base, of which there is nothing to say, and every controller.
        references: what methods are compared with; of one within a support, where that ends.
        cut_alike: by the name of a method with a support, the reference within that support.
        judge_details: by the name of a judge.
        perplexity_model: an outside model under which answers have a second perplexity.
    """

    model: ModelRecord | None = None
    methods: dict[str, ControllerRecord | None]
    references: dict[str, dict[str, Number] | None] = {}
    cut_alike: dict[str, str] = {}
    prompts: PromptsRecord | None = None
    judges: tuple[str, ...]
    judge_details: dict[str, JudgeRecord] = {}
    chat: ChatRecord | None = None
    metrics: dict[str, MetricRecord] = {}
    scorer: ScorerRecord
    perplexity_model: ModelRecord | None = None
    samples: int
    max_new_tokens: int = 0
    temperature: Number = 1.0
    top_p: Number = 1.0
    batch_size: int = 0
    seed: int
    min_new_tokens: int = 0
    top_k: int = 0
    greedy: bool = False
    num_beams: int = 1
    repetition_penalty: Number = 1.0

    @property
    def draws(self) -> bool:
        """Whether tokens were drawn."""
        return not self.greedy and self.num_beams == 1

    def rows(self) -> list[str]:
        """All methods and what they are compared with, in the order of a table."""
        return list(dict.fromkeys([*self.references, *self.methods]))


class DataRecord(_Part):
    """The prompts' file and its hash, None for texts, and where each judge came from."""

    path: str | None
    sha256: str | None
    judges: dict[str, str | None] = {}


class Conditions(_Part):
    """Where a run takes place: what its times, but not its results, depend on."""

    device: str
    processor: str
    threads: int
    python: str
    platform: str


class AgreementSet(_Part):
    """How far each judge agrees with the reference scores of one file."""

    source: str
    sha256: str | None = None
    judges: dict[str, Agreement]


class Manifest(_Part):
    """The content of manifest.json. A run of an older version lacks what has a default here.

    Attributes:
        run: a hash of settings and versions, which say which run this is.
        pocket: whether it is the pocket world.
        agreement: the first of the agreements.
        command: the command line that began the run.
    """

    run: str | None = None
    settings: Settings
    versions: dict[str, str] = {}
    data: DataRecord | None = None
    pocket: bool = False
    conditions: Conditions | None = None
    command: str | None = None
    agreement: AgreementSet | None = None
    agreements: tuple[AgreementSet, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the file has it: what was not set is not written."""
        found: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return found

    def named(self) -> Self:
        """The same manifest with the name of its run."""
        content = self.to_json()
        parts = {part: content[part] for part in ("settings", "versions")}
        run = fingerprint(json.dumps(parts, sort_keys=True))[:16]
        return type(self).model_validate({"run": run, **content})

    @property
    def every_agreement(self) -> tuple[AgreementSet, ...]:
        """How far the judges agree with reference scores, set by set."""
        return self.agreements or ((self.agreement,) if self.agreement else ())

    def with_agreements(self, found: Sequence[AgreementSet]) -> Self:
        """With what was found on further reference sets; a set that was there is replaced.

        Raises:
            ValueError: for a set called as another one that is kept.
        """
        new, named = {one.sha256 for one in found}, {one.source for one in found}
        kept = [one for one in self.every_agreement if one.sha256 not in new]
        if twice := [one.source for one in kept if one.source in named]:
            raise ValueError(
                f"this run has reference scores called {shown(twice[0])} already, of another "
                f"content; give the new ones a name of their own: NAME=FILE"
            )
        every = (*kept, *found)
        return self.model_copy(
            update={"agreement": every[0] if every else None, "agreements": every}
        )


def read_manifest(out: Path) -> Manifest:
    """The manifest of the run in ``out``.

    Raises:
        ValueError: if it is malformed; names the file and the field.
    """
    return parse_manifest(read_json(out / MANIFEST), out)


def parse_manifest(content: Mapping[str, Any], out: Path) -> Manifest:
    """As `read_manifest`, of the file's content."""
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{out / MANIFEST} is damaged: {described(error)}") from error
