"""Sampling a token by the Gumbel-max trick, with noise that has an address.

``argmax(logits / T + g)`` with Gumbel noise ``g`` is a draw from ``softmax(logits / T)`` (Maddison
et al. 2014, "A* sampling", section 2). Here the noise of a token is a pure function of (seed,
prompt, sample, step, token id), so two runs with one seed are *coupled*: they part only where the
logits made them. The contract, the same on a CPU, in Triton's interpreter and on a GPU:

* word ``t % 4`` of Philox4x32-10 with key ``seed`` and counter ``(t // 4, step, prompt, sample)``
  belongs to token ``t``;
* ``u = (word + 1/2) / 2**32``, and the noise is ``-log(-log(1 - u))``. The largest noise decides a
  draw, and in this flipped form it comes from the smallest u, where float32 resolves 2**-33: the
  noise reaches 22.9. The usual ``-log(-log(u))`` would stop at 16.6, and rare tokens would never
  be drawn;
* the score is ``logits + T * noise`` in float32, which never divides and is greedy at T = 0; of
  equal scores the smaller id wins.

Words are equal bit for bit everywhere. So are noise and scores on CPUs and in the interpreter,
because every operation is one that IEEE 754 rounds in one way only. A GPU's approximate logarithm
moves the noise by less than 2e-5 (from the error PTX states for lg2.approx, 2**-22).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from plugalign.kernels.backend import Backend, check_logits, use_triton
from plugalign.kernels.philox import WORD, check_seed, philox4x32, rounds

LN2 = math.log(2)
SQRT_HALF_BITS = 0x3F3504F3
MOST_NOISE, LEAST_NOISE = 22.9, -2.9
SLACK = 1e-3  # more than the rounding errors of a bound on the noise
CHUNK = 2**16  # entries whose intermediate results fit a core's cache


def gumbel_noise(
    tokens: Tensor, step: Tensor | int, prompt: Tensor | int, sample: Tensor | int, seed: int
) -> Tensor:
    """Gumbel noise of token ids under their addresses, elementwise; the arguments broadcast.

    Use it where few tokens stay possible: ``argmax(logits + T * noise)`` over those is the token
    that `sample` draws from logits with all others at -inf.

    Args:
        tokens: token ids, an integer tensor of any shape.
        step, prompt, sample: the rest of the address, taken modulo 2**32.
        seed: in [0, 2**64).

    Returns:
        float32 of the broadcast shape, between -2.9 and 22.9.
    """
    if tokens.is_cpu:
        return _noise_on_cpu(tokens, (step, prompt, sample), seed)
    words = torch.stack(philox4x32(tokens >> 2, step, prompt, sample, seed))
    place = (tokens & 3).to(torch.int64).expand(words.shape[1:])
    return noise_of(words.gather(0, place[None])[0])


def _noise_on_cpu(tokens: Tensor, address: tuple[Tensor | int, ...], seed: int) -> Tensor:
    """`gumbel_noise` in operations of NumPy: a small one costs a third of torch's."""
    check_seed(seed)
    token = np.atleast_1d(tokens.numpy())
    rest = [np.atleast_1d(np.asarray(x)).astype(np.int64) & WORD for x in address]
    words = rounds([(token >> 2).astype(np.int64) & WORD, *rest], seed)
    # Only one of a counter's four words is asked for; np.choose would take as long as the rounds.
    odd, late = (token & 1).astype(bool), (token & 2).astype(bool)
    word = np.where(late, np.where(odd, words[3], words[2]), np.where(odd, words[1], words[0]))
    u = np.float32(2.0**-32) * word.astype(np.float32) + np.float32(2.0**-33)
    found = _noise(np.minimum(u, np.float32(1 - 2.0**-24)), np, np.int32, np.float32)
    shape = np.broadcast_shapes(tokens.shape, *(np.shape(x) for x in address))
    return torch.from_numpy(found).view(shape)


def noise_of(words: Tensor) -> Tensor:
    """Gumbel noise in float32 of random 32-bit words (int64)."""
    u = _uniform(words.float())
    if u.is_cpu:  # a small operation of NumPy costs a third of torch's
        found = _noise(u.reshape(-1).contiguous().numpy(), np, np.int32, np.float32)
        return torch.from_numpy(found).view(u.shape)
    return cast(Tensor, _noise(u, torch, torch.int32, torch.float32))


