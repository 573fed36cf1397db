"""Controllers that need no fitting: random parts of the right shape for any model.

What a method costs does not depend on learned values, so these are what the bench times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from plugalign.adapters.layers import LINEAR, LoraLinear, shared_copy
from plugalign.algebra.controller import Controller
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.controllers.nullspace import Nullspace
from plugalign.controllers.prefix_tuning import PrefixTuning
from plugalign.controllers.self_critique import SelfCritique
from plugalign.controllers.self_debias import SelfDebias

RANK = 16  # of adapters, heads and removed subspaces
PREFIX_LENGTH = 10
DEBIAS_PROMPTS = ("The following text is rude:\n", "The following text is a threat:\n")


def untrained(
    method: str, model: Any, tokenizer: Any, expert_config: Any | None = None
) -> Controller:
    """A controller with random parts of the right shape for ``model``.

    Args:
        expert_config: the configuration of DExperts' models; by default the base's own.

    Raises:
        ValueError: for an unknown method; names the known ones.
    """
    if method not in MAKERS:
        raise ValueError(f"unknown method '{method}'; known are {', '.join(MAKERS)}")
    if method == "dexperts":
        return _dexperts(model, expert_config or model.config)
    return MAKERS[method](model)


def _dexperts(model: Any, config: Any) -> DExperts:
    """Experts that are models of their own, on the device of ``model`` and in its precision."""
    experts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.device(model.device):
            expert = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        experts.append(expert.eval())
    return DExperts(*experts)


def _adapted(model: Any, seed: int) -> Any:
    """The model under a LoRA adapter of all linear layers but the head."""
    generator = torch.Generator().manual_seed(seed)
    twin, head = shared_copy(model), model.get_output_embeddings().weight
    for name, module in list(twin.named_modules()):
        if type(module) in LINEAR and module.weight.data_ptr() != head.data_ptr():
            widths = module.weight.shape if type(module) is Conv1D else module.weight.shape[::-1]
            down, up = (torch.randn(RANK, n, generator=generator) for n in widths)
            twin.set_submodule(name, LoraLinear(module, down.T, 0.01 * up))
    return twin


def _fudge_head(model: Any) -> FudgeHead:
    vocab, hidden = model.get_output_embeddings().weight.shape
    generator = torch.Generator().manual_seed(0)
    shapes = ((hidden, RANK), (hidden, RANK), (vocab,), (hidden,))
    left, right, token_bias, state = (torch.randn(s, generator=generator) for s in shapes)
    return FudgeHead(0.1 * left, 0.1 * right, token_bias, 0.1 * state, 0.0)


def _nullspace(model: Any) -> Nullspace:
    hidden = model.get_output_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(hidden, min(RANK, hidden), generator=generator)).Q
    return Nullspace(basis)


def _prefix(model: Any) -> PrefixTuning:
    ids = torch.arange(PREFIX_LENGTH, device=model.device)[None]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return PrefixTuning(torch.stack(layers).float())


MAKERS: dict[str, Callable[[Any], Controller]] = {
    "none": lambda model: 0 * SelfDebias(DEBIAS_PROMPTS),
    "fudge": lambda model: Fudge(Predictor(model.get_output_embeddings().weight.shape[0])),
    "fudge_head": _fudge_head,
    "dexperts": lambda model: _dexperts(model, model.config),
    "dexperts_lora": lambda model: DExperts(_adapted(model, 1), _adapted(model, 2)),
    "self_debias": lambda model: SelfDebias(),
    "self_debias_2": lambda model: SelfDebias(DEBIAS_PROMPTS),
    "nullspace": _nullspace,
    "prefix": _prefix,
    "self_critique": lambda model: SelfCritique(threshold=0.0),  # every answer is rewritten
}
