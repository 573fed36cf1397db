"""Leaf modules for groups of rows: one model's rows, then those of other models like it.

Each stands where the base has a leaf, a linear layer, a norm or an embedding, and gives every group
of rows what its own model's leaf would have given. The first group may be several blocks of rows,
all others are one block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plugalign.kernels.group_lora import group_lora

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True, eq=False)
class Change:
    """What was merged into a linear layer of a copy of the base: ``x W`` became
    ``x W + (x down) up``. Such a layer keeps it as its attribute ``change``.

    Attributes:
        origin: the weight before.
        down: ``(i, r)``. up: ``(r, o)``, scaled.
    """

    origin: Tensor
    down: Tensor
    up: Tensor


def leaf_for(leaves: Sequence[nn.Module], blocks: int, stack: bool) -> nn.Module:
    """The leaf for models whose leaves in one place are these, the base's first.

    Args:
        blocks: of rows of the base.
        stack: whether weights of linear layers may be copied.
    """
    first, *others = leaves
    if all(shared(first, other) for other in others):
        return first
    changes = _changes(leaves)
    if changes:
        return Changed(first, changes, blocks)
    if stack and blocks == 1 and type(first) in LINEAR:
        return Stacked(leaves)
    if (bare := _bare(first)) is not None:
        return Normed(bare, leaves, blocks)
    return Rows(leaves, blocks)


def shared(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules' own parameters lie in the same memory."""
    pairs = zip(mine._parameters.values(), theirs._parameters.values(), strict=True)
    return all(a is b or (a is not None and b is not None and _same_memory(a, b)) for a, b in pairs)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


class Rows(nn.Module):
    """Any leaf that treats the rows of its one input ``(R, ...)`` alike, run group by group."""

    def __init__(self, leaves: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._leaves, self._blocks = nn.ModuleList(leaves), blocks

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._leaves) - 1
        each = rows_of_a_block(x, self._blocks + groups)
        parts = x.split_with_sizes([each * self._blocks] + [each] * groups)
        return torch.cat([leaf(part) for leaf, part in zip(self._leaves, parts, strict=True)])


class Stacked(nn.Module):
    """Linear leaves as one product of matrices, with a copy of their weights."""

    _weight: Tensor
    _bias: Tensor | None

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        self._leaves, self._mirrored = tuple(leaves), isinstance(leaves[0], nn.Linear)
        self.register_buffer("_weight", _weights(leaves))
        self.register_buffer("_bias", _biases(leaves))

    def refresh(self) -> None:
        """Copies the weights again, into the same memory: who changes them tells nobody."""
        self._weight.copy_(_weights(self._leaves))
        _copy_to(self._bias, _biases(self._leaves))

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._weight)
        rows_of_a_block(x, groups)
        of_x = x.reshape(groups, -1, x.shape[-1])
        weight = self._weight.mT if self._mirrored else self._weight
        if self._bias is None:
            y = torch.bmm(of_x, weight)
        else:
            y = torch.baddbmm(self._bias, of_x, weight)
        return y.view(*x.shape[:-1], -1)


class Normed(nn.Module):
    """Norms that differ in what they scale and shift by: normalised once.

    Args:
        bare: the norm without scale and shift.
    """

    _scale: Tensor
    _shift: Tensor | None

    def __init__(self, bare: nn.Module, leaves: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._bare, self._leaves = bare, (leaves[0],) * blocks + tuple(leaves[1:])
        self.register_buffer("_scale", _weights(self._leaves)[:, None])
        self.register_buffer("_shift", _biases(self._leaves))

    def refresh(self) -> None:
        """Copies scales and shifts again, into the same memory."""
        self._scale.copy_(_weights(self._leaves)[:, None])
        _copy_to(self._shift, _biases(self._leaves))

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._leaves)
        rows_of_a_block(x, groups)
        y: Tensor = self._bare(x)
        by_group = y.view(groups, -1, y.shape[-1])
        if self._shift is None:
            return (by_group * self._scale).view(y.shape)
        return torch.addcmul(self._shift, by_group, self._scale).view(y.shape)


