"""The k best tokens of each row, in the one total order: by value, then the smaller id.

One integer stands for an entry: the value's bits, mapped so that integers compare as the values
do, above the id counted backwards. All integers of a row differ, so "the k largest" has one
answer, and no sort or selection can choose differently among equal values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugalign.kernels.backend import Backend, check_logits, use_triton

MOST_K = 1024  # what one program of the kernels sorts
MOST_VOCAB = 2**18
LAST = 2**31 - 1


def topk_select(logits: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The ``k`` best tokens of each row, best first; of equal values the smaller id comes first.

    A NaN ranks above every number, as in `torch.topk`, so a row that holds one shows it in its
    first value. -inf is a value like others, and comes last. 0 and -0 are equal.

    Args:
        logits: ``(B, V)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
        k: at least 1; all ``V`` columns come back where it is larger.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors, if k is at
            most 1024 and the vocabulary at most 262,144 (see `takes_triton`).

    Returns:
        Values ``(B, k)`` float32 and ids ``(B, k)`` int64.

    Raises:
        ValueError: for logits or a k that do not fit, or k too large for ``backend="triton"``.
    """
    check_logits(logits)
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an int of at least 1, got {k!r}")
    k = min(k, logits.shape[1])
    if takes_triton(backend, logits, k):
        from plugalign.kernels.topk_select_triton import topk_select_triton

        return topk_select_triton(logits, k)
    return _topk_torch(logits, k)


def takes_triton(backend: Backend, logits: Tensor, k: int) -> bool:
    """Whether `topk_select` runs as Triton kernels on ``logits`` ``(B, V)``.

    Raises:
        ValueError: if the backend is "triton" and cannot run, or k or V is too large for it.
    """
    if not use_triton(backend, logits):
        return False
    vocab = logits.shape[1]
    fits = min(k, vocab) <= MOST_K and vocab <= MOST_VOCAB
    if backend == "triton" and not fits:
        raise ValueError(
            f'backend="triton" selects k <= {MOST_K} of at most {MOST_VOCAB} tokens, got k = {k} '
            f'of {vocab}; take "auto" or "torch"'
        )
    return fits


def _topk_torch(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The specification."""
    x = logits.detach().float()
    ids = _best_on_cpu(x, k) if x.is_cpu else _best(x, k)
    return x.gather(1, ids), ids


def _best(x: Tensor, k: int) -> Tensor:
    """Ids ``(B, k)`` of the k best of float32 rows ``(B, V)``, best first, on any device."""
    tokens = torch.arange(x.shape[1], device=x.device)
    entries: Tensor = _entries(x, x.view(torch.int32), tokens)
    return LAST - (entries.topk(k).values & LAST)


def _best_on_cpu(x: Tensor, k: int) -> Tensor:
    """The same, several times as fast: NumPy's maxima and partitions are vectorised."""
    ids = torch.empty(len(x), k, dtype=torch.int64)
    for row, best in zip(x.numpy(), ids.numpy(), strict=True):
        tokens = _contenders(row, k)
        entries = _entries(row[tokens], row.view(np.int32)[tokens], tokens)
        entries = np.partition(entries, len(tokens) - k)[len(tokens) - k :]
        entries.sort()
        best[:] = LAST - (entries[::-1] & LAST)
    return ids


def _entries(x: Any, bits: Any, ids: Any) -> Any:
    """The integers that order entries, int64 arrays of NumPy or torch like ``ids``.

    ``bits`` are the values' bits as int32. Without their sign, those of negative numbers grow as
    the numbers fall, so they are flipped.
    """
    rank = bits ^ ((bits >> 31) & LAST)
    rank = rank * ((x != 0) & (x == x)) + LAST * (x != x)
    return (rank << 31) | (LAST - ids)


def _contenders(row: Any, k: int) -> Any:
    """Ids of few entries that hold the k best of ``row``, ties with the worst of them included.

    Of the maxima of equally large groups the k-th best is a bound: k entries reach it. A group
    takes every n-th entry, so that its maximum is one vector operation. Sizes near sqrt(V / k)
    balance the maxima, which are many when groups are small, against the members of k groups.
    """
    size = math.isqrt(len(row) // k)
    groups = len(row) // size
    top = row[: size * groups].reshape(size, groups).max(0)
    bound = np.partition(top, groups - k)[groups - k]
    # "Not below" keeps NaNs, whichever side they are on.
    best = np.flatnonzero(~(top < bound))
    members = (best + np.arange(0, size * groups, groups)[:, None]).ravel()
    ids = np.concatenate([members, np.arange(size * groups, len(row))])
    return ids[~(row[ids] < bound)]
