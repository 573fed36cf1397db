"""A log-linear mixture of models: ``z = sum_k w_k x_k`` (DExperts, Liu et al. 2021, equation 2).

DExperts is ``(base, expert, antiexpert)`` with weights ``(1, alpha, -alpha)``; proxy tuning and
contrastive decoding are others. No model's normaliser is ever computed: it adds the same to every
token. The mask is the base's, taken before mixing, as in DExperts' section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from plugalign.kernels import steer
from plugalign.kernels.backend import Backend
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.truncation import Truncation


def loglinear_sample(
    sources: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    temperature: Tensor | float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Draws one token for each row of the mixture.

    Args:
        sources: logits ``(B, V)`` of each model, the base first.
        weights: one for each source, or float32 ``(B, K)``.
        seed, prompt, sample, step, temperature: as for `plugalign.kernels.gumbel.sample`.
        top_p, top_k, min_p: which of the base's tokens stay possible, all of them jointly.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        Token ids ``(B,)`` int64; -1 for a row without an answer.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    return steer.sample(
        Mixture(tuple(sources), weights), seed=seed, prompt=prompt, sample=sample, step=step,
        temperature=temperature, before=Truncation(top_p, top_k, min_p, joint=True),
        backend=backend,
    )  # fmt: skip


def loglinear_scores(
    sources: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """The mixture's log-probabilities, float32 ``(B, V)``, -inf outside the base's mask.

    Arguments and errors are those of `loglinear_sample`; a row without an answer is NaN.
    """
    cut = Truncation(top_p, top_k, min_p, joint=True)
    return steer.scores(Mixture(tuple(sources), weights), before=cut, backend=backend)
