"""Every method with random parts of the right shape for any model, so that nothing need be fitted.

What a method costs does not depend on learned values, so these are what the bench times. Each
function here makes one of them and is named in `plugalign.catalogue`; it takes the model, and the
configuration of models beside it (experts, reward models).
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from plugalign.adapters.layers import LINEAR, LoraLinear, shared_copy
from plugalign.algebra.controller import Controller
from plugalign.catalogue import UNTRAINED
from plugalign.controllers.args import ARGS
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.equilibrium import Equilibrium, Preferences, Principle
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm
from plugalign.controllers.mixing import MOD, DeRA
from plugalign.controllers.nullspace import Nullspace
from plugalign.controllers.pplm import PPLM
from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
from plugalign.controllers.rad import RAD
from plugalign.controllers.safe_decoding import SafeDecoding
from plugalign.controllers.self_critique import SelfCritique
from plugalign.controllers.self_debias import SelfDebias
from plugalign.controllers.value_guide import ValueGuide
from plugalign.controllers.value_head import ValueHead
from plugalign.controllers.value_statement import ValueStatement

RANK = 16  # of adapters, heads and removed subspaces
PREFIX_LENGTH = 10
PROMPTS = ("The following text is rude:\n", "The following text is a threat:\n")


def untrained(method: str, model: Any, config: Any | None = None) -> Controller:
    """A controller with random parts of the right shape for ``model``.

    Args:
        method: one of `plugalign.catalogue.UNTRAINED`.
        config: the configuration of models beside the base; by default the base's own.

    Raises:
        ValueError: for an unknown method; names the known ones.
    """
    if method not in UNTRAINED:
        raise ValueError(f"unknown method '{method}'; known are {', '.join(UNTRAINED)}")
    module, _, function = UNTRAINED[method].partition(":")
    make: Callable[[Any, Any], Controller] = getattr(importlib.import_module(module), function)
    return make(model, model.config if config is None else config)


def none(model: Any, config: Any) -> Controller:
    return 0 * SelfDebias(PROMPTS)


def args(model: Any, config: Any) -> ARGS:
    return ARGS(_reward(model, config))


def contrastive(model: Any, config: Any) -> ContrastiveDecoding:
    return ContrastiveDecoding(_beside(model, config, 1))


def dera(model: Any, config: Any) -> DeRA:
    return DeRA(_beside(model, config, 1), weight=0.5)


def dexperts(model: Any, config: Any) -> DExperts:
    return DExperts(_beside(model, config, 1), _beside(model, config, 2))


def dexperts_lora(model: Any, config: Any) -> DExperts:
    return DExperts(_adapted(model, 1), _adapted(model, 2))


def equilibrium(model: Any, config: Any) -> Equilibrium:
    head = fudge_head(model, config)
    preferences = Preferences({"positive": head}, torch.tensor([-3.0]))
    return Equilibrium(None, [Principle("civil", head)], preferences)


def fudge(model: Any, config: Any) -> Fudge:
    return Fudge(Predictor(model.get_output_embeddings().weight.shape[0]))


def fudge_head(model: Any, config: Any) -> FudgeHead:
    vocab, hidden = model.get_output_embeddings().weight.shape
    generator = torch.Generator().manual_seed(0)
    shapes = ((hidden, RANK), (hidden, RANK), (vocab,), (hidden,))
    left, right, token_bias, state = (torch.randn(s, generator=generator) for s in shapes)
    return FudgeHead(0.1 * left, 0.1 * right, token_bias, 0.1 * state, 0.0)


def gedi(model: Any, config: Any) -> GeDi:
    return GeDi(*PROMPTS, model=_beside(model, config, 1))


def lm_arithmetic(model: Any, config: Any) -> LMArithmetic:
    return LMArithmetic(lm() - 0.5 * lm(prompt=PROMPTS[0]))


def mod(model: Any, config: Any) -> MOD:
    return MOD({_beside(model, config, seed): 0.5 for seed in (1, 2)})


def nullspace(model: Any, config: Any) -> Nullspace:
    hidden = model.get_output_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(hidden, min(RANK, hidden), generator=generator)).Q
    return Nullspace(basis)


def pplm(model: Any, config: Any) -> PPLM:
    torch.manual_seed(1)
    hidden = model.get_output_embeddings().weight.shape[1]
    return PPLM(discriminator=nn.Linear(hidden, 2, device=model.device))


def prefix(model: Any, config: Any) -> PrefixTuning:
    return PrefixTuning(_keys_values(model, 0))


def prefix_contrast(model: Any, config: Any) -> PrefixContrast:
    return PrefixContrast(_keys_values(model, 0), _keys_values(model, PREFIX_LENGTH))


def rad(model: Any, config: Any) -> RAD:
    return RAD(_reward(model, config))


def safe_decoding(model: Any, config: Any) -> SafeDecoding:
    return SafeDecoding(_beside(model, config, 1))


def self_critique(model: Any, config: Any) -> SelfCritique:
    return SelfCritique(threshold=0.0)  # every answer is rewritten


def self_debias(model: Any, config: Any) -> SelfDebias:
    return SelfDebias()


def self_debias_2(model: Any, config: Any) -> SelfDebias:
    return SelfDebias(PROMPTS)


def value_guide(model: Any, config: Any) -> ValueGuide:
    text = model.config.get_text_config()
    weights = torch.randn(text.hidden_size, generator=torch.Generator().manual_seed(1))
    return ValueGuide(
        ValueHead("It respects others.", max(1, text.num_hidden_layers // 2), weights, 0.0)
    )


def value_statement(model: Any, config: Any) -> ValueStatement:
    return ValueStatement()


def _beside(model: Any, config: Any, seed: int) -> Any:
    """A random model of this configuration, on the device of ``model`` and in its precision."""
    torch.manual_seed(seed)
    with torch.device(model.device):
        return AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval()


def _reward(model: Any, config: Any) -> Any:
    """A random reward model of this configuration that reads the base's token ids."""
    config = copy.deepcopy(config)
    config.num_labels = 1
    torch.manual_seed(1)
    with torch.device(model.device):
        return AutoModelForSequenceClassification.from_config(config, dtype=model.dtype).eval()


def _adapted(model: Any, seed: int) -> Any:
    """The model under a LoRA adapter of all linear layers but the head."""
    generator = torch.Generator().manual_seed(seed)
    adapted, head = shared_copy(model), model.get_output_embeddings().weight
    for name, module in list(adapted.named_modules()):
        if type(module) in LINEAR and module.weight.data_ptr() != head.data_ptr():
            widths = module.weight.shape if type(module) is Conv1D else module.weight.shape[::-1]
            down, up = (torch.randn(RANK, n, generator=generator) for n in widths)
            adapted.set_submodule(name, LoraLinear(module, down.T, 0.01 * up))
    return adapted


def _keys_values(model: Any, first: int) -> Tensor:
    """Keys and values ``(layers, 2, H_kv, P, D_head)`` of the token ids from ``first`` on."""
    ids = torch.arange(first, first + PREFIX_LENGTH, device=model.device)[None]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(layers).float()
