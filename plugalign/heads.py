"""Models whose logits are a plain linear head on what their body gives: body and head apart.

The hidden states are then at hand without a hook, and where a truncation leaves few tokens the head
is evaluated at those alone (`plugalign.kernels.head`). A model that caps or scales its logits, or
has another kind of head, is run whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plugalign.kernels.backend import FLOATS
from plugalign.kernels.head import Head


@dataclass(frozen=True, eq=False)
class Split:
    """A body and a linear head that together give the model's logits, bit for bit.

    Attributes:
        body: gives ``last_hidden_state`` ``(R, T, D)``. linear: the head.
    """

    body: Callable[..., Any]
    linear: nn.Linear

    def last(self, inputs: dict[str, Any]) -> Head:
        """The head of the last column, ``(R, V)``, from the inputs of a forward."""
        return Head(
            self.body(**inputs).last_hidden_state[:, -1], self.linear.weight, self.linear.bias
        )


class Splits:
    """The splits of the models of one wrapped model, each found out once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bool]] = {}  # keeps the model, so that its id stays its

    def of(self, model: Any) -> Split | None:
        """Body and head of ``model``, or None where it must be run whole: for what its forward does
        to the logits, or because hooks hang on it that a caller wants run."""
        linear = model.get_output_embeddings()
        if type(linear) is not nn.Linear or linear.weight.dtype not in FLOATS:
            return None
        if _hooked(model) or _hooked(linear):
            return None
        if id(model) not in self._known:
            self._known[id(model)] = (model, _is_plain(model, linear))
        return Split(model.base_model, linear) if self._known[id(model)][1] else None


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


@torch.no_grad()
def _is_plain(model: Any, linear: nn.Linear) -> bool:
    """Whether the head, applied to what the body gives, is the model."""
    body = model.base_model
    if body is model:
        return False
    # Several tokens, since the state behind a padding token may be zero.
    tokens = torch.linspace(0, len(linear.weight) - 1, 8, device=model.device).long()[None]
    hidden = getattr(body(input_ids=tokens, use_cache=False), "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.shape[-1] != linear.in_features:
        return False
    whole: Tensor = model(input_ids=tokens, use_cache=False).logits
    apart: Tensor = linear(hidden)
    return whole.dtype == apart.dtype and torch.equal(whole, apart)
