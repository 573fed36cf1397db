"""One step of decoding: what the shifts' formulas make of a prefix and the base's scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from plugalign.engine.plan import Plan
from plugalign.engine.rows import Known
from plugalign.engine.sources import SourceRunner
from plugalign.kernels import reweighting
from plugalign.kernels.head import Head, can_add, is_same, weighted_sum
from plugalign.kernels.mixture import AttributeLogits, Decay, Logits, Mixture, mix
from plugalign.kernels.topk_select import topk_select
from plugalign.naming import Running
from plugalign.steering import (
    BASE,
    Adaptive,
    Attribute,
    BiasDecay,
    HeadAttribute,
    LogLinear,
    LowRank,
    Shift,
)


class Step:
    """One step's inputs, and the mixtures that shifts make of them.

    Args:
        ids: the prefixes ``(R, T)``. mask: ``(R, T)``.
        base: the base's scores ``(R, V)``; ``(R * n, V)`` for the places behind the last n columns.
        known: what a forward has told already, if any.
    """

    def __init__(
        self,
        plan: Plan,
        sources: SourceRunner,
        ids: Tensor,
        mask: Tensor,
        base: Tensor,
        known: Known | None = None,
    ):
        known = known or Known(base, None, {})
        self._plan, self._sources = plan, sources
        self.ids, self.mask, self.base = ids, mask, base
        self._logits, self._sums = sources.logits(ids, mask, base, known.logits), known.sums
        self._hidden = None if known.hidden is None else known.hidden.float()

    def mixture(self, shifts: Iterable[Shift] | None = None) -> Mixture:
        """The base's scores plus some shifts (None: all), equal sources added up."""
        weights: dict[Hashable, float] = {BASE: 1.0}
        terms: dict[Hashable, Logits] = {BASE: self.base}
        decays, attributes = [], []
        for shift in self._plan.shifts if shifts is None else shifts:
            with self._evaluating(shift):
                match shift:
                    case LogLinear():
                        for coefficient, source in shift.terms:
                            terms[source.key] = self._logits[source.key]
                            weights[source.key] = (
                                weights.get(source.key, 0.0) + shift.weight * coefficient
                            )
                    case BiasDecay():
                        biased = tuple(self._logits[source.key] for source in shift.biased)
                        decays.append(Decay(biased, shift.decay, shift.floor, shift.weight))
                    case LowRank():
                        terms[id(shift)] = self._low_rank(shift)
                        weights[id(shift)] = shift.weight
                    case Attribute() | HeadAttribute():
                        attributes.append(AttributeLogits(self._attribute(shift), shift.weight))
                    case _:
                        kind = type(shift).__name__
                        raise TypeError(f"no engine knows how to evaluate the shift {kind}")
        self._add_heads(terms, weights)
        sources = tuple(terms.values())
        return Mixture(sources, tuple(weights.values()), tuple(decays), tuple(attributes))

    def _add_heads(self, terms: dict[Hashable, Logits], weights: dict[Hashable, float]) -> None:
        """Puts one head in the place of all that share their weights. Others stay as they are, and
        so do logits that are no head's: of a model that caps them, say."""
        heads = {k: x for k, x in terms.items() if isinstance(x, Head) and can_add(x)}
        while heads:
            first = next(iter(heads.values()))
            keys = [key for key, head in heads.items() if is_same(first, head)]
            parts = [heads.pop(key) for key in keys]
            if len(keys) > 1:
                added = [weights.pop(key) for key in keys]
                what = frozenset(zip(keys, added, strict=True))
                for key in keys:
                    del terms[key]
                known = self._sums.get(what)
                terms[what] = weighted_sum(parts, added) if known is None else known
                weights[what] = 1.0

    def check(self) -> None:
        """Finds out who is to blame where no token could be chosen.

        Raises:
            FloatingPointError: naming a model or controller with NaN or infinite logits, and the
                step.
        """
        self._sources.at_once = True
        self._sources.check_base(self.base, self.ids)
        for key, logits in self._logits.items():
            self._sources.check_source(self._plan.sources[key].name, logits, self.ids)
        for name, steering in self._plan.steerings:
            alone = mix(self.mixture(steering.shifts))
            self._sources.check(f"the controller {name}", alone, self.ids)

    def _evaluating(self, shift: Shift) -> Running:
        return Running(
            f"the controller {self._plan.owner(shift)} at {self._sources.where(self.ids)}"
        )

    @property
    def hidden(self) -> Tensor:
        """The base's last hidden state ``(R, D)`` in float32."""
        if self._hidden is None:
            self._hidden = self._sources.hidden(self.ids, self.mask)
        return self._hidden

    def _low_rank(self, shift: LowRank) -> Head:
        """``-(1 - alpha) left right^T (h - center)``, as a head on r coordinates."""
        offset = self.hidden if shift.center is None else self.hidden - shift.center
        coordinates = offset @ shift.right
        rule = shift.alpha
        if not isinstance(rule, Adaptive):
            return Head(coordinates * (rule - 1), shift.left)
        kept = reweighting.adaptive_alpha(
            self.base, rule.sensitivity, top_p=rule.top_p, low=rule.low, high=rule.high,
            floor=rule.floor,
        )  # fmt: skip
        return Head(coordinates * (kept - 1), shift.left)

    def _attribute(self, shift: Attribute | HeadAttribute) -> Logits:
        if isinstance(shift, HeadAttribute):
            state = (self.hidden @ shift.state)[:, None] + shift.offset
            coordinates = torch.cat([self.hidden @ shift.right, state], dim=1)
            return Head(coordinates, self._plan.attribute_weight(shift), shift.token_bias)
        ids = topk_select(self.base, shift.k)[1].sort(-1).values
        scores = self._sources.scores(shift.scores, self.ids, self.mask, ids)
        return reweighting.scatter_candidates(ids, scores, self.base.shape[-1])
