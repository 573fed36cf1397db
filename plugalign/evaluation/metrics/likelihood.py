"""Perplexity under an unsteered model: how likely given texts are behind their prompts.

The samples of a prompt begin alike. A model that keeps the columns of what it has read apart reads
such a prompt once for all of them.

Letters here: P prompts, S samples per prompt, N texts (N = P x S, all samples of the first
prompt first), B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from plugalign.engine.readers.cache_spec import cache_spec_of
from plugalign.engine.readers.heads import last_logits
from plugalign.engine.readers.positions import position_ids
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.generation.tokens import token_ids

Ids = Sequence[int]
Row = tuple[list[int], list[int]]  # a prompt and its continuation


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds each of N continuations, given its prompt.

    Args:
        nll: the negative log-likelihood in nats, summed over a text's tokens, ``(N,)``; NaN for an
            empty continuation.
        tokens: how many tokens that sum covers, ``(N,)``.
    """

    nll: FloatArray
    tokens: NDArray[np.int64]

    def sums(self, samples: int) -> FloatArray:
        """The negative log-likelihood of each prompt's samples together, and their tokens,
        ``(P, 2)``: what `pooled_perplexity` takes.

        Pooling a prompt's tokens keeps one short, unlucky sample from dominating a mean, as it does
        among perplexities of single texts. Empty continuations add nothing.

        Raises:
            ValueError: N is not a multiple of ``samples``.
        """
        if samples < 1 or len(self.nll) % samples:
            raise ValueError(f"{len(self.nll)} texts are not {samples} samples per prompt")
        each = np.stack([np.nan_to_num(self.nll), self.tokens], axis=-1)
        found: FloatArray = each.reshape(-1, samples, 2).sum(axis=1)
        return found


def pooled_perplexity(sums: FloatArray) -> FloatArray:
    """``exp(nll / tokens)`` of negative log-likelihoods and tokens ``(..., 2)``, NaN for none."""
    nll, tokens = sums[..., 0], sums[..., 1]
    mean = np.where(tokens > 0, nll / np.maximum(tokens, 1), np.nan)
    return np.asarray(np.exp(mean))


def perplexity(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    batch_size: int = 16,
) -> Likelihood:
    """The likelihood of each continuation text given its prompt, under an unsteered model.

    Prompt and continuation are tokenised as one text, and every token from the first one that
    differs from the prompt's own tokens counts as continuation. A prompt without tokens begins
    with the tokenizer's begin (else end) token.

    Args:
        prompts: N texts; repeat a prompt for each of its samples.
        continuations: N texts. An empty one is missing (NaN).
        batch_size: texts in one forward.

    Raises:
        ValueError: as `nll`.
    """
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    different = list(dict.fromkeys(prompts))
    known = dict(zip(different, token_ids(tokenizer, different), strict=True))
    heads, tails = [], []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        (ids,) = token_ids(tokenizer, [prompt + continuation])
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(ids, known[prompt], strict=False))
        shared = sum(1 for _ in pairs)
        if shared == 0 and start is not None:
            ids, shared = [start, *ids], 1
        heads.append(ids[:shared])
        tails.append(ids[shared:] if continuation else [])
    return nll(model, heads, tails, batch_size=batch_size)


def nll(
    model: Any,
    prompt_ids: Sequence[Ids],
    continuation_ids: Sequence[Ids],
    *,
    batch_size: int = 16,
) -> Likelihood:
    """The negative log-likelihood of each continuation given its prompt, in batches.

    Args:
        model: a Hugging Face causal language model in eval mode.
        prompt_ids: the token ids of N prompts, each with at least one token.
        continuation_ids: the token ids of N continuations; an empty one is missing (NaN).
        batch_size: texts in one forward. Like lengths go together, or where that is less to read
            the texts of one prompt.

    Raises:
        ValueError: N differs, a model in training mode, a prompt without tokens, a text longer
            than the model's context, ids outside its vocabulary, or logits that are not finite.
    """
    rows = [(list(p), list(c)) for p, c in zip(prompt_ids, continuation_ids, strict=True)]
    _check(model, rows)
    losses = np.full(len(rows), np.nan)
    shared = cache_spec_of(model).columns
    for batch in _batches(rows, batch_size, shared):
        losses[batch] = _batch_nll(model, [rows[i] for i in batch], shared)
    broken = [i for i, (_, c) in enumerate(rows) if c and not np.isfinite(losses[i])]
    if broken:
        raise ValueError(f"the scoring model gave logits that are not finite for text {broken[0]}")
    return Likelihood(losses, np.array([len(c) for _, c in rows], dtype=np.int64))


