"""The vocabulary: what a controller is, and how controllers add up.

A controller aligns a language model while it decodes and may act in four places. ``prompt``
rewrites the text before it is tokenised, ``attach`` changes the model around one ``generate``
call and undoes it, ``steer`` changes the next-token distribution, ``revise`` works on finished
answers. A subclass overrides what it needs; the rest does nothing.

``steer`` is *declared, not executed*: it returns a `Steering`, data that says which sources are
needed (`Source`), by which formula they change the log-probabilities (`Shift`) and which tokens
stay possible (`Support`). An engine sees the declarations of all controllers before it runs a
forward, so it can share sources, put prompts into one batch and fuse the formulas. The meaning
is always the same sum on the intersection of the supports::

    log p'(t | x) = log p(t | x) + sum_i w_i * delta_i(t) + const

Hence composition is commutative and associative: ``a + b`` and ``b + a`` are one controller.
Letters: B batch, T time, V vocabulary, D hidden, K candidates or sources, P prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from plugalign.algebra.adjusting import checked_settings, rebuilt, scalar_settings
from plugalign.algebra.class_names import check_named, class_of
from plugalign.algebra.gates import Gate
from plugalign.algebra.revisions import Revision
from plugalign.algebra.saving import Saveable, Settings
from plugalign.algebra.steering import Steering
from plugalign.catalogue import GATES
from plugalign.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from plugalign.generation.revision import Answers


class Controller(Saveable):
    """Base class of all controllers: configuration plus learned tensors, immutable while decoding.

    A subclass sets ``name`` (the key in its saved config.json) and overrides the surfaces it
    needs. See CONTRIBUTING.md for a walk through a new controller.
    """

    name: ClassVar[str] = ""

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses a model or tokenizer that this controller cannot work with, before any work.

        Raises:
            ValueError: naming what does not fit.
        """

    def prompt(self, text: str) -> str:
        """Rewrites the prompt before it is tokenised; in a chat, what the user says last."""
        return text

    @contextmanager
    def attach(self, model: Any) -> Iterator[int]:
        """Changes ``model`` for one ``generate`` call and undoes it, whatever happens.

        Yields:
            The number of cache positions it puts in front of the prompt (0 for most).
        """
        yield 0

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """Declares how the next-token distribution changes, bound to this model.

        Raises:
            ValueError: if the controller cannot work with this model or tokenizer.
        """
        return Steering()

    def revise(self, answers: Answers) -> Revision:
        """Rewrites finished answers; the revision holds ids ``(B, T')`` without the prompts."""
        return Revision(answers.ids)

    def overrides(self, surface: str) -> bool:
        """Whether this controller acts on ``surface`` (prompt, attach, steer or revise)."""
        return getattr(type(self), surface) is not getattr(Controller, surface)

    def parts(self) -> tuple[tuple[float, Controller], ...]:
        """The weighted controllers this one is made of: itself, unless it is a sum."""
        return ((1.0, self),)

    @property
    def display_name(self) -> str:
        """How messages and traces call it."""
        return type(self).__name__

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for controllers that count as one in a sum."""
        return (type(self).__name__, id(self))

    def when(self, gate: Gate) -> Controller:
        """This controller where ``gate`` is open, and nothing elsewhere. Gates multiply:
        ``a.when(g).when(h)`` acts where both are open.

        Raises:
            TypeError: for something that is no gate.
            ValueError: for a controller that acts on more than the distribution.
        """
        return Gated(self, gate)

    def adjustable(self) -> Mapping[str, Any]:
        """The types of the settings that `with_settings` can change, by name."""
        return scalar_settings(type(self))

    def with_settings(self, **changes: Any) -> Self:
        """This controller with other settings, such as ``alpha=1.0``, and the same learned parts.

        Raises:
            ValueError: for a setting that it does not have, or a value that it cannot have.
        """
        return rebuilt(self, checked_settings(self.display_name, self.adjustable(), changes))

    def __add__(self, other: Controller) -> Controller:
        if not isinstance(other, Controller):
            return NotImplemented
        return Composition(*self.parts(), *other.parts())

    def __mul__(self, weight: float) -> Controller:
        if not isinstance(weight, (int, float)):
            return NotImplemented
        return Composition(*((weight * w, part) for w, part in self.parts()))

    __rmul__ = __mul__

    def processor(self, *_: Any, **__: Any) -> Any:
        """Says where the plain ``LogitsProcessor`` of a controller is made now.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a controller alone makes no LogitsProcessor; write plugalign.wrap(model, tokenizer, "
            "controller).processor(attention_mask=...)"
        )


class CompositionSettings(Settings):
    """The parts' weights, in their order."""

    weights: list[float]


