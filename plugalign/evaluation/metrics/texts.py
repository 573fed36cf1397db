"""What is measured beside toxicity and perplexity: diversity and length.

Letters here: P prompts, S samples per prompt, N texts (N = P x S, all samples of the first
prompt first).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plugalign.evaluation.statistics.paired import FloatArray

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
