"""A body's forward of one token as a graph of operations, made by ``torch.jit.trace``."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer

from plugalign.engine.acceleration.hooks import is_as_made
from plugalign.engine.acceleration.packed import reading, weights_of

# Architectures that do the same operations for a token at any length.
KNOWN = {
    "gemma",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "qwen2",
    "qwen3",
    "starcoder2",
}
EXPECTED = (  # warnings of tracing, which also reads every attribute of a module
    (r"`torch\.jit\.trace(_method)?` is deprecated", DeprecationWarning),
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning),
)
ATTENTION = ("eager", "sdpa")
MOVING = {"dynamic", "longrope"}  # rotary embeddings that change when a text grows long


def record(body: Any, arguments: list[Tensor], masked: bool, exact: bool = False) -> Any:
    """The body's step as operations, or None where torch cannot trace it.

    It reads the body's weights where they lie. (A frozen graph would be quicker by a little; but it
    merges weights that are equal, and its memory is never freed.)
    """
    with warnings.catch_warnings():
        # The tracer warns of every number it takes for constant: `Recording` compares instead.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        for text, category in EXPECTED:
            warnings.filterwarnings("ignore", text, category)
        # In half precision all rows would round otherwise.
        if arguments[-1].dtype == torch.float32 and not exact:
            body = fused(body)
        step, given = Step(body, masked).eval(), tuple(arguments)
        try:
            return torch.jit.trace(step, given, check_trace=False)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, TypeError):  # or has no source of `packed_product`
            return None


def fused(module: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters, but for GELUs that are written out in eight
    operations: one gives the same to rounding."""
    if type(module) is NewGELUActivation:
        return nn.GELU("tanh").eval()
    copied = copy.copy(module)
    copied._modules = {name: child and fused(child) for name, child in module._modules.items()}
    return copied


class Step(nn.Module):
    """A body's step as a function of tensors."""

    def __init__(self, body: nn.Module, masked: bool):
        super().__init__()
        self.body, self._masked = body, masked
        self._packed = len(weights_of(body))

    def forward(self, ids: Tensor, place: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Tokens and positions ``(R, 1)``, a mask ``(R, T)`` if masked, each layer's keys and
        values, the packed weights; gives the hidden states ``(R, D)``, and keys and values again.
        """
        flat = list(rest)
        mask = flat.pop(0) if self._masked else None
        weights = [flat.pop() for _ in range(self._packed)][::-1]
        cache = DynamicCache()
        cache.layers = [Layer(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        inputs = {"input_ids": ids, "position_ids": place, "past_key_values": cache}
        with reading(self.body, weights):
            state = read(self.body, {**inputs, "attention_mask": mask, "use_cache": True})
        return (state, *keys_values(inputs))


class Layer(DynamicLayer):  # type: ignore[misc]
    """A layer's cache that begins with given keys and values."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends ``(R, H_kv, n, D_head)``."""
        self.keys = torch.cat([self.keys, keys], dim=-2)
        self.values = torch.cat([self.values, values], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """The columns held; a traced number, so it is not looked at here."""
        return self.keys.shape[-2]


def read(body: Any, inputs: dict[str, Any]) -> Tensor:
    """What a body itself gives for the last column, ``(R, D)``."""
    state: Tensor = body(**inputs).last_hidden_state[:, -1]
    return state


def keys_values(inputs: dict[str, Any]) -> list[Tensor]:
    return [x for layer in inputs["past_key_values"].layers for x in (layer.keys, layer.values)]


def is_repeatable(body: Any) -> bool:
    """Whether a body's step may be recorded at all."""
    if getattr(body.config, "model_type", "") not in KNOWN:
        return False
    if body.config._attn_implementation not in ATTENTION:
        return False
    moving = any(getattr(m, "rope_type", "") in MOVING for m in body.modules())
    return not moving and is_as_made(body)
