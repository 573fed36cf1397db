# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Speculative verification in Triton: four launches, or three where the draft was certain.

`plugalign.kernels.spec_verify` is the specification. With a draft's scores, `weigh` and `accept`
judge its tokens, and `draw` sweeps the one place that each row is left at. Without, all places are
sampled as `plugalign.kernels.gumbel_triton` does, and `follow` compares.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels import gumbel_triton
from plugalign.kernels.calls import BEHIND, RESIDUAL, Verification
from plugalign.kernels.gumbel_triton import LN2, NO_TOKEN, log2_of, tile_noise
from plugalign.kernels.launch import MOST_PARTS, Launch, aligned, prepared, split, tiling
from plugalign.kernels.rows_triton import NEVER, logits_at, values_at
from plugalign.kernels.spec_accept_triton import INF, PLACES, SMALLEST, accept, scale_of, weigh

TILE = 2048
WARPS = 8
ACCEPT_WARPS = 16  # [PLACES, PARTS] entries of several arrays, which fewer would spill

RESIDUAL_OFFSET = tl.constexpr(RESIDUAL)
FAR_BEHIND = tl.constexpr(BEHIND)


@triton.jit(do_not_specialize=["vocab", "seed", "places", "tiles"])
def draw(
    target,
    stride,
    bound,
    draft,
    draft_stride,
    draft_bound,
    lengths,
    accepted,
    temperature,
    draft_temperature,
    seed: tl.int64,
    prompt,
    sample,
    step,
    norm_top,
    norm_inverse,
    part_score,
    part_token,
    vocab,
    places,
    tiles,
    ROWS: tl.constexpr,
    DRAFT_ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """The best score of one part of the place that a row is left at: from the residual where a
    token was rejected, else as `gumbel_triton.sweep` does. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    place = tl.load(accepted + row)
    row_temperature = tl.load(temperature + row)
    now = tl.load(step + row) + place
    which = tl.load(prompt + row).to(tl.uint32)
    copy = tl.load(sample + row).to(tl.uint32)
    scores = target + (row * (places + 1) + place) * stride
    draft_scores = draft + (row * places + place) * draft_stride
    scale, draft_scale = scale_of(row_temperature), scale_of(tl.load(draft_temperature + row))
    rejected = (place < tl.minimum(tl.load(lengths + row), places)) & (row_temperature > 0)
    slot = row * 2 * places + place
    top = tl.load(norm_top + slot, mask=rejected, other=0.0)
    inverse = tl.load(norm_inverse + slot, mask=rejected, other=0.0)
    draft_top = tl.load(norm_top + slot + places, mask=rejected, other=0.0)
    draft_inverse = tl.load(norm_inverse + slot + places, mask=rejected, other=0.0)
    if rejected:
        now += RESIDUAL_OFFSET
        row_temperature = 1.0
    now = now.to(tl.uint32)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    best = tl.full((T, W), NEVER, tl.float32)
    best_tile = tl.full((T, W), -1, tl.int32)
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        x = logits_at(scores, token, vocab, bound, ROWS)
        if rejected:
            y = values_at(draft_scores, token, draft_bound, NEVER, DRAFT_ROWS)
            power = (x - top) * scale
            q = tl.exp2((y - draft_top) * draft_scale) * draft_inverse
            gap = tl.exp2(power) * inverse - q
            some = log2_of(tl.maximum(gap, SMALLEST), FAST) * LN2
            x = tl.where(gap > SMALLEST, some, power * LN2 - FAR_BEHIND)
        score = tl.where(x == INF, float("nan"), x)
        if row_temperature > 0:
            score += row_temperature * tile_noise(tile, seed, now, which, copy, T, W, FAST)
        best_tile = tl.where(score > best, tile, best_tile)
        best = tl.maximum(best, score, propagate_nan=tl.PropagateNan.ALL)
    # A NaN leaves as the best score there is, with the smallest token: -1.
    is_nan = best != best
    best = tl.where(is_nan, INF, best)
    token = tl.where(is_nan | (best_tile < 0), -1, best_tile * (T * W) + lane)
    highest = tl.max(best)
    slot = row * tl.num_programs(1) + part
    tl.store(part_score + slot, highest)
    tl.store(part_token + slot, tl.min(tl.where(best == highest, token, NO_TOKEN)))


@triton.jit(do_not_specialize=["places"])
def follow(target, stride, drawn, tokens, lengths, accepted, following, places):
    """How many drafted tokens are those drawn, and the next of those drawn. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(lengths + row), places)
    stayed = tl.full((), 0, tl.int32)
    for begin in range(0, places, PLACES):
        place = begin + tl.arange(0, PLACES)  # [PLACES]
        judged = place < length
        slot = row * (places + 1) + place
        token = tl.load(drawn + slot, mask=judged, other=-1)
        drafted = tl.load(tokens + row * places + place, mask=judged, other=-1)
        own = tl.load(target + slot * stride + token, mask=token >= 0, other=NEVER).to(tl.float32)
        stays = judged & (token == drafted) & (own < INF)
        failed = tl.min(tl.where(stays, begin + PLACES, place))
        stayed = tl.where(stayed == begin, failed, stayed)
    slot = row * (places + 1) + stayed
    token = tl.load(drawn + slot)
    own = tl.load(target + slot * stride + token, mask=token >= 0, other=NEVER).to(tl.float32)
    tl.store(accepted + row, stayed.to(tl.int64))
    tl.store(following + row, tl.where(own < INF, token, -1))


