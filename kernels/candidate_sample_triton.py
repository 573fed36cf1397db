# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.candidate_sample` in Triton: one program, and one launch, for all of a row.

The nucleus is checked after the draw, and needs no sort: a candidate is inside if the mass of all
that are better is below the limit. If the winner is outside, so is all that is not better than it,
and the next of the rest is tried.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.calls import CandidateDraw
from plugalign.kernels.gumbel_triton import LN2, NO_TOKEN, noise_of
from plugalign.kernels.launch import Launch
from plugalign.kernels.row_lse_triton import LOG2E
from plugalign.kernels.rows_triton import NEVER

INFINITE = tl.constexpr(float("inf"))


@triton.jit
def noise_at(token, seed, step, prompt, sample, FAST: tl.constexpr):
    """Noise of any tokens [K]: each takes one of its counter's four words."""
    a, b, c, d = tl.philox(seed, token >> 2, step, prompt, sample)
    place = token & 3
    left = tl.where(place == 0, a, b)
    return noise_of(tl.where(place < 2, left, tl.where(place == 2, c, d)), FAST)


@triton.jit
def draw(z, score, token, temperature, top_p):
    """The token with the best score inside the nucleus of z, or NO_TOKEN."""
    best = tl.max(z)
    mass = tl.exp2((z - best) / tl.where(temperature > 0, temperature, 1.0) * LOG2E)
    mass = tl.where(z > NEVER, tl.where(z == best, 1.0, mass), 0.0)
    # The best candidate's mass is 1, so at a limit of 1 or less there is none but itself.
    limit = tl.where(top_p < 1.0, tl.maximum(top_p * tl.sum(mass), 1.0), INFINITE)
    winner = tl.full((), NO_TOKEN, tl.int32)
    better = limit
    while better >= limit:
        wins = (score == tl.max(score)) & (score > NEVER)
        winner = tl.min(tl.where(wins, token, NO_TOKEN))
        own = tl.max(tl.where(token == winner, z, NEVER))
        ahead = (z > own) | ((z == own) & (token < winner))
        better = tl.sum(tl.where(ahead, mass, 0.0))
        better = tl.where(winner == NO_TOKEN, 0.0, better)
        score = tl.where(ahead, score, NEVER)
    return winner


@triton.jit(do_not_specialize=["count", "seed"])
def choose(
    values,
    values_stride,
    ids,
    ids_stride,
    added,
    added_stride,
    count,
    weight,
    temperature,
    top_p,
    seed: tl.int64,
    step,
    prompt,
    sample,
    tokens,
    log_p,
    K: tl.constexpr,
    FAST: tl.constexpr,
):
    """One row's token and log-probabilities. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, K)  # [K]
    value = tl.load(values + row * values_stride + lane, mask=lane < count, other=NEVER)
    value = value.to(tl.float32)
    token = tl.load(ids + row * ids_stride + lane, mask=lane < count, other=0).to(tl.int32)
    extra = tl.load(added + row * added_stride + lane, mask=lane < count, other=0.0)
    strength = tl.load(weight + row)
    shift = tl.where(strength == 0, 0.0, strength * extra.to(tl.float32))
    z = tl.where(value == NEVER, NEVER, value + shift)

    best = tl.max(z)
    total = tl.sum(tl.exp2((z - best) * LOG2E))
    tl.store(log_p + row * count + lane, z - best - tl.log2(total) * LN2, mask=lane < count)

    is_nan = tl.max((z != z).to(tl.int32))
    z = tl.where(is_nan > 0, NEVER, z)
    row_temperature = tl.load(temperature + row)
    noise = tl.zeros((K,), tl.float32)
    if row_temperature > 0:  # a greedy row pays for no noise
        now = tl.load(step + row).to(tl.uint32)
        which = tl.load(prompt + row).to(tl.uint32)
        copy = tl.load(sample + row).to(tl.uint32)
        noise = noise_at(token, seed, now, which, copy, FAST)
    winner = draw(z, z + row_temperature * noise, token, row_temperature, tl.load(top_p + row))
    tl.store(tokens + row, tl.where(winner == NO_TOKEN, -1, winner).to(tl.int64))


def candidate_sample_triton(call: CandidateDraw) -> tuple[Tensor, Tensor]:
    """`plugalign.kernels.candidate_sample.candidate_sample` on checked arguments."""
    tokens = torch.empty_like(call.prompt)
    log_p = torch.empty(call.values.shape, dtype=torch.float32, device=call.values.device)
    with torch.cuda.device_of(call.values):  # type: ignore[no-untyped-call]
        for launch in plan(call, tokens, log_p):
            launch.run()
    return tokens, log_p


def plan(
    call: CandidateDraw, tokens: Tensor, log_p: Tensor, *, fast: bool | None = None
) -> list[Launch]:
    """The launch that writes ``tokens`` ``(B,)`` and ``log_p`` ``(B, K)``.

    Args:
        fast: the GPU's own logarithm and fused operations, the default on NVIDIA's GPUs; without,
            scores equal the torch reference's bit for bit.
    """
    rows, count = call.values.shape
    if fast is None:
        fast = call.values.device.type == "cuda" and torch.version.hip is None
    most = max(16, triton.next_power_of_2(count))
    chosen = vars(call) | {
        "seed": call.seed - 2**64 if call.seed >= 2**63 else call.seed,
        "values_stride": call.values.stride(0),
        "ids_stride": call.ids.stride(0),
        "added_stride": call.added.stride(0),
        "count": count,
        "tokens": tokens,
        "log_p": log_p,
        "K": most,
        "FAST": fast,
    }
    return [Launch(choose, (rows,), chosen, max(1, min(8, most // 64)), fast)]
