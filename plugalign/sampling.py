"""Coupled sampling: the same noise for the same token, whatever the batch and the method.

Sampling from ``p`` is the argmax of ``log p + g`` with independent Gumbel noise ``g`` for each
token. Here the noise has an *address*: it is a function of (seed, prompt, sample, step, token
id) and of nothing else. Two methods sampled with one seed therefore differ only where a
controller changed the choice, and a prompt's samples do not depend on its neighbours in a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.kernels.mixture import NEVER, Mixture
from plugalign.kernels.steer import sample
from plugalign.kernels.truncation import Truncation

RESTART = 2**20  # steps between an answer and the next version of it


class CoupledSampler(LogitsProcessor):  # type: ignore[misc]
    """Turns the argmax that follows into an exact sample with addressed noise.

    It must be the last processor of ``generate(..., do_sample=False)``: it applies temperature,
    top-k and top-p itself, so that what comes after sees no randomness of its own.

    Args:
        seed: the run's seed.
        prompts: for each of the R rows the number of its prompt.
        samples: for each of the R rows the number of its sample.
        prompt_length: columns of the prompts; the token after them is that of step 0. None takes
            what the first call brings, which is right also where a controller rewrites prompts.
        temperature: divides the log-probabilities, above 0.
        top_p: the smallest set of most probable tokens whose mass reaches it stays.
        top_k: so many most probable tokens stay; 0 keeps all.

    Raises:
        ValueError: for settings outside their range, or rows without a sample number.
    """

    def __init__(
        self,
        seed: int,
        prompts: Sequence[int],
        samples: Sequence[int],
        prompt_length: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ):
        check_sampling(temperature=temperature, top_p=top_p, top_k=top_k)
        if len(prompts) != len(samples):
            raise ValueError(
                f"each row needs the number of its prompt and of its sample, got {len(prompts)} "
                f"and {len(samples)}"
            )
        self.seed, self.prompt_length, self.first_step = seed, prompt_length, 0
        self.prompts = torch.as_tensor(prompts, dtype=torch.long)
        self.samples = torch.as_tensor(samples, dtype=torch.long)
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._restarts = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the token drawn from scores ``(R, V)`` after ``input_ids`` ``(R, T)``, else -inf.

        Raises:
            ValueError: for another number of rows than the sampler was made for, or a text that is
                shorter than the prompts.
            FloatingPointError: for scores without a finite maximum; names the prompt and the step.
        """
        if scores.shape[0] != len(self.prompts):
            raise ValueError(
                f"the sampler was made for {len(self.prompts)} rows and got {scores.shape[0]}; "
                f"it works with one beam and one return sequence per row"
            )
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        step = input_ids.shape[1] - self.start(input_ids.shape[1])
        drawn = sample(
            Mixture(scores),
            seed=self.seed,
            prompt=self.prompts.to(scores.device),
            sample=self.samples.to(scores.device),
            step=step,
            temperature=self.temperature,
            after=Truncation(self.top_p, self.top_k),
        )
        if (bad := (drawn < 0).nonzero()).numel():
            raise FloatingPointError(
                f"the model gave no finite logits for prompt {int(self.prompts[bad[0, 0]])} at "
                f"step {step}; try float32, or look at its weights"
            )
        return torch.full_like(scores, NEVER).scatter_(1, drawn[:, None], 0.0)

    def start(self, columns: int) -> int:
        """The columns in front of the token of step 0, in texts that have so many.

        Raises:
            ValueError: if these are fewer than the prompts'.
        """
        length = columns if self.prompt_length is None else self.prompt_length
        if length > columns:
            raise ValueError(
                f"the sampler counts steps from column {length} (prompt_length) and the text has "
                f"{columns} columns; make a sampler for each call"
            )
        return length - self.first_step

    def restarted(self, rows: Tensor) -> CoupledSampler:
        """A sampler for some rows ``(R',)`` that are written anew, behind texts of any length.

        Its noise stands at steps that no answer reaches, and is the same for a row whichever
        other rows are written anew with it.
        """
        self._restarts += 1
        fresh = copy.copy(self)
        fresh.prompts, fresh.samples = self.prompts[rows.cpu()], self.samples[rows.cpu()]
        fresh.prompt_length, fresh.first_step = None, self._restarts * RESTART
        return fresh


def check_sampling(*, temperature: float, top_p: float, top_k: int = 0) -> None:
    """Raises a ValueError that names the setting which is out of its range."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top-p must lie above 0 and not above 1, got {top_p}")
    if top_k < 0:
        raise ValueError(f"top-k must be 0 (keep all) or more, got {top_k}")
