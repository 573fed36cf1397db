"""A body whose linear layers read weights in oneDNN's layout, for one call on a CPU.

Where a few rows are read at a time, a step of a model whose weights no cache holds is bound by
reading them, and half of that time goes into rearranging them (`plugalign.kernels.product.pack`).
So a call that turns out to be long rearranges them once. The body is a mirror of the model's own
around the same parameters; the copies of the weights die with the call, and nothing that changes
between calls is missed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from plugalign.engine.acceleration.hooks import is_as_made
from plugalign.kernels.product import FEW, can_pack, pack, packed_product

AFTER = 8  # tokens of a call before weights are packed, which takes about as long as it saves then
LEAST = 2**24  # weights in all, more than caches hold
MOST = 2**31  # bytes of the copies of a body's weights
SHARE = 4  # copies take at most this part of the memory that is free


class Packed:
    """Where a layer finds its packed weight: no attribute, which a recording would keep."""

    def __init__(self, weight: Tensor):
        self.weight = weight


class PackedLinear(nn.Module):
    """A linear layer that reads a packed copy of its weight."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: Any, rows: int):
        super().__init__()
        self.register_parameter("weight", linear.weight)
        self.register_parameter("bias", linear.bias)
        self.packed = Packed(pack(linear.weight, rows))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return packed_product(x, self.packed.weight, self.bias)


def packed_body(body: Any, rows: int) -> Any | None:
    """A body that computes what ``body`` does, up to rounding; None where that would not pay, or
    where somebody else's hooks or modules are in the way.

    Args:
        rows: of one product of a step.
    """
    if rows not in FEW or not is_as_made(body):
        return None
    weights = {id(m.weight): m.weight for m in body.modules() if _fits(m)}.values()
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if sum(weight.numel() for weight in weights) < LEAST or size > min(MOST, _free() // SHARE):
        return None
    return _mirrored(body, rows, {})


def weights_of(body: nn.Module) -> list[Tensor]:
    """The packed weights of a body in a fixed order, none of any other body."""
    return [layer.packed.weight for layer in _layers(body)]


@contextmanager
def reading(body: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the layers of a packed body read these weights, in the order of `weights_of`."""
    layers, before = _layers(body), weights_of(body)
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer.packed = Packed(weight)
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.packed = Packed(weight)


def _layers(body: nn.Module) -> list[PackedLinear]:
    return [module for module in body.modules() if isinstance(module, PackedLinear)]


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear and can_pack(module.weight)


def _mirrored(module: nn.Module, rows: int, known: dict[int, nn.Module]) -> nn.Module:
    """A copy of the modules around the same parameters, each once."""
    if id(module) in known:
        return known[id(module)]
    if _fits(module):
        mirror: nn.Module = PackedLinear(module, rows)
    else:
        mirror = copy.copy(module)
    known[id(module)] = mirror
    if mirror._modules:
        mirror._modules = {
            name: child and _mirrored(child, rows, known) for name, child in module._modules.items()
        }
    return mirror


def _free() -> int:
    """The memory that is free, in bytes; where the system does not say, none is."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
