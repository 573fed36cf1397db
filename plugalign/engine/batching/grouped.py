"""Experts as rows: models of one architecture run as groups of rows of one forward.

A batch holds the base's rows, then those of each expert. A tree of modules mirrors the base's body:
it has the base's own modules where all models have the same weights in the same memory, and leaves
for all models (`grouped_layers`) where they have not. No model is touched. Weights
are read where they lie, but for norms and, in small models, linear layers: those are copied at
every call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plugalign.adapters.layers import LINEAR, LoraLinear
from plugalign.engine.acceleration.traced_step import Recorder
from plugalign.engine.acceleration.tracing import is_tampered_with
from plugalign.engine.batching.grouped_layers import Normed, Stacked, leaf_for, shared
from plugalign.engine.readers.heads import SplitModel, SplitModels
from plugalign.kernels.head import Head

MOST_STACKED = 2**24  # numbers in weights of all models together that may be copied
# What a configuration says beside how its model computes.
BESIDE = {
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
        recorder: keeps what the tree does for one more token.
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
        """The tree, with the base's head in the place of all."""
        return SplitModel(self.tree, self.base, self.recorder, float32=self.float32)

    @property
    def has_one_head(self) -> bool:
        """Whether all experts have the base's head."""
        return all(shared(self.base, linear) for linear in self.heads.values())

    def refresh(self) -> None:
        """Copies again what the tree holds copies of."""
        for module in self.tree.modules():
            if isinstance(module, (Stacked, Normed)):
                module.refresh()

    def under_own_heads(self, known: Mapping[Hashable, Head]) -> dict[Hashable, Head]:
        """The experts' logits ``(R, V)`` under their own heads, from those under the base's."""
        return {
            key: replace(known[key], weight=linear.weight, bias=linear.bias)
            for key, linear in self.heads.items()
        }


class ExpertGroups:
    """Finds out which experts can be rows of the base's forward, and remembers the tree of the
    last call. It is built anew when modules or the sharing of weights have changed."""

    def __init__(self) -> None:
        self._key: Any = None
        self._last: GroupedModels | None = None
        self._refused = ""

    def why_not_grouped(self, model: Any, expert: Any) -> str:
        """Why an expert runs by itself, in words, or nothing; as far as is known without running
        a model, or from the last call."""
        return obstacle(model, expert) or self._refused

    @torch.no_grad()
    def group(
        self, model: Any, experts: Mapping[Hashable, Any], split_models: SplitModels, blocks: int
    ) -> GroupedModels | None:
        """The base and those experts that can ride with it, or None where none can.

        Args:
            experts: models by source key.
            blocks: the base's rows are so many equal groups.
        """
        fit = {key: expert for key, expert in experts.items() if not obstacle(model, expert)}
        models = (model, *fit.values())
        apart = [split for each in models if (split := split_models.get(each)) is not None]
        if not fit or len(apart) < len(models):
            self._refused = "a model's logits are not those of a linear head" if fit else ""
            return None
        key = (blocks, *fit, *_fingerprint(models))
        if key != self._key:
            bodies = [each.base_model for each in models]
            with torch.inference_mode(False), torch.no_grad():  # the copies outlive the call
                # No model is in training, so this sets nothing but the tree's own leaves.
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
            self._refused = "" if proven else "the model does not treat its rows alike"
        elif self._last is not None:
            self._last.refresh()
        return self._last


def obstacle(model: Any, expert: Any) -> str:
    """Why an expert's rows cannot be rows of the base's forward, in words, or nothing."""
    if type(expert) is not type(model):
        return f"it is a {type(expert).__name__}"
    if other := _other_settings(model.config, expert.config):
        return f"its {other} is another"
    if isinstance(expert.get_output_embeddings(), LoraLinear):
        return "its head has a low-rank addition"
    for name, mine, theirs in _pairs(model, expert):
        if type(mine) is not _kind(theirs) or mine._modules.keys() != theirs._modules.keys():
            return f"its {name} is built in another way"
        if any(m.training or is_tampered_with(m) for m in (mine, theirs)):
            return f"its {name} or the base's has hooks or is in training"
        if other := _other_tensor(mine, theirs):
            return f"its {name}.{other} has another shape, type or device"
    return ""


def _pairs(model: Any, expert: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The modules of two models of one class, side by side, as far as they go."""
    pairs = zip(model.named_modules(), expert.named_modules(), strict=False)
    for (name, mine), (_, theirs) in pairs:
        yield name or "whole", mine, theirs


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module's class, that of the base's layer where it has a low-rank addition."""
    return module.kind if isinstance(module, LoraLinear) else type(module)


def _other_settings(mine: Any, theirs: Any) -> str:
    """The name of a setting in which two configurations differ, or nothing."""
    mine, theirs = vars(mine), vars(theirs)
    names = sorted((mine.keys() | theirs.keys()) - BESIDE)
    return next((name for name in names if mine.get(name) != theirs.get(name)), "")


def _other_tensor(mine: nn.Module, theirs: nn.Module) -> str:
    """The name of a parameter or buffer that does not match, or nothing."""
    kinds = ("_parameters",) if isinstance(theirs, LoraLinear) else ("_parameters", "_buffers")
    for kind in kinds:
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


def _tree(modules: Sequence[nn.Module], blocks: int, stack: bool) -> nn.Module:
    """The base's module with leaves for all models, from the modules in one place of each."""
    first = modules[0]
    if not first._modules:
        return leaf_for(modules, blocks, stack)
    twin = copy.copy(first)  # around the same parameters and buffers
    twin._modules = {
        name: child and _tree([m.get_submodule(name) for m in modules], blocks, stack)
        for name, child in first._modules.items()
    }
    return twin


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
