"""Key/value prefixes in training, one for each class of texts.

Each comes from a small matrix through a two-layer map (PEFT's prefix encoder). It starts as the
keys and values that the model itself keeps of a real text of the class, so training begins at a
model that still writes its language. The model stays frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from plugalign.adapters.layers import shared_copy
from plugalign.engine.readers.prefix_hook import cache_shape
from plugalign.fitting.answers import followed


class Prefixes:
    """The prefixes in training: where they start, and the encoders that move them from there.

    Args:
        texts: token ids of each class's texts, desired first.
        shared: so many tokens are the same in all texts that are read, and nothing is learnt of
            them: they are read once behind each prefix.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        texts: Any,
        length: int,
        width: int,
        seed: int,
        shared: int = 0,
    ):
        self.model = shared_copy(model)  # frozen: gradients pass through it and stay nowhere
        self.length, self.shared, self.shape = length, shared, cache_shape(model)
        starts = [_start(model, tokenizer, rows, length) for rows in texts]
        self.start = torch.stack(starts).float()  # (C, layers, 2, H_kv, P, D_head)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoders = [_encoder(self.shape, length, width) for _ in texts]
        self.encoders = nn.ModuleList(encoders).to(model.device)

    def keys_values(self) -> Tensor:
        """The prefixes as they are now, ``(C, layers, 2, H_kv, P, D_head)``."""
        layers, heads, size = self.shape
        positions = torch.arange(self.length, device=self.start.device)[None]
        moved = [
            encoder(positions).view(self.length, layers, 2, heads, size)
            for encoder in self.encoders
        ]
        return self.start + torch.stack([m.permute(1, 2, 3, 0, 4) for m in moved])

    def nll(self, ids: Tensor, mask: Tensor, learnt: Tensor | None = None) -> Tensor:
        """Each text's negative log-likelihood behind each prefix, ``(C, B)``, after its first
        token. Texts ``(B, T)`` are right-padded.

        Args:
            learnt: the columns ``(B, T)`` behind which tokens count; all by default.
        """
        pairs = self.keys_values().to(self.model.dtype)
        rows, classes, shared = len(ids), len(pairs), self.shared
        cache = DynamicCache()
        for layer in range(pairs.shape[1]):
            cache.update(pairs[:, layer, 0], pairs[:, layer, 1], layer)
        counted = followed((mask if learnt is None else learnt)[:, shared:]).repeat(classes, 1)
        mask = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        if shared:
            self._logits(ids[:1, :shared], mask[:1, : self.length + shared], cache, classes)
        cache.batch_repeat_interleave(rows)
        ids = ids[:, shared:]
        logits = self._logits(ids, mask, cache, classes)[:, :-1].float()
        targets = ids[:, 1:].repeat(classes, 1)
        losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (losses * counted).sum(1).view(classes, rows)

    def _logits(self, ids: Tensor, mask: Tensor, cache: Any, classes: int) -> Tensor:
        """The logits of rows ``(R, n)`` behind what a cache holds of each class, ``(C R, n, V)``.

        Args:
            mask: of all that is read then, ``(R, T)``.
        """
        place = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=ids.device)[None]
        logits: Tensor = self.model(
            input_ids=ids.repeat(classes, 1),
            attention_mask=mask.repeat(classes, 1),
            use_cache=True,
            position_ids=place.expand(classes * len(ids), -1),
            past_key_values=cache,
        ).logits
        return logits


def _start(model: Any, tokenizer: Any, texts: Any, length: int) -> Tensor:
    """What the model keeps of the first texts of a class, ``(layers, 2, H_kv, P, D_head)``."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = list(begin)
    for row in texts:
        ids += row[1:] if row[:1] == begin else row
        if len(ids) >= length:
            break
    row = torch.tensor([(ids * length)[:length]], device=model.device)
    cache = DynamicCache()
    with torch.no_grad():
        model(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            past_key_values=cache,
            use_cache=True,
        )
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


def _encoder(shape: tuple[int, int, int], length: int, width: int) -> Any:
    """PEFT's prefix encoder; its last map starts at zero, so that nothing moves at first."""
    try:
        from peft import PrefixTuningConfig
        from peft.tuners.prefix_tuning import PrefixEncoder
    except ImportError as error:
        raise ImportError("prefix tuning needs peft: pip install 'plugalign[train]'") from error
    layers, heads, size = shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        token_dim=heads * size,
        num_layers=layers,
        num_attention_heads=heads,
        encoder_hidden_size=width,
        prefix_projection=True,
        num_transformer_submodules=1,
    )
    encoder: Any = PrefixEncoder(config)
    nn.init.zeros_(encoder.transform[-1].weight)
    nn.init.zeros_(encoder.transform[-1].bias)
    return encoder
