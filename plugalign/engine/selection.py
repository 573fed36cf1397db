"""From a step's mixture to tokens, with the logits processors of one ``generate`` call.

transformers passes one list: its own processors, then the controllers', then the caller's, then the
filters of sampling. Those before the controllers change the base's logits, those behind them their
log-probabilities, as on the processor path. The fused draw does the work of the filters at the end
of the list (temperature, top-k, top-p, min-p) and of a `CoupledSampler`. What the controllers see
of the changes in front of them is said in `plugalign.engine.changes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from plugalign.engine.changes import forbidding, taken_apart
from plugalign.engine.prefix import Prefix
from plugalign.engine.processors import SteeringProcessor
from plugalign.errors import Running, name_of
from plugalign.kernels import steer
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.steer import MIN_TEMPERATURE
from plugalign.kernels.truncation import EVERYTHING, Truncation, kept_mask
from plugalign.sampling import CoupledSampler

Guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor
# In the order in which they act: a list that ends in some of these is one truncation.
FILTERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class Noise:
    """The address of each row's noise, see `plugalign.kernels.gumbel`.

    Attributes:
        seed: in [0, 2**64).
        prompt, sample: int64 ``(R,)``.
        start: the columns in front of the token of step 0.
    """

    seed: int
    prompt: Tensor
    sample: Tensor
    start: int


def new_noise(ids: Tensor, copies: int, random: bool) -> Noise:
    """Noise for prompts ``(R, T)``, each repeated ``copies`` times. Its seed is drawn from torch's
    global generator, so ``torch.manual_seed`` decides it; greedy decoding draws none."""
    high, low = torch.randint(2**32, (2,)).tolist() if random else (0, 0)
    rows = torch.arange(len(ids), device=ids.device)
    return Noise((high << 32) | low, rows // copies, rows % copies, ids.shape[1])


def sampler_noise(sampler: CoupledSampler, ids: Tensor) -> Noise:
    """The noise that a coupled sampler adds behind ``ids`` ``(R, T)``."""
    prompt, sample = sampler.prompts.to(ids.device), sampler.samples.to(ids.device)
    return Noise(sampler.seed, prompt, sample, sampler.start(ids.shape[1]))


class Selection:
    """How one ``generate`` call chooses tokens.

    Args:
        processors: all of the call's, in transformers' order.
        ids: the prompts ``(R, T)``, each repeated ``copies`` times.
        do_sample: whether to draw, or to take the best token.
        want_scores: whether the processed scores ``(R, V)`` are wanted too.
    """

    def __init__(
        self,
        processors: Sequence[Any],
        ids: Tensor,
        *,
        copies: int = 1,
        do_sample: bool = False,
        want_scores: bool = False,
    ):
        processors, self.want_scores = [_simplified(p) for p in processors], want_scores
        self.temperature, self.after = float(do_sample), EVERYTHING
        last = processors[-1] if processors else None
        if not want_scores and not do_sample and _is_for(last, ids):
            assert isinstance(last, CoupledSampler)
            processors.pop()
            self.noise = sampler_noise(last, ids)
            self.temperature, self.after = last.temperature, Truncation(last.top_p, last.top_k)
        else:
            self.noise = new_noise(ids, copies, do_sample)
            if do_sample and not want_scores:
                self._take_filters(processors)
        steering = [i for i, p in enumerate(processors) if isinstance(p, SteeringProcessor)]
        # Without a controller the order is all that counts, and all are given the base's logits.
        cut = steering[0] if steering else len(processors)
        self._before, self._behind = processors[:cut], processors[cut + 1 :]
        self._steered, self._length = bool(steering), ids.shape[1]

    @property
    def processors(self) -> list[Any]:
        """The call's logits processors without those that the fused draw replaces."""
        return [*self._before, *self._behind]

    @property
    def seed(self) -> int | None:
        """Of the noise with which tokens are drawn here; None where the best ones are taken."""
        return self.noise.seed if self.temperature > 0 else None

    @property
    def fused(self) -> bool:
        """Whether the draw is fused with the mixture, so that a step's scores are not stored."""
        return not (self._behind or self.want_scores)

    def description(self) -> list[str]:
        """What is fused and what is not, a line each."""
        before, behind = (", ".join(map(name_of, p)) for p in (self._before, self._behind))
        why = behind or "output_scores"
        draw = "one fused draw" if self.fused else f"a draw from whole scores, for {why}"
        lines = [f"on the base's logits: {before}"] if before else []
        return [*lines, f"tokens come from {draw}"]

    @property
    def host_readers(self) -> list[str]:
        """The names of what the host must run at every step, on texts or scores."""
        before = [p for p in self._before if not isinstance(p, MinLength)]
        scores = ["output_scores"] if self.want_scores else []
        return [*scores, *map(name_of, before), *map(name_of, self._behind)]

    def base(self, prefix: Prefix, logits: Tensor) -> Tensor:
        """The base's logits ``(R * n, V)`` at the last n columns of a prefix, after the processors
        that stand before the controllers."""
        if isinstance(prefix.length, Tensor):
            for processor in self._before:
                logits = processor.at(prefix.length, logits)
            return logits
        if not self._before:
            return logits
        return self._processed(self._before, prefix.ids, logits.to(torch.float32, copy=True))

    def base_and_change(self, prefix: Prefix, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a step starts from: the base's logits ``(R * n, V)`` for the controllers, and what
        processors in front of them add; None where they forbid tokens at most."""
        processed = self.base(prefix, logits)
        if not self._steered or all(isinstance(p, MinLength) for p in self._before):
            return processed, None
        if any(isinstance(p, Guidance) for p in self._before):
            return forbidding(processed), None  # the guided logits are the base
        return taken_apart(logits, processed)

    def tokens(
        self, prefix: Prefix, mixture: Mixture, before: Truncation
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens ``(R,)`` after a prefix, -1 where none is possible, and the processed scores
        ``(R, V)`` if wanted.

        Args:
            before: which tokens of the base the controllers leave possible.
        """
        scores = None
        if not self.fused:
            scores = self._scores(prefix, mixture, before)
            mixture, before = Mixture(scores), EVERYTHING
        tokens = steer.sample(
            mixture,
            seed=self.noise.seed,
            prompt=self.noise.prompt,
            sample=self.noise.sample,
            step=prefix.length - self.noise.start,
            temperature=self.temperature,
            before=before,
            after=self.after,
        )
        return tokens, scores if self.want_scores else None

    def target(self, prefix: Prefix, mixture: Mixture, before: Truncation) -> Tensor:
        """The scores ``(R, n, V)`` that `tokens` draws from, before division by the temperature:
        for a mixture ``(R * n, V)`` at the last n columns of a prefix."""
        scores = self._scores(prefix, mixture, before)
        temperature = scores.new_full((len(scores),), max(self.temperature, MIN_TEMPERATURE))
        if not self.after.keeps_all(scores.shape[1]):
            kept = kept_mask(scores, self.after, temperature)
            scores = scores.masked_fill(~kept, -torch.inf)
        return scores.view(len(prefix.ids), -1, scores.shape[1])

    def _scores(self, prefix: Prefix, mixture: Mixture, before: Truncation) -> Tensor:
        """The processed scores ``(R * n, V)``, before the filters of sampling."""
        scores = mixture.base.float()
        if self._steered:
            scores = steer.scores(mixture, before=before)
        return self._processed(self._behind, prefix.ids, scores)

    def _processed(self, processors: Sequence[Any], ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(R * n, V)`` after processors, which are given one position at a time."""
        positions = len(scores) // len(ids)
        if not processors or positions == 1:
            return _run_processors(processors, ids, scores, ids.shape[1] - self._length)
        by_position = scores.view(len(ids), positions, -1).unbind(1)
        found = []
        for end, part in enumerate(by_position, ids.shape[1] - positions + 1):
            found.append(_run_processors(processors, ids[:, :end], part, end - self._length))
        return torch.stack(found, 1).flatten(0, 1)

    def _take_filters(self, processors: list[Any]) -> None:
        """Moves the filters at the end of the list into one truncation."""
        kinds, found = list(FILTERS), dict[str, Any]()
        count = 0
        for filter_ in reversed(processors):
            if type(filter_) not in kinds or not _is_plain(filter_):
                break
            del kinds[kinds.index(type(filter_)) :]  # only filters that act earlier may come before
            found |= vars(filter_)
            count += 1
        top_p, top_k, min_p = (found.get(name, 0) for name in ("top_p", "top_k", "min_p"))
        del processors[len(processors) - count :]
        self.temperature = found.get("temperature", 1.0)
        self.after = Truncation(top_p if "top_p" in found else 1.0, top_k, min_p)


class MinLength:
    """Forbids end tokens in texts that are too short, in place of transformers' two processors for
    that, which make a mask of the whole vocabulary.

    Args:
        min_length: of a text, its prompt included.
        ends: ids of the end tokens ``(E,)``; one that the model does not know, as -1, forbids
            nothing.
    """

    def __init__(self, min_length: int, ends: Tensor):
        self._min_length, self._ends = min_length, ends

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores ``(R, V)`` after ``ids`` ``(R, T)``."""
        short = ids.shape[1] < self._min_length
        return self._bounded(scores, True) if short else scores

    def at(self, length: Tensor, scores: Tensor) -> Tensor:
        """The same for texts whose length, int64 ``()``, is on the device."""
        return self._bounded(scores, length < self._min_length)

    def _bounded(self, scores: Tensor, short: Tensor | bool) -> Tensor:
        """The scores ``(R, V)``, at -inf for end tokens where texts are ``short``, bool ``()``."""
        known = (self._ends >= 0) & (self._ends < scores.shape[1])
        most = torch.where(known & short, -torch.inf, torch.inf).to(scores.dtype)
        place = self._ends.clamp(0, scores.shape[1] - 1).expand(len(scores), -1)
        return scores.scatter_reduce(1, place, most.expand(len(scores), -1), "amin")


def _simplified(processor: Any) -> Any:
    """The same processor, or one that does the same with less work."""
    if type(processor) is MinLengthLogitsProcessor:
        return MinLength(processor.min_length, processor.eos_token_id)
    if type(processor) is MinNewTokensLengthLogitsProcessor:
        min_length = processor.prompt_length_to_skip + processor.min_new_tokens
        return MinLength(min_length, processor.eos_token_id)
    return processor


def _is_for(processor: Any, ids: Tensor) -> bool:
    """Whether this is a coupled sampler for so many rows. Another raises when it is run."""
    return type(processor) is CoupledSampler and len(processor.prompts) == len(ids)


def _is_plain(filter_: Any) -> bool:
    """Whether a filter cuts to -inf and keeps one token at least, as `Truncation` does."""
    options = vars(filter_)
    cuts = options.get("filter_value", -torch.inf) == -torch.inf
    return bool(cuts and options.get("min_tokens_to_keep", 1) == 1)


def _run_processors(processors: Sequence[Any], ids: Tensor, scores: Tensor, step: int) -> Tensor:
    for processor in processors:
        with Running(f"the logits processor {name_of(processor)} at step {step}"):
            scores = processor(ids, scores)
    return scores
