"""Which precision a model is loaded in: what was asked for, or what the machine computes well."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["auto", "bfloat16", "float16", "float32"]


def chosen_dtype(precision: str, *, frozen: bool = True) -> torch.dtype | None:
    """The dtype to load a model in; None is the one that its weights are stored in.

    Args:
        precision: "auto" takes the stored one on a GPU, and on a CPU bfloat16 where the processor
            multiplies it by itself, else float32: emulated half precision is many times slower.
        frozen: whether the model only runs. One that is tuned as a whole is not rounded first.

    Raises:
        ValueError: for another name.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"dtype must be one of {', '.join(get_args(Precision))}, got {precision!r}"
        )
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if torch.cuda.is_available():
        return None
    return torch.bfloat16 if frozen and multiplies_bfloat16() else torch.float32


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products (AVX512_BF16 or AMX)."""
    # torch names these checks with an underscore, and not every version has them.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
