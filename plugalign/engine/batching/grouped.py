"""Experts batched with the base: models of one architecture as groups of rows of one forward.

A batch holds the base's rows, then those of each expert. A module tree mirrors the base's body: it
has the base's own modules where all models share their weights, and modules for groups of rows
(`grouped_layers`) where they do not. No model is changed. Weights are read in place, except for
norms and, in small models, linear layers: those are copied at every call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plugalign.adapters.layers import LINEAR, LoraLinear
from plugalign.engine.acceleration.hooks import is_tampered_with
from plugalign.engine.acceleration.traced_step import Recorder
from plugalign.engine.batching.grouped_layers import (
    GroupedNorm,
    StackedLinear,
    leaf_for,
    reads_apart,
    shared,
)
from plugalign.engine.readers.heads import SplitModel, SplitModels
from plugalign.kernels.head import Head

MOST_STACKED = 2**24  # weights of all models together that may be copied
# Settings of a configuration that do not change what its model computes.
IGNORED_SETTINGS = {
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "tie_word_embeddings",
}


@dataclass(frozen=True, eq=False)
class GroupedModels:
    """The base and experts as one model.

    Attributes:
        models: the base, then the experts.
        tree: a body that reads rows of all of them, the base's first.
        base: the base's head.
        heads: the experts' heads, by source key.
        recorder: of the tree's one-token forwards.
        float32: whether logits are left in float32, see `Head`.
    """

    models: tuple[Any, ...]
    tree: nn.Module
    base: nn.Linear
    heads: dict[Hashable, nn.Linear]
    recorder: Recorder
    float32: bool = False

    @property
    def split(self) -> SplitModel:
        """The tree under the base's head."""
        apart = len(self.models) if reads_apart(self.tree) else 1
        return SplitModel(self.tree, self.base, self.recorder, float32=self.float32, models=apart)

    @property
    def has_one_head(self) -> bool:
        """Whether all experts have the base's head."""
        return all(shared(self.base, linear) for linear in self.heads.values())

    def refresh(self) -> None:
        """Copies the weights again that the tree holds copies of."""
        for module in self.tree.modules():
            if isinstance(module, (StackedLinear, GroupedNorm)):
                module.refresh()

    def under_own_heads(self, known: Mapping[Hashable, Head]) -> dict[Hashable, Head]:
        """The experts' logits ``(R, V)`` under their own heads, given those under the base's."""
        return {
            key: known[key].under(linear.weight, linear.bias) for key, linear in self.heads.items()
        }


class ExpertGroups:
    """Finds the experts that can be batched with the base, and keeps the module tree of the last
    call. It is built anew when modules or the sharing of weights have changed."""

    def __init__(self) -> None:
        self._key: Any = None
        self._last: GroupedModels | None = None
        self._refused: str | None = None

    def why_not_grouped(self, model: Any, expert: Any) -> str | None:
        """Why an expert is not batched with the base, or None; as far as is known without running a
        model, or from the last call."""
        return obstacle(model, expert) or self._refused

    @torch.no_grad()
    def group(
        self, model: Any, experts: Mapping[Hashable, Any], split_models: SplitModels, blocks: int
    ) -> GroupedModels | None:
        """The base and those experts that can be batched with it, or None where none can.

        Args:
            experts: models by source key.
            blocks: the number of equal blocks of the base's own rows.
        """
        fit = {key: expert for key, expert in experts.items() if obstacle(model, expert) is None}
        models = (model, *fit.values())
        apart = [split for each in models if (split := split_models.get(each)) is not None]
        if not fit or len(apart) < len(models):
            self._refused = "a model's logits are not those of a linear head" if fit else None
            return None
        key = (blocks, *fit, *_fingerprint(models))
        if key != self._key:
            bodies = [each.base_model for each in models]
            with torch.inference_mode(False), torch.no_grad():  # the copies outlive the call
                # No model is in training, so this changes only the tree's own modules.
                tree = _tree(bodies, blocks, _is_small(bodies)).eval()
            heads = {key: split.linear for key, split in zip(fit, apart[1:], strict=True)}
            proven = _agrees(tree, bodies, blocks, model)
            base = apart[0]
            group = GroupedModels(
                models, tree, base.linear, heads, split_models.recorder, base.float32
            )
            if self._last is not None:
                split_models.recorder.forget(self._last.tree)
            self._key, self._last = key, group if proven else None
            self._refused = None if proven else "the model does not treat its rows alike"
        elif self._last is not None:
            self._last.refresh()
        return self._last


