"""Leaf modules for groups of rows: the base's rows, then those of other models like it.

Each replaces a leaf of the base (a linear layer, a norm or an embedding) and computes for every
group of rows what the leaf of its own model computes. The base's group may be several blocks of
rows, every other is one block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plugalign.adapters.layers import LINEAR, LoraLinear
from plugalign.kernels.group_lora import group_lora


def leaf_for(leaves: Sequence[nn.Module], blocks: int, stack: bool) -> nn.Module:
    """The leaf for all groups of rows.

    Args:
        leaves: of one place in each model, the base's first.
        blocks: of rows of the base.
        stack: whether weights of linear layers may be copied.
    """
    first, *others = leaves
    if all(_is_same(first, other) for other in others):
        return first
    if all(_is_same(first, other) or _is_lora(first, other) for other in others):
        return GroupedLora(first, others, blocks)
    if stack and blocks == 1 and all(type(leaf) in LINEAR for leaf in leaves):
        return StackedLinear(leaves)
    if (norm := _without_scale(first)) is not None:
        return GroupedNorm(norm, leaves, blocks)
    return GroupedRows(leaves, blocks)


def shared(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules' own parameters lie in the same memory."""
    pairs = zip(mine._parameters.values(), theirs._parameters.values(), strict=True)
    return all(a is b or (a is not None and b is not None and _same_memory(a, b)) for a, b in pairs)


def _is_same(first: nn.Module, other: nn.Module) -> bool:
    """Whether a leaf has the base's weights, and nothing else."""
    return not isinstance(other, LoraLinear) and shared(first, other)


def _is_lora(first: nn.Module, other: nn.Module) -> bool:
    """Whether a leaf is the base's linear layer with a low-rank addition, and nothing else."""
    return isinstance(other, LoraLinear) and shared(first, other)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


class GroupedRows(nn.Module):
    """Leaves that treat the rows of one input ``(R, ...)`` alike, run group by group."""

    def __init__(self, leaves: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._leaves, self._blocks = nn.ModuleList(leaves), blocks

    @property
    def is_of_single_blocks(self) -> bool:
        """Whether every leaf reads one block of rows."""
        return self._blocks == 1

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._leaves) - 1
        each = rows_of_a_block(x, self._blocks + groups)
        parts = x.split_with_sizes([each * self._blocks] + [each] * groups)
        return torch.cat([leaf(part) for leaf, part in zip(self._leaves, parts, strict=True)])


def reads_apart(tree: nn.Module) -> bool:
    """Whether each linear layer of the models reads the rows of its own model alone."""
    if isinstance(tree, GroupedRows):
        return tree.is_of_single_blocks
    if type(tree) in (*LINEAR, StackedLinear, GroupedLora):
        return False
    return all(map(reads_apart, tree.children()))


class StackedLinear(nn.Module):
    """Linear leaves as one batched matrix product, with a copy of their weights."""

    _weight: Tensor
    _bias: Tensor | None

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        self._leaves, self._transposed = tuple(leaves), isinstance(leaves[0], nn.Linear)
        self.register_buffer("_weight", _weights(leaves))
        self.register_buffer("_bias", _biases(leaves))

    def refresh(self) -> None:
        """Copies the weights again, into the same memory, since they may have changed in place."""
        self._weight.copy_(_weights(self._leaves))
        _copy_to(self._bias, _biases(self._leaves))

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._weight)
        rows_of_a_block(x, groups)
        of_x = x.reshape(groups, -1, x.shape[-1])
        weight = self._weight.mT if self._transposed else self._weight
        if self._bias is None:
            y = torch.bmm(of_x, weight)
        else:
            y = torch.baddbmm(self._bias, of_x, weight)
        return y.view(*x.shape[:-1], -1)


class GroupedNorm(nn.Module):
    """Norms that differ in scale and shift alone: the rows of all groups are normalised at once.

    Args:
        norm: without scale and shift.
    """

    _scale: Tensor
    _shift: Tensor | None

    def __init__(self, norm: nn.Module, leaves: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._norm, self._leaves = norm, (leaves[0],) * blocks + tuple(leaves[1:])
        self.register_buffer("_scale", _weights(self._leaves)[:, None])
        self.register_buffer("_shift", _biases(self._leaves))

    def refresh(self) -> None:
        """Copies scales and shifts again, into the same memory."""
        self._scale.copy_(_weights(self._leaves)[:, None])
        _copy_to(self._shift, _biases(self._leaves))

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self._leaves)
        rows_of_a_block(x, groups)
        y: Tensor = self._norm(x)
        by_group = y.view(groups, -1, y.shape[-1])
        if self._shift is None:
            return (by_group * self._scale).view(y.shape)
        return torch.addcmul(self._shift, by_group, self._scale).view(y.shape)


class GroupedLora(nn.Module):
    """A linear leaf of the base, with a low-rank addition for each other group of rows.

    Args:
        leaf: the base's.
        others: for each other group a `LoraLinear` around the leaf, or the leaf itself. The factors
            of the former move into this module's memory, so that they are held once.
    """

    def __init__(self, leaf: nn.Module, others: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._leaf, self._blocks = leaf, blocks
        added = {k: other for k, other in enumerate(others) if isinstance(other, LoraLinear)}
        rank = max(layer.rank for layer in added.values())
        like = next(iter(added.values()))
        self._down = like.down.new_zeros(len(others), len(like.down), rank)
        self._up = like.up.new_zeros(len(others), rank, like.up.shape[1])
        for group, layer in added.items():
            layer.move(self._down[group, :, : layer.rank], self._up[group, : layer.rank])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._leaf(x)
        each = rows_of_a_block(x, self._blocks + len(self._down))
        if y.is_cpu:
            first = self._blocks * each
            add_products(y[first:], x[first:], self._down, self._up)
        else:
            first = (self._blocks - 1) * each  # the kernel takes one block of the base first
            group_lora(y[first:], x[first:], self._down, self._up)
        return y


def add_products(y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> None:
    """`group_lora` for ``y (G * n, T, o)`` and ``x (G * n, T, i)``, without the base's rows and
    without checks, which take longer than the products of a small model on a CPU."""
    groups = len(down)
    low = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down)
    y.view(groups, -1, y.shape[-1]).baddbmm_(low, up)


def rows_of_a_block(x: Tensor, blocks: int) -> int:
    """The number of rows in each of ``blocks`` equal blocks of ``x`` ``(R, ...)``.

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


@torch.no_grad()
def _without_scale(leaf: nn.Module) -> nn.Module | None:
    """A norm without its scale and shift, or None for a leaf that is no norm."""
    weight = leaf._parameters.get("weight")
    if weight is None or weight.ndim != 1 or not leaf._parameters.keys() <= {"weight", "bias"}:
        return None
    norm = copy.copy(leaf)
    norm._parameters = {
        name: None if p is None else nn.Parameter(torch.full_like(p, name == "weight"), False)
        for name, p in leaf._parameters.items()
    }
    x = torch.linspace(-3, 5, len(weight), device=weight.device).to(weight.dtype)[None]
    shift = leaf._parameters.get("bias")
    scaled = norm(x) * weight + (0 if shift is None else shift)
    return norm if torch.allclose(scaled, leaf(x), rtol=1e-2, atol=1e-3) else None
