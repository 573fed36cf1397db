"""Texts that grow: what a model has read and written, with its cache.

A `Transcript` is a batch of texts to which pieces of different lengths are appended. It stays
left-padded, and its keys and values move with the tokens, so nothing that the model has read is
encoded again. A `Continuation` writes on at its end by ``model.generate``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicLayer

from plugalign.errors import Calling

NEGATIVE = ("negative_prompt_ids", "negative_prompt_attention_mask")  # of guidance, by rows


@dataclass(frozen=True, eq=False)
class Transcript:
    """A batch of texts with the keys and values of their first columns.

    Attributes:
        ids: token ids ``(R, S)``.
        mask: ``(R, S)``, zero at columns that are no text. Left-padded after `extended`.
        rows: ``(R,)``: which answers of the batch these are.
        pad_token_id: stands where the mask is zero.
        cache: a transformers cache that holds leading columns, or None. A model that reads the
            transcript writes into it.
        prefix: cache positions of a prefix controller in front of column 0.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    pad_token_id: int
    cache: Cache | None = None
    prefix: int = 0

    @property
    def cached(self) -> int:
        """The number of leading columns that the cache holds."""
        return 0 if self.cache is None else int(self.cache.get_seq_length()) - self.prefix

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, ``(R,)``."""
        return self.mask.sum(1)

    @property
    def uncached_tokens(self) -> int:
        """Tokens of all texts together that a model has yet to encode."""
        return int(self.mask[:, self.cached :].sum())

    def with_generated(self, ids: Tensor, mask: Tensor, cache: Cache | None) -> Transcript:
        """The texts with what was written after them, and the cache that this left."""
        ids, mask = torch.cat([self.ids, ids], 1), torch.cat([self.mask, mask], 1)
        return replace(self, ids=ids, mask=mask, cache=cache)

    def extended(self, keep: Tensor, ids: Tensor, mask: Tensor) -> Transcript:
        """The texts ``keep (R',)`` with tokens ``(R', n)`` at their ends, left-padded anew.

        The cache is a copy whose columns moved with their tokens. A column that is cached for
        one text and not for another is left for the next forward, which has that width anyway.
        """
        ids = torch.cat([self.ids[keep], ids], dim=1)
        mask = torch.cat([self.mask[keep], mask], dim=1)
        width = int(mask.sum(1).max()) if len(keep) else 0
        order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        cache, held = None, self.cached if _can_move(self.cache) else 0
        if held and len(keep):
            known = (order < held) | (mask == 0)
            columns = int(known.long().cumprod(1).sum(1).min())
            if columns:
                cache = _moved(
                    self.cache, keep, order[:, :columns].clamp(max=held - 1), self.prefix
                )
        ids = ids.masked_fill(mask == 0, self.pad_token_id)
        return Transcript(ids, mask, self.rows[keep], self.pad_token_id, cache, self.prefix)


def _can_move(cache: Cache | None) -> bool:
    """Whether every position is kept apart, which sliding windows and recurrent states are not."""
    if cache is None or getattr(cache, "offloading", False):
        return False
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _moved(cache: Any, rows: Tensor, columns: Tensor, prefix: int) -> DynamicCache:
    """A new cache whose column j of row i is the old column ``columns[i, j]`` of ``rows[i]``."""
    first = torch.arange(prefix, device=columns.device).expand(len(rows), -1)
    index = (rows[:, None], torch.cat([first, columns + prefix], dim=1))
    moved = [[x.transpose(1, 2)[index].transpose(1, 2) for x in layer[:2]] for layer in cache]
    new = DynamicCache(moved)
    if hasattr(cache, "prefixes"):  # a prefix knows its caches by this note
        new.prefixes = cache.prefixes
    return new


@contextmanager
def _unsteered(_: Transcript) -> Iterator[list[Any]]:
    yield []


@dataclass(frozen=True, eq=False)
class Continuation:
    """Writes on at the end of a transcript by ``model.generate``, reusing its cache.

    Args:
        model: a Hugging Face causal language model.
        options: what the caller gave to ``generate`` besides the prompts and their mask.
        steering: a context manager that gives the logits processors for a transcript, in front of
            the caller's own. They see its ids ``(R, S)`` from column 0 on.
    """

    model: Any
    options: dict[str, Any] = field(default_factory=dict)
    steering: Callable[[Transcript], AbstractContextManager[list[Any]]] = _unsteered

    def setting(self, name: str) -> Any:
        """A generation setting: the call's, else its generation config's, else the model's."""
        config = self.options.get("generation_config")
        given = (self.options.get(name), getattr(config, name, None))
        default = getattr(self.model.generation_config, name, None)
        return next((value for value in given if value is not None), default)

    def answer_length(self, prompt_width: int) -> int:
        """The most tokens that ``generate`` adds to prompts of this width."""
        if (new := self.setting("max_new_tokens")) is not None:
            return int(new)
        longest = self.setting("max_length")
        return 20 if longest is None else max(int(longest) - prompt_width, 0)

    @property
    def reencodes(self) -> bool:
        """Whether these settings encode the whole text whatever is cached."""
        drafts = self.setting("prompt_lookup_num_tokens") or self.options.get("assistant_model")
        return bool(drafts or self._names_cache) or self.setting("use_cache") is False

    @property
    def _names_cache(self) -> bool:
        """Whether the model's own settings name a cache, beside which ``generate`` takes none."""
        named = self.model.generation_config.cache_implementation
        return named not in (None, "hybrid")  # which transformers takes for none

    def encodes(self, text: Transcript) -> int:
        """Tokens of all texts together that are encoded before they go on."""
        return int(text.mask.sum()) if self.reencodes else text.uncached_tokens

    def generate(self, text: Transcript, max_new_tokens: int, **more: Any) -> tuple[Tensor, Any]:
        """The new token ids ``(R, n)``, right-padded, and the whole output of ``generate``.

        Its cache is None where it cannot be read on from (beams).
        """
        cache = None if self.reencodes else text.cache
        beams = self.setting("num_beams") or 1
        if cache is not None and beams > 1:
            cache.batch_repeat_interleave(beams)
        # With a prefix, generate would take its positions for ids that it has seen.
        seen = text.cached if cache is not None and text.prefix else 0
        config, rest = self._settings({"max_new_tokens": max_new_tokens, **more})
        with self.steering(text) as processors:
            processors = [*processors, *(rest.pop("logits_processor", None) or [])]
            if seen:
                processors = [partial(_with_cached, text.ids[:, :seen], p) for p in processors]
            rest |= self._of_rows(rest, text, seen)
            calling = Calling(
                self.model, {**rest, "logits_processor": processors}, text.ids.shape[1] - seen
            )
            with calling:
                output = self.model.generate(
                    input_ids=text.ids[:, seen:],
                    attention_mask=text.mask,
                    past_key_values=cache,
                    generation_config=config,
                    logits_processor=LogitsProcessorList(processors),
                    **rest,
                )
        if beams > 1:
            output.past_key_values = None
        return output.sequences[:, text.ids.shape[1] - seen :], output

    def _of_rows(self, given: dict[str, Any], text: Transcript, seen: int) -> dict[str, Any]:
        """The caller's arguments that go by rows, for the answers that these texts are of.

        Args:
            seen: so many ids of the texts ``generate`` is not given.
        """
        beams, copies = (self.setting(name) or 1 for name in ("num_beams", "num_return_sequences"))
        rows = text.rows // copies if beams > 1 else text.rows  # of beams the prompts count
        found = {name: given[name][rows] for name in NEGATIVE if given.get(name) is not None}
        if (allowed := given.get("prefix_allowed_tokens_fn")) is not None:
            part = partial(_allowed, allowed, rows.tolist(), text.ids[:, :seen])
            found["prefix_allowed_tokens_fn"] = part
        return found

    def _settings(self, ours: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """The caller's generation config for one answer a row, and the other arguments."""
        options = {
            k: v for k, v in self.options.items() if k not in ("streamer", "past_key_values")
        }
        config = copy.deepcopy(options.pop("generation_config", None)) or GenerationConfig()
        ours |= {"max_length": None, "cache_implementation": None, "num_return_sequences": 1}
        rest = config.update(**{**options, **ours, "return_dict_in_generate": True})
        return config, rest


def _with_cached(cached: Tensor, processor: Any, input_ids: Tensor, scores: Tensor) -> Tensor:
    """Runs a processor on texts of which ``generate`` was given all but the ids that are cached,
    ``(R, n)``."""
    rows = cached.repeat_interleave(len(input_ids) // len(cached), 0)
    steered: Tensor = processor(torch.cat([rows, input_ids], dim=1), scores)
    return steered


def _allowed(allowed: Any, rows: list[int], cached: Tensor, row: int, ids: Tensor) -> Any:
    """Asks for the tokens that may follow ``ids`` ``(n,)``, by the number of the answer's row."""
    return allowed(rows[row], torch.cat([cached[row], ids]))
