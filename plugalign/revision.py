"""What a controller that rewrites finished answers works with.

`Answers` is the batch of drafts that one ``generate`` call has just made, with its cache. A
`Transcript` is a batch of texts that only grow: prompt, draft, critique, revision. It stays
left-padded whatever the lengths of its pieces, and its keys and values follow the tokens, so
nothing that a model has read is encoded again. A `Continuation` writes on at a transcript's end
with the caller's decoding settings and under the other controllers of a sum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicLayer

PROMPT = "{prompt}"


@dataclass(frozen=True, eq=False)
class Transcript:
    """A batch of texts with the keys and values of their first columns.

    Attributes:
        ids: token ids ``(R, S)``; the last column is not in the cache.
        mask: ``(R, S)``, zero at columns that are not text. Left-padded after `extended`.
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
    def unread(self) -> int:
        """Tokens of all texts together that a model has yet to encode."""
        return int(self.mask[:, self.cached :].sum())

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
                cache = _moved(self.cache, keep, order[:, :columns].clamp(max=held - 1), self.prefix)
        ids = ids.masked_fill(mask == 0, self.pad_token_id)
        return Transcript(ids, mask, self.rows[keep], self.pad_token_id, cache, self.prefix)


def _can_move(cache: Cache | None) -> bool:
    """Whether every position is kept apart, which sliding windows and recurrent states are not."""
    if cache is None or getattr(cache, "offloading", False):
        return False
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _moved(cache: Any, rows: Tensor, columns: Tensor, prefix: int) -> DynamicCache:
    """A new cache whose column j of row i is the old column ``columns[i, j]`` of ``rows[i]``."""
    front = torch.arange(prefix, device=columns.device).expand(len(rows), -1)
    index = (rows[:, None], torch.cat([front, columns + prefix], dim=1))
    moved = [[x.transpose(1, 2)[index].transpose(1, 2) for x in layer[:2]] for layer in cache]
    return DynamicCache(moved)


@contextmanager
def _unsteered(text: Transcript) -> Iterator[list[Any]]:
    yield []


@dataclass(frozen=True, eq=False)
class Continuation:
    """Writes on at the end of a transcript by ``model.generate``, reusing its cache.

    Args:
        model: a Hugging Face causal language model.
        options: what the caller gave to ``generate`` besides prompts and logits processors.
        steering: a context manager that gives the logits processors for a transcript. They see
            its ids ``(R, S)`` from column 0 on.
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

    def generate(self, text: Transcript, max_new_tokens: int, **more: Any) -> Any:
        """The output of ``generate``: its ``sequences`` end with the new tokens.

        Assisted decoding and ``use_cache=False`` read the whole text again.
        """
        again = self.setting("prompt_lookup_num_tokens") or self.options.get("assistant_model")
        again = again or self.setting("use_cache") is False
        cache, ids = None if again else text.cache, text.ids
        beams = self.setting("num_beams") or 1
        if cache is not None and beams > 1:
            cache.batch_repeat_interleave(beams)
        if cache is not None and text.prefix:
            ids = ids[:, text.cached :]  # generate would count the prefix as ids already seen
        config, rest = self._settings({"max_new_tokens": max_new_tokens, **more})
        with self.steering(text) as processors:
            return self.model.generate(
                input_ids=ids,
                attention_mask=text.mask,
                past_key_values=cache,
                generation_config=config,
                logits_processor=LogitsProcessorList([_Whole(p, text, ids) for p in processors]),
                **rest,
            )

    def _settings(self, ours: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """The caller's generation config for one answer a row, and the other arguments."""
        options = dict(self.options)
        config = copy.deepcopy(options.pop("generation_config", None)) or GenerationConfig()
        for name in ("streamer", "past_key_values"):
            options.pop(name, None)
        ours |= {"max_length": None, "cache_implementation": None, "num_return_sequences": 1}
        rest = config.update(**{**options, **ours, "return_dict_in_generate": True})
        return config, rest


