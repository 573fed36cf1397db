"""Experts as rows: models of one architecture run as groups of rows of one forward.

A batch holds the base's rows, then those of each expert. A tree of modules mirrors the base's: what
all models share is the base's own module, and a leaf whose weights differ sends every group of rows
through its own model's leaf, or adds low-rank changes in place (`plugalign.kernels.group_lora`).
The tree holds modules and no copies of weights, so it sees whatever becomes of them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plugalign.heads import Split, Splits, hooked
from plugalign.kernels.group_lora import group_lora
from plugalign.kernels.head import Head
from plugalign.kernels.mixture import Logits

LINEAR = (nn.Linear, Conv1D)
# What a configuration says beside how its model computes.
BESIDE = {
    "_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "use_cache",
    "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id",
    "problem_type",
}  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class Grouped:
    """The base and experts as one model.

    Attributes:
        models: the base, then the experts.
        split: a body that reads rows of all of them, the base's first, and the base's head.
        heads: the experts' heads, by source key.
    """

    models: tuple[Any, ...]
    split: Split
    heads: dict[Hashable, nn.Linear]

    def under_own_heads(self, known: Mapping[Hashable, Logits]) -> dict[Hashable, Logits]:
        """The experts' logits ``(R, V)`` under their own heads, from those under the base's."""
        own = {}
        for key, linear in self.heads.items():
            logits = known[key]
            assert isinstance(logits, Head)
            own[key] = Head(logits.hidden, linear.weight, linear.bias)
        return own


class Groups:
    """Finds out which experts can be rows of the base's forward, and remembers the tree of the
    last call. It is built anew when modules or the sharing of weights have changed."""

    def __init__(self) -> None:
        self._key: Any = None
        self._last: Grouped | None = None

    def of(
        self, model: Any, experts: Mapping[Hashable, Any], splits: Splits, blocks: int
    ) -> Grouped | None:
        """The base and those experts that can ride with it, or None where none can.

        Args:
            experts: models by source key.
            blocks: the base's rows are so many equal groups.
        """
        fit = {key: expert for key, expert in experts.items() if not obstacle(model, expert)}
        models = (model, *fit.values())
        apart = [split for each in models if (split := splits.of(each)) is not None]
        if not fit or len(apart) < len(models):
            return None
        key = (blocks, *fit, *_fingerprint(models))
        if key != self._key:
            bodies = [split.body for split in apart]
            split = Split(_tree(bodies, blocks), apart[0].linear)
            heads = {key: split.linear for key, split in zip(fit, apart[1:], strict=True)}
            proven = _agrees(split.body, bodies, blocks, model)
            self._key, self._last = key, Grouped(models, split, heads) if proven else None
        return self._last


def obstacle(model: Any, expert: Any) -> str:
    """Why an expert's rows cannot be rows of the base's forward, in words, or nothing."""
    if type(expert) is not type(model):
        return f"it is a {type(expert).__name__}"
    if other := _other_settings(model.config, expert.config):
        return f"its {other} is another"
    if hooked(model) or hooked(expert):
        return "hooks hang on the whole model"
    for name, mine, theirs in _pairs(model, expert):
        if type(mine) is not type(theirs) or mine._modules.keys() != theirs._modules.keys():
            return f"its {name} is built in another way"
        if any(m.training or hooked(m) or "forward" in vars(m) for m in (mine, theirs)):
            return f"{name} has hooks, a forward of its own, or is in training"
        if other := _other_tensor(mine, theirs):
            return f"its {name}.{other} has another shape, type or device"
    return ""


class Rows(nn.Module):
    """One leaf for each group of rows, of which the first has ``blocks`` times as many.

    Works for any leaf that treats the rows of its one input, ``(R, ...)``, alike.
    """

    def __init__(self, leaves: Sequence[nn.Module], blocks: int):
        super().__init__()
        self._leaves, self._blocks = tuple(leaves), blocks

    def forward(self, x: Tensor) -> Tensor:
        each = _rows_of_a_block(x, self._blocks + len(self._leaves) - 1)
        parts = x.split([each * self._blocks] + [each] * (len(self._leaves) - 1))
        return torch.cat([leaf(part) for leaf, part in zip(self._leaves, parts, strict=True)])


class Changed(nn.Module):
    """A linear leaf of the base, with a low-rank change for each expert's group of rows.

    Args:
        down: ``(G, i, r)``. up: ``(G, r, o)``.
    """

    def __init__(self, leaf: nn.Module, down: Tensor, up: Tensor, blocks: int):
        super().__init__()
        self._leaf, self._down, self._up, self._blocks = leaf, down, up, blocks

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._leaf(x)
        groups = len(self._down)
        each = _rows_of_a_block(x, self._blocks + groups)
        if y.is_cuda:
            first = (self._blocks - 1) * each  # the base's last block stands for the base
            group_lora(y[first:], x[first:], self._down, self._up)
            return y
        # The same without a check of every argument, which costs a small model more than this.
        first = self._blocks * each
        of_x = x[first:].reshape(groups, -1, x.shape[-1])
        y[first:].view(groups, -1, y.shape[-1]).baddbmm_(of_x @ self._down, self._up)
        return y


def _rows_of_a_block(x: Tensor, blocks: int) -> int:
    each, left = divmod(len(x), blocks)
    if left:
        raise ValueError(f"{len(x)} rows are not {blocks} equal blocks")
    return each


def _pairs(model: Any, expert: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The modules of two models of one class, side by side, as far as they go."""
    pairs = zip(model.named_modules(), expert.named_modules(), strict=False)
    for (name, mine), (_, theirs) in pairs:
        yield name or "whole", mine, theirs


