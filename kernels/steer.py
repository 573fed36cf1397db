"""From the sources' logits to a token, or to log-probabilities: the one entry of the hot path.

    p(t) ~ exp(z(t) / T)    on the tokens that ``before`` keeps of the base model
                            and ``after`` keeps of softmax(z / T)

with z from `plugalign.kernels.mixture`. A call is planned into as few Triton launches as its terms
allow, or runs as the torch reference in this file, which is the specification; `explain` says
which. Neither the kernels nor the reference on a CPU sort a vocabulary. They add up masses in
float32 or better and in different orders: a token whose mass above is within about 1e-6 of top-p
may fall either way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from plugalign.kernels.backend import Backend, use_triton
from plugalign.kernels.calls import Draw
from plugalign.kernels.candidate_sample import MOST_CANDIDATES
from plugalign.kernels.gumbel import (
    argmax_by_row,
    check_sampling,
    gumbel_noise,
    per_row,
    sample_torch,
)
from plugalign.kernels.mixture import NEVER, Mixture, mix, mix_at
from plugalign.kernels.truncation import (
    EVERYTHING,
    Truncation,
    kept_entries,
    kept_mask,
    kept_tokens,
)

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e30  # temperatures beyond which float32 overflows


def sample(
    mixture: Mixture,
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    temperature: Tensor | float = 1.0,
    before: Truncation = EVERYTHING,
    after: Truncation = EVERYTHING,
    backend: Backend = "auto",
) -> Tensor:
    """Draws one token for each row of a mixture, by Gumbel-max with addressed noise.

    The noise is that of `plugalign.kernels.gumbel`, so the token is the one which that module
    draws from z with everything else at -inf.

    Args:
        mixture: the terms of z ``(B, V)``.
        seed, prompt, sample, step, temperature: as for `plugalign.kernels.gumbel.sample`.
        before: which tokens of the base's distribution (at temperature 1) stay possible.
        after: which of the mixture's at ``temperature`` do; greedy rows need none.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        Token ids ``(B,)`` int64. A row whose possible tokens include a NaN or +inf, or that has
        none, gives -1.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    rows, device = len(mixture.base), mixture.base.device
    check_sampling(seed, temperature)
    draw = Draw(
        seed,
        per_row("prompt", prompt, rows, torch.int64, device),
        per_row("sample", sample, rows, torch.int64, device),
        per_row("step", step, rows, torch.int64, device),
        per_row("temperature", temperature, rows, torch.float32, device),
        greedy=not isinstance(temperature, Tensor) and temperature == 0,
    )
    if use_triton(backend, mixture.base) and not unfused(before, after):
        from plugalign.kernels.steer_triton import sample_triton

        return sample_triton(mixture, draw, before, after)
    return _sample_torch(mixture, draw, before, after)


def scores(
    mixture: Mixture, *, before: Truncation = EVERYTHING, backend: Backend = "auto"
) -> Tensor:
    """The steered log-probabilities, for callers that sample by themselves (a ``LogitsProcessor``).

    Args:
        mixture: the terms of z ``(B, V)``.
        before: which tokens of the base's distribution stay possible.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        ``log softmax(z)`` over the possible tokens, -inf elsewhere, float32 ``(B, V)``. A row
        without an answer (see `sample`) is NaN throughout.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    if use_triton(backend, mixture.base) and not unfused(before, EVERYTHING):
        from plugalign.kernels.scores_triton import scores_triton

        return scores_triton(mixture, before)
    if before.keeps_all(mixture.base.shape[1]):
        return torch.log_softmax(mix(mixture), dim=-1)
    row, token = kept_entries(mixture.base, before)
    value = mix_at(mixture, row, token)
    rows = len(mixture.base)
    lse = _lse_by_row(value, row, rows)
    # A row that kept nothing has lse = -inf, and -inf - -inf is the NaN that it shall be.
    found = torch.full(mixture.base.shape, NEVER, device=value.device) - lse[:, None]
    found.view(-1)[row * found.shape[1] + token] = value - lse[row]
    return found


def kept(logits: Tensor, cut: Truncation, *, backend: Backend = "auto") -> Tensor:
    """`plugalign.kernels.truncation.kept_mask`, by Triton where it can: nothing waits for a device.

    Args:
        logits: ``(B, V)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
        cut: which tokens of their distribution stay.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.
    """
    if use_triton(backend, logits) and not unfused(cut, EVERYTHING):
        return scores(Mixture(logits), before=cut, backend=backend).isfinite()
    return kept_mask(logits, cut)


def explain(
    mixture: Mixture,
    *,
    before: Truncation = EVERYTHING,
    after: Truncation = EVERYTHING,
    backend: Backend = "auto",
) -> str:
    """How `sample` would run: the Triton launches it is planned into, or why torch computes it."""
    if use_triton(backend, mixture.base):
        if reason := unfused(before, after):
            return f"torch, because Triton's kernels do not fuse {reason}"
        from plugalign.kernels.steer_triton import launches_of

        return "Triton: " + ", ".join(launches_of(mixture, before, after))
    if backend == "torch":
        return 'torch, because of backend="torch"'
    device = mixture.base.device
    missing = "Triton is not installed" if device.type == "cuda" else f"it runs on {device}"
    return f"torch, because {missing}"


def unfused(before: Truncation, after: Truncation) -> str | None:
    """Which truncations Triton's kernels do not fuse, or None."""
    if before.chained:
        return "top-p of the base's top-k"
    if after.chained and after.top_k > MOST_CANDIDATES:
        return f"top-p of a top-k above {MOST_CANDIDATES}"
    if after.chained and after.min_p > 0:
        return "min-p with top-p of a top-k"
    return None


