"""Readers of candidates' values: scores of the texts that the base's best tokens would make."""

from __future__ import annotations

import torch
from torch import Tensor

from plugalign.algebra.sources import Candidates, CandidateValues, Step, TextCandidateValues
from plugalign.engine.readers.prefix_cache import CachedScorer
from plugalign.kernels.topk_select import topk_select


def best_candidates(base: Tensor, k: int) -> Tensor:
    """The ids of the ``k`` best tokens of logits ``(R, V)``, ascending, int64 ``(R, K)``."""
    return topk_select(base, min(k, base.shape[1]))[1].sort(-1).values


class CandidateReader:
    """Scores all candidates of a step by one forward over a cached prefix."""

    def __init__(self, source: CandidateValues):
        self._source, self._scorer = source, CachedScorer(source.model)

    def read(self, step: Step) -> Candidates:
        ids = best_candidates(step.base, self._source.k)
        return Candidates(ids, self._scorer.scores(step.ids, step.mask, ids))

    def forget(self) -> None:
        self._scorer.forget()


class TextCandidateReader:
    """Scores all candidates of a step as texts, for a scorer with another tokenizer."""

    def __init__(self, source: TextCandidateValues):
        self._source = source

    def read(self, step: Step) -> Candidates:
        ids = best_candidates(step.base, self._source.k)
        texts = [
            self._source.tokenizer.decode([*prefix[keep].tolist(), token], skip_special_tokens=True)
            for prefix, keep, tokens in zip(step.ids, step.mask.bool(), ids.tolist(), strict=True)
            for token in tokens
        ]
        values = torch.as_tensor(self._source.score(texts), dtype=torch.float32)
        if values.shape != (len(texts),):
            raise ValueError(
                f"'{self._source.name}' must give one number for each of {len(texts)} texts, got "
                f"{tuple(values.shape)}"
            )
        return Candidates(ids, values.to(ids.device).view(ids.shape))

    def forget(self) -> None:
        """Nothing: nothing is kept."""
