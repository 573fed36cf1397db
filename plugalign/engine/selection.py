"""From a step's mixture to tokens, with the logits processors of one ``generate`` call around it.

transformers gives one list: its own processors, then the controllers', then the caller's, then the
filters of sampling. What stands in front of the controllers changes the base's logits and what
stands behind them their log-probabilities, as on the processor path. The filters at the end of the
list (temperature, top-k, top-p, min-p) and a `CoupledSampler` are taken over by the fused draw.
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
)

from plugalign.engine.run import SteeringProcessor
from plugalign.errors import Running, name_of
from plugalign.kernels import steer
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.steer import MIN_TEMPERATURE
from plugalign.kernels.truncation import EVERYTHING, Truncation, kept_mask
from plugalign.sampling import CoupledSampler

# In the order in which they act: a list that ends in some of these is one truncation.
FILTERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class Noise:
    """Where a row's noise comes from, see `plugalign.kernels.gumbel`.

    Attributes:
        seed: in [0, 2**64).
        prompt, sample: int64 ``(R,)``.
        start: the columns in front of the token of step 0.
    """

    seed: int
    prompt: Tensor
    sample: Tensor
    start: int

    @classmethod
    def fresh(cls, ids: Tensor, copies: int, random: bool) -> Noise:
        """Noise for prompts ``(R, T)``, each repeated ``copies`` times. Its seed is drawn from
        torch's global generator, so ``torch.manual_seed`` decides it; greedy decoding draws none.
        """
        high, low = torch.randint(2**32, (2,)).tolist() if random else (0, 0)
        rows = torch.arange(len(ids), device=ids.device)
        return cls((high << 32) | low, rows // copies, rows % copies, ids.shape[1])

    @classmethod
    def of(cls, sampler: CoupledSampler, ids: Tensor) -> Noise:
        """What a coupled sampler would use."""
        prompt, sample = sampler.prompts.to(ids.device), sampler.samples.to(ids.device)
        return cls(sampler.seed, prompt, sample, sampler.start(ids.shape[1]))


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
        processors, self.want_scores = [_lean(p) for p in processors], want_scores
        self.temperature, self.after = float(do_sample), EVERYTHING
        last = processors[-1] if processors else None
        if not want_scores and not do_sample and _is_for(last, ids):
            assert isinstance(last, CoupledSampler)
            processors.pop()
            self.noise = Noise.of(last, ids)
            self.temperature, self.after = last.temperature, Truncation(last.top_p, last.top_k)
        else:
            self.noise = Noise.fresh(ids, copies, do_sample)
            if do_sample and not want_scores:
                self._take_filters(processors)
        place = [i for i, p in enumerate(processors) if isinstance(p, SteeringProcessor)]
        # Without a controller nothing tells the two apart, and all of them see the base's logits.
        cut = place[0] if place else len(processors)
        self._front, self._behind = processors[:cut], processors[cut + 1 :]
        self._steered, self._length = bool(place), ids.shape[1]

    @property
    def processors(self) -> list[Any]:
        """All that look at scores, but for the filters that were taken over."""
        return [*self._front, *self._behind]

    @property
    def fused(self) -> bool:
        """Whether a step's scores never exist as a whole."""
        return not (self._behind or self.want_scores)

    def description(self) -> list[str]:
        """What is fused and what is not, a line each."""
        front, behind = (", ".join(map(name_of, p)) for p in (self._front, self._behind))
        why = behind or "output_scores"
        draw = "one fused draw" if self.fused else f"a draw from whole scores, for {why}"
        return ([f"on the base's logits: {front}"] if front else []) + [f"tokens come from {draw}"]

    @property
    def waits_for(self) -> list[str]:
        """What looks at whole texts or scores, so that no step can go without the host."""
        own = [p for p in self._front if not isinstance(p, LeastLength)]
        scores = ["output_scores"] if self.want_scores else []
        return [*scores, *map(name_of, own), *map(name_of, self._behind)]

    def base(self, ids: Tensor, logits: Tensor, column: Tensor | None = None) -> Tensor:
        """What the processors in front of the controllers make of the base's logits ``(R * n, V)``
        behind the last n columns of ``ids`` ``(R, T)``.

        Args:
            column: T on the device, where it grows though ``ids`` do not; nothing is waited for.
        """
        if column is not None:
            for processor in self._front:
                logits = processor.at(column, logits)
        if not self._front or column is not None:
            return logits
        return self._each_place(self._front, ids, logits.to(torch.float32, copy=True))

    def tokens(
        self, ids: Tensor, mixture: Mixture, before: Truncation, column: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens ``(R,)`` after ``ids`` ``(R, T)``, -1 where none is possible, and the
        processed scores ``(R, V)`` if wanted.

        Args:
            before: which tokens of the base the controllers leave possible.
            column: see `base`.
        """
        whole = None
        if not self.fused:
            whole = self._whole(ids, mixture, before)
            mixture, before = Mixture(whole), EVERYTHING
        step = (ids.shape[1] if column is None else column) - self.noise.start
        drawn = steer.sample(
            mixture,
            seed=self.noise.seed,
            prompt=self.noise.prompt,
            sample=self.noise.sample,
            step=step,
            temperature=self.temperature,
            before=before,
            after=self.after,
        )
        return drawn, whole if self.want_scores else None

    def target(self, ids: Tensor, mixture: Mixture, before: Truncation) -> Tensor:
        """What `tokens` draws from, as scores ``(R, n, V)`` that are still to be divided by the
        temperature: for a mixture ``(R * n, V)`` behind the last n columns of ``ids`` ``(R, T)``.
        """
        whole = self._whole(ids, mixture, before)
        heat = whole.new_full((len(whole),), max(self.temperature, MIN_TEMPERATURE))
        if not self.after.keeps_all(whole.shape[1]):
            whole = whole.masked_fill(~kept_mask(whole, self.after, heat), -torch.inf)
        return whole.view(len(ids), -1, whole.shape[1])

    def _whole(self, ids: Tensor, mixture: Mixture, before: Truncation) -> Tensor:
        """The scores ``(R * n, V)`` of all tokens, processed, before the filters of sampling."""
        whole = mixture.base.float()
        if self._steered:
            whole = steer.scores(mixture, before=before)
        return self._each_place(self._behind, ids, whole)

    def _each_place(self, processors: Sequence[Any], ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(R * n, V)`` through processors that see one place of ``ids`` at a time."""
        places = len(scores) // len(ids)
        if not processors or places == 1:
            return _through(processors, ids, scores, ids.shape[1] - self._length)
        by_place = scores.view(len(ids), places, -1).unbind(1)
        found = []
        for place, part in enumerate(by_place, ids.shape[1] - places + 1):
            found.append(_through(processors, ids[:, :place], part, place - self._length))
        return torch.stack(found, 1).flatten(0, 1)

    def _take_filters(self, processors: list[Any]) -> None:
        """Moves the filters at the end of the list into one truncation."""
        kinds, found = list(FILTERS), dict[str, Any]()
        count = 0
        for filter_ in reversed(processors):
            if type(filter_) not in kinds or not _is_plain(filter_):
                break
            del kinds[kinds.index(type(filter_)) :]  # what acts earlier may stand in front of it
            found |= vars(filter_)
            count += 1
        top_p, top_k, min_p = (found.get(name, 0) for name in ("top_p", "top_k", "min_p"))
        del processors[len(processors) - count :]
        self.temperature = found.get("temperature", 1.0)
        self.after = Truncation(top_p if "top_p" in found else 1.0, top_k, min_p)


class LeastLength:
    """Forbids end tokens in shorter texts, as transformers' two processors for a least length do by
    way of masks of the whole vocabulary."""

    def __init__(self, least: int, ends: Tensor):
        self._least, self._ends = least, ends

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        short = ids.shape[1] < self._least
        return scores.index_fill(1, self._ends, -torch.inf) if short else scores

    def at(self, length: Tensor, scores: Tensor) -> Tensor:
        """The same for texts of a length that only the device knows."""
        ends = scores.index_select(1, self._ends).masked_fill_(length < self._least, -torch.inf)
        return scores.index_copy(1, self._ends, ends)


def _lean(processor: Any) -> Any:
    """The same processor, or one that does the same with less work."""
    if type(processor) is MinLengthLogitsProcessor:
        return LeastLength(processor.min_length, processor.eos_token_id)
    if type(processor) is MinNewTokensLengthLogitsProcessor:
        least = processor.prompt_length_to_skip + processor.min_new_tokens
        return LeastLength(least, processor.eos_token_id)
    return processor


def _is_for(processor: Any, ids: Tensor) -> bool:
    """Whether this is a coupled sampler of these rows. Another's refuses them when it is run."""
    return type(processor) is CoupledSampler and len(processor.prompts) == len(ids)


def _is_plain(filter_: Any) -> bool:
    """Whether a filter cuts to -inf and keeps one token at least, as `Truncation` does."""
    options = vars(filter_)
    cuts = options.get("filter_value", -torch.inf) == -torch.inf
    return bool(cuts and options.get("min_tokens_to_keep", 1) == 1)


def _through(processors: Sequence[Any], ids: Tensor, scores: Tensor, step: int) -> Tensor:
    for processor in processors:
        with Running(f"the logits processor {name_of(processor)} at step {step}"):
            scores = processor(ids, scores)
    return scores
