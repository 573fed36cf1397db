"""FUDGE: a small classifier looks one token ahead and weighs the base's best candidates.

``p'(t | x) ~ p(t | x) P(a | x, t)^lambda`` on the base's top-k tokens (Yang and Klein 2021,
equation 2). The predictor of the attribute ``a`` reads prefixes: it is a causal classifier, trained
to tell from every prefix of a labelled text whether the whole text has the attribute. As it only
looks back, the candidates of a step cost one forward over a cached prefix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import CandidateShift
from plugalign.algebra.sources import CandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.engine.readers.positions import position_ids

ANY_LENGTH = 2**31 - 1  # a rotary model has no last position


class Predictor(nn.Module):
    """A causal classifier of prefixes: a narrow Llama body and a linear head.

    Positions are rotary, so it reads texts of any length.

    Args:
        vocab_size: rows of the base's embedding. width: hidden size, a multiple of 2 ``heads``.
    """

    def __init__(self, vocab_size: int, width: int = 128, layers: int = 2, heads: int = 4):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice the {heads} heads")
        self.shape = {"vocab_size": vocab_size, "width": width, "layers": layers, "heads": heads}
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            max_position_embeddings=ANY_LENGTH,
        )
        self.backbone = LlamaModel(config)
        self.head = nn.Linear(width, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The logit of P(a | x_1 .. x_i) at each position; ids, mask and logits are ``(B, T)``."""
        output = self.backbone(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        )
        scores: Tensor = self.head(output.last_hidden_state).squeeze(-1)
        return scores


class PredictorShape(BaseModel):
    """The arguments of a `Predictor`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    vocab_size: PositiveInt
    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=1000)]
    heads: PositiveInt


class FudgeSettings(Settings):
    """Support, strength, the predictor's shape and the model whose token ids it reads."""

    k: int
    weight: float
    predictor: PredictorShape
    fitted_for: Identity | None


class Fudge(Controller):
    """Steers by an attribute predictor over the base's top-k candidates.

    Args:
        predictor: gives the logit of the desired attribute, see `Predictor`.
        k: number of the base's best tokens that stay possible and are scored.
        weight: lambda; 1 is Bayes' rule, more steers harder.
        fitted_for: the model whose token ids the predictor reads.

    Raises:
        ValueError: for k below 1 or a weight that is not finite.
    """

    name = "fudge"
    settings = FudgeSettings

    def __init__(
        self,
        predictor: Predictor,
        *,
        k: int = 200,
        weight: float = 1.0,
        fitted_for: Identity | None = None,
    ):
        if not math.isfinite(weight):
            raise ValueError(f"the weight must be finite, got {weight}")
        self.predictor = predictor.eval()
        self.support, self.weight = TopK(k), float(weight)
        self.fitted_for = fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``lambda log P(a | x, t)`` on the base's top-k tokens.

        Raises:
            ValueError: if the predictor was fitted for another tokenizer, or reads fewer tokens
                than the base can choose.
        """
        if self.fitted_for is not None:
            self.fitted_for.check(model, tokenizer, needs="tokenizer", what="the FUDGE predictor")
        rows = model.get_output_embeddings().weight.shape[0]
        if self.predictor.shape["vocab_size"] < rows:
            raise ValueError(
                f"the FUDGE predictor knows {self.predictor.shape['vocab_size']} tokens, but "
                f"'{model_name(model)}' can choose {rows}; fit one for this model"
            )
        predictor = self.predictor
        if predictor.head.weight.device != model.device:
            predictor = copy.deepcopy(predictor).to(model.device)
        scores = CandidateValues("the FUDGE predictor", predictor, self.support.k)
        shift = CandidateShift(scores, "logsigmoid", weight=self.weight)
        return Steering((shift,), (self.support,))

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        return {
            "k": self.support.k,
            "weight": self.weight,
            "predictor": self.predictor.shape,
            "fitted_for": fitted,
        }

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.predictor.state_dict())

    @classmethod
    def check_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            shapes = {n: p.shape for n, p in Predictor(**config["predictor"]).state_dict().items()}
        for name in sorted(shapes.keys() | tensors.keys()):
            have = tuple(tensors[name].shape) if name in tensors else "missing"
            want = tuple(shapes[name]) if name in shapes else "unknown"
            if have != want:
                raise ValueError(f"the tensor '{name}' is {have}, where its settings say {want}")

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        predictor = Predictor(**config["predictor"])
        predictor.load_state_dict(tensors)
        return cls(
            predictor,
            k=config["k"],
            weight=config["weight"],
            fitted_for=None if fitted is None else Identity.from_dict(fitted),
        )
