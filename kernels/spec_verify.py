"""Speculative decoding under a controlled target: which drafted tokens stay, and what follows them.

Leviathan et al. 2023, "Fast inference from transformers via speculative decoding", algorithm 1, and
Chen et al. 2023, "Accelerating large language model decoding with speculative sampling",
algorithm 2. A token x drawn from q stays with probability ``min(1, p(x) / q(x))``. The first that
does not is replaced by a draw from ``max(p - q, 0)``, normalised; behind a draft that stays whole
comes a draw from p. The text is then distributed as if each token had been drawn from p.

That is so only if drawing, judging and replacing a token are independent. Their noise follows the
contract of `plugalign.kernels.gumbel`, at the token's step plus an offset for each stream:

* 0, the ordinary noise, draws the draft, and the token behind a draft that stays whole: a step
  has one of the two. So the caller draws the draft by ``sample``, like any token, with the seed,
  prompt and sample given here and the step of its place. Where q equals p nothing is rejected,
  and the text is the one that ``sample`` gives without a draft;
* `ACCEPTANCE`: the uniform of word 0, ``(word + 1/2) / 2**32``, judges the step's drafted token;
* `RESIDUAL`: the Gumbel noise that draws what replaces it.

What was drafted behind a rejected token is forgotten, and its noise used anew: nothing that was
kept depends on it. Neither may the caller's choices: a draft's length may depend on the text and
on the draft before its end, and not on a token that was cut off.

A draft that is no draw (prompt lookup, a greedy model) is a point mass, and p's ordinary draw is
compared with it: they agree with probability p(x), and else it is a draw from p without x. That is
the algorithm, and with it speculation changes no token of a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from plugalign.kernels.backend import FLOATS, Backend, use_triton
from plugalign.kernels.calls import ACCEPTANCE, BEHIND, RESIDUAL, STEPS, TINY, Verification
from plugalign.kernels.gumbel import check_sampling, per_row, sample_torch
from plugalign.kernels.philox import philox4x32


def spec_verify(
    target: Tensor,
    draft: Tensor | None,
    tokens: Tensor,
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    lengths: Tensor | int | None = None,
    temperature: Tensor | float = 1.0,
    draft_temperature: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Verifies G drafted tokens of each row, and draws the token after those that stay.

    A row depends on its own arguments alone, and the Triton backend never waits for the device.
    On a GPU a token outside the vocabulary is rejected, and values of lengths, steps and
    temperatures are not checked.

    Args:
        target: ``(B, G + 1, V)`` in float32, float16 or bfloat16, unnormalised log-scores under
            control at the drafted places and the one behind; -inf outside the support. Each row
            contiguous; Triton takes a copy unless one stride separates all the B (G + 1) rows.
        draft: ``(B, G, V)``, likewise: the scores that the tokens were drawn from, after whatever
            masked them. None where each token was certain, given those before it.
        tokens: int64 ``(B, G)``, what was drafted.
        seed, prompt, sample: the address of a row's noise, as for `plugalign.kernels.gumbel`.
        step: in [0, 2**30 - G), the number of the first drafted token, an int or int64 ``()`` or
            ``(B,)``; each later place has the next number.
        lengths: how many tokens of a row were drafted, G where None; an int or int64 ``()`` or
            ``(B,)``. What stands at later places of tokens and draft is never looked at.
        temperature: p is softmax(target / temperature); not negative, a number or float32 ``()``
            or ``(B,)``. At 0 p is the best token, the smaller id among equals.
        draft_temperature: q is softmax(draft / draft_temperature); above 0. A greedy draft is
            ``draft=None``.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        How many drafted tokens stay, and the token after them, each int64 ``(B,)``. A place whose
        scores, of target or draft, hold a NaN or +inf or nothing but -inf has no answer: there
        verification stops, and the token is -1. Where rounding leaves a rejected token without
        residual, p and q are equal but for rounding, and the token is drawn from p.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    call = _checked(
        target, draft, tokens, seed, prompt, sample, step, lengths, temperature, draft_temperature
    )
    if use_triton(backend, target):
        from plugalign.kernels.spec_verify_triton import spec_verify_triton

        return spec_verify_triton(call)
    return _spec_verify_torch(call)


def _spec_verify_torch(call: Verification) -> tuple[Tensor, Tensor]:
    """The specification. A place is looked at only by rows whose draft has stayed so far."""
    accepted, following = torch.zeros_like(call.lengths), torch.zeros_like(call.lengths)
    rows = torch.arange(len(accepted), device=accepted.device)
    certain = call.temperature == 0 if call.draft is not None else rows >= 0
    _follow(call, rows[certain], accepted, following)
    if call.draft is not None:
        _judge(call, call.draft, rows[~certain], accepted, following)
    return accepted, following


def _follow(call: Verification, rows: Tensor, accepted: Tensor, following: Tensor) -> None:
    """Draws from the target for as long as the draft has foreseen what is drawn."""
    places = torch.arange(call.target.shape[1], device=rows.device)
    foreseen = torch.nn.functional.pad(call.tokens, (0, 1))
    foreseen.masked_fill_(places >= call.lengths[:, None], -2)  # which is never drawn
    for place in range(len(places)):
        if not len(rows):
            return
        temperature, step = call.temperature[rows], call.step[rows] + place
        drawn = _draw(call, rows, call.target[rows, place].float(), step, temperature)
        accepted[rows], following[rows] = place, drawn
        rows = rows[drawn == foreseen[rows, place]]


def _judge(
    call: Verification, draft: Tensor, rows: Tensor, accepted: Tensor, following: Tensor
) -> None:
    """Accepts by the ratio of probabilities, and draws once for each row from what it needs."""
    every, step, temperature = rows, call.step.clone(), call.temperature.clone()
    scores = temperature.new_empty(len(temperature), call.target.shape[2])
    uniforms = _uniforms(call)
    for place in range(call.tokens.shape[1]):
        rows = rows[call.lengths[rows] > place]
        if not len(rows):
            break
        log_p = _log_softmax(call.target[rows, place], call.temperature[rows])
        log_q = _log_softmax(draft[rows, place], call.draft_temperature[rows])
        token = call.tokens[rows, place, None]
        ratio = (log_p.gather(1, token) - log_q.gather(1, token))[:, 0].exp()
        stays = uniforms[rows, place] < ratio
        lost = rows[~stays]
        scores[lost] = _log_residual(log_p[~stays], log_q[~stays])
        step[lost], temperature[lost] = step[lost] + RESIDUAL, 1.0
        rows = rows[stays]
        accepted[rows] += 1
    whole = every[accepted[every] == call.lengths[every]]
    scores[whole] = call.target[whole, accepted[whole]].float()
    step += accepted
    following[every] = _draw(call, every, scores[every], step[every], temperature[every])


def _log_softmax(scores: Tensor, temperature: Tensor) -> Tensor:
    x = scores.float()  # of an indexed copy, which may be overwritten
    x = x.sub_(x.amax(-1, keepdim=True)).div_(temperature[:, None])
    return torch.log_softmax(x, dim=-1)


def _log_residual(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``log max(p - q, 0)``. What has no residual is far behind, and wins if nothing has one."""
    gap = log_p.exp() - log_q.exp()
    none = gap <= TINY
    # Clamped, since the logarithm of a negative number is slow.
    return torch.where(none, log_p - BEHIND, gap.clamp_min_(TINY).log_())


def _uniforms(call: Verification) -> Tensor:
    """What judges each place, ``(B, G)``: below 1, so that what p likes no less than q stays."""
    places = torch.arange(call.tokens.shape[1], device=call.tokens.device)
    step, prompt, sample = (x[:, None] for x in (call.step, call.prompt, call.sample))
    word = philox4x32(0, step + places + ACCEPTANCE, prompt, sample, call.seed)[0]
    return (word.float() * 2.0**-32 + 2.0**-33).clamp_max(1 - 2.0**-24)


def _draw(
    call: Verification, rows: Tensor, scores: Tensor, step: Tensor, temperature: Tensor
) -> Tensor:
    """A token for each of some rows, from scores ``(R, V)``; -1 for no answer."""
    address = torch.stack((step, call.prompt[rows], call.sample[rows]), 1)
    drawn = sample_torch(scores, call.seed, address, temperature)
    best = scores.gather(1, drawn.clamp_min(0)[:, None])[:, 0]
    return drawn.masked_fill_(best == math.inf, -1)


def _checked(
    target: Tensor,
    draft: Tensor | None,
    tokens: Tensor,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    lengths: Tensor | int | None,
    temperature: Tensor | float,
    draft_temperature: Tensor | float,
) -> Verification:
    if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.device != target.device:
        raise ValueError(
            f"tokens must be int64 (B, G) on {target.device}, got {tokens.dtype} "
            f"{tuple(tokens.shape)} on {tokens.device}"
        )
    rows, places = tokens.shape
    vocab, device = target.shape[-1] if target.ndim else 0, tokens.device
    _check_scores("target", target, (rows, places + 1, vocab), device)
    if draft is not None:
        _check_scores("draft", draft, (rows, places, vocab), device)
    lengths = places if lengths is None else lengths
    call = Verification(
        target,
        draft,
        tokens.contiguous(),
        per_row("lengths", lengths, rows, torch.int64, device),
        per_row("prompt", prompt, rows, torch.int64, device),
        per_row("sample", sample, rows, torch.int64, device),
        per_row("step", step, rows, torch.int64, device),
        per_row("temperature", temperature, rows, torch.float32, device),
        per_row("draft_temperature", draft_temperature, rows, torch.float32, device),
        seed,
    )
    check_sampling(seed, temperature)
    rule = "be finite and above 0 (a greedy draft is draft=None)"
    _check_values("draft_temperature", draft_temperature, lambda t: 0 < t < math.inf, rule)
    _check_values("lengths", lengths, lambda n: 0 <= n <= places, f"lie in [0, G = {places}]")
    after = f"lie in [0, 2**30 - G), G = {places}"
    _check_values("step", step, lambda n: 0 <= n < STEPS - places, after)
    if tokens.is_cpu:
        judged = tokens[torch.arange(places) < call.lengths[:, None]]
        _check_values("tokens", judged, lambda t: 0 <= t < vocab, f"lie in [0, V = {vocab})")
    return call


def _check_scores(name: str, scores: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if scores.shape != shape or shape[-1] == 0 or scores.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be {shape} with V >= 1 in float32, float16 or bfloat16, as tokens "
            f"{shape[:1]} and target are, got {tuple(scores.shape)} in {scores.dtype}"
        )
    if scores.device != device or (shape[-1] > 1 and scores.stride(-1) != 1):
        raise ValueError(
            f"each row of {name} must be contiguous and on {device}, got strides "
            f"{scores.stride()} on {scores.device}"
        )


def _check_values(
    name: str, value: Tensor | float, fits: Callable[[float], bool], rule: str
) -> None:
    # Values on a GPU stay unread: reading them would wait for the device.
    known = value.flatten().tolist() if isinstance(value, Tensor) and value.is_cpu else []
    known = [value] if not isinstance(value, Tensor) else known
    if wrong := [v for v in known if not fits(v)]:
        raise ValueError(f"{name} must {rule}, got {wrong[0]}")