def _uniform(words: Tensor) -> Tensor:
    # The largest words round to 2**32, where the noise would be -inf: stay one step below.
    return (words * 2.0**-32 + 2.0**-33).clamp_max(1 - 2.0**-24)


def _noise(u: Any, xp: Any, int32: Any, float32: Any) -> Any:
    """-log(-log(1 - u)) of float32 arrays of NumPy or torch (``xp``)."""
    # -log(1 - u): near zero 1 - u has lost u's digits, and four terms of the series have not.
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    exponential = xp.where(u < 1 / 64, series, _log2(1 - u, int32, float32) * -LN2)
    return _log2(exponential, int32, float32) * -LN2


def _log2(x: Any, int32: Any, float32: Any) -> Any:
    """log2 of positive normal float32, rounded alike on every machine.

    A library's logarithm differs between machines, and even between places in one vector. Sums,
    products and quotients do not. With x = m * 2**e and s = (m - 1) / (m + 1), which is below
    0.172, log(m) = 2 artanh(s) = 2 (s + s**3 / 3 + s**5 / 5 + ...).
    """
    bits = x.view(int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).view(float32)
    s = (m - 1) / (m + 1)
    z = s * s
    tail = 2 / 3 + z * (2 / 5 + z * (2 / 7 + z * (2 / 9)))
    whole = exponent.astype(float32) if hasattr(exponent, "astype") else exponent.to(float32)
    return s * (2 + z * tail) * (1 / LN2) + whole


