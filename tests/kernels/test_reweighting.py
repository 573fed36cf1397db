"""Adaptive nullspace projection, against cases done by hand."""

import torch

from plugalign.kernels import reweighting


def test_adaptive_alpha_follows_its_three_cases():
    sensitivity = torch.tensor([0.2, -0.9, 0.05])
    log_p = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).log()
    alpha = reweighting.adaptive_alpha(
        log_p, sensitivity, top_p=0.7, low=-0.1, high=0.15, floor=0.6
    )
    # b = .8 * .2 = .16 -> .84; b = -.72 -> max(.28, .6); b = .04 -> inside the band
    torch.testing.assert_close(alpha[:, 0], torch.tensor([0.84, 0.6, 1.0]))
