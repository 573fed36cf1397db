"""A LoRA adapter that PEFT saved, as an expert that shares its weights with the base.

Every tensor of the adapter's file must have a place: in a low-rank addition to a layer
(`plugalign.adapters.layers`), or as a parameter that stands in the place of the base's (biases,
``modules_to_save``, embeddings). What has none is refused, and so is an adapter of another model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plugalign.adapters.layers import LINEAR, LoraEmbedding, LoraLinear, shared_copy
from plugalign.adapters.options import AGAIN, TENSORS, LoraOptions, read_options
from plugalign.adapters.peft_models import check_no_adapter
from plugalign.algebra.identity import model_name
from plugalign.files.saved import read_tensors

PREFIX = "base_model.model."
LINEAR_PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "bias"}
EMBEDDING_PARTS = {"lora_embedding_A": "A", "lora_embedding_B": "B"}


@dataclass
class Adapter:
    """The tensors of an adapter's file by what they are.

    Attributes:
        linear: by linear layer, A ``(r, i)``, B ``(o, r)`` and the bias of B ``(o,)`` if any.
        embedding: by embedding, A ``(r, V)`` and B ``(D, r)``.
        whole: by the base's parameter, what stands in its place.
    """

    folder: Path
    options: LoraOptions
    linear: dict[str, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    embedding: dict[str, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    whole: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter in a folder.

        Raises:
            ValueError: see `with_adapter`.
        """
        adapter = cls(folder, read_options(folder))
        for key, tensor in _tensors(folder).items():
            adapter._place(key, tensor)
        layers = [*adapter.linear.items(), *adapter.embedding.items()]
        for layer, parts in layers:
            if missing := sorted({"A", "B"} - parts.keys()):
                raise adapter.refusal(f"has no LoRA {missing[0]} for {layer}; {AGAIN}")
        if not layers:
            raise adapter.refusal(f"holds no LoRA layer; {AGAIN}")
        return adapter

    def _place(self, key: str, tensor: Tensor) -> None:
        name = key.removeprefix(PREFIX)
        for parts, layers in ((LINEAR_PARTS, self.linear), (EMBEDDING_PARTS, self.embedding)):
            for ending, part in parts.items():
                if name != key and name.endswith(f".{ending}"):
                    layers[name.removesuffix(f".{ending}")][part] = tensor
                    return
        if name == key or "lora_" in name:
            raise self.refusal(f"has a tensor '{key}', which peft would not load; {AGAIN}")
        self.whole[name.replace(".base_layer.", ".")] = tensor

    def refusal(self, what: str) -> ValueError:
        """An error that names the adapter."""
        return ValueError(f"the LoRA adapter in {self.folder} {what}")


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with a LoRA adapter that PEFT saved, beside it and around its weights.

    Args:
        base: a causal language model, which is not touched.
        folder: holds adapter_config.json and adapter_model.safetensors.

    Returns:
        A model of the base's class, in eval mode.

    Raises:
        ValueError: if the folder holds another kind of adapter, an option or tensor that is not
            read, an adapter of another model, or if the base carries an adapter already; names it.
    """
    check_no_adapter(base, f"the LoRA adapter in {folder}")
    adapter = Adapter.read(folder)
    expert = shared_copy(base)
    _replace(expert, base, adapter)
    for name, parts in adapter.linear.items():
        _add_to_linear(expert, base, name, parts, adapter)
    for name, parts in adapter.embedding.items():
        _add_to_embedding(expert, base, name, parts, adapter)
    _check_whole(base, adapter)
    return expert.eval()


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.is_file() and (pickled := path.with_suffix(".bin")).is_file():
        raise ValueError(
            f"{folder} holds its adapter as {pickled.name}, a pickle, which can run code when it "
            f"is read; load it with peft where you trust it and {AGAIN}, as {TENSORS}"
        )
    return read_tensors(path, AGAIN)


def _check_whole(base: Any, adapter: Adapter) -> None:
    """Refuses an adapter without some of the tensors that its options say it has."""
    kinds, options = (*LINEAR, nn.Embedding), adapter.options
    layers = [name for name, module in base.named_modules() if type(module) in kinds]
    wanted = {n for n in layers if options.adapts(n) and not options.saves(f"{n}.weight")}
    saved = {n for n, _ in base.named_parameters(remove_duplicate=False) if options.saves(n)}
    lost = wanted - adapter.linear.keys() - adapter.embedding.keys() | saved - adapter.whole.keys()
    if lost:
        raise adapter.refusal(
            f"has no tensors for '{min(lost)}' and {len(lost) - 1} more that its options name; "
            f"{AGAIN}"
        )


def _add_to_linear(
    expert: Any, base: Any, name: str, parts: Mapping[str, Tensor], adapter: Adapter
) -> None:
    layer = _layer(expert, base, name, adapter, LINEAR)
    weight = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
    down, up = _product(parts, name, (weight.shape[0], weight.shape[1]), adapter, base)
    changed = LoraLinear(layer, down, up)
    if (bias := parts.get("bias")) is not None:
        added = (adapter.options.scale(name) * bias.float()).to(weight)
        own = added if layer.bias is None else layer.bias + added
        changed.bias = nn.Parameter(own, requires_grad=False)
    expert.set_submodule(name, changed)


def _add_to_embedding(
    expert: Any, base: Any, name: str, parts: Mapping[str, Tensor], adapter: Adapter
) -> None:
    layer = _layer(expert, base, name, adapter, (nn.Embedding,))
    rows, width = layer.weight.shape
    down, up = _product(parts, name, (rows, width), adapter, base)
    expert.set_submodule(name, LoraEmbedding(layer, down, up))


def _layer(
    expert: Any, base: Any, name: str, adapter: Adapter, kinds: tuple[type[nn.Module], ...]
) -> Any:
    layer = dict(expert.named_modules()).get(name)
    if layer is None:
        raise adapter.refusal(
            f"adapts '{name}', which '{model_name(base)}' ({type(base).__name__}) does not have; "
            "it was made for another model"
        )
    if type(layer) not in kinds:
        raise adapter.refusal(f"adapts '{name}', a {type(layer).__name__}, which is not supported")
    return layer


def _product(
    parts: Mapping[str, Tensor], name: str, widths: tuple[int, int], adapter: Adapter, base: Any
) -> tuple[Tensor, Tensor]:
    """``down`` ``(i, r)`` and ``up`` ``(r, o)``, scaled, in float32."""
    rank, (into, out) = adapter.options.rank(name), widths
    for part, want in (("A", (rank, into)), ("B", (out, rank)), ("bias", (out,))):
        if part in parts and tuple(parts[part].shape) != want:
            raise adapter.refusal(
                f"has a LoRA {part} {tuple(parts[part].shape)} for '{name}', where rank {rank} and "
                f"the layer of '{model_name(base)}' need {want}; it was made for another model, or "
                "its options are of another adapter"
            )
    return parts["A"].float().T, adapter.options.scale(name) * parts["B"].float().T


@torch.no_grad()
def _replace(expert: Any, base: Any, adapter: Adapter) -> None:
    """Puts the adapter's own parameters into the places of the base's, where they differ."""
    parameters = dict(expert.named_parameters(remove_duplicate=False))
    new: dict[int, nn.Parameter] = {}
    for name, tensor in adapter.whole.items():
        old = parameters.get(name)
        if old is None or old.shape != tensor.shape:
            has = "does not have" if old is None else f"has as {tuple(old.shape)}"
            raise adapter.refusal(
                f"holds a parameter '{name}' {tuple(tensor.shape)}, which '{model_name(base)}' "
                f"{has}; it was made for another model, or for one whose vocabulary was resized"
            )
        own = nn.Parameter(tensor.to(old), requires_grad=False)
        if adapter.options.saves(name):
            places = [name]  # a tied one stays with the base, as in peft
        else:
            places = [other for other, p in parameters.items() if p is old]
            if id(old) in new and not torch.equal(new[id(old)], own):
                raise adapter.refusal(
                    f"holds two values of '{name}', which is tied in '{model_name(base)}'; untie "
                    "them in the base's configuration (tie_word_embeddings)"
                )
            new[id(old)] = own
        if not torch.equal(own, old):
            for place in places:
                module, _, attribute = place.rpartition(".")
                setattr(expert.get_submodule(module), attribute, own)