def sample(
    logits: Tensor,
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    temperature: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Draws one token for each row of ``logits``.

    A row's token depends on its logits, temperature and address alone, whatever the other rows.
    The Triton backend never waits for the device; with ``step`` and ``temperature`` as tensors it
    can be captured in a CUDA graph.

    Args:
        logits: ``(B, V)`` in float32, float16 or bfloat16; each row contiguous, any row stride.
        seed: in [0, 2**64).
        prompt, sample: int64 ``(B,)``, which prompt and which of its samples a row belongs to.
        step: the number of the new token, an int or int64 ``()`` or ``(B,)``.
        temperature: not negative, a number or float32 ``()`` or ``(B,)``; 0 is greedy.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        Token ids ``(B,)`` int64. A token at -inf is never drawn. A row that holds a NaN, or
        nothing but -inf, has no answer and gives -1, which no embedding takes for a token.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    check_logits(logits)
    check_sampling(seed, temperature)
    rows, device = logits.shape[0], logits.device
    prompt = per_row("prompt", prompt, rows, torch.int64, device)
    sample = per_row("sample", sample, rows, torch.int64, device)
    step = per_row("step", step, rows, torch.int64, device)
    temperature = per_row("temperature", temperature, rows, torch.float32, device)
    if use_triton(backend, logits):
        from plugalign.kernels.gumbel_triton import sample_triton

        return sample_triton(logits, seed, prompt, sample, step, temperature)
    return sample_torch(logits, seed, torch.stack((step, prompt, sample), 1), temperature)


def sample_torch(logits: Tensor, seed: int, address: Tensor, temperature: Tensor) -> Tensor:
    """The specification; ``address`` is ``(B, 3)``. Exact noise only for the few that can win."""
    size = max(1, CHUNK // logits.shape[1])
    found = [
        _contenders(logits[i : i + size], seed, address[i : i + size], temperature[i : i + size])
        for i in range(0, max(len(logits), 1), size)
    ]
    row = torch.cat([rows + i * size for i, (rows, _, _) in enumerate(found)])
    token = torch.cat([tokens for _, tokens, _ in found])
    step, prompt, sample = address[row].unbind(1)
    noise = gumbel_noise(token, step, prompt, sample, seed)
    scores = torch.cat([x for _, _, x in found]) + temperature[row] * noise
    return argmax_by_row(scores, row, token, len(logits))


def _contenders(
    logits: Tensor, seed: int, address: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, token and logit of every token that can win its row; none for a row without answer.

    A token is left out if its score with more noise than it has stays below a score that its row
    surely reaches. Rounding is monotonic, so the bounds hold for the rounded scores too.
    """
    x, temperature = logits.float(), temperature[:, None]
    top = x.amax(-1, keepdim=True)
    floor = top.masked_fill(top == -math.inf, math.nan) + temperature * LEAST_NOISE
    can_win = x + temperature * MOST_NOISE >= floor
    if 4 * int(can_win.count_nonzero()) > can_win.numel():
        u = _uniforms(x.shape[1], seed, address)
        ceiling = x + temperature * _noise_ceiling(u)
        leader = ceiling.argmax(-1, keepdim=True)
        noise = -torch.log(-torch.log1p(-u.gather(1, leader).double())) - SLACK
        can_win = ceiling >= torch.maximum(floor, x.gather(1, leader) + temperature * noise.float())
    row, token = can_win.nonzero(as_tuple=True)
    return row, token, x[row, token]


def _uniforms(vocab: int, seed: int, address: Tensor) -> Tensor:
    """The uniforms ``(B, V)`` of all tokens of some rows."""
    blocks = torch.arange(-(-vocab // 4), device=address.device)
    words = torch.empty(len(address), len(blocks), 4, device=address.device)
    step, prompt, sample = address.T[..., None]
    for place, found in enumerate(philox4x32(blocks, step, prompt, sample, seed)):
        words[..., place] = found
    return _uniform(words).flatten(1)[:, :vocab]


def _noise_ceiling(u: Tensor) -> Tensor:
    """An upper bound of the noise from its uniforms, without a logarithm.

    The noise is below -log(u), and the bits of a float, read as an integer, interpolate its log2
    piecewise linearly from below.
    """
    log2_u = u.view(torch.int32).float().mul_(2.0**-23).sub_(127)
    return log2_u.mul_(-LN2).add_(SLACK)


def argmax_by_row(scores: Tensor, row: Tensor, token: Tensor, rows: int) -> Tensor:
    """Per row the token with the best score, the smaller id among equals; -1 for no token, and
    where a score is NaN. Entries stand in the order of (row, token)."""
    if scores.is_cpu:
        return _argmax_on_cpu(scores, row, token, rows)
    best = scores.new_full((rows,), -math.inf).scatter_reduce(0, row, scores, "amax")
    wins = scores == best[row]
    winner = token.new_full((rows,), -1)
    return winner.scatter_reduce(0, row[wins], token[wins], "amin", include_self=False)


def _argmax_on_cpu(scores: Tensor, row: Tensor, token: Tensor, rows: int) -> Tensor:
    values, winner = scores.detach().numpy(), np.full(rows, -1)
    ends = np.searchsorted(row.numpy(), np.arange(rows), side="right").tolist()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end:
            place = start + int(values[start:end].argmax())  # of equals the first, or a NaN
            if not np.isnan(values[place]):
                winner[number] = token[place]
    return torch.from_numpy(winner)


def check_sampling(seed: int, temperature: Tensor | float) -> None:
    """Raises ValueError for a seed or temperature out of its range."""
    check_seed(seed)
    # Values on a GPU stay unread: reading them would wait for the device.
    known: list[Any] = [temperature]
    if isinstance(temperature, Tensor):
        known = temperature.flatten().tolist() if temperature.is_cpu else []
    if wrong := [t for t in known if not (isinstance(t, Real) and 0 <= float(t) < math.inf)]:
        raise ValueError(f"temperature must be finite and not negative, got {wrong[0]!r}")


def per_row(
    name: str, value: Tensor | float, rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``value`` as ``(B,)``, or a ValueError that says what does not fit."""
    wanted = f"{name} must be a number or {dtype} of shape ({rows},) on {device}"
    if isinstance(value, Real):
        return torch.full((rows,), value, dtype=dtype, device=device)
    if not isinstance(value, Tensor):
        raise ValueError(f"{wanted}, got {value!r}")
    if value.dtype != dtype or value.device != device or value.shape not in ((), (rows,)):
        raise ValueError(f"{wanted}, got {value.dtype} {tuple(value.shape)} on {value.device}")
    return value.expand(rows).contiguous()
