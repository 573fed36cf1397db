"""When the logits of all rows of a batched forward are one product."""

from __future__ import annotations

import pytest
import torch

from plugalign.engine.batching.batched_base import is_cheap
from plugalign.kernels.head import Head


@pytest.mark.parametrize(
    ("rows", "compared", "cheap"), [(32, False, True), (33, False, False), (33, True, True)]
)
def test_many_rows_are_one_product_where_distributions_are_compared(
    rows: int, compared: bool, cheap: bool
) -> None:
    """Otherwise a head of many rows is read at the tokens alone that a truncation keeps."""
    head = Head(torch.zeros(rows, 4), torch.zeros(9, 4), float32=compared)
    assert is_cheap(head) == cheap
