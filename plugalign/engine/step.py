"""One step of decoding: what the shifts' formulas make of a prefix and the base's scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import HIDDEN, Source
from plugalign.algebra.supports import Support
from plugalign.engine.batching.batched_base import BaseOutput
from plugalign.engine.linear_terms import Sum
from plugalign.engine.plan import Plan
from plugalign.engine.readers.heads import fit_width
from plugalign.engine.sources import SourceRunner
from plugalign.errors import Running
from plugalign.kernels import steer
from plugalign.kernels.mixture import Mixture, mix
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight


class Step:
    """One step's inputs, and the mixtures that shifts make of them. What is not known is read when
    it is first asked for, so that what stands behind a closed gate costs nothing.

    Args:
        ids: the prefixes ``(R, T)``. mask: ``(R, T)``.
        base: the base's scores ``(R, V)``; ``(R * n, V)`` for the places behind the last n columns.
        known: what a forward has told already, if any.
        number: how many tokens of each row follow its prompt, int64 ``(R,)``; None where they are
            the columns behind the prompts of the call.

    Attributes:
        emptied: which rows ``(R,)`` had no token left by the supports together; the base's best one
            stays for these. None where no support is a mask.
    """

    def __init__(
        self,
        plan: Plan,
        sources: SourceRunner,
        ids: Tensor,
        mask: Tensor,
        base: Tensor,
        known: BaseOutput | None = None,
        number: Tensor | None = None,
    ):
        known = known or BaseOutput(base, None, {})
        self._plan, self._sources, self._number = plan, sources, number
        self.ids, self.mask, self.base = ids, mask, base
        self._sums = known.sums
        width = base.shape[-1]
        self._values: dict[Hashable, Any] = {
            k: fit_width(x, width) for k, x in known.logits.items()
        }
        if known.hidden is not None:
            self._values[HIDDEN] = known.hidden.float()
        self._open: dict[int, Tensor] = {}
        self.emptied: Tensor | None = None

    @property
    def number(self) -> Tensor:
        """How many tokens of each row follow its prompt already, int64 ``(R,)``.

        Raises:
            ValueError: if it is not known where the prompts end.
        """
        if self._number is not None:
            return self._number
        start = self._sources.prompt_length
        if start == 0:
            raise ValueError(
                "a gate counts the steps of an answer, and it is not known where the prompt ends; "
                "give processor() the prompts' attention_mask"
            )
        return self.ids.new_full((len(self.ids),), self.ids.shape[1] - start)

    def read(self, source: Source) -> Any:
        """The source's value after the prefixes, see `plugalign.algebra.sources`."""
        if source.key not in self._values:
            self._values |= self._sources.read(source, self)
        return self._values[source.key]

    def mixture(self) -> Mixture:
        """The base's scores, all shifts and all supports that are no truncation."""
        return self._mixture(self._plan.shifts, self._allowed)

    def alone(self, shifts: Iterable[Shift]) -> Mixture:
        """The base's scores and some shifts."""
        return self._mixture(shifts, None)

    def _mixture(self, shifts: Iterable[Shift], allowed: Tensor | None) -> Mixture:
        total, others = Sum(self.base, self._sums), list[Term]()
        for shift in shifts:
            with self._evaluating(shift):
                weight = self._weight(shift)
                for term in () if weight is None else shift.terms(self, weight):
                    if not isinstance(term, Term):
                        who = f"{type(shift).__name__} of {self._plan.owner(shift)}"
                        raise TypeError(f"{who} must yield terms, got {type(term).__name__}")
                    if isinstance(term, Linear):
                        total.add(term, self._keys)
                    else:
                        others.append(term)
        weight, terms = total.terms()
        return Mixture(self.base, (*terms, *others), allowed, weight)

    def check(self) -> None:
        """Finds out who is to blame where no token could be chosen.

        Raises:
            FloatingPointError: naming a model or controller with NaN or infinite logits, and the
                step.
        """
        self._check_sources()
        for name, steering in self._plan.steerings:
            alone = mix(self.alone(steering.shifts))
            self._sources.check(f"the controller {name}", alone, self.ids)

    def _check_sources(self) -> None:
        self._sources.check_base(self.base, self.ids)
        for key, source in self._plan.sources.items():
            if key in self._values or key in self._plan.always_read:
                self._sources.check_value(source, self.read(source), self.ids)

    def _evaluating(self, shift: Shift) -> Running:
        where = self._sources.where(self.ids)
        return Running(f"the controller {self._plan.owner(shift)} at {where}", unless_noted=True)

    @property
    def _keys(self) -> dict[int, Hashable]:
        """The keys of what was read, by the identity of the value."""
        return {id(value): key for key, value in self._values.items()}

    def _weight(self, each: Shift | Support) -> Weight | None:
        """What to multiply with: a number, or float32 ``(R,)`` behind gates; None where they are
        closed for all rows."""
        own = each.weight if isinstance(each, Shift) else 1.0
        if not each.gates:
            return own
        weight = self.base.new_full((len(self.base),), own, dtype=torch.float32)
        for gate in each.gates:
            weight = weight * self._opened(gate)
        return weight if bool((weight != 0).any()) else None

    def _opened(self, gate: Gate) -> Tensor:
        if id(gate) not in self._open:
            weight = gate.open(self)
            is_fit = isinstance(weight, Tensor) and weight.shape == self.base.shape[:1]
            if not is_fit or not bool((weight >= 0).all()):
                self._check_sources()  # which may be to blame
                raise ValueError(
                    f"the gate {type(gate).__name__} must give one number of at least 0 for each "
                    f"of {len(self.base)} rows, got {weight}"
                )
            self._open[id(gate)] = weight.float().to(self.base.device)
        return self._open[id(gate)]

    @cached_property
    def _allowed(self) -> Tensor | None:
        """Bool ``(R, V)``: what all supports leave, the truncation too, or None where there is
        nothing but a truncation. A row without any token gets the base's best one."""
        allowed: Tensor | None = None
        for support in self._plan.masks:
            weight = self._weight(support)
            if weight is None:
                continue
            mask = support.mask(self)
            if mask.shape != self.base.shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"the support {type(support).__name__} must give bool "
                    f"{tuple(self.base.shape)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            if isinstance(weight, Tensor):
                mask = mask | (weight == 0)[:, None]
            allowed = mask if allowed is None else allowed & mask
        if allowed is None:
            return None
        allowed = allowed & steer.kept(self.base, self._plan.truncation)
        self.emptied = ~allowed.any(-1)
        best = self.base.argmax(-1, keepdim=True)
        return allowed.scatter(-1, best, allowed.gather(-1, best) | self.emptied[:, None])
