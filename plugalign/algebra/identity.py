"""Which model something was fitted for, so that the wrong one is refused by name."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict

PROBE_SIZE = 16
PROBE_TOLERANCE = 0.02  # a model loaded in another precision is still the same model


def model_name(model: Any) -> str:
    """The name of a model for messages: its hub id or folder without the path, or its class."""
    path = getattr(model, "name_or_path", "") or getattr(model.config, "name_or_path", "")
    return Path(path).name if path else type(model).__name__


def vocabulary_hash(tokenizer: Any) -> str:
    """A hash of the token strings with their ids, special and added tokens included."""
    items = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Identity:
    """A model's name, its vocabulary and a probe of its weights."""

    # As part of a saved controller's settings.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    name: str
    vocabulary: str
    hidden_size: int
    probe: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "probe": list(self.probe)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**values, "probe": tuple(values["probe"])})

    def check(
        self, model: Any, tokenizer: Any, *, needs: Literal["tokenizer", "weights"], what: str
    ) -> None:
        """Refuses another model.

        Args:
            needs: "tokenizer" where only token ids must agree, "weights" where hidden states must.
            what: what was fitted, for the message.

        Raises:
            ValueError: naming both models.
        """
        here = identify(model, tokenizer)
        if here.vocabulary != self.vocabulary:
            raise ValueError(
                f"{what} was fitted for the tokenizer of '{self.name}', but '{here.name}' has "
                f"another vocabulary; fit it again with --model {here.name}"
            )
        if needs == "weights" and not self._same_weights(here):
            raise ValueError(
                f"{what} was fitted for the weights of '{self.name}' and cannot steer "
                f"'{here.name}'; fit it again with --model {here.name}"
            )

    def _same_weights(self, other: Identity) -> bool:
        if self.hidden_size != other.hidden_size or len(self.probe) != len(other.probe):
            return False
        pairs = zip(self.probe, other.probe, strict=True)
        return all(abs(a - b) <= PROBE_TOLERANCE * (abs(a) + 0.01) for a, b in pairs)


def identify(model: Any, tokenizer: Any) -> Identity:
    """The identity of a model with its tokenizer.

    The probe holds one entry of the output embedding for each of 16 tokens, spread over the
    vocabulary.
    """
    weight = model.get_output_embeddings().weight
    rows = weight[:: max(1, weight.shape[0] // PROBE_SIZE)][:PROBE_SIZE, 0]
    probe = tuple(round(float(x), 6) for x in rows.detach().float().cpu())
    return Identity(model_name(model), vocabulary_hash(tokenizer), weight.shape[1], probe)
