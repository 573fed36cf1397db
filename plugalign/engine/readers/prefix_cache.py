"""Auxiliary models with a key/value cache keyed by prefix.

A step of a controller is a pure function of the prefix. So an auxiliary model is given the whole
token ids and compares them with those in its cache: it appends when the prefix has grown, crops
when it was rewound (assisted decoding), reorders when rows were permuted (beams), and encodes from
scratch otherwise. Whatever the caller does, the result equals that of an uncached forward. Padding
is the caller's mask, and position ids follow from it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.readers.cache_spec import cache_spec_of, check_columns
from plugalign.engine.readers.heads import SplitModel, head_input, last_logits
from plugalign.engine.readers.positions import packed, position_ids
from plugalign.engine.readers.tree_attention import tree_attention_for
from plugalign.kernels.head import Head, Logits, full

REWIND = 32  # answers remembered behind the longest prefix


class PrefixCache:
    """What a model keeps of the columns of ``(R, T)`` token ids that it has already seen.

    Args:
        model: the model, which is asked how it carries what it has read.
        keys_values: optional trained prefix ``(layers, 2, H_kv, P, D_head)`` in front of every row.

    Attributes:
        spec: what kind of cache the model keeps.
        cache: None where it reads whole texts.
        values: numbers for each column that is held, ``(R, T, ...)``, cropped and reordered with
            it; without columns where none are committed.
    """

    def __init__(self, model: Any, keys_values: Tensor | None = None):
        self.model, self.keys_values = model, keys_values
        self.spec = cache_spec_of(model)
        if keys_values is not None:
            check_columns(model, "a trained prefix is")
        self.offset = 0 if keys_values is None else keys_values.shape[-2]
        self.cache: Any = None
        self._ids = torch.empty(0, 0, dtype=torch.long)
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._settled = True
        self.values = torch.empty(0, 0)

    @property
    def length(self) -> int:
        """The columns of ids that the cache holds."""
        return self._ids.shape[1]

    def align(self, ids: Tensor, mask: Tensor, spare: int = 1) -> int:
        """Makes the cache hold a prefix of ``ids`` ``(R, T)``, the longest it can.

        Returns:
            The number of columns held, at most ``T - spare``; the caller encodes the rest. Where
            the cache keeps no columns, one is left to encode or all.
        """
        if not self._settled:  # an error came before `commit`: layers may hold different columns
            self.cache = None
        self._settled = False
        rows, length = ids.shape
        held = self._ids.shape[1]
        reach = min(held, length - spare)
        common = self._common(ids, mask) if self._ids.shape[0] == rows else 0
        if common < reach and self.cache is not None:
            order, permuted = self._match_rows(ids, mask, reach)
            if permuted > common:
                self.select(order)
                common = permuted
        keep = min(common, length - spare)
        if self.cache is None or keep == 0 or not self._goes_on(keep, held, length):
            self._start(rows, ids.device)
            return 0
        if keep < held:
            self.cache.crop(keep - held)
        self._ids, self._mask = self._ids[:, :keep], self._mask[:, :keep]
        self.values = self.values[:, :keep]
        return keep

    def _goes_on(self, keep: int, held: int, length: int) -> bool:
        """Whether the cache can go on behind so many columns of those that it holds."""
        return self.spec.columns or (keep == held and length == held + 1)

    def inputs(self, ids: Tensor, mask: Tensor, start: int, written: int = 0) -> dict[str, Any]:
        """The inputs of a forward that encodes ``ids`` ``(R, T)`` from column ``start`` on; see
        `position_ids`."""
        whole = torch.cat([mask.new_ones(len(mask), self.offset), mask], dim=1)
        place = position_ids(mask, written)[:, start:] + self.offset
        return self.spec.inputs(self.model, ids[:, start:], whole, place, self.cache)

    def commit(self, ids: Tensor, mask: Tensor, values: Tensor | None = None) -> None:
        """Records that the cache now holds these columns, with ``values`` if given."""
        self._ids, self._mask, self._settled = ids, mask, True
        self.values = ids.new_empty(len(ids), 0, dtype=torch.float) if values is None else values

    def select(self, rows: Tensor) -> None:
        """Holds these rows of those that it holds, int64 ``(R',)``; a row may be there often."""
        self.cache.reorder_cache(rows)
        self._ids, self._mask, self.values = self._ids[rows], self._mask[rows], self.values[rows]

    def repeated(self, rows: int) -> PrefixCache:
        """A copy of what is held of one row, for so many rows that begin with it."""
        found = PrefixCache(self.model, self.keys_values)
        found.cache = copy.deepcopy(self.cache)
        found.cache.batch_repeat_interleave(rows)
        found.commit(self._ids.expand(rows, -1), self._mask.expand(rows, -1))
        return found

    def agrees(self, ids: Tensor, mask: Tensor) -> bool:
        """Whether exactly these rows start with what is held up to the length of ``ids``."""
        known = self._ids.shape
        return known[0] == ids.shape[0] and self._common(ids, mask) == ids.shape[1]

    def _common(self, ids: Tensor, mask: Tensor) -> int:
        width = min(self._ids.shape[1], ids.shape[1])
        same = (self._ids[:, :width] == ids[:, :width]) & (self._mask[:, :width] == mask[:, :width])
        return int(same.all(0).long().cumprod(0).sum())

    def _match_rows(self, ids: Tensor, mask: Tensor, reach: int) -> tuple[Tensor, int]:
        """For each row the held row with the longest common start, and the least such length."""
        same = self._ids[None, :, :reach] == ids[:, None, :reach]
        same &= self._mask[None, :, :reach] == mask[:, None, :reach]
        lengths = same.long().cumprod(-1).sum(-1)  # (R, R_held)
        best, order = lengths.max(-1)
        return order, int(best.min())

    def _start(self, rows: int, device: torch.device) -> None:
        self.cache = self.spec.cache(self.model)
        self._ids = self._mask = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.values = torch.empty(rows, 0, device=device)
        if self.keys_values is not None:
            for layer, (keys, values) in enumerate(self.keys_values):
                self.cache.update(
                    keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer
                )


class CachedModel:
    """A causal language model that gives logits for prefixes and never encodes a token twice.

    Args:
        model: a Hugging Face causal language model.
        keys_values: optional trained prefix, see `PrefixCache`.
        split: the model's body and head where they may be run apart; logits are then a `Head`.
    """

    def __init__(
        self, model: Any, keys_values: Tensor | None = None, split: SplitModel | None = None
    ):
        self.model, self._split = model, split
        if keys_values is not None:
            keys_values = keys_values.to(model.device, model.dtype)
        self._prefix = PrefixCache(model, keys_values)
        if self._prefix.spec.argument is None:
            self._split = None
        self._answers: dict[int, Logits] = {}
        self.encoded = 0  # columns sent through the model so far

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, written: int = 0) -> Logits:
        """Next-token logits ``(R, V)`` for prefixes ``(R, T)`` with their mask; ``written``: see
        `position_ids`."""
        return self._answer(ids, mask, written, hidden=False)

    @torch.no_grad()
    def hidden(self, ids: Tensor, mask: Tensor, written: int = 0) -> Tensor:
        """The input of the model's LM head at the last position, ``(R, D)`` in float32."""
        answer = self._answer(ids, mask, written, hidden=True)
        return answer.hidden.float() if isinstance(answer, Head) else answer

    def forget(self) -> None:
        """Frees keys and values."""
        self._prefix, self._answers = PrefixCache(self.model, self._prefix.keys_values), {}

    def rewind(self, columns: int) -> None:
        """Nothing: the cache is compared with the next prefix."""

    def set_length(self, length: int) -> None:
        """Nothing, see `rewind`."""

    def _answer(self, ids: Tensor, mask: Tensor, written: int, hidden: bool) -> Logits:
        device = ids.device
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        if not self._prefix.spec.columns:
            ids, mask = packed(ids, mask)
        known = self._answers.get(ids.shape[1])
        if known is not None and self._prefix.agrees(ids, mask):
            return on_device(known, device)
        start = self._prefix.align(ids, mask)
        self.encoded += ids.shape[1] - start
        if self._prefix.spec.argument is None:
            answer: Logits = self._by_length(ids, mask, hidden)
        else:
            inputs = self._prefix.inputs(ids, mask, start, written)
            apart = self._split
            answer = self._whole(inputs, hidden) if apart is None else apart.last(inputs)
        self._prefix.commit(ids, mask)
        # Only assisted decoding rewinds, with one row and by a draft's length.
        kept = range(start - REWIND, start + 1) if len(ids) == 1 else range(0)
        self._answers = {n: a for n, a in self._answers.items() if n in kept}
        self._answers[ids.shape[1]] = answer
        return on_device(answer, device)

    def _by_length(self, ids: Tensor, mask: Tensor, hidden: bool) -> Tensor:
        """The answers of a model with a way of its own, which may look at no mask: texts of one
        length at a time, without padding."""
        lengths, found = mask.sum(-1), dict[int, Tensor]()
        for length in set(lengths.tolist()):
            rows = (lengths == length).nonzero()[:, 0]
            text = ids[rows, ids.shape[1] - length :]
            inputs = self._prefix.inputs(text, torch.ones_like(text), 0)
            found.update(zip(rows.tolist(), self._whole(inputs, hidden), strict=True))
        return torch.stack([found[row] for row in range(len(ids))])

    def _whole(self, inputs: dict[str, Any], hidden: bool) -> Tensor:
        """The last column's logits ``(R, V)``, or what the head reads there ``(R, D)``."""
        with head_input(self.model) as seen:
            logits = last_logits(self.model, inputs, 1)
        chosen: Tensor = seen[0] if hidden else logits
        return chosen[:, -1].float()