def _sample_torch(mixture: Mixture, draw: Draw, before: Truncation, after: Truncation) -> Tensor:
    """The specification. With a truncation, only what it keeps is mixed and gets noise."""
    rows, vocab = mixture.base.shape
    if before.keeps_all(vocab) and after.keeps_all(vocab):
        return _sample_everything(mix(mixture), draw)
    # A greedy row has nothing to cut off after mixing: only its best token can win.
    temperature = draw.temperature.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
    if before.keeps_all(vocab):
        z = mix(mixture)
        row, token = kept_entries(z, after, temperature)
        value = z[row, token]  # never infinite: such tokens and rows are not kept
    else:
        row, token = kept_entries(mixture.base, before)
        value = mix_at(mixture, row, token)
        if not after.keeps_all(vocab) and rows:
            kept = _kept_again(value, row, rows, after, temperature)
            row, token, value = row[kept], token[kept], value[kept]
        possible = value != NEVER
        row, token, value = row[possible], token[possible], value[possible]
        value = value.masked_fill(value == math.inf, math.nan)  # no answer, and no winner either
    if not draw.greedy:
        each = slice(None) if rows == 1 else row
        address = (draw.step[each], draw.prompt[each], draw.sample[each])
        noise = gumbel_noise(token, *address, draw.seed)
        value = value + draw.temperature.clamp_max(MAX_TEMPERATURE)[each] * noise
    return argmax_by_row(value, row, token, rows)


def _sample_everything(z: Tensor, draw: Draw) -> Tensor:
    if draw.greedy:
        best, tokens = z.max(-1)  # of equals the first, and a NaN before all
        return tokens.masked_fill_(~best.isfinite(), -1)
    address = torch.stack((draw.step, draw.prompt, draw.sample), 1)
    tokens = sample_torch(z, draw.seed, address, draw.temperature.clamp_max(MAX_TEMPERATURE))
    best = z.gather(1, tokens.clamp_min(0)[:, None])[:, 0]
    return tokens.masked_fill_(best == math.inf, -1)


def _kept_again(
    scores: Tensor, row: Tensor, rows: int, cut: Truncation, temperature: Tensor
) -> Tensor:
    """Places that ``cut`` keeps of the entries ``(N,)`` of each row; ``row`` ascends."""
    ends = np.bincount(row.cpu(), minlength=rows).cumsum()
    parts = np.split(scores.cpu().numpy(), ends[:-1])
    kept = [
        kept_tokens(part, cut, each) + end - len(part)
        for part, end, each in zip(parts, ends, temperature.tolist(), strict=True)
    ]
    return torch.from_numpy(np.concatenate(kept)).to(row.device)


def _lse_by_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """logsumexp ``(B,)`` of the entries ``(N,)`` of each row; -inf for a row without one."""
    top = values.new_full((rows,), NEVER).scatter_reduce(0, row, values, "amax")
    total = values.new_zeros(rows).index_add(0, row, (values - top[row]).exp_())
    return total.log_() + top
