"""Adaptive nullspace projection, against cases done by hand."""

import numpy as np
import torch

from plugalign.kernels import reweighting


def test_adaptive_alpha_follows_its_three_cases():
    sensitivity = torch.tensor([0.2, -0.9, 0.05])
    log_p = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).log()
    alpha = reweighting.adaptive_alpha(
        log_p, sensitivity, top_p=0.7, low=-0.1, high=0.15, floor=0.6
    )
    # One token is the whole nucleus: b = .2 -> .8; b = -.9 -> max(.1, .6); b = .05 is in the band.
    torch.testing.assert_close(alpha[:, 0], torch.tensor([0.8, 0.6, 1.0]))


def test_adaptive_alpha_is_that_of_the_filtered_softmax_in_float64():
    """Liang et al. 2021, section 4.2: softmax of the logits that top-p leaves, then b and alpha."""
    rng = np.random.default_rng(0)
    logits, sensitivity = 3 * rng.normal(size=(400, 50)), rng.uniform(-1, 1, 50) + 0.1
    want = []
    for z in logits:
        order = np.argsort(-z)
        p = np.exp(z[order] - z.max())
        size = int(np.searchsorted(np.cumsum(p / p.sum()), 0.7)) + 1
        b = p[:size] @ sensitivity[order[:size]] / p[:size].sum()
        want.append(1.0 if -0.1 <= b <= 0.15 else max(1 - abs(b), 0.6))
    alpha = reweighting.adaptive_alpha(
        torch.tensor(logits).float(),
        torch.tensor(sensitivity).float(),
        top_p=0.7,
        low=-0.1,
        high=0.15,
        floor=0.6,
    )
    np.testing.assert_allclose(alpha[:, 0].numpy(), want, atol=1e-5)
    assert {round(a, 4) for a in want} > {0.6, 1.0}
