"""Tree attention over the candidates for the next token, all read in one forward.

The candidates of a row stand side by side behind its cached prefix, at one position; each attends
to the prefix and to itself. Any backbone can do that with a mask (`MaskedTreeAttention`), but then
attention computes the K columns of the other candidates only to hide them. `LlamaTreeAttention`
writes the forward of a plain Llama out: attention is that over the prefix and one more score, and
since only a candidate's distance to the prefix counts, the prefix's keys are rotated and the
candidates are not. The candidates' keys and values are kept until the next call, so that one which
is chosen need not be read again (`TreeAttention.keys_values_of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaModel


TOKENS = 512  # candidates at a time on a CPU, few enough for a core's cache

KeysValues = tuple[Tensor, Tensor]


class TreeAttention(Protocol):
    """Reads candidates behind a cache and leaves the cache as it was."""

    def read(self, candidates: Tensor, place: Tensor, cache: Any, mask: Tensor) -> Tensor:
        """The last hidden states ``(R, K, D)``.

        Args:
            candidates: token ids ``(R, K)``.
            place: their position id ``(R, 1)``.
            cache: holds the columns of ``mask`` ``(R, T)``.
        """

    def keys_values_of(self, index: Tensor) -> list[KeysValues]:
        """Per layer the keys and values ``(R, H, 1, D_head)`` of one candidate of each row.

        Args:
            index: which of the candidates read last ``(R,)``.
        """


def tree_attention_for(backbone: Any) -> TreeAttention:
    """The fastest tree attention for this backbone."""
    return LlamaTreeAttention(backbone) if is_plain(backbone) else MaskedTreeAttention(backbone)


def is_plain(backbone: Any) -> bool:
    """Whether a backbone is a Llama of which `LlamaTreeAttention` writes out everything."""
    if type(backbone) is not LlamaModel:
        return False
    config = backbone.config
    modules = [module for layer in backbone.layers for module in layer.modules()]
    linears = [m for m in modules if hasattr(m, "weight") and m.weight.ndim == 2]
    return (
        config.hidden_act == "silu"
        and config.num_key_value_heads == config.num_attention_heads
        and config.rope_parameters["rope_type"] == "default"
        and all(type(m) is nn.Linear and m.bias is None for m in linears)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    )


class MaskedTreeAttention:
    """Tree attention for any backbone, by a mask."""

    def __init__(self, backbone: Any):
        self._backbone = backbone
        self._held: list[KeysValues] = []

    def read(self, candidates: Tensor, place: Tensor, cache: Any, mask: Tensor) -> Tensor:
        count = candidates.shape[1]
        output = self._backbone(
            input_ids=candidates,
            attention_mask=self._mask(mask, count),
            position_ids=place.expand(-1, count),
            past_key_values=cache,
            use_cache=True,
        )
        self._held = [(x.keys[:, :, -count:], x.values[:, :, -count:]) for x in cache.layers]
        cache.crop(-count)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def keys_values_of(self, index: Tensor) -> list[KeysValues]:
        return [(_take(keys, index), _take(values, index)) for keys, values in self._held]

    def _mask(self, mask: Tensor, count: int) -> Tensor:
        """An additive mask ``(R, 1, K, T + K)``."""
        own = torch.eye(count, dtype=torch.bool, device=mask.device).expand(len(mask), -1, -1)
        hidden = ~torch.cat([mask.bool()[:, None].expand(-1, count, -1), own], dim=2)[:, None]
        dtype = self._backbone.dtype
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of a Llama layer, concatenated where they multiply the same input.

    Attributes:
        qkv: queries (scaled), keys and values ``(3 D, D)``.
        output: of the attention ``(D, D)``.
        gate_up: of the MLP ``(2 F, D)``.
        down: of the MLP ``(D, F)``.
        epsilons: of the two norms, whose scales are multiplied into ``qkv`` and ``gate_up``.
    """

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    epsilons: tuple[float, float]


