"""Which precision a model is loaded in: what was asked for, or what the machine computes well."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["auto", "bfloat16", "float16", "float32"]


def chosen_dtype(precision: str) -> torch.dtype:
    """The dtype to load a model in.

    Args:
        precision: "auto" takes bfloat16 where the processor or the GPU multiplies it by itself,
            else float32: emulated half precision is many times slower.

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
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def explained(precision: str) -> str:
    """The dtype that `chosen_dtype` gives, and the reason, for logs."""
    name = str(chosen_dtype(precision)).removeprefix("torch.")
    if precision != "auto":
        return f"{name}, as asked for"
    where = "GPU" if torch.cuda.is_available() else "processor"
    able = "multiplies bfloat16 by itself" if name == "bfloat16" else "does not multiply bfloat16"
    return f"{name}, since this {where} {able}"


def multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16 products: its GPU, if it has one, else its
    processor (AVX512_BF16 or AMX)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch names these checks with an underscore, and not every version has them.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
