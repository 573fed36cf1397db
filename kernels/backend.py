"""What every operation does first: check its logits, and choose between Triton and torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "torch"]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Raises ValueError unless ``logits`` is ``(R, V)`` as every kernel here reads it."""
    if logits.ndim != 2 or logits.shape[1] == 0 or logits.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be (B, V) with V >= 1 in float32, float16 or bfloat16, got "
            f"{tuple(logits.shape)} in {logits.dtype}"
        )
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(
            f"each row of {name} must be contiguous, got strides {logits.stride()}; "
            "call .contiguous() first"
        )


def use_triton(backend: Backend, tensor: Tensor) -> bool:
    """Whether the operation on ``tensor`` runs as a Triton kernel.

    "auto" takes Triton for CUDA tensors where it is installed, and torch otherwise. The torch
    reference computes the same, so nothing but speed depends on the choice.

    Raises:
        ValueError: for an unknown backend, or "triton" where it cannot run.
    """
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f'backend must be "auto", "triton" or "torch", got {backend!r}')
    if backend == "torch" or (backend == "auto" and not tensor.is_cuda):
        return False
    if find_spec("triton") is None:
        if backend == "auto":
            return False
        raise ValueError('backend="triton" needs Triton: pip install triton, or take "torch"')
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not tensor.is_cuda and not interpreted:
        raise ValueError(
            f'backend="triton" needs a CUDA tensor, got one on {tensor.device}; take "auto", or '
            "set TRITON_INTERPRET=1 to run kernels in Triton's interpreter"
        )
    return True
