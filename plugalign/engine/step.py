"""One step of decoding: what the shifts' formulas make of a prefix and the base's scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import HIDDEN, Logits, Source
from plugalign.algebra.supports import Support
from plugalign.engine.batching.batched_base import BaseOutput
from plugalign.engine.linear_terms import LinearSum
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import Prefix
from plugalign.engine.readers.heads import cut_off, fit_width
from plugalign.engine.sources import SourceRunner
from plugalign.errors import Running
from plugalign.kernels import steer
from plugalign.kernels.mixture import Mixture, mix
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight


class Step:
    """One step's inputs, and the mixtures that shifts make of them.

    A source is read when it is first asked for, so one that only a closed gate's controller reads
    costs nothing.

    Args:
        base: the base's scores ``(R, V)``; ``(R * n, V)`` at the last n columns of the prefix. What
            is no token of all models, see `Plan.vocabulary`, is not chosen.
        output: what the base's forward has given, sources batched with it included.
        number: how many tokens of each row follow its prompt, int64 ``(R,)``; None where they are
            the columns behind the prompts of the call.
        change: ``(R, V)`` what logits processors add beside the controllers, which do not read it;
            None for nothing. See `plugalign.engine.changes`.

    Attributes:
        emptied: the rows, bool ``(R,)``, to which the supports together left no token; the base's
            best one stays for these. None where no support is a mask.
    """

    def __init__(
        self,
        plan: Plan,
        sources: SourceRunner,
        prefix: Prefix,
        base: Tensor,
        output: BaseOutput | None = None,
        number: Tensor | None = None,
        change: Tensor | None = None,
    ):
        output = output or BaseOutput(base, None, {})
        self._plan, self._sources, self._number, self._change = plan, sources, number, change
        self.prefix, self.base, self._sums = prefix, cut_off(base, plan.vocabulary), output.sums
        width = base.shape[-1]
        self._values: dict[Hashable, Any] = {
            key: fit_width(logits, width) for key, logits in output.logits.items()
        }
        if output.hidden is not None:
            self._values[HIDDEN] = output.hidden.float()
        self._gate_weights: dict[int, Tensor] = {}
        self.emptied: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The prefixes, int64 ``(R, T)``, left-padded."""
        return self.prefix.ids

    @property
    def mask(self) -> Tensor:
        """Their mask ``(R, T)``."""
        return self.prefix.mask

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
        """The source's value after the prefixes, see `plugalign.algebra.sources`.

        Raises:
            ValueError: for a source that no shift, support or gate has declared.
        """
        is_base = isinstance(source, Logits) and source.is_base
        if not is_base and source.key not in self._plan.sources:
            raise ValueError(
                f"'{source.name}' is read and was not declared; name it in the `sources` of the "
                "shift, support or gate that reads it"
            )
        if source.key not in self._values:
            self._values |= self._sources.read(source, self)
        return self._values[source.key]

    def mixture(self) -> Mixture:
        """The base's scores, all shifts and all supports that are no truncation."""
        return self._mixture(self._plan.shifts, self._allowed)

    def alone(self, shifts: Iterable[Shift]) -> Mixture:
        """The base's scores with some shifts and what processors add, without supports."""
        return self._mixture(shifts, None)

    def certificate(self, shifts: Iterable[Shift]) -> dict[str, Tensor]:
        """What some shifts can prove of this step, by name float32 ``(R,)``; NaN in rows whose
        gates are closed. See `plugalign.algebra.shifts.Shift.certificate`.

        Raises:
            ValueError: for another shape, or a name that two of them give.
        """
        found: dict[str, Tensor] = {}
        for shift in shifts:
            with self._evaluating(shift):
                weight = self._weight(shift)
                given = {} if weight is None else shift.certificate(self, weight)
            for name, value in given.items():
                what = f"the certificate '{name}' of {self._plan.owner(shift)}"
                if value.shape != self.base.shape[:1]:
                    raise ValueError(
                        f"{what} must be one number for each of {len(self.base)} rows, got "
                        f"{tuple(value.shape)}"
                    )
                if name in found:
                    raise ValueError(f"{what} is given by two of its shifts; rename one")
                found[name] = value.to(self.base.device, torch.float32)
                if isinstance(weight, Tensor):
                    found[name] = found[name].masked_fill(weight == 0, torch.nan)
        return found

    def _mixture(self, shifts: Iterable[Shift], allowed: Tensor | None) -> Mixture:
        linear, others = LinearSum(self.base, self._sums), list[Term]()
        if self._change is not None:
            linear.add(Linear((self._change,), (1.0,)), {})
        for shift in shifts:
            with self._evaluating(shift):
                weight = self._weight(shift)
                for term in () if weight is None else shift.terms(self, weight):
                    if not isinstance(term, Term):
                        name = f"{type(shift).__name__} of {self._plan.owner(shift)}"
                        raise TypeError(f"{name} must yield terms, got {type(term).__name__}")
                    if isinstance(term, Linear):
                        linear.add(term, self._keys)
                    else:
                        others.append(term)
        base_weight, terms = linear.terms()
        return Mixture(self.base, (*terms, *others), allowed, base_weight)

    def check(self) -> None:
        """Looks for the model or controller because of which no token could be chosen.

        Raises:
            FloatingPointError: naming the first that gave NaN or infinite logits, and the step.
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
        """The keys of the sources read so far, by the identity of the value."""
        return {id(value): key for key, value in self._values.items()}

    def _weight(self, declared: Shift | Support) -> Weight | None:
        """The weight of a shift or support: a number, or float32 ``(R,)`` behind gates; None where
        they are closed for all rows."""
        own = declared.weight if isinstance(declared, Shift) else 1.0
        if not declared.gates:
            return own
        weight = self.base.new_full((len(self.base),), own, dtype=torch.float32)
        for gate in declared.gates:
            weight = weight * self._gate_weight(gate)
        return weight if bool((weight != 0).any()) else None

    def _gate_weight(self, gate: Gate) -> Tensor:
        """What a gate says of each row, float32 ``(R,)``; it is asked once."""
        if id(gate) not in self._gate_weights:
            weight = gate.open(self)
            fits = isinstance(weight, Tensor) and weight.shape == self.base.shape[:1]
            if not fits or not bool(((weight >= 0) & weight.isfinite()).all()):
                self._check_sources()  # a gate may have read NaN from a model
                raise ValueError(
                    f"the gate {type(gate).__name__} must give one finite number of at least 0 for "
                    f"each of {len(self.base)} rows, got {weight}"
                )
            self._gate_weights[id(gate)] = weight.float().to(self.base.device)
        return self._gate_weights[id(gate)]

    @cached_property
    def _allowed(self) -> Tensor | None:
        """The tokens that all supports leave, the truncation included, bool ``(R, V)``; None where
        no mask applies. A row without any token gets the base's best one."""
        allowed: Tensor | None = None
        for support in self._plan.masks:
            weight = self._weight(support)
            if weight is None:
                continue
            mask = self._mask_of(support)
            if isinstance(weight, Tensor):
                mask = mask | (weight == 0)[:, None]
            allowed = mask if allowed is None else allowed & mask
        if allowed is None:
            return None
        allowed = allowed & steer.kept(self.base, self._plan.truncation)
        self.emptied = ~allowed.any(-1)
        best = self.base.argmax(-1, keepdim=True)
        return allowed.scatter(-1, best, allowed.gather(-1, best) | self.emptied[:, None])

    def _mask_of(self, support: Support) -> Tensor:
        """The support's mask, bool ``(R, V)``.

        Raises:
            ValueError: for another shape or dtype.
        """
        mask = support.mask(self)
        if mask.shape != self.base.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the support {type(support).__name__} must give bool {tuple(self.base.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        return mask
