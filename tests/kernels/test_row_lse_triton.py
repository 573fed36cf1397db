"""The kernel of row_lse against float64, on a GPU or in the interpreter (test_interpreted.py)."""

from __future__ import annotations

import os

import pytest
import torch

from plugalign.kernels.row_lse import row_lse

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernel, warns of the logarithm of an empty row's sum.
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning"),
]

INF, NAN = float("inf"), float("nan")


def run(*sources, **choices):
    """The result of the planned launches, from memory that starts as rubbish."""
    from plugalign.kernels.row_lse_triton import plan

    lse = torch.full((len(sources), len(sources[0])), NAN, device=DEVICE)
    sweep, merge = plan(sources, lse, **choices)
    sweep.arguments["part_top"].fill_(NAN)
    sweep.arguments["part_sum"].fill_(NAN)
    sweep.run()
    merge.run()
    return lse[0] if len(sources) == 1 else lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("vocab", "stride"),
    [(1, 1), (2, 2), (7, 16), (127, 127), (257, 272), (1000, 1003), (50257, 50304)],
)
def test_is_as_close_to_float64_as_the_reference(vocab, stride, dtype):
    generator = torch.Generator().manual_seed(vocab)
    buffer = torch.full((2, stride), NAN, dtype=dtype)
    buffer[:, :vocab] = (torch.randn(2, vocab, generator=generator) * 6).to(dtype)
    logits = buffer.to(DEVICE)[:, :vocab]
    tile = 2**15 if vocab > 10_000 and INTERPRETED else 256
    exact = torch.logsumexp(logits.double(), -1)
    error = (run(logits, tile=tile, parts=2) - exact).abs()
    assert (error <= (row_lse(logits, backend="torch") - exact).abs() + 4e-6).all()


def test_tiles_and_parts_change_the_rounding_alone():
    logits = torch.randn(3, 2003, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 9
    for tile, parts in ((64, 1), (256, 5), (4096, 1)):
        other = run(logits, tile=tile, parts=parts)
        assert torch.allclose(other, row_lse(logits, backend="triton"), rtol=0, atol=4e-6)


def test_special_rows():
    rows = torch.full((6, 300), -INF, device=DEVICE)
    rows[1, 200], rows[2, 100], rows[3, [5, 290]] = (
        NAN,
        INF,
        torch.tensor([INF, NAN], device=DEVICE),
    )
    rows[4, 299], rows[5, :] = 3.0, 3e38
    expected = torch.logsumexp(rows, -1)
    for parts in (1, 4):
        found = run(rows, tile=64, parts=parts)
        assert torch.allclose(found, expected, equal_nan=True)


def test_several_sources_share_the_launches():
    buffer = torch.full((3, 1008), NAN, dtype=torch.bfloat16)
    buffer[:, :1000] = torch.randn(3, 1000).bfloat16() * 5
    sources = (torch.randn(3, 1000).to(DEVICE) * 9, buffer.to(DEVICE)[:, :1000])
    found = run(*sources, tile=256, parts=2)
    for lse, logits in zip(found, sources, strict=True):
        assert torch.allclose(lse, row_lse(logits, backend="torch"), rtol=0, atol=4e-6)
