"""A low-rank shift of logits or hidden states: a projection without a second pass of the head.

Taking the span of ``right`` out of a hidden state ``h`` changes what is linear in it by

    delta = -share * left @ (right^T (h - center))

with ``left = right = U`` for the hidden state itself and ``left = E U`` for the logits ``E h``:

* INLP (Ravfogel et al. 2020, algorithm 1): ``I - U U^T`` with an orthonormal ``U``; A-INLP (Liang
  et al. 2021, section 4.2) mixes it with the original, ``share = 1 - alpha`` of each row and step;
* LEACE (Belrose et al. 2023, theorem 4.3): ``h - W^-1 U U^T W (h - mean)``, an oblique projection
  with ``right = W U``, ``left = W^-1 U`` and ``center`` the mean.

Both functions write in place and compute in float32. They are for inference, under `no_grad`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plugalign.kernels.backend import FLOATS, Backend, check_logits, use_triton
from plugalign.kernels.gumbel import per_row

MOST_RANK = 128
CHUNK = 2**18  # entries whose float32 copy fits a core's cache
LEAST_COLUMNS = 1024  # of a chunk: below, a product costs more to start than to compute


def low_rank_logits(
    logits: Tensor,
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    center: Tensor | None = None,
    share: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """``logits -= share * left @ (right^T (hidden - center))``, in place.

    Args:
        logits: ``(B, V)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
            An entry of -inf stays -inf where the hidden state is finite.
        hidden: ``(B, D)``, what the head read; each row contiguous.
        left: ``(V, r)`` with r up to 128, any strides; the output embedding times the directions.
        right: ``(D, r)``, any strides.
        center: ``(D,)``, the hidden state that changes nothing; None is the origin.
        share: how much of the subspace is removed, a number or float32 ``()`` or ``(B,)``.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        ``logits``.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    check_logits(logits)
    check_in_place("logits", logits)
    check_logits(hidden, "hidden")
    _check_factors(logits, hidden, left, right, center)
    number, by_row = number_or_rows("share", share, len(logits), logits.device)
    if use_triton(backend, logits):
        from plugalign.kernels.low_rank_triton import low_rank_logits_triton

        return low_rank_logits_triton(logits, hidden, left, right, center, number, by_row)
    _subtract(logits, _coefficients(hidden, right, center, number, by_row), left)
    return logits


def low_rank_hidden(
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    center: Tensor | None = None,
    share: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """``hidden -= share * left @ (right^T (hidden - center))``, in place.

    Args:
        hidden: ``(N, D)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
        left, right: ``(D, r)`` with r up to 128, any strides.
        center: ``(D,)``, the hidden state that stays as it is; None is the origin.
        share: how much of the subspace is removed, a number or float32 ``()`` or ``(N,)``.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        ``hidden``.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    check_logits(hidden, "hidden")
    check_in_place("hidden", hidden)
    _check_factors(hidden, hidden, left, right, center)
    number, by_row = number_or_rows("share", share, len(hidden), hidden.device)
    if use_triton(backend, hidden):
        from plugalign.kernels.low_rank_triton import low_rank_hidden_triton

        return low_rank_hidden_triton(hidden, left, right, center, number, by_row)
    _subtract(hidden, _coefficients(hidden, right, center, number, by_row), left)
    return hidden


def _coefficients(
    hidden: Tensor, right: Tensor, center: Tensor | None, number: float, by_row: Tensor | None
) -> Tensor:
    """``share * right^T (h - center)`` of every row, float32 ``(B, r)``."""
    # Centred before the product: a mean far from the origin would cancel with lost digits after.
    offset = hidden.float() if center is None else hidden.float() - center.float()
    found = (offset @ right.float()).mul_(number)
    return found if by_row is None else found.mul_(by_row[:, None])


def _subtract(x: Tensor, coefficients: Tensor, left: Tensor) -> None:
    """``x -= coefficients @ left^T``. In one product where nothing needs a float32 copy."""
    plain = x.dtype == left.dtype == torch.float32
    width = x.shape[1]
    size = width if plain else max(LEAST_COLUMNS, CHUNK // max(len(x), 1))
    for first in range(0, width, size):
        part = x[:, first : first + size]
        columns = left[first : first + size].float().T
        part.copy_(part.float().addmm_(coefficients, columns, alpha=-1))


def number_or_rows(
    name: str, value: Tensor | float, rows: int, device: torch.device
) -> tuple[float, Tensor | None]:
    """``value`` as a factor for all rows, and one for each row ``(rows,)`` or None.

    A number costs no launch this way. Values on a GPU stay unread: reading would wait for it.

    Raises:
        ValueError: for a tensor that does not fit, or a NaN or infinity.
    """
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return float(value), None
    by_row = per_row(name, value, rows, torch.float32, device)
    if by_row.is_cpu and not bool(by_row.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {by_row.tolist()}")
    return 1.0, by_row


def check_in_place(name: str, x: Tensor) -> None:
    """Raises ValueError if rows of ``x`` ``(..., W)`` share memory, as those of an expanded one."""
    spaces = [space for space, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    if spaces and min(spaces) < x.shape[-1]:
        raise ValueError(
            f"{name} is written in place and its rows overlap, got shape {tuple(x.shape)} with "
            f"strides {x.stride()}; call .contiguous() first"
        )


def _check_factors(
    x: Tensor, hidden: Tensor, left: Tensor, right: Tensor, center: Tensor | None
) -> None:
    """Raises ValueError unless the factors fit ``x`` ``(R, W)`` and ``hidden`` ``(R, D)``."""
    rank = left.shape[-1] if left.ndim else 0
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(
            f"left must have 1 to {MOST_RANK} directions, got shape {tuple(left.shape)}"
        )
    width = hidden.shape[1]
    fits: list[tuple[str, Tensor, tuple[int, ...]]] = [
        ("hidden", hidden, (len(x), width)),
        ("left", left, (x.shape[1], rank)),
        ("right", right, (width, rank)),
    ]
    if center is not None:
        fits.append(("center", center, (width,)))
    for name, tensor, shape in fits:
        if tensor.shape != shape or tensor.dtype not in FLOATS or tensor.device != x.device:
            raise ValueError(
                f"{name} must be {shape} in float32, float16 or bfloat16 on {x.device}, got "
                f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
            )
