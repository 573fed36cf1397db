"""A value statement against its negation, where there are no labels.

A causal model says how likely the statement is behind a text, beside how likely its negation is;
both are compared with what they are behind no text, since one of them may be likelier anywhere::

    c(y) = log p(v | y) - log p(not v | y) - [log p(v | nothing) - log p(not v | nothing)]

An encoder says which of the two is nearer to the text, by the cosine. Nothing shows whether that is
worth anything before it is measured on labels: such a discriminator is unvalidated, and gives no
verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit
from torch.nn.functional import cosine_similarity

from plugalign.algebra.identity import Identity
from plugalign.evaluation.judging.files import CONFIG, kind_of
from plugalign.evaluation.metrics.likelihood import nll
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.saved import read_settings
from plugalign.generation.tokens import token_ids
from plugalign.values.discriminator.judgement import Assessment
from plugalign.values.discriminator.loading import load_reader
from plugalign.values.discriminator.readers import CausalReader, EncoderReader, check_same
from plugalign.values.discriminator.sheet import AGAIN, Sheet

BEFORE, BETWEEN = "Text: ", "\nStatement:"
NOTHING = ("", "N/A", "[MASK]")  # texts without content


class _Config(BaseModel):
    """config.json"""

    model_config = ConfigDict(extra="forbid", strict=True)

    judge: Literal["value_contrast"]
    statement: str = Field(min_length=1)
    negation: str = Field(min_length=1)
    reader: Literal["causal", "encoder"]
    model: str
    fitted_for: Identity
    max_tokens: int = Field(ge=1)


def negated(statement: str) -> str:
    """A statement's negation, where none is given."""
    return f"It is not true that {statement[:1].lower()}{statement[1:]}"


@dataclass(frozen=True, eq=False)
class ValueContrast:
    """Judges texts by a value statement without having seen a label.

    Args:
        statement: the value. negation: its opposite.
        reader: whose model is asked.
        source: the hub id or folder of the reader's model, None where it cannot be saved.
    """

    statement: str
    negation: str
    reader: CausalReader | EncoderReader
    source: str | None = None

    KIND: ClassVar = "value_contrast"

    @property
    def validated(self) -> bool:
        return False

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(breaks) of n texts, ``(n,)``: what a judge of `plugalign.compare` gives."""
        return 1 - self.conforms(texts)

    def conforms(self, texts: Sequence[str]) -> FloatArray:
        """The sigmoid of the contrast, ``(n,)``; as a probability it is not calibrated."""
        return np.asarray(expit(self.contrasts(texts)), dtype=np.float64)

    def assess(self, texts: Sequence[str]) -> Assessment:
        """Probabilities, and no verdicts."""
        return Assessment(self.conforms(texts), ["undecided"] * len(texts))

    def contrasts(self, texts: Sequence[str]) -> FloatArray:
        """c(y) of n texts, ``(n,)``: in nats, or a difference of cosines."""
        if isinstance(self.reader, EncoderReader):
            return self._nearer(self.reader, texts)
        every = self._likelier(self.reader, [*texts, *NOTHING])
        found: FloatArray = every[: len(texts)] - every[len(texts) :].mean()
        return found

    def _nearer(self, reader: EncoderReader, texts: Sequence[str]) -> FloatArray:
        states = reader.pooled([self.statement, self.negation, *texts]).double()
        near, far = (cosine_similarity(states[2:], each[None]) for each in states[:2])
        return np.asarray((near - far).numpy(), dtype=np.float64)

    def _likelier(self, reader: CausalReader, texts: Sequence[str]) -> FloatArray:
        """log p(v | y) - log p(not v | y), ``(n,)``."""
        own = {"add_special_tokens": False, "verbose": False}
        (before,) = token_ids(reader.tokenizer, [BEFORE])
        between = reader.tokenizer(BETWEEN, **own)["input_ids"]
        ends = [
            reader.tokenizer(f" {each}", **own)["input_ids"]
            for each in (self.statement, self.negation)
        ]
        most = reader.most_tokens_behind([*before, *between, *max(ends, key=len)])
        rows = reader.tokenizer(list(texts), **own)["input_ids"]
        fronts = [[*before, *row[:most], *between] for row in rows]
        behind = [end for end in ends for _ in fronts]
        value, negation = np.split(nll(reader.model, fronts * 2, behind).nll, 2)
        found: FloatArray = negation - value
        return found

    def save(self, folder: str | Path) -> None:
        """Writes config.json, sheet.json and README.md into ``folder``.

        Raises:
            ValueError: if its model has no name to load it by.
        """
        if self.source is None:
            raise ValueError("the reader's model has no name to load it by; give source=")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {
            "judge": self.KIND,
            "statement": self.statement,
            "negation": self.negation,
            "reader": self.reader.kind,
            "model": self.source,
            "fitted_for": self.reader.identity.to_dict(),
            "max_tokens": self.reader.max_tokens,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (target / CONFIG).write_text(text + "\n", encoding="utf-8")
        self.sheet.save(target)

    @property
    def sheet(self) -> Sheet:
        """Its data sheet."""
        return Sheet(statement=self.statement, model=self.reader.model_name)

    @classmethod
    def load(cls, folder: str | Path, model: Any = None, tokenizer: Any = None) -> Self:
        """Reads what `save` wrote; see `ValueDiscriminator.load`."""
        source = Path(folder)
        if kind_of(source) != cls.KIND:
            raise ValueError(f"{folder} holds no value contrast (see {source / CONFIG})")
        config = read_settings(source / CONFIG, _Config, AGAIN)
        reader = load_reader(
            config.reader,
            config.model,
            max_tokens=config.max_tokens,
            model=model,
            tokenizer=tokenizer,
        )
        check_same(config.fitted_for, reader.identity)
        return cls(config.statement, config.negation, reader, config.model)
