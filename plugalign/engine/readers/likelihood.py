"""Reads how probable a text is so far, in several contexts of one model."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from plugalign.algebra.sources import Likelihood, Step, TextLikelihood
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.readers.heads import fit_width
from plugalign.engine.readers.prefix_cache import PrefixCache
from plugalign.kernels.head import full

COLUMNS = 64  # whose logits exist at one time


class LikelihoodReader:
    """A model that reads texts in K contexts, as K * R rows of one forward, and adds up the
    log-probabilities of their tokens beside its keys and values.

    Keyed by prefix: sums belong to columns, and go where the cache's columns go.
    """

    def __init__(self, source: TextLikelihood, base: Any):
        self._source = source
        self._model = base if source.model is None else source.model
        if any(c.depth or c.after for c in source.contexts):
            raise ValueError(
                f"'{source.name}' takes token ids in front of the text, not trained keys and "
                "values or tokens behind it"
            )
        self.forget()

    def forget(self) -> None:
        """See `plugalign.algebra.sources.Reader`."""
        self._prefix = PrefixCache(self._model)
        self._last: Tensor | None = None  # log-probabilities behind the columns that are held

    @torch.no_grad()
    def read(self, step: Step) -> Likelihood:
        """See `plugalign.algebra.sources.Reader`."""
        contexts, device, vocab = self._source.contexts, step.ids.device, step.base.shape[-1]
        layout = context_layout(contexts, pad=0)
        rows = [layout.rows(context, step.ids, step.mask) for context in contexts]
        ids = torch.cat([x for x, _ in rows]).to(self._model.device)
        mask = torch.cat([x for _, x in rows]).to(self._model.device)
        # Padding goes to the left end, so that every token stands behind the one it follows.
        order = mask.argsort(dim=1, stable=True)
        # Which columns are the text's own: a prompt may stand inside it.
        origin = torch.cat([layout.order(c, step.ids, step.mask) for c in contexts])
        text = origin.to(order.device).gather(1, order) >= layout.width
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        following = (self._advance if self._prefix.length else self._begin)(ids, mask)
        counted = text & mask.bool() & (mask.cumsum(-1) > 1)
        # What is not counted may be infinite, and zero times that is no number.
        total = self._prefix.values.masked_fill(~counted, 0).sum(-1)
        following = full(fit_width(following, vocab))
        by_context = (
            rearrange(x, "(k r) ... -> k r ...", k=len(contexts)).to(device)
            for x in (total, counted.sum(-1), following)
        )
        return Likelihood(*by_context)

    def _begin(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`_advance` from nothing. Equal rows, as samples of a prompt are, are read once."""
        different, row = torch.unique(torch.stack([ids, mask]), dim=1, return_inverse=True)
        if different.shape[1] == len(ids) or not self._prefix.spec.columns:
            return self._advance(ids, mask)
        following = self._advance(*different)[row]
        self._prefix.select(row)
        self._last = following
        return following

    def _advance(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Reads what is new in ``ids`` ``(K R, T)``, and keeps each token's log-probability; those
        of the next token are returned, float32 ``(K R, V)``.

        What follows the last column that is held scores the first new token. Where the rows have
        changed since that column was read, it is read again.
        """
        columns = self._prefix.spec.columns  # else all of the text is read by one forward
        before = self._prefix.length
        grown = self._prefix.agrees(ids[:, :before], mask[:, :before])
        held = self._prefix.align(ids, mask, spare=1 if columns else ids.shape[1])
        known = self._prefix.values if held else torch.zeros(len(ids), 1, device=ids.device)
        last = self._last if grown and held == before > 0 else None
        if held and last is None:
            self._prefix.cache.crop(-1)
        found, step = [known], COLUMNS if columns else ids.shape[1]
        begin = known.shape[1] - (last is None)
        for first in range(begin, ids.shape[1], step):
            stop = min(first + step, ids.shape[1])
            log_p = self._log_probs(ids, mask, first, stop)
            if last is not None:
                found.append(_chosen(last[:, None], ids[:, first, None]))
            found.append(_chosen(log_p[:, :-1], ids[:, first + 1 : stop]))
            last = log_p[:, -1].clone()  # alone, since it outlives its block
        assert last is not None
        self._prefix.commit(ids, mask, torch.cat(found, 1))
        self._last = last if columns else None
        return last

    def _log_probs(self, ids: Tensor, mask: Tensor, first: int, stop: int) -> Tensor:
        """Log-probabilities behind some columns, float32 ``(K R, stop - first, V)``."""
        logits = self._model(**self._prefix.inputs(ids[:, :stop], mask[:, :stop], first)).logits
        return torch.log_softmax(logits.float(), -1)


def _chosen(log_p: Tensor, tokens: Tensor) -> Tensor:
    """The log-probabilities ``(R, n)`` of tokens ``(R, n)``, of ``(R, n, V)``."""
    return log_p.gather(-1, tokens[..., None])[..., 0]