def layer_weights(layer: Any) -> LayerWeights:
    """The weights of a ``LlamaDecoderLayer``."""
    attention, mlp = layer.self_attn, layer.mlp
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    queries = attention.q_proj.weight * attention.scaling
    qkv = torch.cat([queries, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return LayerWeights(
        qkv * first.weight,
        attention.o_proj.weight,
        gate_up * second.weight,
        mlp.down_proj.weight,
        (first.variance_epsilon, second.variance_epsilon),
    )


class LlamaTreeAttention:
    """Tree attention for a plain Llama, see `is_plain`."""

    @torch.no_grad()
    def __init__(self, backbone: Any):
        self._backbone, self._heads = backbone, backbone.config.num_attention_heads
        self._layers = [layer_weights(layer) for layer in backbone.layers]
        self._held: list[list[KeysValues]] = []  # per chunk of rows, per layer
        self._rotation = (torch.empty(0), torch.empty(0))  # cos and sin of the candidates' position

    def read(self, candidates: Tensor, place: Tensor, cache: Any, mask: Tensor) -> Tensor:
        rows, count = candidates.shape
        states = self._backbone.embed_tokens(candidates)
        cos, sin = self._backbone.rotary_emb(states, place)
        self._held, self._rotation = [], (cos[:, None], sin[:, None])
        # The prefix is rotated to the candidates' position, so that these need no rotation.
        past = [(_rotated(x.keys, cos[:, None], -sin[:, None]), x.values) for x in cache.layers]
        hidden = None if bool(mask.all()) else (mask == 0)[:, None, None]
        size = max(1, TOKENS // count) if states.is_cpu else rows
        parts = (slice(i, i + size) for i in range(0, rows, size))
        return torch.cat([self._chunk(states[part], part, past, hidden) for part in parts])

    def keys_values_of(self, index: Tensor) -> list[KeysValues]:
        parts = torch.split(index, [len(chunk[0][0]) for chunk in self._held])
        chosen = []
        for layer in range(len(self._layers)):
            pairs = [chunk[layer] for chunk in self._held]
            keys, values = (
                torch.cat([_take(pair[i], part) for pair, part in zip(pairs, parts, strict=True)])
                for i in (0, 1)
            )
            chosen.append((_rotated(keys, *self._rotation), values))
        return chosen

    def _chunk(
        self, x: Tensor, rows: slice, past: list[KeysValues], hidden: Tensor | None
    ) -> Tensor:
        """The hidden states ``(R', K, D)`` of some rows, from their embeddings (used up)."""
        held: list[KeysValues] = []
        shape = (*x.shape[:2], 3, self._heads, -1)
        for layer, (past_keys, past_values) in zip(self._layers, past, strict=True):
            joint = linear(_normed(x, layer.epsilons[0]), layer.qkv).view(shape)
            queries, keys, values = joint.permute(2, 0, 3, 1, 4)
            held.append((keys, values))
            seen = queries @ past_keys[rows].transpose(2, 3)
            if hidden is not None:
                seen = seen.masked_fill_(hidden[rows], -torch.inf)
            own = (queries * keys).sum(-1, keepdim=True)
            shares = torch.cat([seen, own], dim=-1).softmax(-1)
            mixed = (shares[..., :-1] @ past_values[rows]).addcmul_(shares[..., -1:], values)
            x += linear(mixed.transpose(1, 2).flatten(2), layer.output)
            gate, up = linear(_normed(x, layer.epsilons[1]), layer.gate_up).chunk(2, -1)
            x += linear(silu(gate).mul_(up), layer.down)
        self._held.append(held)
        normed: Tensor = self._backbone.norm(x)
        return normed


def _take(x: Tensor, index: Tensor) -> Tensor:
    """``(R, H, 1, D_head)``: one column of each row of ``(R, H, K, D_head)``."""
    return x[torch.arange(len(x), device=x.device), :, index][:, :, None]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, equation 34, in halves); ``-sin`` inverts it."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _normed(x: Tensor, epsilon: float) -> Tensor:
    return rms_norm(x, x.shape[-1:], None, epsilon)