def on_device(logits: Logits, device: torch.device) -> Logits:
    """The logits on a device. A head is evaluated on that of its model, where its weights are."""
    if logits.device == device:
        return logits
    return full(logits).to(device)


class CachedScorer:
    """A causal classifier that scores many candidate continuations of each prefix in one forward.

    The candidates are read by tree attention and do not enter the cache. When the prefix has grown
    by one of them in every row, their keys and values are moved into it.

    Args:
        predictor: a module with ``backbone`` and ``head``, see `CandidateValues`.
    """

    def __init__(self, predictor: Any):
        self.predictor = predictor
        backbone = predictor.backbone
        self._prefix, self._tree = PrefixCache(backbone), tree_attention_for(backbone)
        self._candidates: Tensor | None = None  # of the last call, behind what the cache holds
        self.encoded = 0  # columns sent through the backbone so far, without candidates

    @torch.no_grad()
    def scores(self, ids: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Logits of P(a | x, t), ``(R, K)``, for prefixes ``(R, T)`` and candidates ``(R, K)``."""
        self._keep_chosen(ids, mask)
        self._candidates = None
        start = self._prefix.align(ids, mask, spare=0)
        if start < ids.shape[1]:
            self._encode(ids, mask, start)
        self._prefix.commit(ids, mask)
        place = mask.long().sum(-1, keepdim=True)  # 0 for a row that has no token yet
        states = self._tree.read(candidates, place, self._prefix.cache, mask)
        self._candidates = candidates
        scores: Tensor = self.predictor.head(states)
        return scores.squeeze(-1).float()

    def forget(self) -> None:
        """Frees keys and values."""
        backbone = self.predictor.backbone
        self._prefix, self._tree = PrefixCache(backbone), tree_attention_for(backbone)
        self._candidates = None

    def _keep_chosen(self, ids: Tensor, mask: Tensor) -> None:
        """Moves candidates into the cache if the prefixes have grown by them."""
        before, last = ids[:, :-1], ids[:, -1:]
        if self._candidates is None or self._prefix.length != before.shape[1]:
            return
        if not self._prefix.agrees(before, mask[:, :-1]):
            return
        same = self._candidates == last
        if not bool(same.any(1).all()):
            return
        for layer, (keys, values) in enumerate(self._tree.keys_values_of(same.long().argmax(1))):
            self._prefix.cache.update(keys, values, layer)
        self._prefix.commit(ids, mask)

    def _encode(self, ids: Tensor, mask: Tensor, start: int) -> None:
        self.encoded += ids.shape[1] - start
        self.predictor.backbone(
            input_ids=ids[:, start:],
            attention_mask=mask,
            position_ids=position_ids(mask)[:, start:],
            past_key_values=self._prefix.cache,
            use_cache=True,
        )
