"""The value discriminator: P(v | y), that a text y conforms to the value in a statement v.

    statement and text -> a frozen model's state (`readers`) -> logistic head -> probability and
    verdict set (`head`)

A discriminator that was fitted with labels holds ``D + 1`` learned numbers and names the model
that it reads with; it is saved as JSON and safetensors, with its data sheet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file

from plugalign.algebra.identity import Identity
from plugalign.evaluation.judging.files import CONFIG, WEIGHTS, kind_of, read_arrays
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.saved import read_settings, writing_tensors
from plugalign.values.discriminator.head import Calibration, Head
from plugalign.values.discriminator.judgement import Assessment
from plugalign.values.discriminator.loading import load_reader
from plugalign.values.discriminator.readers import Reader, check_same
from plugalign.values.discriminator.sheet import AGAIN, Sheet

Finite = Field(allow_inf_nan=False)


class _Config(BaseModel):
    """config.json"""

    model_config = ConfigDict(extra="forbid", strict=True)

    judge: Literal["value"]
    statement: str = Field(min_length=1)
    reader: Literal["causal", "encoder"]
    model: str
    fitted_for: Identity
    layer: int = Field(ge=1)
    width: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    offset: float = Finite
    slope: float = Finite
    shift: float = Finite
    conforms_from: float = Finite
    breaks_to: float = Finite
    level: float = Field(gt=0, lt=1)


class ValueDiscriminator:
    """Judges texts by a value statement, with a head on a frozen model's states.

    Args:
        statement: the value, such as "It respects others."
        reader: reads texts, at one layer.
        head: of that layer's states.
        calibration: what its margins mean.
        sheet: what it learned from and what it is worth.
        source: the hub id or folder of the reader's model, None where it cannot be saved.

    Attributes:
        validated: whether the statement is the one that it was fitted for.
    """

    KIND: ClassVar = "value"

    def __init__(
        self,
        statement: str,
        reader: Reader,
        head: Head,
        calibration: Calibration,
        sheet: Sheet,
        *,
        source: str | None = None,
    ):
        if not statement.strip():
            raise ValueError(f"a value discriminator needs a statement, got {statement!r}")
        if len(reader.layers) != 1:
            raise ValueError(f"a discriminator reads one layer, got {list(reader.layers)}")
        self.statement, self.reader, self.source = statement, reader, source
        self.head, self.calibration, self.sheet = head, calibration, sheet

    @property
    def validated(self) -> bool:
        return self.statement == self.sheet.statement

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(breaks) of n texts, ``(n,)``: what a judge of `plugalign.compare` gives."""
        return 1 - self.conforms(texts)

    def conforms(self, texts: Sequence[str]) -> FloatArray:
        """P(v | y) of n texts, ``(n,)``."""
        return self.calibration.probabilities(self.margins(texts))

    def assess(self, texts: Sequence[str]) -> Assessment:
        """Probabilities and verdicts; without labels of this statement no verdict can be given."""
        margins = self.margins(texts)
        verdicts = self.calibration.verdicts(margins) if self.validated else None
        return Assessment(
            self.calibration.probabilities(margins), verdicts or ["undecided"] * len(texts)
        )

    def margins(self, texts: Sequence[str]) -> FloatArray:
        """The head's margins of n texts, ``(n,)``."""
        states = self.reader.states(texts, self.statement)[:, 0]
        return self.head.margins(states.double().numpy())

    def about(self, statement: str) -> ValueDiscriminator:
        """The same head behind another statement: unvalidated, and mostly worth little; see the
        limits in its data sheet."""
        parts = (self.reader, self.head, self.calibration, self.sheet)
        return ValueDiscriminator(statement, *parts, source=self.source)

    def save(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors, sheet.json and README.md into ``folder``.

        Raises:
            ValueError: if its model has no name to load it by, or it is about another statement
                than it was fitted for.
        """
        if self.source is None:
            raise ValueError("the reader's model has no name to load it by; give source=")
        if not self.validated:
            raise ValueError(
                f"it was fitted for {self.sheet.statement!r}; save that, and use about(...)"
            )
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {
            "judge": self.KIND,
            "statement": self.statement,
            "reader": self.reader.kind,
            "model": self.source,
            "fitted_for": self.reader.identity.to_dict(),
            "layer": self.reader.layers[0],
            "width": len(self.head.weights),
            "max_tokens": self.reader.max_tokens,
            "offset": self.head.offset,
            **asdict(self.calibration),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (target / CONFIG).write_text(text + "\n", encoding="utf-8")
        with writing_tensors(target / WEIGHTS):
            save_file({"weights": self.head.weights}, target / WEIGHTS)
        self.sheet.save(target)

    @classmethod
    def load(cls, folder: str | Path, model: Any = None, tokenizer: Any = None) -> Self:
        """Reads what `save` wrote.

        Args:
            model, tokenizer: what it reads with, where that is loaded already.

        Raises:
            ValueError: the folder holds something else, or is damaged, or its model is not the one
                that it was fitted on; names the file.
        """
        source = Path(folder)
        if kind_of(source) != cls.KIND:
            raise ValueError(f"{folder} holds no value discriminator (see {source / CONFIG})")
        config = read_settings(source / CONFIG, _Config, AGAIN)
        sheet = Sheet.load(source)
        (weights,) = read_arrays(source / WEIGHTS, {"weights": config.width})
        reader = load_reader(
            config.reader, config.model, (config.layer,), config.max_tokens, model, tokenizer
        )
        check_same(config.fitted_for, reader.identity)
        bounds = {name: getattr(config, name) for name in Calibration.__dataclass_fields__}
        return cls(
            config.statement,
            reader,
            Head(weights.astype(np.float64), config.offset),
            Calibration(**bounds),
            sheet,
            source=config.model,
        )