def _batches(rows: Sequence[Row], size: int, shared: bool) -> list[list[int]]:
    """The numbers of rows that are read together; those without a continuation are left out.

    Args:
        shared: whether rows of one prompt may read it once. They then go together, if that saves
            more tokens than it takes to fill rows whose lengths differ.
    """
    filled = [i for i, (_, continuation) in enumerate(rows) if continuation]
    by_length = sorted(filled, key=lambda i: (len(rows[i][0]) + len(rows[i][1]), len(rows[i][0])))
    by_prompt = sorted(filled, key=lambda i: (len(rows[i][0]), rows[i][0], len(rows[i][1])))
    orders = [by_length, by_prompt] if shared else [by_length]
    found = [[order[i : i + size] for i in range(0, len(order), size)] for order in orders]
    return min(found, key=lambda batches: sum(_cost([rows[i] for i in b], shared) for b in batches))


def _cost(rows: Sequence[Row], shared: bool) -> int:
    """The tokens that a batch takes, with those that fill shorter rows."""
    return min(_together(rows), _apart(rows)) if shared else _together(rows)


def _together(rows: Sequence[Row]) -> int:
    """The tokens where each row is read from its begin."""
    return len(rows) * max(len(p) + len(c) - 1 for p, c in rows)


def _apart(rows: Sequence[Row]) -> int:
    """The tokens where different prompts are read first, but for their last token."""
    prompts = {tuple(p) for p, _ in rows}
    return len(prompts) * (max(map(len, prompts)) - 1) + len(rows) * max(len(c) for _, c in rows)


@torch.inference_mode()
def _batch_nll(model: Any, rows: Sequence[Row], shared: bool) -> FloatArray:
    """The summed loss of each row's continuation ``(B,)``, in nats."""
    apart = shared and _apart(rows) < _together(rows)
    logits, targets = (_read_apart if apart else _read_together)(model, rows)
    inside = targets >= 0
    # Only tokens that count are turned to float32: (B, T, V) is the largest thing here.
    chosen = logits[inside.to(logits.device)].float()
    losses = functional.cross_entropy(chosen, targets[inside].to(logits.device), reduction="none")
    owner = torch.nonzero(inside)[:, 0]
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, losses.double().cpu())
    return np.asarray(sums.numpy(), dtype=np.float64)


def _read_together(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The logits ``(B, T, V)`` from where the first continuation begins, and the tokens ``(B, T)``
    that follow there; -1 where none of a continuation does."""
    ids = _filled([p + c[:-1] for p, c in rows], 0)
    mask = _filled([[1] * (len(p) + len(c) - 1) for p, c in rows], 0)
    first = min(len(p) for p, _ in rows) - 1
    targets = _filled([[-1] * (len(p) - 1 - first) + c for p, c in rows], -1)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    return _logits(model, inputs, targets.shape[1]), targets


def _read_apart(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """As `_read_together`, but each prompt is read once. Its last token is read with what follows,
    so that all logits come from there."""
    spec = cache_spec_of(model)
    cache = spec.cache(model)
    numbers = {p: n for n, p in enumerate(dict.fromkeys(tuple(p) for p, _ in rows))}
    width = max(map(len, numbers)) - 1
    fronts = torch.tensor([[0] * (width + 1 - len(p)) + list(p[:-1]) for p in numbers])
    shown = torch.tensor([[0] * (width + 1 - len(p)) + [1] * (len(p) - 1) for p in numbers])
    place = position_ids(shown)
    _logits(model, spec.inputs(model, fronts, shown, place, cache), 1)
    owner = torch.tensor([numbers[tuple(p)] for p, _ in rows])
    cache.batch_select_indices(owner.to(model.device))
    ids = _filled([[p[-1], *c[:-1]] for p, c in rows], 0)
    mask = torch.cat([shown[owner], _filled([[1] * len(c) for _, c in rows], 0)], 1)
    place = position_ids(mask)[:, width:]
    targets = _filled([c for _, c in rows], -1)
    return _logits(model, spec.inputs(model, ids, mask, place, cache), ids.shape[1]), targets


def _filled(rows: Sequence[Ids], value: int) -> Tensor:
    """Rows ``(B, T)``, shorter ones filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _logits(model: Any, inputs: dict[str, Any], keep: int) -> Tensor:
    """The logits of the last ``keep`` positions, ``(B, keep, V)``."""
    inputs = {
        name: each.to(model.device) if isinstance(each, Tensor) else each
        for name, each in inputs.items()
    }
    return last_logits(model, inputs, keep)


def _check(model: Any, rows: Sequence[Row]) -> None:
    if model.training:
        raise ValueError("the scoring model is in training mode; call model.eval() first")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary = model.get_input_embeddings().num_embeddings
    for number, (prompt, continuation) in enumerate(rows):
        if not prompt:
            raise ValueError(f"prompt {number} has no tokens; begin it with the begin token")
        length = len(prompt) + len(continuation)
        if context is not None and length > context:
            raise ValueError(
                f"text {number} has {length} tokens, more than the scoring model's context "
                f"({context}); shorten it or take another scoring model"
            )
        if max(prompt + continuation) >= vocabulary:
            raise ValueError(
                f"text {number} has the id {max(prompt + continuation)}, but the scoring model's "
                f"vocabulary has {vocabulary}; give it texts or ids of its own tokenizer"
            )
