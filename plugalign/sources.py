"""Runs what shifts ask for: other models, the base under prompts or prefixes, candidate scores.

Each model is asked through a cache keyed by prefix, so the answers are pure functions of the
prefix. An answer that is not finite, or an error inside a model, names the source and the step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from plugalign.auxiliary import CachedModel, CachedScorer
from plugalign.hidden import HiddenWatch
from plugalign.identity import model_name
from plugalign.plan import Plan
from plugalign.steering import BaseLogits, CandidateScores, ModelLogits, PrefixedLogits


class SourceRunner:
    """The sources of one ``generate`` call, with their caches.

    Args:
        watch: the base's hidden states; paused while the base runs for a source.
        pad_token_id: fills the front of shorter prompts.
        prompt_length: columns of the caller's prompts, to count steps from; 0 if not known.
    """

    def __init__(
        self, plan: Plan, model: Any, watch: HiddenWatch, pad_token_id: int, prompt_length: int
    ):
        self._plan, self._model, self._watch = plan, model, watch
        self._pad, self._prompt_length = pad_token_id, prompt_length
        self._caches: dict[Hashable, CachedModel] = {}
        self._scorers: dict[Hashable, CachedScorer] = {}

    def logits(self, ids: Tensor, mask: Tensor, base: Tensor) -> dict[Hashable, Tensor]:
        """Logits ``(R, V)`` by source key after the prefixes ``ids`` ``(R, T)``.

        Args:
            base: the base's logits ``(R, V)``.
        """
        answers: dict[Hashable, Tensor] = {}
        for key, source in self._plan.sources.items():
            match source:
                case BaseLogits():
                    answers[key] = base
                case ModelLogits():
                    answers[key] = self._ask(key, source.model, source.name, ids, mask)
                case PrefixedLogits():
                    front = source.keys_values
                    answers[key] = self._ask(key, self._model, source.name, ids, mask, front)
        if self._plan.prompts:
            answers |= self._prompted(ids, mask)
        return {key: fit_width(x, base.shape[-1]) for key, x in answers.items()}

    def scores(
        self, source: CandidateScores, ids: Tensor, mask: Tensor, candidates: Tensor
    ) -> Tensor:
        """Logits of P(a | x, t), ``(R, K)``, for candidate ids ``(R, K)``."""
        scorer = self._scorers.get(source.key)
        if scorer is None:
            scorer = self._scorers[source.key] = CachedScorer(source.model)
        with self._blamed(source.name, ids):
            scores = scorer.scores(ids, mask, candidates)
        self.check(f"the source '{source.name}'", scores, ids)
        return scores

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The base's last hidden state ``(R, D)``: watched if possible, else by our own forward."""
        seen = self._watch.find(ids)
        if seen is not None:
            return seen
        with self._blamed("the base's hidden state", ids):
            return self._cache("hidden", self._model, None).hidden(ids, mask)

    def check(self, who: str, logits: Tensor, ids: Tensor) -> None:
        """Refuses logits ``(R, V)`` that are NaN or infinite.

        Raises:
            FloatingPointError: naming who gave them and the step.
        """
        bad = ~torch.isfinite(logits.logsumexp(-1))
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            kind = "NaN" if logits[row].isnan().any() else "infinite"
            raise FloatingPointError(
                f"{who} gave {kind} logits at {self._where(ids)} (row {row}); "
                "try float32, or look at its weights"
            )

    def check_base(self, scores: Tensor, ids: Tensor) -> None:
        """`check` for the scores that the base itself gave."""
        self.check(f"the base model '{model_name(self._model)}'", scores, ids)

    def _cache(self, key: Hashable, model: Any, keys_values: Tensor | None) -> CachedModel:
        if key not in self._caches:
            self._caches[key] = CachedModel(model, keys_values)
        return self._caches[key]

    def _ask(
        self,
        key: Hashable,
        model: Any,
        name: str,
        ids: Tensor,
        mask: Tensor,
        keys_values: Tensor | None = None,
    ) -> Tensor:
        with self._blamed(name, ids):
            logits = self._cache(key, model, keys_values).logits(ids, mask)
        self.check(f"the source '{name}'", logits, ids)
        return logits

    def _prompted(self, ids: Tensor, mask: Tensor) -> dict[Hashable, Tensor]:
        """The base behind K prompts: K * R rows of one forward. A row's own padding then stands
        between prompt and text; it is masked, so positions run on without a gap."""
        prompts, rows = self._plan.prompts, ids.shape[0]
        width = max(len(prompt.prefix) for prompt in prompts.values())
        many, masks = [], []
        first = (mask.cumsum(-1) == 1) & mask.bool()
        for prompt in prompts.values():
            gap = width - len(prompt.prefix)
            front = ids.new_tensor([self._pad] * gap + list(prompt.prefix)).expand(rows, -1)
            shown = mask.new_tensor([0] * gap + [1] * len(prompt.prefix)).expand(rows, -1)
            again = torch.zeros_like(first)
            if prompt.start_token is not None:
                again = first & (ids == prompt.start_token)
            many.append(torch.cat([front, ids], 1))
            masks.append(torch.cat([shown, mask.masked_fill(again, 0)], 1))
        logits = self._ask(
            "prompts", self._model, "the base under prompts", torch.cat(many), torch.cat(masks)
        )
        return dict(zip(prompts, rearrange(logits, "(k r) v -> k r v", r=rows), strict=True))

    @contextmanager
    def _blamed(self, name: str, ids: Tensor) -> Iterator[None]:
        self._watch.paused = True
        try:
            yield
        except (RuntimeError, IndexError, ValueError) as error:
            error.add_note(f"while running the source '{name}' at {self._where(ids)}")
            raise
        finally:
            self._watch.paused = False

    def _where(self, ids: Tensor) -> str:
        if self._prompt_length == 0:
            return f"prefix length {ids.shape[1]}"
        return f"step {ids.shape[1] - self._prompt_length}"


def fit_width(logits: Tensor, width: int) -> Tensor:
    """Cuts or fills ``(R, V')`` to the base's ``V`` columns. Columns beyond the shorter head are
    padding that no tokenizer emits, so what fills them never decides anything."""
    have = logits.shape[-1]
    if have >= width:
        return logits[:, :width]
    floor = logits.amin(-1, keepdim=True).expand(-1, width - have)
    return torch.cat([logits, floor], dim=-1)
