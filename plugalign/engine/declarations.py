"""What the parts of a controller declare for one model: checked, weighted, their gates bound."""

from __future__ import annotations

from itertools import chain
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source
from plugalign.algebra.steering import Steering, bind_gates
from plugalign.algebra.supports import Support


def declarations(controller: Controller, model: Any, tokenizer: Any) -> list[tuple[str, Steering]]:
    """The name and the weighted declaration of each part that steers.

    Raises:
        TypeError: for a part whose declaration holds something else than shifts, supports, gates
            and sources.
        ValueError: from a part or a gate that cannot work with this model or tokenizer.
    """
    names, steerings = [], []
    for weight, part in controller.parts():
        if part.overrides("steer") and weight != 0:
            steering = part.steer(model, tokenizer)
            _check_kinds(part.display_name, steering)
            names.append(part.display_name)
            steerings.append(steering.scaled(weight))
    declared = list(zip(names, bind_gates(steerings, model, tokenizer), strict=True))
    for name, steering in declared:
        _check_sources(name, steering)
    return declared


def _check_kinds(name: str, steering: Steering) -> None:
    """Refuses a declaration that holds something else than shifts, supports and gates.

    Raises:
        TypeError: naming the controller and what it declared.
    """
    _check_kind(name, Steering, steering)
    for kind, parts in ((Shift, steering.shifts), (Support, steering.supports)):
        for part in parts:
            _check_kind(name, kind, part)
            for gate in part.gates:
                _check_kind(name, Gate, gate)


def _check_sources(name: str, steering: Steering) -> None:
    """Refuses what a declaration reads that is no source, also what its bound gates read.

    Raises:
        TypeError: naming the controller and what it declared.
    """
    parts: list[Shift | Support] = [*steering.shifts, *steering.supports]
    for part in parts:
        for source in chain(part.sources, *(gate.sources for gate in part.gates)):
            _check_kind(name, Source, source)


def _check_kind(name: str, kind: type, part: object) -> None:
    if not isinstance(part, kind):
        raise TypeError(
            f"the controller {name} declared a {type(part).__name__} ({part!r}) where a "
            f"{kind.__name__} belongs"
        )
