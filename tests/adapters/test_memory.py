"""LoRA experts are held as A and B: beside the base there is nothing else."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign import pocket
from plugalign.adapters.layers import LoraLinear


def bytes_of(*modules):
    """The storages of all parameters and buffers, also those that no registry lists: by address."""
    tensors = [t for module in modules for m in module.modules() for t in held(m)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return storages


def held(module):
    own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [t for t in own if isinstance(t, torch.Tensor)]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("calls", [0, 1])
def test_two_adapters_add_their_own_numbers_and_no_more(
    calls, save_adapter, tiny, tokenizer, prompts, architecture
):
    """Also once their rows have run in the base's forward."""
    base = tiny(architecture)
    folders = [save_adapter(tiny(architecture), str(seed), seed) for seed in (1, 2)]
    steered = pa.wrap(base, tokenizer, pa.DExperts(*folders))
    for _ in range(calls):
        steered.generate(**prompts(), max_new_tokens=3)
    experts = list(steered.plan.experts.values())
    trees = [] if not calls else [steered.plan.groups._last.tree]
    of_base, of_all = bytes_of(base), bytes_of(base, *experts, *trees)
    added = sum(size for address, size in of_all.items() if address not in of_base)
    layers = [m for expert in experts for m in expert.modules() if isinstance(m, LoraLinear)]
    assert len(layers) == 2 * sum(
        type(m).__name__ in ("Linear", "Conv1D") for m in base.base_model.modules()
    )
    assert added == sum(4 * (layer.down.numel() + layer.up.numel()) for layer in layers)


def test_the_embedded_model_with_two_adapters_takes_little_more_than_alone():
    model, tokenizer = pocket.load()
    steered = pa.wrap(model, tokenizer, pocket.controllers()["dexperts_lora"])
    steered.generate(**tokenizer("She said", return_tensors="pt"), max_new_tokens=3)
    of_base = bytes_of(model)
    of_all = bytes_of(model, *steered.plan.experts.values(), steered.plan.groups._last.tree)
    assert sum((of_base | of_all).values()) <= 1.15 * sum(of_base.values())
