"""A product is that of a linear layer, whoever computes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from plugalign.kernels import product as module
from plugalign.kernels.product import float32_product, product


def layer(shape=(3, 16), outputs=24, dtype=torch.float32):
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(outputs, shape[-1], generator=draw)
    bias = torch.randn(outputs, generator=draw)
    return torch.randn(shape, generator=draw).to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("known", [True, False], ids=["oneDNN", "without"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (0, 16), (33, 1), (2, 200, 128), (7, 5, 3, 40)])
def test_it_is_what_float64_gives(shape, biased, known, monkeypatch):
    if not known:
        monkeypatch.setattr(module, "ONEDNN", None)
    x, weight, bias = layer(shape)
    bias = bias if biased else None
    want = linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        got = product(x, weight, bias)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_pieces_of_larger_tensors():
    x, weight, bias = layer((6, 50), outputs=40)
    left, some = x[::2, :20], weight[3:30, 20:40]
    torch.testing.assert_close(product(left, some, bias[3:30]), linear(left, some, bias[3:30]))


@torch.no_grad()
def test_a_changed_weight_is_seen_and_nothing_is_changed():
    x, weight, _ = layer((64, 32))
    before, given = product(x, weight), x.clone()
    torch.testing.assert_close(product(x, weight.mul_(2)), 2 * before)
    assert torch.equal(x, given)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_torchs(dtype):
    x, weight, bias = layer(dtype=dtype)
    assert torch.equal(product(x, weight, bias), linear(x, weight, bias))


def test_gradients_flow():
    x, weight, bias = layer()
    product(x, weight.requires_grad_(), bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand_as(weight))


@torch.no_grad()
def test_what_is_no_number_stays():
    x, weight, _ = layer()
    x[0], x[1] = torch.nan, torch.inf
    got, want = product(x, weight), linear(x, weight)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


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
