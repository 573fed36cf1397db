"""Sizes, and random inputs for the kernels that look like a language model's.

Logits fall with the logarithm of a token's rank (Zipf's law), with noise of each row on top, and
an expert's or a biased prompt's are the base's with a little more noise. How fast they fall decides
how many tokens a nucleus holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

HIDDEN = {"cpu": 768, "cuda": 4096}  # D of GPT-2 and of an 8B model
NOISE, APART = 1.0, 0.5  # of a row's logits, and between models
CANDIDATES = 200


@dataclass(frozen=True)
class Case:
    """One size, and the random inputs for it."""

    batch: int
    vocab: int
    dtype: torch.dtype
    device: torch.device
    zipf: float
    seed: int = 0

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    @property
    def hidden(self) -> int:
        return HIDDEN[self.device.type]

    @property
    def matrix(self) -> int:
        """Bytes of logits ``(B, V)``."""
        return self.batch * self.vocab * self.dtype.itemsize

    @property
    def width(self) -> int:
        """How many candidates the base's top-k leaves."""
        return min(CANDIDATES, self.vocab)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def rows(self, *shape: int) -> Tensor:
        """Noise ``(B, ...)``."""
        return self.normal(self.batch, *shape)

    def logits(self) -> Tensor:
        """``(B, V)``; the rows share the ranks of the tokens."""
        order = torch.randperm(self.vocab, generator=self.generator, device=self.device)
        fall = (order + 1.0).log_().mul_(-self.zipf)
        return self.rows(self.vocab).mul_(NOISE).add_(fall).to(self.dtype)

    def near(self, logits: Tensor) -> Tensor:
        """Another model's logits, of the same shape ``(B, ...)``."""
        return (self.rows(*logits.shape[1:]).mul_(APART) + logits).to(self.dtype)

    def drawn(self, logits: Tensor) -> Tensor:
        """Tokens ``(B, G)`` from logits ``(B, G, V)``."""
        law = logits.float().softmax(-1).flatten(0, 1)
        return torch.multinomial(law, 1, generator=self.generator).view(logits.shape[:2])

    def address(self) -> dict[str, Any]:
        """Seed, and the rest of each row's address in tensors, as a decoding loop keeps them."""
        rows = torch.arange(self.batch, device=self.device)
        temperature = torch.ones(self.batch, device=self.device)
        return {
            "seed": 7,
            "prompt": rows,
            "sample": rows + 1,
            "step": rows + 2,
            "temperature": temperature,
        }
