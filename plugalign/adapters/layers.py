"""Layers of a base model with a low-rank addition, around the base's own weights.

A LoRA expert is a copy of the base's modules around the same storage (`shared_copy`), in which
some layers compute ``W x + s B (A x)`` (Hu et al. 2021, equation 3). Nothing is merged: base and
adapters together take the memory of the base, of A and of B.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)


def shared_copy(model: Any) -> Any:
    """A copy of the modules around the same storage: its parameters are frozen ones of its own."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, memo)


class LoraLinear(nn.Module):
    """A linear layer that computes ``x W + b + (x down) up``.

    Args:
        linear: the layer whose weight and bias these are; one of `LINEAR`.
        down: ``(i, r)``. up: ``(r, o)``, scaled. Both are cast to the weight's type.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor

    def __init__(self, linear: Any, down: Tensor, up: Tensor):
        super().__init__()
        self.register_parameter("weight", linear.weight)
        self.register_parameter("bias", linear.bias)
        self.register_buffer("down", down.to(linear.weight))
        self.register_buffer("up", up.to(linear.weight))
        self._transposed = isinstance(linear, nn.Linear)
        self.eval()

    @property
    def kind(self) -> type[nn.Module]:
        """The class of the layer that this one is around."""
        return nn.Linear if self._transposed else Conv1D

    @property
    def rank(self) -> int:
        """The r of ``down`` and ``up``."""
        return self.down.shape[1]

    def move(self, down: Tensor, up: Tensor) -> None:
        """Copies both matrices into memory ``(i, r)`` and ``(r, o)``, and reads them there."""
        self.down, self.up = down.copy_(self.down), up.copy_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight if self._transposed else self.weight.T, self.bias)
        flat = x.reshape(-1, x.shape[-1])
        y.view(-1, y.shape[-1]).addmm_(flat @ self.down, self.up)
        return y


class LoraEmbedding(nn.Module):
    """An embedding that gives ``E[t] + down[t] up`` for a token t.

    Args:
        embedding: the layer whose weight ``E`` ``(V, D)`` is.
        down: ``(V, r)``. up: ``(r, D)``, scaled. Both are cast to the weight's type.
    """

    down: Tensor
    up: Tensor

    def __init__(self, embedding: nn.Embedding, down: Tensor, up: Tensor):
        super().__init__()
        self.base_layer = embedding
        self.register_buffer("down", down.to(embedding.weight))
        self.register_buffer("up", up.to(embedding.weight))
        self.eval()

    @property
    def weight(self) -> Tensor:
        """``E`` ``(V, D)``, without the addition."""
        return self.base_layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.base_layer(ids)
        return embedded + F.embedding(ids, self.down) @ self.up


def is_lora(module: nn.Module) -> bool:
    """Whether a module is a layer of the base with a low-rank addition."""
    return isinstance(module, (LoraLinear, LoraEmbedding))
