"""Half precision factors, a float32 product."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from plugalign.kernels import product as module
from plugalign.kernels.product import float32_product


def layer(shape=(3, 16), outputs=24, dtype=torch.float32):
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(outputs, shape[-1], generator=draw)
    bias = torch.randn(outputs, generator=draw)
    return torch.randn(shape, generator=draw).to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_a_float32_product_is_not_rounded_to_half_precision(dtype, biased, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 160)  # ten rows at a time
    x, weight, bias = layer(outputs=37, dtype=dtype)
    with torch.no_grad():
        got = float32_product(x, weight, bias if biased else None)
    want = linear(x.double(), weight.double(), bias.double() if biased else None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
