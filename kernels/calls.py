"""Checked arguments of the operations, as their torch form and their Triton kernels get them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Offsets of the steps at which speculative decoding draws its noise, and bounds of its scores;
# `plugalign.kernels.spec_verify` says how they are used.
STEPS = 2**30  # steps lie below, so that the streams never meet
ACCEPTANCE = STEPS
RESIDUAL = 2 * STEPS
BEHIND = 1000.0  # more than any two scores of a residual differ
TINY = 2.0**-126  # the smallest normal float32: log2 takes no less


@dataclass(frozen=True, eq=False)
class Draw:
    """The randomness of a step: an address and a temperature for each row.

    Attributes:
        seed: in [0, 2**64).
        prompt, sample, step: int64 ``(B,)``.
        temperature: float32 ``(B,)``; 0 is greedy.
        greedy: whether all temperatures are known to be 0.
    """

    seed: int
    prompt: Tensor
    sample: Tensor
    step: Tensor
    temperature: Tensor
    greedy: bool = False


@dataclass(frozen=True, eq=False)
class CandidateDraw:
    """Checked arguments of `plugalign.kernels.candidate_sample`.

    Attributes:
        values, added: ``(B, K)``.
        ids: int64 ``(B, K)``.
        weight, temperature, top_p: float32 ``(B,)``.
        prompt, sample, step: int64 ``(B,)``.
        seed: in [0, 2**64).
    """

    values: Tensor
    ids: Tensor
    added: Tensor
    weight: Tensor
    temperature: Tensor
    top_p: Tensor
    prompt: Tensor
    sample: Tensor
    step: Tensor
    seed: int


@dataclass(frozen=True, eq=False)
class BoundedShift:
    """Arguments of `plugalign.kernels.projection`, without gaps in memory; of any type of float.

    Attributes:
        log_rho, delta: ``(R, K)``.
        g: ``(R, J, K)``.
        bounds: ``(R, J)``.
        budget: float64 ``(R,)``.
    """

    log_rho: Tensor
    delta: Tensor
    g: Tensor
    bounds: Tensor
    budget: Tensor


@dataclass(frozen=True, eq=False)
class Verification:
    """Checked arguments of `plugalign.kernels.spec_verify`.

    Attributes:
        target: ``(B, G + 1, V)``.
        draft: ``(B, G, V)``, or None.
        tokens: int64 ``(B, G)``.
        lengths, prompt, sample, step: int64 ``(B,)``.
        temperature, draft_temperature: float32 ``(B,)``.
        seed: in [0, 2**64).
    """

    target: Tensor
    draft: Tensor | None
    tokens: Tensor
    lengths: Tensor
    prompt: Tensor
    sample: Tensor
    step: Tensor
    temperature: Tensor
    draft_temperature: Tensor
    seed: int