def _other_settings(mine: Any, theirs: Any) -> str:
    """The name of a setting in which two configurations differ, or nothing."""
    mine, theirs = vars(mine), vars(theirs)
    names = sorted((mine.keys() | theirs.keys()) - BESIDE)
    return next((name for name in names if mine.get(name) != theirs.get(name)), "")


def _other_tensor(mine: nn.Module, theirs: nn.Module) -> str:
    """The name of a parameter or buffer that does not match, or nothing."""
    for kind in ("_parameters", "_buffers"):
        ours, others = getattr(mine, kind), getattr(theirs, kind)
        if ours.keys() != others.keys():
            return "state"
        for name, a in ours.items():
            b = others[name]
            if (a is None) != (b is None) or (a is not None and _form(a) != _form(b)):
                return str(name)
    return ""


def _form(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _fingerprint(models: Sequence[Any]) -> Iterator[Any]:
    """What the tree hangs on: the modules, and which of them share their weights."""
    for model in models:
        for module in model.modules():
            yield id(module)
            for tensor in module._parameters.values():
                yield None if tensor is None else tensor.data_ptr()


def _tree(modules: Sequence[nn.Module], blocks: int) -> nn.Module:
    """The base's module with leaves for all models, from the modules in one place of each."""
    first, *others = modules
    if first._modules:
        parts = {name: [m._modules[name] for m in modules] for name in first._modules}
        twin = copy.copy(first)  # around the same parameters and buffers
        twin._modules = {
            name: None if part[0] is None else _tree(part, blocks) for name, part in parts.items()
        }
        return twin
    if all(_shared(first, other) for other in others):
        return first
    return _changed(modules, blocks) or Rows(modules, blocks)


def _shared(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules' own parameters lie in the same memory."""
    pairs = zip(mine._parameters.values(), theirs._parameters.values(), strict=True)
    return all(a is b or (a.data_ptr(), a.stride()) == (b.data_ptr(), b.stride()) for a, b in pairs)


def _changed(modules: Sequence[nn.Module], blocks: int) -> Changed | None:
    """The leaf for a linear layer to which adapters were merged, if it is that for all."""
    first, *others = modules
    if not isinstance(first, LINEAR):
        return None
    weight = first.weight
    changes: list[Change | None] = []
    for other in others:
        change = getattr(other, "change", None)
        if change is not None and change.origin.data_ptr() != weight.data_ptr():
            return None
        if change is None and not _shared(first, other):
            return None
        changes.append(change)
    rank = max(change.down.shape[1] for change in changes if change is not None)
    wide, tall = next((c.down.shape[0], c.up.shape[1]) for c in changes if c is not None)
    down, up = weight.new_zeros(len(others), wide, rank), weight.new_zeros(len(others), rank, tall)
    for g, change in enumerate(changes):
        if change is not None:
            down[g, :, : change.down.shape[1]], up[g, : len(change.up)] = change.down, change.up
    return Changed(first, down, up, blocks)


@torch.no_grad()
def _agrees(body: Any, bodies: Sequence[Any], blocks: int, model: Any) -> bool:
    """Whether the tree gives what the bodies give, on a few tokens."""
    tokens = torch.linspace(0, model.config.get_text_config().vocab_size - 1, 16).long()
    ids = tokens.view(2, 8).to(model.device)
    rows = ids.repeat(blocks + len(bodies) - 1, 1)
    inputs: dict[str, Any] = {"use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(8, device=ids.device).expand(len(rows), -1)
    try:
        got = body(input_ids=rows, **inputs).last_hidden_state
    except (AttributeError, ValueError):  # a leaf is used in another way than as a function
        return False
    apart = [each(input_ids=ids, use_cache=False).last_hidden_state for each in bodies]
    want = torch.cat([apart[0].repeat(blocks, 1, 1), *apart[1:]])
    error, size = (got - want).float().norm(), want.float().norm()
    return got.shape == want.shape and bool(error <= size * torch.finfo(want.dtype).eps ** 0.5)
