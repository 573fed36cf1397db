"""What all controllers together declare for the steps of one model, known before anything runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeGuard

from plugalign.adapters.layers import is_lora
from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import BASE, HIDDEN, Logits, Source
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import RankSupport, Support, intersection
from plugalign.engine.batching.grouped import ExpertGroups
from plugalign.engine.declarations import declarations
from plugalign.engine.readers.cache_spec import check_source
from plugalign.kernels.truncation import Truncation


@dataclass(frozen=True)
class Plan:
    """The declarations of a controller's parts, and what follows from them for the engine.

    Attributes:
        steerings: the name and the weighted declaration of each part that steers.
        weights: which weights of the base the declarations were made of, see `refreshed`.
    """

    steerings: tuple[tuple[str, Steering], ...]
    weights: tuple[Hashable, ...] = ()

    def refreshed(self, controller: Controller, model: Any, tokenizer: Any) -> Plan:
        """This plan, or a new one if weights of the base that it was made of have changed.

        A change in place through ``parameter.data`` leaves no trace in torch and is not seen.

        Raises:
            TypeError, ValueError: as `make_plan`.
        """
        if self.weights == self._state_of(model):
            return self
        return make_plan(controller, model, tokenizer)

    def _state_of(self, model: Any) -> tuple[Hashable, ...]:
        """Address and version of each of the base's weights; empty where no declaration depends on
        them, as a shift on hidden states and an adapter of the base do."""
        models = chain.from_iterable(source.models for source in self.sources.values())
        modules = chain.from_iterable(m.modules() for m, _ in models if m is not None)
        if not (self.needs_hidden or any(map(is_lora, modules))):
            return ()
        return tuple(
            (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version)
            for p in model.parameters()
        )

    def forward_name(self, keys: Iterable[Hashable]) -> str:
        """How messages call the base's forward with which sources of these keys are batched."""
        names = ", ".join(f"'{self.sources[key].name}'" for key in keys)
        return f"the base model with the rows of {names}" if names else "the base model"

    def owner(self, shift: Shift) -> str:
        """The name of the controller that declared a shift; of one inside another's formula, its
        own."""
        found = (name for name, s in self.steerings if any(x is shift for x in s.shifts))
        return next(found, type(shift).__name__)

    @cached_property
    def shifts(self) -> tuple[Shift, ...]:
        return tuple(chain.from_iterable(s.shifts for _, s in self.steerings))

    @cached_property
    def supports(self) -> tuple[Support, ...]:
        """Each support once, since an intersection with itself changes nothing."""
        every = chain.from_iterable(s.supports for _, s in self.steerings)
        return tuple({_support_key(support): support for support in every}.values())

    @cached_property
    def truncation(self) -> Truncation:
        """The intersection of all supports by rank that hold for all rows and steps."""
        return intersection([s for s in self.supports if _is_truncation(s)])

    @property
    def unsteered(self) -> Truncation:
        """What all supports that hold for all rows and steps would keep if nothing were steered, as
        far as that is by rank."""
        kept = (support.unsteered for support in self.supports if not support.gates)
        return intersection([support for support in kept if support is not None])

    @cached_property
    def masks(self) -> tuple[Support, ...]:
        """All other supports."""
        return tuple(s for s in self.supports if not _is_truncation(s))

    @cached_property
    def _declared(self) -> tuple[Shift | Support, ...]:
        return (*self.shifts, *self.supports)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """Every gate once."""
        every = chain.from_iterable(each.gates for each in self._declared)
        return tuple({id(gate): gate for gate in every}.values())

    @cached_property
    def sources(self) -> dict[Hashable, Source]:
        """Each source once, however many controllers declare it, by key."""
        return self._read_by(self._declared)

    @cached_property
    def always_read(self) -> dict[Hashable, Source]:
        """The sources that every step reads: those of a gate, or of what is behind none."""
        return self._read_by(each for each in self._declared if not each.gates)

    def _read_by(self, declared: Iterable[Shift | Support]) -> dict[Hashable, Source]:
        """The sources of these and of all gates."""
        read = chain(*(each.sources for each in declared), *(gate.sources for gate in self.gates))
        return {source.key: source for source in read}

    @cached_property
    def vocabulary(self) -> int | None:
        """How many tokens all sources' models know, the first ones of the base's vocabulary; None
        where no other model than the base reads the text. Heads and embeddings are padded to
        different widths in models of one family, and what is beyond the narrowest is no token."""
        read = [
            (model, isinstance(source, Logits))
            for source in self.sources.values()
            for model, _ in source.models
            if model is not None
        ]
        widths = [len(model.get_input_embeddings().weight) for model, _ in read]
        widths += [len(model.get_output_embeddings().weight) for model, scores in read if scores]
        return min(widths, default=None)

    def forward_group(self, source: Logits) -> tuple[Logits, ...]:
        """The sources that are read by the same forward: one model behind several prompts."""
        return next(group for group in self._forwards if any(x.key == source.key for x in group))

    @cached_property
    def _forwards(self) -> tuple[tuple[Logits, ...], ...]:
        groups: dict[Hashable, list[Logits]] = {}
        for key, source in self.sources.items():
            if isinstance(source, Logits) and not source.is_base:
                context = source.context
                alone = context.depth or context.after or not context.ids
                forward = key if alone else (source.model_key, self._gates_before(source))
                groups.setdefault(forward, []).append(source)
        return tuple(map(tuple, groups.values()))

    def _gates_before(self, source: Source) -> Hashable:
        """The sets of gates of which one must be open for a source to be read, by the gates' ids;
        None if it is read at every step."""
        if source.key in self.always_read:
            return None
        readers = [x for x in self._declared if any(s.key == source.key for s in x.sources)]
        return frozenset(tuple(map(id, reader.gates)) for reader in readers)

    @cached_property
    def contexts(self) -> dict[Hashable, Logits]:
        """The base in contexts that every step reads, by source key."""
        return {key: s for key, s in self._always_logits.items() if s.model is None}

    @cached_property
    def experts(self) -> dict[Hashable, Any]:
        """The other models that every step reads in no context, by source key."""
        always = self._always_logits.items()
        return {key: s.model for key, s in always if s.model is not None and s.context.is_empty}

    @cached_property
    def sequence_logits(self) -> dict[Hashable, Logits]:
        """Logits of which one forward over a finished text gives those of all its tokens, by source
        key, without the base's own."""
        return {
            key: source
            for key, source in self.sources.items()
            if isinstance(source, Logits) and not source.is_base and not source.context.after
        }

    @cached_property
    def _always_logits(self) -> dict[Hashable, Logits]:
        return {
            key: source for key, source in self.sequence_logits.items() if key in self.always_read
        }

    @cached_property
    def groups(self) -> ExpertGroups:
        """Finds the experts that can be batched with the base, and remembers how."""
        return ExpertGroups()

    @cached_property
    def linear(self) -> dict[Hashable, float]:
        """The weights of the sources that are added to the base's logits and read for nothing else,
        by source key, without the base."""
        weights: dict[Hashable, float] = {}
        for shift in self.shifts:
            for coefficient, source in self._summed(shift):
                weights.setdefault(source.key, 0.0)
                weights[source.key] += shift.weight * coefficient
        others = [shift for shift in self.shifts if not self._summed(shift)]
        for key in self._read_by((*others, *self.masks)):
            weights.pop(key, None)
        weights.pop(BASE, None)
        return weights

    @staticmethod
    def _summed(shift: Shift) -> tuple[tuple[float, Logits], ...]:
        return () if shift.gates else shift.linear or ()

    @cached_property
    def needs_hidden(self) -> bool:
        """Whether anything reads the base's last hidden state."""
        return HIDDEN in self.sources

    @property
    def needs_float32_logits(self) -> bool:
        """Whether any shift compares probabilities: logits in half precision are too coarse for
        that, an ``exp(-50 d)`` of them is off by nats."""
        return any(shift.compares_probabilities for shift in self.shifts)

    @cached_property
    def why_stepwise(self) -> str | None:
        """Why no step can be evaluated at several positions at once, or None where it can.

        Then no draft can be verified, and given texts are scored column by column."""
        for shift in self.shifts:
            if not shift.sources:
                return _unread(shift)
        for source in self.sources.values():
            if not source.multi_position:
                return f"'{source.name}' is read at one place at a time"
            if isinstance(source, Logits) and source.context.after:
                return f"'{source.name}' reads something behind the text"
        if self.gates:
            return f"the gate {type(self.gates[0]).__name__} is asked at one place at a time"
        if self.masks:
            return f"the support {type(self.masks[0]).__name__} is a mask of one place at a time"
        return None

    @cached_property
    def why_uncapturable(self) -> str | None:
        """Why no step can be captured as a CUDA graph, or None where it can."""
        for shift in self.shifts:
            if not shift.sources:
                return _unread(shift)
            for source in shift.sources:
                if not source.capturable:
                    return f"'{source.name}' of {self.owner(shift)} is read in a way of its own"
                if isinstance(source, Logits) and source.model and not source.context.is_empty:
                    return f"'{source.name}' is another model in a context"
        if self.gates:
            return f"the gate {type(self.gates[0]).__name__} is looked at by the host"
        if self.masks:
            return f"the support {type(self.masks[0]).__name__} is looked at by the host"
        return None


def make_plan(controller: Controller, model: Any, tokenizer: Any) -> Plan:
    """The plan of a controller on a model: every part is asked for its declaration.

    Raises:
        TypeError: for a part whose declaration holds something else than shifts, supports, gates
            and sources.
        ValueError: from a part that cannot work with this model or tokenizer.
    """
    declared = declarations(controller, model, tokenizer)
    plan = Plan(tuple((n, each) for n, each in declared if each.shifts or each.supports))
    for source in plan.sources.values():
        check_source(source, model)
    return replace(plan, weights=plan._state_of(model))


def _is_truncation(support: Support) -> TypeGuard[RankSupport]:
    """Whether a support is a set of best tokens for all rows and steps."""
    return isinstance(support, RankSupport) and not support.gates


def _support_key(support: Support) -> Hashable:
    """Equal for equal supports behind the same gates, which need not have a hash."""
    if not support.gates:
        return support
    return replace(support, gates=()), tuple(map(id, support.gates))


def _unread(shift: Shift) -> str:
    """Why a shift without sources is asked at one position at a time."""
    return f"{type(shift).__name__} names no source, so it may look at the text itself"
