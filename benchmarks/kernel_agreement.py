"""How far an operation agrees with its torch reference and with the eager formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import Case
from kernel_operations import Call, Operation
from kernel_report import Result
from torch import Tensor

from plugalign.kernels.backend import Backend

LEAST_EQUAL = 0.95  # tokens: scores a rounding error apart may change places
LARGEST_GAP = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}


def correctness(
    operation: Operation, case: Callable[[], Case], backend: Backend = "auto"
) -> Result:
    """How far the operation agrees with its torch reference and, where that is not random, with the
    eager formula."""

    def fresh() -> Call:
        # Equal seeds give equal inputs, and who writes in place gets its own.
        return operation.build(case())

    ours, limit = fresh().ours(backend), LARGEST_GAP[case().dtype]
    equal, gap = agreement(ours, fresh().ours("torch"))
    found = {"equal_to_twin": equal, "gap_to_twin": gap}
    if not operation.draws:
        alike = operation.alike
        same, apart = agreement(alike(ours), alike(operation.eager(*fresh().eager)))
        found |= {"equal_to_eager": same, "gap_to_eager": apart}
        gap = max(gap, apart)
    return found | {"wrong": equal < LEAST_EQUAL or gap > limit}


def agreement(ours: Any, other: Any) -> tuple[float, float]:
    """The least share of equal entries in a result, and the largest gap between finite numbers,
    relative to the largest of them; infinite where a NaN is.

    Finite numbers may differ, and shares are of those: of a nucleus, not of all that it leaves out.
    """
    equal, gap = 1.0, 0.0
    for a, b in zip(_tensors(ours), _tensors(other), strict=True):
        x, y = a.double(), b.double()
        finite = x.isfinite() & y.isfinite()
        differ = (x != y) if not a.is_floating_point() else (x != y) & ~finite
        equal = min(equal, 1 - float(differ.sum() / y.isfinite().sum().clamp_min(1)))
        if a.is_floating_point():
            scale = y.masked_fill(~finite, 0.0).abs().amax().clamp_min(1.0)
            apart = (x - y).masked_fill(~finite, 0.0).abs().amax() / scale
            broken = bool((x.isnan() | y.isnan()).any())
            gap = max(gap, math.inf if broken else float(apart))
    return equal, gap


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