class Changed(nn.Module):
    """A linear leaf of the base, with a low-rank change for each other group of rows."""

    def __init__(self, leaf: nn.Module, changes: Sequence[Change | None], blocks: int):
        super().__init__()
        self._leaf, self._blocks = leaf, blocks
        real = [change for change in changes if change is not None]
        rank = max(change.down.shape[1] for change in real)
        some = real[0]
        self._down = some.down.new_zeros(len(changes), len(some.down), rank)
        self._up = some.up.new_zeros(len(changes), rank, some.up.shape[1])
        for group, change in enumerate(changes):
            if change is not None:
                self._down[group, :, : change.down.shape[1]] = change.down
                self._up[group, : len(change.up)] = change.up

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._leaf(x)
        each = rows_of_a_block(x, self._blocks + len(self._down))
        if y.is_cpu:
            first = self._blocks * each
            add_products(y[first:], x[first:], self._down, self._up)
        else:
            first = (self._blocks - 1) * each  # the base's last block stands for the base
            group_lora(y[first:], x[first:], self._down, self._up)
        return y


def add_products(y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> None:
    """`group_lora` for ``y (G * n, T, o)`` and ``x (G * n, T, i)``, which leaves out the base's
    rows and the checks: those cost a small model on a CPU more than the products do."""
    groups = len(down)
    low = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down)
    y.view(groups, -1, y.shape[-1]).baddbmm_(low, up)


def rows_of_a_block(x: Tensor, blocks: int) -> int:
    """The rows of each of ``blocks`` equal blocks of ``x`` ``(R, ...)``.

    Raises:
        ValueError: if they cannot be equal.
    """
    each, left = divmod(len(x), blocks)
    if left:
        raise ValueError(f"{len(x)} rows are not {blocks} equal blocks")
    return each


def _copy_to(held: Tensor | None, new: Tensor | None) -> None:
    if held is not None and new is not None:
        held.copy_(new)


def _weights(leaves: Sequence[nn.Module]) -> Tensor:
    """A copy of all leaves' weights ``(G, ...)``."""
    return torch.stack(tuple(w for leaf in leaves if (w := leaf._parameters["weight"]) is not None))


def _biases(leaves: Sequence[nn.Module]) -> Tensor | None:
    """A copy of all leaves' biases ``(G, 1, o)``, or None where they have none."""
    found = tuple(b for leaf in leaves if (b := leaf._parameters.get("bias")) is not None)
    return torch.stack(found)[:, None] if found else None


def _changes(leaves: Sequence[nn.Module]) -> list[Change | None]:
    """What was merged into the base's linear leaf, for each other; empty if any is more."""
    first, *others = leaves
    weight = first._parameters.get("weight")
    if type(first) not in LINEAR or weight is None:
        return []
    changes: list[Change | None] = []
    for other in others:
        change: Change | None = getattr(other, "change", None)
        if not (shared(first, other) if change is None else _same_memory(weight, change.origin)):
            return []
        changes.append(change)
    return changes


@torch.no_grad()
def _bare(leaf: nn.Module) -> nn.Module | None:
    """A norm without its scale and shift, or None for what is no such thing."""
    weight = leaf._parameters.get("weight")
    if weight is None or weight.ndim != 1 or not leaf._parameters.keys() <= {"weight", "bias"}:
        return None
    bare = copy.copy(leaf)
    bare._parameters = {
        name: None if p is None else nn.Parameter(torch.full_like(p, name == "weight"), False)
        for name, p in leaf._parameters.items()
    }
    x = torch.linspace(-3, 5, len(weight), device=weight.device).to(weight.dtype)[None]
    shift = leaf._parameters.get("bias")
    again = bare(x) * weight + (0 if shift is None else shift)
    return bare if torch.allclose(again, leaf(x), rtol=1e-2, atol=1e-3) else None
