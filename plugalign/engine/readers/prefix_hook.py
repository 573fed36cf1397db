"""A trained prefix in front of everything that a model reads, by a forward pre-hook.

The hook fills every empty cache with the prefix's keys and values, widens the attention mask and
shifts the position ids. What it did to a cache is noted on that cache: the hook keeps no state,
several prefixes can be attached, and a static cache that is reset and used again is enlarged once.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import create_masks_for_generate

from plugalign.algebra.identity import model_name
from plugalign.engine.readers.cache_spec import text_config


class PrefixHook:
    """The forward pre-hook of one attachment, for the thread that made it.

    Args:
        keys_values: ``(layers, 2, H_kv, P, D_head)``.
    """

    def __init__(self, model: Any, keys_values: Tensor):
        self.keys_values = keys_values.to(model.device, model.dtype)
        self.width = keys_values.shape[-2]
        self._key, self._thread = uuid4().hex, threading.get_ident()
        self._signature = inspect.signature(model.forward)

    def __call__(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), self.prefixed(model, {**self._signature.bind_partial(*args).arguments, **kwargs})

    @torch.no_grad()
    def prefixed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a forward of ``model``, or of its body, behind the prefix."""
        if threading.get_ident() != self._thread:
            return inputs
        inputs = dict(inputs)
        cache = inputs.get("past_key_values")
        if cache is None or inputs.get("use_cache") is False:  # the whole text at every step
            cache = inputs["past_key_values"] = DynamicCache(config=text_config(model))
        read = (
            inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        )
        begun = self._is_in(cache) and int(cache.get_seq_length()) > 0
        if not begun and not self._begin(cache, model, read.shape[0]):
            return inputs
        return self._shifted(model, inputs, read)

    def continued(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """`prefixed` for texts whose earlier columns are in the cache; it waits for no device."""
        if not self._is_in(inputs["past_key_values"]):
            return inputs
        return self._shifted(model, dict(inputs), inputs["input_ids"])

    def _shifted(self, model: Any, inputs: dict[str, Any], read: Tensor) -> dict[str, Any]:
        """The inputs of a forward that reads ``read`` ``(R, n, ...)``, P columns further right."""
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + self.width
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = self._widened(inputs, model, read)
        return inputs

    def _is_in(self, cache: Any) -> bool:
        return self._key in prefixes_in(cache)

    def _begin(self, cache: Any, model: Any, rows: int) -> bool:
        """Fills a cache that holds no token yet. Returns whether it did: a cache that transformers
        has filled already is left as it is.

        Raises:
            ValueError: for a caller's cache that holds tokens.
        """
        prefixes, held = prefixes_in(cache), int(cache.get_seq_length())
        spare = 0
        if held == 0:  # new, or reset, with the columns that an earlier prefix took
            prefixes, spare = {}, sum(prefixes.values())
        if held != sum(prefixes.values()):
            if prefixes or getattr(cache, "_is_user_defined", False):
                raise ValueError(
                    f"past_key_values already hold {held} tokens, and a prefix must stand in front "
                    "of them; pass the whole text and an empty cache, or none"
                )
            return False
        if isinstance(cache, StaticCache) and self.width > spare:
            enlarge(cache, text_config(model), self.width - spare)
        for layer, (keys, values) in enumerate(self.keys_values):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        cache.prefixes = {**prefixes, self._key: self.width}
        return True

    def _widened(self, inputs: dict[str, Any], model: Any, read: Tensor) -> Any:
        """The mask with the prefix's columns on the left: 2-D, or built anew for a static cache."""
        mask, cache = inputs["attention_mask"], inputs["past_key_values"]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return torch.cat([mask.new_ones(len(mask), self.width), mask], dim=1)
        real = self._real_columns(mask, cache, read.shape[1])
        build = getattr(model, "create_masks_for_generate", create_masks_for_generate)
        return build(
            config=model.config,
            inputs_embeds=torch.empty(*read.shape[:2], 0, dtype=model.dtype, device=read.device),
            attention_mask=torch.cat([real.new_ones(len(real), self.width), real], dim=1),
            past_key_values=cache,
            position_ids=inputs.get("position_ids"),
        )

    def _real_columns(self, mask: Any, cache: Any, queries: int) -> Tensor:
        """The 2-D mask from which a 4-D mask, or a dictionary of them by kind of layer, was made: a
        column that no query may see is padding. Prefixes whose hooks run later are not in it."""
        if isinstance(mask, dict):
            mask = mask.get("full_attention", next(iter(mask.values())))
        later = list(cache.prefixes.values())[list(cache.prefixes).index(self._key) :]
        columns = int(cache.get_seq_length()) + queries - sum(later)
        if mask.shape[-1] < columns:
            raise ValueError(
                "a static cache whose window is shorter than the text cannot hold a prefix; leave "
                "cache_implementation at its default"
            )
        visible = mask if mask.dtype == torch.bool else mask == 0
        real: Tensor = visible[:, 0, :, :columns].any(1).long()
        return real


def prefixes_in(cache: Any) -> dict[str, int]:
    """The columns of each attached prefix that a cache holds, by the prefix's key."""
    found: dict[str, int] = getattr(cache, "prefixes", {})
    return found


def cache_shape(model: Any) -> tuple[int, int, int]:
    """``(layers, H_kv, D_head)`` of the model's key/value cache.

    Raises:
        ValueError: if its layers do not all keep keys and values of one shape.
    """
    cache = DynamicCache(config=text_config(model))
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=token, past_key_values=cache, use_cache=True)
    both = [(getattr(x, "keys", None), getattr(x, "values", None)) for x in cache.layers]
    shapes = {() if t is None else tuple(t.shape) for pair in both for t in pair}
    if len(shapes) != 1 or () in shapes:
        raise ValueError(
            f"the layers of '{model_name(model)}' keep different things in their cache, so no "
            "prefix fits all of them; prefix tuning cannot steer it"
        )
    _, heads, _, width = shapes.pop()
    return len(cache.layers), heads, width


def enlarge(cache: Any, config: Any, more: int) -> None:
    """Makes a static cache ``more`` columns longer; it keeps what it holds."""
    longer = StaticCache(config=config, max_cache_len=cache.get_max_length() + more).layers
    for new, old in zip(longer, cache.layers, strict=True):
        if held := int(old.get_seq_length()):
            new.update(old.keys[:, :, :held], old.values[:, :, :held])
    cache.layers = longer
