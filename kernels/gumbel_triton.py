# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Gumbel-max sampling in Triton: a sweep over the logits, then a merge of the sweep's parts.

`plugalign.kernels.gumbel` is the specification. A tile is [T, W], and the W entries of a line are
one thread's, so four words of one counter stay in one thread, and nothing crosses threads before
the sweep is over. Arithmetic is float32 right after each load; row offsets are int64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import MOST_PARTS, Launch, split, tiling
from plugalign.kernels.rows_triton import NEVER, logits_at

TILE = 2048
WARPS = 8

LN2 = tl.constexpr(0.6931471805599453)
NO_TOKEN = tl.constexpr(0x7FFFFFFF)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)


@triton.jit
def log2_of(x, FAST: tl.constexpr):
    """log2 of positive normal floats: one instruction, or the operations of the torch reference."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - SQRT_HALF_BITS) >> 23
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        s = tl.div_rn(m - 1.0, m + 1.0)
        z = s * s
        tail = 2 / 3 + z * (2 / 5 + z * (2 / 7 + z * (2 / 9)))
        return s * (2.0 + z * tail) * (1 / LN2) + exponent.to(tl.float32)


@triton.jit
def noise_of(words, FAST: tl.constexpr):
    """Gumbel noise of random words."""
    u = tl.minimum(words.to(tl.float32) * 2.0**-32 + 2.0**-33, 1 - 2.0**-24)
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    exponential = tl.where(u < 1 / 64, series, log2_of(1.0 - u, FAST) * -LN2)
    return log2_of(exponential, FAST) * -LN2


@triton.jit
def tile_noise(
    tile, seed, step, prompt, sample, T: tl.constexpr, W: tl.constexpr, FAST: tl.constexpr
):
    """Noise [T, W] of the tokens of one tile."""
    block = tile * (T * W // 4) + tl.arange(0, T)[:, None] * (W // 4)
    block += tl.arange(0, W // 4)[None, :]  # [T, W / 4]
    a, b, c, d = tl.philox(seed, block, step, prompt, sample)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (T, W))
    return noise_of(words, FAST)


# Sizes and seeds come in all values: specialising on 1 or on multiples of 16 would only recompile.
@triton.jit(do_not_specialize=["vocab", "seed", "tiles"])
def sweep(
    logits,
    stride,
    vocab,
    bound,
    temperature,
    seed: tl.int64,
    step,
    prompt,
    sample,
    part_score,
    part_token,
    tiles,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """The best score of one part of a row and its token. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row_temperature = tl.load(temperature + row)
    now = tl.load(step + row).to(tl.uint32)
    which = tl.load(prompt + row).to(tl.uint32)
    copy = tl.load(sample + row).to(tl.uint32)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    best = tl.full((T, W), NEVER, tl.float32)
    best_tile = tl.full((T, W), -1, tl.int32)
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        score = logits_at(logits + row * stride, token, vocab, bound, ROWS)
        if row_temperature > 0:  # a greedy row pays for no noise
            score += row_temperature * tile_noise(tile, seed, now, which, copy, T, W, FAST)
        best_tile = tl.where(score > best, tile, best_tile)
        best = tl.maximum(best, score, propagate_nan=tl.PropagateNan.ALL)
    # A NaN leaves as the best score there is, with the smallest token: -1.
    is_nan = best != best
    best = tl.where(is_nan, float("inf"), best)
    token = tl.where(is_nan | (best_tile < 0), -1, best_tile * (T * W) + lane)
    top = tl.max(best)
    slot = row * tl.num_programs(1) + part
    tl.store(part_score + slot, top)
    tl.store(part_token + slot, tl.min(tl.where(best == top, token, NO_TOKEN)))


@triton.jit(do_not_specialize=["parts"])
def merge(part_score, part_token, tokens, parts, PARTS: tl.constexpr):
    """The best part of each row, the smaller token among equals. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)  # [PARTS]
    score = tl.load(part_score + row * parts + part, mask=part < parts, other=NEVER)
    token = tl.load(part_token + row * parts + part, mask=part < parts, other=NO_TOKEN)
    winner = tl.min(tl.where(score == tl.max(score), token, NO_TOKEN))
    tl.store(tokens + row, winner.to(tl.int64))


def sample_triton(
    logits: Tensor, seed: int, prompt: Tensor, sample: Tensor, step: Tensor, temperature: Tensor
) -> Tensor:
    """`plugalign.kernels.gumbel.sample` on checked arguments; all but the seed are ``(B,)``."""
    tokens = prompt.new_empty(len(logits))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        for launch in plan(logits, seed, prompt, sample, step, temperature, tokens):
            launch.run()
    return tokens


def plan(
    logits: Tensor,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor,
    temperature: Tensor,
    tokens: Tensor,
    *,
    tile: int = TILE,
    parts: int | None = None,
    fast: bool | None = None,
) -> list[Launch]:
    """The launches that write ``tokens`` ``(B,)``.

    Args:
        tile, parts: entries of a tile, programs for a row; they change the speed alone.
        fast: the GPU's own logarithm and fused operations, the default on NVIDIA's GPUs; without,
            scores equal the torch reference's bit for bit.
    """
    rows, vocab = logits.shape
    device = logits.device
    if fast is None:
        fast = device.type == "cuda" and torch.version.hip is None
    parts, each = split("gumbel.sweep", triton.cdiv(vocab, tile), rows, device, parts)
    score = temperature.new_empty(rows, parts)
    token = torch.empty_like(score, dtype=torch.int32)
    swept = tiling((logits,), tile) | {
        "logits": logits,
        "stride": logits.stride(0),
        "vocab": vocab,
        "temperature": temperature,
        "seed": seed - 2**64 if seed >= 2**63 else seed,
        "step": step,
        "prompt": prompt,
        "sample": sample,
        "part_score": score,
        "part_token": token,
        "tiles": each,
        "FAST": fast,
    }
    merged = {
        "part_score": score,
        "part_token": token,
        "tokens": tokens,
        "parts": parts,
        "PARTS": MOST_PARTS,
    }
    return [Launch(sweep, (rows, parts), swept, WARPS, fast), Launch(merge, (rows,), merged, 1)]
