"""Texts that begin alike, as answers in a chat do behind one request: their begin is read once.

All rows of a batch attend to the same columns there, so one row's keys and values serve them all,
and gradients of all rows meet in it. A request of SmolLM2's template has 34 tokens and a comment
about 20, so a step reads less than half of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.readers.cache_spec import cache_spec_of


def read_behind(
    model: Any, ids: Tensor, mask: Tensor, shared: int, part: Callable[[Any], Tensor]
) -> Tensor:
    """What a model gives at the columns from ``shared`` on, ``(B, T - shared, ...)``.

    A model whose cache does not keep each token apart reads every row from its begin, as does one
    in training that computes activations again for the gradient, since it keeps no keys and values.

    Args:
        model: a model of transformers, or the body of one.
        ids, mask: ``(B, T)``, right-padded.
        shared: so many columns are the same tokens in all rows; fewer than T.
        part: of a forward's output, what is wanted of each column ``(B, T, ...)``.
    """
    spec = cache_spec_of(model)
    if not (shared and spec.columns) or _recomputes(model):
        whole = part(model(input_ids=ids, attention_mask=mask, use_cache=False))
        return whole[:, shared:]
    cache, place = spec.cache(model), torch.arange(ids.shape[1], device=ids.device)[None]
    front = ids[:1, :shared], mask[:1, :shared], place[:, :shared]
    model(**spec.inputs(model, *front, cache))
    cache.batch_repeat_interleave(len(ids))
    rest = ids[:, shared:], mask, place[:, shared:].expand(len(ids), -1)
    return part(model(**spec.inputs(model, *rest, cache)))


def _recomputes(model: Any) -> bool:
    """Whether a model's layers are checkpoints of its gradient."""
    return any(
        module.training and getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )
