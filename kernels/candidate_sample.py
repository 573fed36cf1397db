"""Drawing one of few candidates, each with a base score and an added one.

FUDGE (Yang and Klein 2021, equation 2) multiplies the base's probability of a candidate by a
classifier's, and RAD (Deng and Raffel 2023) adds a weighted reward to its logit: both are
``z = values + weight * added``, then a softmax over the candidates. The draw takes the noise that
belongs to each candidate's token id, so it is the token that `plugalign.kernels.gumbel.sample`
draws from a full row that has z at the candidates' ids and -inf elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plugalign.kernels.backend import FLOATS, Backend, use_triton
from plugalign.kernels.calls import CandidateDraw
from plugalign.kernels.gumbel import check_sampling, gumbel_noise, per_row

MOST_CANDIDATES = 1024  # what one program of the kernel holds
NO_TOKEN = 2**31 - 1


def candidate_sample(
    values: Tensor,
    ids: Tensor,
    added: Tensor,
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    weight: Tensor | float = 1.0,
    temperature: Tensor | float = 1.0,
    top_p: Tensor | float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Draws one candidate of each row from ``softmax((values + weight * added) / temperature)``.

    Args:
        values: base scores ``(B, K)`` in float32, float16 or bfloat16; -inf marks an empty slot,
            whose id and added score do not matter.
        ids: token ids ``(B, K)`` int64, below 2**31, in any order; no id twice in a row.
        added: log-probabilities or rewards ``(B, K)``, of any of the three dtypes.
        seed: in [0, 2**64).
        prompt, sample: int64 ``(B,)``, which prompt and which of its samples a row belongs to.
        step: the number of the new token, an int or int64 ``()`` or ``(B,)``.
        weight: of ``added``, a finite number or float32 ``()`` or ``(B,)``; 0 ignores ``added``.
        temperature: likewise, not negative; 0 is greedy.
        top_p: likewise, in [0, 1]: draws from the smallest set of best candidates, by z and then
            the smaller id, whose mass in the softmax reaches it; 0 keeps one candidate.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors with at most
            1024 candidates (see `takes_triton`).

    Returns:
        Token ids ``(B,)`` int64, of equal scores the smaller; and the logarithms ``(B, K)`` float32
        of ``softmax(values + weight * added)`` over all candidates, before temperature and top_p.
        A row that has a NaN among its scores, or no candidate above -inf, gives -1 and NaN; one
        whose best score is +inf draws that, and its logarithms are NaN.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    _check_candidates(values, ids, added)
    check_sampling(seed, temperature)
    _check_range("weight", weight, -math.inf, math.inf)
    _check_range("top_p", top_p, 0, 1)
    numbers = {"weight": weight, "temperature": temperature, "top_p": top_p}
    address = {"prompt": prompt, "sample": sample, "step": step}
    rows, device = len(values), values.device
    floats = {k: per_row(k, x, rows, torch.float32, device) for k, x in numbers.items()}
    ints = {k: per_row(k, x, rows, torch.int64, device) for k, x in address.items()}
    call = CandidateDraw(values, ids, added, seed=seed, **floats, **ints)
    if takes_triton(backend, values):
        from plugalign.kernels.candidate_sample_triton import candidate_sample_triton

        return candidate_sample_triton(call)
    return _sample_torch(call)


def takes_triton(backend: Backend, values: Tensor) -> bool:
    """Whether `candidate_sample` runs as a Triton kernel on ``values`` ``(B, K)``.

    Raises:
        ValueError: if the backend is "triton" and cannot run, or K is too large for it.
    """
    if not use_triton(backend, values):
        return False
    fits = values.shape[1] <= MOST_CANDIDATES
    if backend == "triton" and not fits:
        raise ValueError(
            f'backend="triton" takes at most {MOST_CANDIDATES} candidates, got '
            f'{values.shape[1]}; take "auto" or "torch"'
        )
    return fits


def _sample_torch(call: CandidateDraw) -> tuple[Tensor, Tensor]:
    """The specification."""
    ids, weight, temperature = call.ids, call.weight[:, None], call.temperature[:, None]
    values = call.values.float()
    shift = (weight * call.added.float()).masked_fill(weight == 0, 0)
    z = torch.where(values == -math.inf, values, values + shift)
    log_p = torch.log_softmax(z, -1)
    z = z.masked_fill(z.isnan().any(-1, keepdim=True), -math.inf)
    step, prompt, sample = call.step[:, None], call.prompt[:, None], call.sample[:, None]
    scores = z + temperature * gumbel_noise(ids, step, prompt, sample, call.seed)
    if bool((call.top_p < 1).any()):
        scores = scores.masked_fill(~_nucleus(z, ids, temperature, call.top_p[:, None]), -math.inf)
    wins = (scores == scores.amax(-1, keepdim=True)) & (scores > -math.inf)
    token = torch.where(wins, ids, NO_TOKEN).amin(-1)
    return torch.where(token == NO_TOKEN, -1, token), log_p


def _nucleus(z: Tensor, ids: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Which candidates ``(B, K)`` the smallest set of mass ``top_p`` ``(B, 1)`` holds.

    Masses are relative to the best candidate's, which is 1, and never summed but from the best on.
    """
    by_id = ids.argsort(-1)
    order = by_id.gather(-1, z.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True))
    ranked = z.gather(-1, order)
    best = ranked[:, :1]
    # A greedy row takes its best candidate, which any nucleus has.
    mass = ((ranked - best) / temperature.masked_fill(temperature == 0, 1)).exp().double()
    mass = mass.masked_fill(ranked == best, 1)
    reached = mass.cumsum(-1)
    limit = (top_p * reached[:, -1:]).clamp_min(1).masked_fill(top_p == 1, math.inf)
    inside = torch.zeros_like(z, dtype=torch.bool)
    before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], -1)
    return inside.scatter(-1, order, before < limit)


def _check_candidates(values: Tensor, ids: Tensor, added: Tensor) -> None:
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"values must be (B, K) with K >= 1, got {tuple(values.shape)}")
    for name, given in (("values", values), ("ids", ids), ("added", added)):
        dtypes = (torch.int64,) if name == "ids" else FLOATS
        if given.dtype not in dtypes:
            wanted = " or ".join(map(str, dtypes))
            raise ValueError(f"{name} must be in {wanted}, got {given.dtype}")
        if given.shape != values.shape or given.device != values.device:
            raise ValueError(
                f"{name} must be {tuple(values.shape)} on {values.device} like values, got "
                f"{tuple(given.shape)} on {given.device}"
            )
        if given.shape[1] > 1 and given.stride(1) != 1:
            raise ValueError(
                f"each row of {name} must be contiguous, got strides {given.stride()}; "
                "call .contiguous() first"
            )


def _check_range(name: str, value: Tensor | float, least: float, most: float) -> None:
    # Values on a GPU stay unread: reading them would wait for the device.
    known = value.flatten().tolist() if isinstance(value, Tensor) and value.is_cpu else []
    known = [value] if not isinstance(value, Tensor) else known
    if wrong := [x for x in known if not (least <= x <= most and math.isfinite(x))]:
        raise ValueError(f"{name} must be finite, from {least} to {most}, got {wrong[0]}")