class _Whole:
    """A logits processor that sees the transcript from column 0, also where generate does not."""

    def __init__(self, processor: Any, text: Transcript, ids: Tensor):
        self.processor, self.front = processor, text.ids[:, : text.ids.shape[1] - ids.shape[1]]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.front.shape[1]:
            front = self.front.repeat_interleave(len(input_ids) // len(self.front), 0)
            input_ids = torch.cat([front, input_ids], dim=1)
        steered: Tensor = self.processor(input_ids, scores)
        return steered


@dataclass(frozen=True, eq=False)
class Answers:
    """Finished drafts of one ``generate`` call, as a reviser gets them.

    Attributes:
        model: the base model. tokenizer: its tokenizer.
        prompt_ids: left-padded, one row for each answer, ``(B, T)``, with ``prompt_mask``.
        ids: the answers without the prompts ``(B, T')``, right-padded.
        cache: keys and values of prompt and answer up to the last token or the one before it;
            None (beams, static caches, assisted decoding) encodes the text once more.
        pad_token_id: fills shorter answers. end_token_ids: any of them ends an answer.
        continuation: writes on as the drafts were written.
        context: the most tokens that every model involved can read, or None for no limit.
        prefix: cache positions that prefix controllers put in front of the prompt.
    """

    model: Any
    tokenizer: Any
    prompt_ids: Tensor
    prompt_mask: Tensor
    ids: Tensor
    cache: Cache | None
    pad_token_id: int
    end_token_ids: tuple[int, ...]
    continuation: Continuation
    context: int | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        if not len(self.prompt_ids) == len(self.prompt_mask) == len(self.ids):
            raise ValueError(
                f"{len(self.ids)} answers need a prompt and a mask each, got "
                f"{len(self.prompt_ids)} and {len(self.prompt_mask)}; repeat the prompts"
            )

    def transcript(self) -> Transcript:
        """Prompts and answers as texts to go on from; an end token is no part of them."""
        return Transcript(
            torch.cat([self.prompt_ids, self.ids], dim=1),
            torch.cat([self.prompt_mask, self.said(self.ids)], dim=1),
            torch.arange(len(self.ids), device=self.ids.device),
            self.pad_token_id,
            self.cache,
            self.prefix,
        )

    def said(self, ids: Tensor) -> Tensor:
        """The mask ``(R, n)`` of generated tokens up to the end token or the padding."""
        ends = torch.tensor(self.end_token_ids, dtype=ids.dtype, device=ids.device)
        before_end = torch.isin(ids, ends).cumsum(1) == 0
        padding = (ids == self.pad_token_id).flip(1).long().cumprod(1).flip(1)
        return (before_end & (padding == 0)).to(self.prompt_mask.dtype)

    def filled(self, template: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A template's token ids ``(R, n)`` and mask; ``{prompt}`` stands for the row's prompt."""
        prompt, mask = self.prompt_ids[rows], self.prompt_mask[rows]
        begins = self.tokenizer.bos_token_id
        mask = mask if begins is None else mask * (prompt != begins)
        pieces: list[tuple[Tensor, Tensor]] = []
        for i, piece in enumerate(template.split(PROMPT)):
            if i:
                pieces.append((prompt, mask))
            tokens = prompt.new_tensor(encoded(self.tokenizer, piece)).expand(len(rows), -1)
            pieces.append((tokens, torch.ones_like(tokens)))
        return torch.cat([p[0] for p in pieces], 1), torch.cat([p[1] for p in pieces], 1)

    def fits(self, lengths: Tensor) -> Tensor:
        """Which of these lengths ``(R,)`` the context holds."""
        if self.context is None:
            return torch.ones_like(lengths, dtype=torch.bool)
        return lengths + self.prefix <= self.context

    def continued(
        self, text: Transcript, by: Continuation, max_new_tokens: int
    ) -> tuple[Tensor, Transcript]:
        """What ``by`` writes after a text: the new ids ``(R, n)``, and the text with them."""
        output = by.generate(text, max_new_tokens)
        new: Tensor = output.sequences[:, -max_new_tokens:]
        ...


@dataclass(frozen=True)
class Report:
    """What a revision did, in answers and in tokens. Reports add up."""

    critiqued: int = 0
    faulted: int = 0
    refined: int = 0
    too_long: int = 0
    empty: int = 0
    encoded_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: Report) -> Report:
        return Report(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