class Composition(Controller):
    """A weighted sum of controllers, kept in one canonical order so that sums commute.

    Parts of one class are ordered by what they are made of, so that those that reword prompts,
    attach or revise come in the same order in every process, and after saving and loading.

    Raises:
        ValueError: for a weight that is not finite, or one other than 0 and 1 of a part that acts
            on more than the distribution.
    """

    name = "composition"
    settings = CompositionSettings

    def __init__(self, *parts: tuple[float, Controller]):
        every = [(weight * w, part) for weight, given in parts for w, part in given.parts()]
        weights: dict[tuple[Any, ...], float] = {}
        members = {controller.key: controller for _, controller in every}
        for weight, controller in every:
            weights[controller.key] = weights.get(controller.key, 0.0) + weight
        self._parts = tuple((weights[key], members[key]) for key in _ordered(members))
        for weight, controller in self._parts:
            if not math.isfinite(weight):
                raise ValueError(f"a controller's weight must be finite, got {weight}")
            whole = [s for s in ("prompt", "attach", "revise") if controller.overrides(s)]
            if whole and weight not in (0.0, 1.0):
                raise ValueError(
                    f"{type(controller).__name__} acts on {' and '.join(whole)}, which is all or "
                    f"nothing; its weight must be 0 or 1, got {weight:g}"
                )

    def parts(self) -> tuple[tuple[float, Controller], ...]:
        return self._parts

    def when(self, gate: Gate) -> Controller:
        return Composition(*((weight, part.when(gate)) for weight, part in self._parts))

    def config(self) -> dict[str, Any]:
        return {"weights": [weight for weight, _ in self._parts]}

    def saved_parts(self) -> dict[str, Saveable]:
        return {f"part_{i}": controller for i, (_, controller) in enumerate(self._parts)}

    def sheet_parts(self) -> tuple[tuple[float, Controller], ...]:
        return self._parts

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> list[str]:
        return [f"part_{i}" for i in range(len(config["weights"]))]

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        weights = config["weights"]
        return cls(*((w, parts[f"part_{i}"]) for i, w in enumerate(weights)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return " + ".join(f"{w:g} * {c!r}" if w != 1 else repr(c) for w, c in self._parts)


def _ordered(members: Mapping[tuple[Any, ...], Controller]) -> list[tuple[Any, ...]]:
    """The keys of a sum's parts in their order."""
    names = [key[0] for key in members]

    def place(key: tuple[Any, ...]) -> tuple[Any, ...]:
        alone = names.count(key[0]) == 1
        return key[0], "" if alone else _content(members[key]), key

    return sorted(members, key=place)


def _content(part: Any) -> str:
    """What a controller or a part of it is made of, as far as that is known without reading the
    files of its models; nothing of what cannot be saved."""
    if isinstance(part, (str, Path)):
        return str(part)
    if not isinstance(part, Saveable):
        return ""
    try:
        config, parts = part.config(), part.saved_parts()
    except ValueError:
        return ""
    named = {name: _content(each) for name, each in parts.items()}
    return fingerprint(part.tensors(), named, repr(config))


class GatedSettings(Settings):
    """The gate: its name, and what its own ``config`` says."""

    gate: dict[str, Any]


class Gated(Controller):
    """What a controller declares, behind a gate; see `Controller.when`.

    Where the gate is closed for all rows of a step, what only this controller reads is not run.

    Args:
        controller: one that acts on the distribution alone, and is no sum.
        gate: where it acts.

    Raises:
        TypeError: for something that is no gate, or a sum.
        ValueError: for a controller that acts on more than the distribution.
    """

    name: ClassVar[str] = "gated"
    settings: ClassVar[type[Settings]] = GatedSettings

    def __init__(self, controller: Controller, gate: Gate):
        if not isinstance(gate, Gate):
            raise TypeError(f"when() needs a Gate, such as FirstSteps(5), got {gate!r}")
        if isinstance(controller, Composition):
            raise TypeError("a sum stands behind a gate part by part; use its when(gate)")
        if beyond := [s for s in ("prompt", "attach", "revise") if controller.overrides(s)]:
            raise ValueError(
                f"{controller.display_name} acts on {' and '.join(beyond)}, which cannot stand "
                f"behind the gate {type(gate).__name__}: a gate opens and closes from token to "
                "token, so only a controller that does nothing but steer can"
            )
        self.controller, self.gate = controller, gate

    @property
    def display_name(self) -> str:
        return f"{self.controller.display_name}.when({type(self.gate).__name__})"

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.controller.key, type(self.gate).__name__, id(self.gate))

    def check(self, model: Any, tokenizer: Any) -> None:
        self.controller.check(model, tokenizer)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """The controller's declaration behind the gate, which the plan binds to the model.

        Raises:
            ValueError: if the controller cannot work with this model or tokenizer.
        """
        return self.controller.steer(model, tokenizer).behind(self.gate)

    def adjustable(self) -> Mapping[str, Any]:
        return self.controller.adjustable()

    def with_settings(self, **changes: Any) -> Self:
        made = type(self)(self.controller.with_settings(**changes), self.gate)
        made.provenance = self.provenance
        return made

    def config(self) -> dict[str, Any]:
        check_named(self.gate)
        return {"gate": {"name": self.gate.name, **self.gate.config()}}

    def saved_parts(self) -> dict[str, Saveable]:
        return {"controller": self.controller}

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> tuple[str]:
        return ("controller",)

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        settings = dict(config["gate"])
        name = settings.pop("name", None)
        kind = class_of(name, Gate, GATES, "a saved controller has the gate")
        try:
            gate = kind.build(settings)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the settings of the gate '{name}' do not fit: {error}") from error
        return cls(parts["controller"], gate)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gated) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.controller!r}.when({self.gate!r})"
