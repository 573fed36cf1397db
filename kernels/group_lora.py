"""LoRA adapters on rows that lie grouped by adapter: one base forward serves all of them.

    y_g += scaling_g * (x_g a_g) b_g        (Hu et al. 2021, "LoRA", equation 3)

Rows come in G + 1 groups of equal size. The first is the base model and stays as it is; group g
runs through adapter g. A linear layer computes ``y`` for all rows at once and then adds this, which
equals G more models with merged weights ``W + scaling_g * (a_g b_g)^T``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plugalign.kernels.backend import FLOATS, Backend, use_triton
from plugalign.kernels.gumbel import per_row

MOST_RANK = 256
DECODE_ROWS, DECODE_RANK = 16, 64  # up to here one launch is expected to beat two matrix products


def group_lora(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Adds every group's adapter to the output of a linear layer, in place.

    For inference, under `no_grad`.

    Args:
        y: the layer's output ``((G + 1) * n, o)``, or rows by time ``((G + 1) * n, T, o)``, in
            float32, float16 or bfloat16; each row contiguous, all of a group evenly spaced.
        x: the layer's input ``((G + 1) * n, i)`` or ``((G + 1) * n, T, i)``, like ``y``. It must
            not share memory with ``y``.
        a: ``(G, i, r)`` with r up to 256, any strides.
        b: ``(G, r, o)``, any strides.
        scaling: alpha / r, a number or float32 ``()`` or ``(G,)``.
        backend: "torch", the specification, is two matrix products; "auto" takes Triton's single
            launch for CUDA tensors with few rows and a small rank, where launches are the cost.

    Returns:
        ``y``.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    groups = _check(y, x, a, b)
    _check_in_place(y)
    number, by_group = _number_or_groups(scaling, groups, y.device)
    of_y, of_x = _adapted("y", y, groups), _adapted("x", x, groups)
    few = of_y.shape[1] <= DECODE_ROWS and a.shape[2] <= DECODE_RANK
    if use_triton(backend, y) and (few or backend == "triton"):
        from plugalign.kernels.group_lora_triton import group_lora_triton

        group_lora_triton(of_y, of_x, a, b, number, by_group)
        return y
    low = torch.bmm(of_x, a)
    if by_group is not None:
        low *= by_group[:, None, None]
    of_y.baddbmm_(low, b, alpha=number)
    return y


def _number_or_groups(
    value: Tensor | float, groups: int, device: torch.device
) -> tuple[float, Tensor | None]:
    """The scaling as a factor for all groups, and one for each ``(G,)`` or None.

    A number costs no launch this way. Values on a GPU stay unread: reading would wait for it.

    Raises:
        ValueError: for a tensor that does not fit, or a NaN or infinity.
    """
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ValueError(f"scaling must be finite, got {value}")
        return float(value), None
    by_group = per_row("scaling", value, groups, torch.float32, device)
    if by_group.is_cpu and not bool(by_group.isfinite().all()):
        raise ValueError(f"scaling must be finite, got {by_group.tolist()}")
    return 1.0, by_group


def _check_in_place(y: Tensor) -> None:
    """Raises ValueError if rows of ``y`` ``(..., o)`` share memory, as those of an expanded one."""
    spaces = [space for space, size in zip(y.stride()[:-1], y.shape[:-1], strict=True) if size > 1]
    if spaces and min(spaces) < y.shape[-1]:
        raise ValueError(
            f"y is written in place and its rows overlap, got shape {tuple(y.shape)} with "
            f"strides {y.stride()}; call .contiguous() first"
        )


def _adapted(name: str, tensor: Tensor, groups: int) -> Tensor:
    """The rows of all groups but the base's as ``(G, n * T, W)``, in the same memory."""
    rows, *time, width = tensor.shape
    each = rows // (groups + 1)
    try:
        return tensor[each:].view(groups, each * (time[0] if time else 1), width)
    except RuntimeError:
        raise ValueError(
            f"rows and times of {name} must be evenly spaced, got shape {tuple(tensor.shape)} with "
            f"strides {tensor.stride()}; call .contiguous() first"
        ) from None


def _check(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> int:
    """The number G of adapters, or a ValueError that says what does not fit."""
    if not (y.dtype == x.dtype == a.dtype == b.dtype and y.dtype in FLOATS):
        raise ValueError(
            "y, x, a and b must share one of float32, float16 and bfloat16, got "
            f"{y.dtype}, {x.dtype}, {a.dtype} and {b.dtype}"
        )
    if not y.device == x.device == a.device == b.device:
        raise ValueError(
            "y, x, a and b must be on one device, got "
            f"{y.device}, {x.device}, {a.device} and {b.device}"
        )
    if y.ndim not in (2, 3) or y.shape[:-1] != x.shape[:-1] or 0 in (y.shape[-1], x.shape[-1]):
        raise ValueError(
            "y and x must be (rows, width) or (rows, time, width) with equal rows and times, got "
            f"{tuple(y.shape)} and {tuple(x.shape)}"
        )
    for name, tensor in (("y", y), ("x", x)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(
                f"each row of {name} must be contiguous, got strides {tensor.stride()}; "
                "call .contiguous() first"
            )
    groups, _, rank = a.shape if a.ndim == 3 else (0, 0, 0)
    if not groups or not 1 <= rank <= MOST_RANK:
        raise ValueError(
            f"a must be (G, i, r) with r between 1 and {MOST_RANK}, got {tuple(a.shape)}"
        )
    if a.shape[1] != x.shape[-1] or b.shape != (groups, rank, y.shape[-1]):
        raise ValueError(
            f"a and b must be {(groups, x.shape[-1], rank)} and {(groups, rank, y.shape[-1])} for "
            f"these x and y, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if y.shape[0] % (groups + 1):
        raise ValueError(
            f"y must have rows for {groups} adapters and the base, a multiple of {groups + 1}, got "
            f"{y.shape[0]}"
        )
    return groups
