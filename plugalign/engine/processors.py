"""A run in transformers' own decoding, as a ``LogitsProcessor``."""

from __future__ import annotations

from torch import Tensor
from transformers import LogitsProcessor

from plugalign.engine.run import Run


class SteeringProcessor(LogitsProcessor):  # type: ignore[misc]
    """Returns the steered, normalised log-probabilities."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steers ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        return self.run.step(input_ids, scores)


class CheckingProcessor(LogitsProcessor):  # type: ignore[misc]
    """Returns scores as they are, and raises for those that are NaN or infinite."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Checks ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        self.run.check(input_ids, scores)
        return scores
