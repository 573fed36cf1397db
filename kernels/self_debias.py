"""Self-debiasing: tokens that a biased prompt makes more probable are damped.

``p'(t) ~ p(t) * max(exp(-decay * d(t)), floor)`` with ``d(t) = max(0, max_k p_k(t) - p(t))``, p the
model itself and p_k the model behind a prompt that describes what is unwanted (Schick et al. 2021,
equations 3 to 5, where several attributes take the largest difference).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from plugalign.kernels import steer
from plugalign.kernels.backend import Backend
from plugalign.kernels.mixture import Decay, Mixture
from plugalign.kernels.truncation import Truncation


def self_debias_sample(
    base: Tensor,
    biased: Sequence[Tensor],
    *,
    seed: int,
    prompt: Tensor,
    sample: Tensor,
    step: Tensor | int,
    decay: float = 50.0,
    floor: float = 0.01,
    temperature: Tensor | float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Draws one token for each row from the debiased model.

    Args:
        base: logits ``(B, V)``.
        biased: logits ``(B, V)`` behind each biased prompt.
        seed, prompt, sample, step, temperature: as for `plugalign.kernels.gumbel.sample`.
        decay: strength lambda, not negative. floor: the smallest factor, in (0, 1].
        top_p, top_k, min_p: which of the base's tokens stay possible, all of them jointly.
        backend: "torch" is the specification; "auto" takes Triton for CUDA tensors.

    Returns:
        Token ids ``(B,)`` int64; -1 for a row without an answer.

    Raises:
        ValueError: for arguments whose shape, dtype, device or value does not fit.
    """
    return steer.sample(
        _mixture(base, biased, decay, floor), seed=seed, prompt=prompt, sample=sample, step=step,
        temperature=temperature, before=Truncation(top_p, top_k, min_p, joint=True),
        backend=backend,
    )  # fmt: skip


def self_debias_scores(
    base: Tensor,
    biased: Sequence[Tensor],
    *,
    decay: float = 50.0,
    floor: float = 0.01,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """The debiased model's log-probabilities, float32 ``(B, V)``, -inf outside the base's mask.

    Arguments and errors are those of `self_debias_sample`; a row without an answer is NaN.
    """
    cut = Truncation(top_p, top_k, min_p, joint=True)
    return steer.scores(_mixture(base, biased, decay, floor), before=cut, backend=backend)


def _mixture(base: Tensor, biased: Sequence[Tensor], decay: float, floor: float) -> Mixture:
    return Mixture((base,), (1.0,), (Decay(tuple(biased), decay, floor),))
