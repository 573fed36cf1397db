"""Half precision factors, a float32 product."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.functional import linear

from plugalign.kernels import product as module
from plugalign.kernels.head import Head
from plugalign.kernels.product import (
    can_pack,
    float32_product,
    one_row,
    pack,
    packed_product,
)


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


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(2, 16), (8, 1, 48), (40, 3, 7)])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_packed_weight_gives_the_product(shape, biased, traced, dtype):
    x, weight, bias = layer(shape, outputs=37, dtype=dtype)
    if not can_pack(weight):
        pytest.skip(f"oneDNN is no quicker in {dtype} here")
    packed, own, product = pack(weight, shape[0]), bias if biased else None, packed_product
    if traced:
        product = torch.jit.trace(lambda *a: packed_product(*a, own), (x, packed))
        got = product(x, packed)
    else:
        got = product(x, packed, own)
    want = linear(x.double(), weight.double(), None if own is None else own.double())
    assert got.shape == want.shape and got.dtype == x.dtype
    size = want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2 * torch.finfo(x.dtype).eps * size)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(2, 16), (40, 7), (64, 512)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_head_with_a_packed_weight_gives_float32_logits(shape, biased, dtype):
    x, weight, bias = layer(shape, outputs=37, dtype=dtype)
    if not can_pack(weight):
        pytest.skip(f"oneDNN is no quicker in {dtype} here")
    bias[5] = -torch.inf  # a token that is never drawn
    own = bias if biased else None
    got = Head(x, weight, own, float32=True, packed=pack(weight, shape[0])).full()
    want = linear(x.double(), weight.double(), None if own is None else own.double())
    assert got.shape == want.shape and got.dtype == torch.float32
    bits = torch.finfo(torch.bfloat16).eps ** 2  # each of two roundings leaves half of eps or less
    error = 1e-5 if dtype == torch.bfloat16 else 5e-5  # of 512 sums, of what float32 holds
    torch.testing.assert_close(got.double(), want, rtol=bits / 2, atol=error)


@pytest.mark.parametrize(
    "weight", [torch.zeros(2, 2).half(), torch.zeros(2, 2).double(), torch.zeros(2, 2, 2)]
)
def test_other_weights_cannot_be_packed(weight):
    assert not can_pack(weight)


def test_float32_is_packed_where_it_was_measured(monkeypatch):
    weight = torch.zeros(2, 2)
    for name, wanted in (("AVX512", True), ("AVX2", True), ("DEFAULT", False), ("NEON", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        assert can_pack(weight) == (wanted and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_packed_where_onednn_is_not_wanted(dtype):
    kept, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        assert not can_pack(torch.zeros(2, 2, dtype=dtype))
    finally:
        torch.backends.mkldnn.enabled = kept


def weights(dtype=torch.bfloat16):
    return torch.zeros(2, 2, dtype=dtype)


@pytest.mark.parametrize("before", [True, False])
def test_one_row_leaves_the_process_as_it_was(before):
    setting = torch.backends.mkldnn
    kept, setting.enabled = setting.enabled, before
    try:
        with pytest.raises(KeyError), one_row(1, weights()), one_row(1, weights()):
            assert not setting.enabled
            raise KeyError
        assert setting.enabled is before
    finally:
        setting.enabled = kept


def test_one_row_of_several_threads_ends_with_the_last():
    setting, before = torch.backends.mkldnn, torch.backends.mkldnn.enabled
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_row(1, weights()):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with one_row(1, weights()):
        thread.start()
        inside.wait()
    assert not setting.enabled  # the other is still inside
    leave.set()
    thread.join()
    assert setting.enabled is before


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.bfloat16), (1, torch.float32)])
def test_other_products_are_left_to_torch(rows, dtype):
    before = torch.backends.mkldnn.enabled
    with one_row(rows, weights(dtype)):
        assert torch.backends.mkldnn.enabled is before


def test_a_product_of_one_row_is_the_product():
    x, weight, bias = layer((1, 64), outputs=512, dtype=torch.bfloat16)
    with one_row(1, weight):
        got = linear(x, weight, bias)
    want = linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-6)