def spec_verify_triton(call: Verification) -> tuple[Tensor, Tensor]:
    """`plugalign.kernels.spec_verify.spec_verify` on checked arguments."""
    accepted, following = torch.empty_like(call.lengths), torch.empty_like(call.lengths)
    with torch.cuda.device_of(call.target):  # type: ignore[no-untyped-call]
        for launch in plan(call, accepted, following):
            launch.run()
    return accepted, following


def plan(
    call: Verification,
    accepted: Tensor,
    following: Tensor,
    *,
    tile: int = TILE,
    parts: int | None = None,
    fast: bool | None = None,
) -> list[Launch]:
    """The launches that write ``accepted`` and ``following`` ``(B,)``.

    Args:
        tile, parts, fast: as for `plugalign.kernels.gumbel_triton.plan`.
    """
    if fast is None:
        fast = call.target.device.type == "cuda" and torch.version.hip is None
    target = call.target.flatten(0, 1)
    if call.draft is None:
        return _plan_certain(call, target, accepted, following, tile, parts, fast)
    draft = call.draft.flatten(0, 1)
    rows, places = call.tokens.shape
    tiles = triton.cdiv(target.shape[1], tile)
    drafted = tiling((draft,), tile)
    shared = tiling((target,), tile) | {
        "target": target,
        "stride": target.stride(0),
        "draft": draft,
        "draft_stride": draft.stride(0),
        "draft_bound": drafted["bound"],
        "DRAFT_ROWS": drafted["ROWS"],
        "DRAFT_W": drafted["W"],
        "TILE": tile,
        "FAST": fast,
        "vocab": target.shape[1],
        "places": places,
        "PARTS": MOST_PARTS,
        "accepted": accepted,
        **_by_row(call),
    }
    shares, each = split("spec.weigh", tiles, rows * 2 * places, target.device, parts)
    judged = rows * 2 * places  # in the target and in the draft
    top, total = call.temperature.new_empty(2, aligned(judged * shares))
    norm_top, inverse = call.temperature.new_empty(2, aligned(judged))
    shared |= {"part_top": top, "part_sum": total, "norm_top": norm_top, "norm_inverse": inverse}
    judge = shared | {"tiles": each, "parts": shares}
    left, each = split("spec.draw", tiles, rows, target.device, parts)
    score = call.temperature.new_empty(rows, left)
    best = {"part_score": score, "part_token": torch.empty_like(score, dtype=torch.int32)}
    choose = shared | best | {"tiles": each, "parts": left}
    return [
        prepared(weigh, (rows, 2 * places, shares), judge, WARPS),
        # Unfused, so that equal probabilities have the ratio 1.
        prepared(accept, (rows,), judge, ACCEPT_WARPS, fuse=False),
        prepared(draw, (rows, left), choose, WARPS, fast),
        prepared(gumbel_triton.merge, (rows,), choose | {"tokens": following}, 1),
    ]


def _by_row(call: Verification) -> dict[str, Tensor | int]:
    """The seed, and what a call has for each row."""
    return {
        "seed": call.seed - 2**64 if call.seed >= 2**63 else call.seed,
        "tokens": call.tokens,
        "lengths": call.lengths,
        "temperature": call.temperature,
        "draft_temperature": call.draft_temperature,
        "prompt": call.prompt,
        "sample": call.sample,
        "step": call.step,
    }


def _plan_certain(
    call: Verification,
    target: Tensor,
    accepted: Tensor,
    following: Tensor,
    tile: int,
    parts: int | None,
    fast: bool,
) -> list[Launch]:
    """Without a draft's scores: samples every place, and compares."""
    rows, places = call.tokens.shape
    step = call.step[:, None] + torch.arange(places + 1, device=target.device)
    prompt, sample, temperature = (
        x.repeat_interleave(places + 1) for x in (call.prompt, call.sample, call.temperature)
    )
    drawn = torch.empty_like(prompt)
    compared = {
        "target": target,
        "stride": target.stride(0),
        "drawn": drawn,
        "tokens": call.tokens,
        "lengths": call.lengths,
        "accepted": accepted,
        "following": following,
        "places": places,
    }
    sampled = gumbel_triton.plan(
        target,
        call.seed,
        prompt,
        sample,
        step.flatten(),
        temperature,
        drawn,
        tile=tile,
        parts=parts,
        fast=fast,
    )
    return [*sampled, Launch(follow, (rows,), compared, 1)]
