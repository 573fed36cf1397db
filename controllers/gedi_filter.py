"""Where GeDi's filter ends: the token with which the mass of tokens, in ascending order of the
desired class's posterior, reaches a goal (Krause et al. 2021, section 3.2).

A GPU sorts the vocabulary; on a CPU that would take longer than all else of a step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIGHT = 1e-3  # the most mass that all light tokens of a row have together
ROUNDING = 1e-9  # more than what rounding does to sums in float64
Row = NDArray[np.float32]
Tokens = NDArray[np.int64]


def reaching(order: Tensor, mass: Tensor, goal: float) -> Tensor:
    """The token of each row with which the mass ``(R, V)`` of tokens, taken in ascending order of
    ``order`` ``(R, V)`` and then of ids, reaches a share of its sum, the goal in [0, 1]: int64
    ``(R, 1)``.
    """
    if not order.is_cpu:
        return reaching_by_sort(order, mass, goal)
    rows = zip(order.detach().numpy(), mass.detach().numpy(), strict=True)
    return torch.tensor([[_reaching(*row, goal)] for row in rows])


def reaching_by_sort(order: Tensor, mass: Tensor, goal: float) -> Tensor:
    """`reaching` in operations that a GPU is quick at."""
    ascending = order.sort(dim=-1, stable=True).indices
    sums = mass.gather(-1, ascending).cumsum(-1)
    return ascending.gather(-1, (sums < goal * sums[:, -1:]).sum(-1, keepdim=True))


def _reaching(order: Row, mass: Row, goal: float) -> int:
    """`reaching` of one row ``(V,)``. Light tokens are many and weigh little together: only if that
    little could decide are all tokens sorted."""
    heavy = np.flatnonzero(mass >= LIGHT / len(mass))
    total = mass.sum(dtype=np.float64)
    left = total - mass[heavy].sum(dtype=np.float64)
    tokens, sums = _ascending(order, mass, heavy)
    place = int(np.searchsorted(sums, goal * total))
    if place < len(sums) and sums[place] - mass[tokens[place]] + left < goal * total - ROUNDING:
        return int(tokens[place])
    tokens, sums = _ascending(order, mass, np.arange(len(mass)))
    return int(tokens[np.searchsorted(sums, goal * sums[-1])])


def _ascending(order: Row, mass: Row, tokens: Tokens) -> tuple[Tokens, NDArray[np.float64]]:
    """Tokens in ascending order, the smaller id first of equals, and their mass so far."""
    bits = (order[tokens] + np.float32(0)).view(np.int32)  # -0 is 0
    places = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # whole numbers in the order of the floats
    keys = (places.astype(np.int64) << 32) | tokens
    keys.sort()  # unlike argsort, vectorised
    tokens = keys & 0xFFFFFFFF
    return tokens, mass[tokens].cumsum(dtype=np.float64)
