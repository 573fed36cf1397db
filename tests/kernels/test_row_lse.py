"""The rows' normaliser: torch reference against float64, Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from scipy.special import logsumexp

from plugalign.kernels.row_lse import row_lse

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 2, 257, 50257])
def test_equals_float64(vocab, dtype):
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(3, vocab, generator=generator) * 6).to(dtype)
    expected = logsumexp(logits.double().numpy(), axis=-1)
    assert row_lse(logits).double().numpy() == pytest.approx(expected, abs=4e-6)


def test_special_rows():
    rows = torch.tensor([[-INF, -INF], [NAN, 0.0], [INF, 0.0], [-INF, 3.0], [1e4, -1e4]])
    found = row_lse(rows)
    assert torch.equal(
        found.nan_to_num(7.0), torch.tensor([-INF, 7.0, INF, 3.0, 1e4]).nan_to_num(7.0)
    )
    assert row_lse(torch.empty(0, 4)).shape == (0,)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(5), r"logits must be \(B, V\).*got \(5,\)"),
        (torch.zeros(2, 5, dtype=torch.int64), "torch.int64"),
        (torch.zeros(5, 2).T, "call .contiguous"),
    ],
)
def test_bad_input(logits, message):
    with pytest.raises(ValueError, match=message):
        row_lse(logits)
