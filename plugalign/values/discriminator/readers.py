"""Readers: what turns a text, behind a value statement, into a state.

A causal language model reads up to a middle layer, and a text's state there is the mean over its
tokens: of small models this separates texts better than the state of the last token does. An
encoder's state is the mean over its last layer, as sentence encoders pool it. Either is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from plugalign.adapters.truncated import truncated
from plugalign.algebra.identity import (
    PROBE_SIZE,
    PROBE_TOLERANCE,
    Identity,
    identify,
    model_name,
    vocabulary_hash,
)
from plugalign.controllers.value_head import FRONT
from plugalign.engine.context_length import context_length_of
from plugalign.generation.tokens import token_ids

BATCH = 16  # texts in one forward
MAX_TOKENS = 256  # of a text


class Reader(Protocol):
    """Something that reads texts behind a statement.

    Attributes:
        model: it reads with this.
        kind: "causal" or "encoder".
        layers: the layers whose states it gives, ascending.
        width: D, of a state.
        max_tokens: that it reads at most.
        model_name: for messages.
        identity: of its model.
    """

    @property
    def model(self) -> Any: ...

    @property
    def kind(self) -> Literal["causal", "encoder"]: ...

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def width(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def model_name(self) -> str: ...

    @property
    def identity(self) -> Identity: ...

    def states(self, texts: Sequence[str], statement: str) -> Tensor:
        """The states of n texts, float32 ``(n, L, D)`` on the CPU."""

    def at(self, layer: int) -> Reader:
        """The same at one of its layers."""


@dataclass(frozen=True, eq=False)
class CausalReader:
    """A causal language model up to a layer.

    Args:
        model: a Hugging Face causal language model in eval mode.
        tokenizer: its own.
        layers: how many of its layers have read, ascending.
        max_tokens: of a text; the rest is not read.

    Raises:
        ValueError: for a layer that the model does not have.
    """

    model: Any
    tokenizer: Any
    layers: tuple[int, ...]
    max_tokens: int = MAX_TOKENS
    kind: ClassVar[Literal["causal", "encoder"]] = "causal"

    def __post_init__(self) -> None:
        count = self.model.config.get_text_config().num_hidden_layers
        if not self.layers or not all(1 <= layer <= count for layer in self.layers):
            raise ValueError(
                f"'{self.model_name}' has layers 1 to {count}, got {list(self.layers)}"
            )

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def identity(self) -> Identity:
        return identify(self.model, self.tokenizer)

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @cached_property
    def body(self) -> Any:
        """The model without head, final norm and the layers above; shares its weights."""
        return truncated(self.model, self.layers[-1])

    def front(self, statement: str) -> list[int]:
        """The token ids before a text."""
        return token_ids(self.tokenizer, [FRONT.format(statement=statement)])[0]

    @torch.inference_mode()
    def states(self, texts: Sequence[str], statement: str) -> Tensor:
        front = self.front(statement)
        rows = self._rows(texts, self.most_tokens_behind(front))
        # Texts of like length share a forward, which saves padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = torch.empty(len(rows), len(self.layers), self.width)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            found[some] = self._forward(front, [rows[i] for i in some])
        return found

    def at(self, layer: int) -> CausalReader:
        return CausalReader(self.model, self.tokenizer, (layer,), self.max_tokens)

    def most_tokens_behind(self, front: Sequence[int]) -> int:
        """The most tokens of a text that are read behind a statement.

        Raises:
            ValueError: if the statement alone is longer than the model's context.
        """
        context = context_length_of(self.model)
        most = self.max_tokens if context is None else min(self.max_tokens, context - len(front))
        if most < 1:
            raise ValueError(
                f"a statement of {len(front)} tokens leaves no token for a text in the context of "
                f"'{self.model_name}' ({context} tokens)"
            )
        return most

    def _rows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [row[:most] for row in ids]

    def _forward(self, front: list[int], rows: list[list[int]]) -> Tensor:
        """``(B, L, D)``, the mean over each row's own tokens; over the front's of an empty one."""
        length = len(front) + max(map(len, rows))
        ids = [[*front, *row, *[0] * (length - len(front) - len(row))] for row in rows]
        own = torch.zeros(len(rows), length)
        for i, row in enumerate(rows):
            own[i, len(front) : len(front) + len(row)] = 1
            if not row:
                own[i, : len(front)] = 1
        own, device = own / own.sum(1, keepdim=True), self.model.device
        output = self.body(
            input_ids=torch.tensor(ids, device=device), use_cache=False, output_hidden_states=True
        )
        layers = torch.stack([output.hidden_states[layer] for layer in self.layers], 1)
        return torch.einsum("blth,bt->blh", layers.float().cpu(), own)


@dataclass(frozen=True, eq=False)
class EncoderReader:
    """An encoder, pooled by the mean over its tokens.

    Args:
        model: a Hugging Face encoder without a head, in eval mode. tokenizer: its own.
        max_tokens: of statement and text.
    """

    model: Any
    tokenizer: Any
    max_tokens: int = MAX_TOKENS
    kind: ClassVar[Literal["causal", "encoder"]] = "encoder"

    @property
    def layers(self) -> tuple[int, ...]:
        return (int(self.model.config.num_hidden_layers),)

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def identity(self) -> Identity:
        # As `identify` has it, of the embedding that an encoder has.
        weight = self.model.get_input_embeddings().weight
        rows = weight[:: max(1, len(weight) // PROBE_SIZE)][:PROBE_SIZE, 0]
        probe = tuple(round(float(x), 6) for x in rows.detach().float().cpu())
        vocabulary = vocabulary_hash(self.tokenizer)
        return Identity(self.model_name, vocabulary, weight.shape[1], probe)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def states(self, texts: Sequence[str], statement: str) -> Tensor:
        return self.pooled([FRONT.format(statement=statement) + text for text in texts])[:, None]

    @torch.inference_mode()
    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Pooled states ``(n, D)`` of texts as they are."""
        limit = min(self.max_tokens, int(self.tokenizer.model_max_length))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), self.width)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[i] for i in some],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.model.device)
            states = self.model(**batch).last_hidden_state.float()
            own = batch["attention_mask"][..., None].float()
            found[some] = ((states * own).sum(1) / own.sum(1)).cpu()
        return found

    def at(self, layer: int) -> EncoderReader:
        if layer not in self.layers:
            raise ValueError(f"'{self.model_name}' is read at layer {self.layers[0]}, got {layer}")
        return self


def check_same(fitted: Identity, here: Identity) -> None:
    """Refuses a model that a discriminator was not fitted on.

    Raises:
        ValueError: naming both.
    """
    pairs = list(zip(fitted.probe, here.probe, strict=False))
    close = all(abs(a - b) <= PROBE_TOLERANCE * (abs(a) + 0.01) for a, b in pairs)
    same = (fitted.vocabulary, fitted.hidden_size) == (here.vocabulary, here.hidden_size)
    if not (same and close and len(fitted.probe) == len(here.probe)):
        raise ValueError(
            f"the value discriminator was fitted on the weights and the vocabulary of "
            f"'{fitted.name}', which '{here.name}' does not have; fit it again on this model"
        )
