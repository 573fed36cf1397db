"""The log of the sum of exponentials of each row: what turns logits into log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from plugalign.kernels.backend import Backend, check_logits, use_triton


def row_lse(logits: Tensor, *, backend: Backend = "auto") -> Tensor:
    """``log(sum_v exp(logits[r, v]))`` in float32.

    Args:
        logits: ``(R, V)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        ``(R,)`` float32. A row of -inf gives -inf, a row that holds a NaN gives NaN.

    Raises:
        ValueError: for logits of another shape, dtype or layout.
    """
    check_logits(logits)
    if use_triton(backend, logits):
        from plugalign.kernels.row_lse_triton import row_lse_triton

        return row_lse_triton(logits)
    return torch.logsumexp(logits.float(), dim=-1)
