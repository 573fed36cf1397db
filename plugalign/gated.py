"""A controller that acts only where a gate is open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from plugalign.algebra.gates import Gate
from plugalign.algebra.steering import Steering
from plugalign.controller import Composition, Controller
from plugalign.saving import GATES, Saveable, Settings, check_named, class_of


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
        """The controller's declaration behind the gate, which is bound to this model.

        Raises:
            ValueError: if the controller or the gate cannot work with this model or tokenizer.
        """
        gate = self.gate.bound(model, tokenizer)
        return self.controller.steer(model, tokenizer).behind(gate)

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
        kind = class_of(settings.pop("name", None), Gate, GATES, "a saved controller has the gate")
        return cls(parts["controller"], kind.build(settings))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gated) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.controller!r}.when({self.gate!r})"
