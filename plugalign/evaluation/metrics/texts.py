"""What is measured beside toxicity: perplexity under an unsteered model, diversity, length.

Letters here: P prompts, S samples per prompt, N texts (N = P x S, all samples of the first
prompt first), B batch, T time, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.generation.tokens import token_ids

Ids = Sequence[int]


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> FloatArray:
    """Distinct n-grams per word, prompt by prompt: ``(P,)``.

    For each prompt: the number of different word n-grams in all its samples together (none runs
    across two samples), divided by the number of words in them; words are what white space
    separates. This is dist-n of Li et al. 2016 as Liu et al. 2021 (DExperts, section 3.1) report
    it, as a mean over prompts. The divisor counts words for every n, so dist-2 of one sample of w
    words is at most ``(w - 1) / w``. A prompt without a word is missing (NaN).

    Args:
        texts: the samples of each prompt, ``texts[prompt][sample]``.
        n: the length of the n-grams, at least 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return np.array([_distinct([text.split() for text in samples], n) for samples in texts])


def _distinct(samples: Sequence[Sequence[str]], n: int) -> float:
    words = sum(map(len, samples))
    grams = {tuple(s[i : i + n]) for s in samples for i in range(len(s) - n + 1)}
    return len(grams) / words if words else float("nan")


def mean_length(tokens: Sequence[Sequence[Ids]]) -> FloatArray:
    """The mean number of tokens of each prompt's samples: ``(P,)``.

    An empty answer counts with length 0; a prompt without samples is missing (NaN).

    Args:
        tokens: the ids of each answer, ``tokens[prompt][sample]``.
    """
    return np.array(
        [np.mean([len(s) for s in samples]) if samples else np.nan for samples in tokens]
    )


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

    def per_prompt(self, samples: int) -> FloatArray:
        """One perplexity per prompt over all its samples, ``(P,)``: ``exp(sum nll / sum tokens)``.

        This is what `plugalign compare` reports. Pooling a prompt's tokens keeps one short,
        unlucky sample from dominating a mean, as it does among perplexities of single texts.
        Empty continuations add nothing; a prompt with only such is missing (NaN).

        Raises:
            ValueError: N is not a multiple of ``samples``.
        """
        if samples < 1 or len(self.nll) % samples:
            raise ValueError(f"{len(self.nll)} texts are not {samples} samples per prompt")
        nll = np.nansum(self.nll.reshape(-1, samples), axis=1)
        return _perplexity(nll, self.tokens.reshape(-1, samples).sum(axis=1))


def _perplexity(nll: FloatArray, tokens: NDArray[np.int64]) -> FloatArray:
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
        batch_size: texts in one forward, padded on the right; like lengths go together.

    Raises:
        ValueError: N differs, a model in training mode, a prompt without tokens, a text longer
            than the model's context, ids outside its vocabulary, or logits that are not finite.
    """
    rows = [(list(p), list(c)) for p, c in zip(prompt_ids, continuation_ids, strict=True)]
    _check(model, rows)
    losses = np.full(len(rows), np.nan)
    filled = sorted(
        (i for i, (_, continuation) in enumerate(rows) if continuation),
        key=lambda i: (len(rows[i][0]) + len(rows[i][1]), len(rows[i][0])),
    )
    for start in range(0, len(filled), batch_size):
        batch = filled[start : start + batch_size]
        losses[batch] = _batch_nll(model, [rows[i] for i in batch])
    broken = [i for i in filled if not np.isfinite(losses[i])]
    if broken:
        raise ValueError(f"the scoring model gave logits that are not finite for text {broken[0]}")
    return Likelihood(losses, np.array([len(c) for _, c in rows], dtype=np.int64))


@torch.inference_mode()
def _batch_nll(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> FloatArray:
    """The summed loss of each row's continuation ``(B,)``, in nats."""
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.tensor([p + c + [0] * (width - len(p) - len(c)) for p, c in rows])
    begin = torch.tensor([len(p) for p, _ in rows])[:, None]
    end = begin + torch.tensor([len(c) for _, c in rows])[:, None]
    place = torch.arange(width)
    first = int(begin.min())  # no row's continuation starts before this position
    logits = _logits(model, ids, (place < end).long(), keep=width - first + 1)
    inside = ((place >= begin) & (place < end))[:, first:]
    # Only tokens that count are turned to float32: (B, T, V) is the largest thing here.
    chosen = logits[:, :-1][inside.to(logits.device)].float()
    losses = functional.cross_entropy(
        chosen, ids[:, first:][inside].to(logits.device), reduction="none"
    )
    owner = torch.nonzero(inside)[:, 0]
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, losses.double().cpu())
    return np.asarray(sums.numpy(), dtype=np.float64)


def _logits(model: Any, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
    """The logits of the last ``keep`` positions, ``(B, keep, V)``."""
    inputs: dict[str, Any] = {
        "input_ids": ids.to(model.device),
        "attention_mask": mask.to(model.device),
        "use_cache": False,
    }
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = keep  # the head is the dear part of a small model
    logits: Tensor = model(**inputs).logits[:, -keep:]
    return logits


def _check(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> None:
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
