"""What people prefer, as weights of features: a convex model of their choices, and how sure it is.

A text y behind a prompt has the evidence ``Phi(y) = sum_t [phi(y_t) - E_rho phi]``, how much more
of each feature it has than the reference would have put there. Of two texts

    P(y+ > y-) = sigma(theta . (Phi(y+) - Phi(y-)))

which is DPO (Rafailov et al. 2023, equation 6) for the policy ``rho e^(theta . phi)``, linearised
at theta = 0. With a Gaussian prior the posterior is log-concave; its mode and its curvature there
(Laplace's approximation) are the next prior, so feedback may come piece by piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

ROUNDS, HALVINGS = 100, 40
CLOSE = 1e-10  # of the gradient, in units of the prior's


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of theta: a Gaussian.

    Attributes:
        theta: its mean ``(F,)``, float64.
        covariance: ``(F, F)``, float64, positive definite.
    """

    theta: Tensor
    covariance: Tensor

    @property
    def precision(self) -> Tensor:
        return _inverse(self.covariance)

    def standard_errors(self) -> Tensor:
        """Of each weight ``(F,)``."""
        return self.covariance.diagonal().sqrt()

    def fading(self, keep: float) -> Belief:
        """The same mean, held with a share of the evidence: what was learned long ago, or of other
        people, counts less.

        Raises:
            ValueError: for a share outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"the share of earlier evidence to keep lies in (0, 1], got {keep}")
        return Belief(self.theta, self.covariance / keep)


def nothing_known(features: int, ridge: float = 1.0) -> Belief:
    """A prior around 0.

    Args:
        ridge: its precision, in units of 1 / nats^2 of each weight.

    Raises:
        ValueError: for a ridge that is not positive.
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"the ridge must be positive and finite, got {ridge}")
    zero = torch.zeros(features, dtype=torch.float64)
    return Belief(zero, torch.eye(features, dtype=torch.float64) / ridge)


def most_probable(differences: Tensor, prior: Belief) -> Belief:
    """The posterior after N choices, by Newton's method with halved steps.

    Args:
        differences: ``Phi(y+) - Phi(y-)`` of each choice ``(N, F)``.

    Raises:
        ValueError: for another shape or numbers that are not finite.
    """
    chosen, held = _checked(differences, prior), prior.precision

    def loss(theta: Tensor) -> Tensor:
        apart = theta - prior.theta
        return softplus(-chosen @ theta).sum() + 0.5 * apart @ held @ apart

    theta = prior.theta.clone()
    for _ in range(ROUNDS):
        wrong = (-chosen @ theta).sigmoid()
        gradient = held @ (theta - prior.theta) - chosen.mT @ wrong
        if float(gradient.abs().max()) <= CLOSE * float(held.diagonal().max()):
            break
        step = torch.linalg.solve(_curvature(chosen, theta, held), gradient)
        size, before = 1.0, loss(theta)
        for _ in range(HALVINGS):
            if loss(theta - size * step) <= before:
                break
            size /= 2
        theta = theta - size * step
    return Belief(theta, _inverse(_curvature(chosen, theta, held)))


def projected_gradient(
    differences: Tensor, prior: Belief, *, rate: float = 0.1, radius: float = 10.0
) -> Belief:
    """One step for each choice, in their order, kept in a ball (online projected gradient ascent,
    Zinkevich 2003): it follows people who change, and never goes over old choices.

        theta <- Pi_radius(theta + rate / sqrt(n) sigma(-theta . d) d)    n = 1, 2, ...

    The covariance is Laplace's at the end, as if all choices had been met there.

    Args:
        differences: ``Phi(y+) - Phi(y-)`` of each choice ``(N, F)``.
        rate: of the first step. radius: of the ball, in nats.

    Raises:
        ValueError: as `most_probable`, or for a rate or radius that is not positive.
    """
    for what, number in (("rate", rate), ("radius", radius)):
        if not 0 < number < math.inf:
            raise ValueError(f"the {what} must be positive and finite, got {number}")
    chosen, theta = _checked(differences, prior), prior.theta.clone()
    for n, difference in enumerate(chosen, start=1):
        theta = theta + rate / math.sqrt(n) * (-difference @ theta).sigmoid() * difference
        theta = theta * min(1.0, radius / max(float(theta.norm()), 1e-300))
    return Belief(theta, _inverse(_curvature(chosen, theta, prior.precision)))


def agreement(differences: Tensor, theta: Tensor) -> float:
    """The share of choices ``(N, F)`` that a theta would have made too; a tie is a half."""
    margin = differences.double() @ theta
    return float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())


def _curvature(chosen: Tensor, theta: Tensor, held: Tensor) -> Tensor:
    """Of the negative log posterior ``(F, F)``."""
    right = (chosen @ theta).sigmoid()
    return (chosen.mT * (right * (1 - right))) @ chosen + held


def _inverse(matrix: Tensor) -> Tensor:
    """Of a positive definite matrix, and symmetric to the last bit."""
    found = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return (found + found.mT) / 2


def _checked(differences: Tensor, prior: Belief) -> Tensor:
    if differences.ndim != 2 or differences.shape[1] != len(prior.theta):
        raise ValueError(
            f"choices must be (N, {len(prior.theta)}), one number for each feature, got "
            f"{tuple(differences.shape)}"
        )
    if not bool(differences.isfinite().all()):
        raise ValueError("the evidence of a choice must be finite")
    return differences.double()