def obstacle(model: Any, expert: Any) -> str | None:
    """Why an expert cannot be batched with the base, or None."""
    if type(expert) is not type(model):
        return f"it is a {type(expert).__name__}"
    if (setting := _other_setting(model.config, expert.config)) is not None:
        return f"its {setting} is another"
    if isinstance(expert.get_output_embeddings(), LoraLinear):
        return "its head has a low-rank addition"
    for name, mine, theirs in _pairs(model, expert):
        if type(mine) is not _kind(theirs) or mine._modules.keys() != theirs._modules.keys():
            return f"its {name} is built in another way"
        if any(m.training or is_tampered_with(m) for m in (mine, theirs)):
            return f"its {name} or the base's has hooks or is in training"
        if (tensor := _other_tensor(mine, theirs)) is not None:
            return f"its {name}.{tensor} has another shape, type or device"
    return None


def _pairs(model: Any, expert: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The modules of two models of one class, side by side; those beyond the shorter list are left
    out."""
    pairs = zip(model.named_modules(), expert.named_modules(), strict=False)
    for (name, mine), (_, theirs) in pairs:
        yield name or "whole", mine, theirs


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module's class, that of the base's layer where it has a low-rank addition."""
    return module.kind if isinstance(module, LoraLinear) else type(module)


def _other_setting(mine: Any, theirs: Any) -> str | None:
    """The name of a setting in which two configurations differ, or None."""
    mine, theirs = vars(mine), vars(theirs)
    names = sorted((mine.keys() | theirs.keys()) - IGNORED_SETTINGS)
    return next((name for name in names if mine.get(name) != theirs.get(name)), None)


def _other_tensor(mine: nn.Module, theirs: nn.Module) -> str | None:
    """The name of a parameter or buffer that does not match, or None."""
    kinds = ("_parameters",) if isinstance(theirs, LoraLinear) else ("_parameters", "_buffers")
    for kind in kinds:
        ours, others = getattr(mine, kind), getattr(theirs, kind)
        if ours.keys() != others.keys():
            return "state"
        for name, a in ours.items():
            b = others[name]
            if (a is None) != (b is None) or (a is not None and _form(a) != _form(b)):
                return str(name)
    return None


def _form(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _fingerprint(models: Sequence[Any]) -> Iterator[Any]:
    """The modules and the addresses of their weights, of which the tree is built."""
    for model in models:
        for module in model.modules():
            yield id(module)
            for tensor in module._parameters.values():
                yield None if tensor is None else tensor.data_ptr()


def _tree(modules: Sequence[nn.Module], blocks: int, stack: bool) -> nn.Module:
    """The base's module with leaves for all models.

    Args:
        modules: of one place in each model, the base's first.
        blocks: of rows of the base.
        stack: whether weights of linear layers may be copied.
    """
    first = modules[0]
    if not first._modules:
        return leaf_for(modules, blocks, stack)
    mirror = copy.copy(first)  # with the same parameters and buffers
    mirror._modules = {
        name: child and _tree([m.get_submodule(name) for m in modules], blocks, stack)
        for name, child in first._modules.items()
    }
    return mirror


def _is_small(bodies: Sequence[nn.Module]) -> bool:
    linear = (m for body in bodies for m in body.modules() if isinstance(m, LINEAR))
    return sum(p.numel() for module in linear for p in module.parameters()) <= MOST_STACKED


@torch.no_grad()
def _agrees(body: Any, bodies: Sequence[Any], blocks: int, model: Any) -> bool:
    """Whether the tree gives what the bodies give, on a few tokens."""
    tokens = torch.linspace(0, model.config.get_text_config().vocab_size - 1, 16).long()
    ids = tokens.view(2, 8).to(model.device)
    rows = ids.repeat(blocks + len(bodies) - 1, 1)
    inputs: dict[str, Any] = {"use_cache": False, "attention_mask": torch.ones_like(rows)}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(8, device=ids.device).expand(len(rows), -1)
    try:
        got = body(input_ids=rows, **inputs).last_hidden_state
    except (AttributeError, TypeError, ValueError):  # a leaf is more than a function of its input
        return False
    inputs = {name: value[:2] if name != "use_cache" else value for name, value in inputs.items()}
    apart = [each(input_ids=ids, **inputs).last_hidden_state for each in bodies]
    want = torch.cat([apart[0].repeat(blocks, 1, 1), *apart[1:]])
    error, size = (got - want).float().norm(), want.float().norm()
    return got.shape == want.shape and bool(error <= size * torch.finfo(want.dtype).eps ** 0.5)
