"""What controllers that are made of models share: they are checked, loaded and saved alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from plugalign.adapters.layers import is_lora
from plugalign.adapters.peft_models import check_apart
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity
from plugalign.algebra.saving import Settings
from plugalign.algebra.sources import Logits
from plugalign.controllers.dexperts import DExperts

Model = Any  # a model, a folder of a model or an adapter, or a hub id


class ModelSettings(Settings):
    """The ids on the hub of a controller's models, by name; None for those in the folder."""

    models: dict[str, str | None]


class WithModels(Controller):
    """A controller that is made of models (or tokenizers), each with a name of its own."""

    settings: ClassVar[type[Settings]] = ModelSettings
    runs_models = True
    trust_remote_code = False

    @abstractmethod
    def models(self) -> dict[str, Model]:
        """What it is made of, by name; each becomes a subfolder."""

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses models that are not models of their own.

        Raises:
            ValueError: naming them.
        """
        given = {name: each for name, each in self.models().items() if hasattr(each, "modules")}
        check_apart({"base": model, **given})

    def config(self) -> dict[str, Any]:
        return {"models": {name: hub_id(each) for name, each in self.models().items()}}

    def saved_parts(self) -> dict[str, Any]:
        parts = {name: each for name, each in self.models().items() if hub_id(each) is None}
        for name, each in parts.items():
            if hasattr(each, "modules") and any(map(is_lora, each.modules())):
                raise ValueError(
                    f"the {name} is a LoRA adapter around the base's weights, which cannot be "
                    "saved without the base; give the adapter's folder in its place"
                )
        return parts

    @classmethod
    def on_hub(cls, config: dict[str, Any]) -> Mapping[str, str | None]:
        named: dict[str, str | None] = config["models"]
        return named

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> Sequence[str]:
        return [name for name, hub in config["models"].items() if hub is None]


def hub_id(model: Model) -> str | None:
    """The id of a model that is named by one, else None."""
    return model if isinstance(model, str) and not Path(model).is_dir() else None


def check_model(model: Model, name: str) -> None:
    """Refuses what cannot be a model beside the base.

    Raises:
        TypeError: naming it and what was given.
    """
    if not isinstance(model, (str, Path)) and not hasattr(model, "get_output_embeddings"):
        raise TypeError(
            f"{name} must be a causal language model, a folder or a hub id, got "
            f"{type(model).__name__}"
        )


def loaded_logits(
    model: Model,
    base: Any,
    tokenizer: Any,
    name: str,
    *,
    trust_remote_code: bool,
    fitted_for: Identity | None = None,
) -> Logits:
    """A model beside the base: one that is given, a folder, a hub id or an adapter of the base.

    Args:
        name: in front of the model's name, for messages.
        trust_remote_code: whether code that comes with it may run.
        fitted_for: the base that it was made from, where it is an adapter.

    Raises:
        ValueError: if it cannot be loaded, is an adapter of another base, or has another tokenizer
            than the base; names it.
    """
    alone = DExperts(model, top_p=1.0, trust_remote_code=trust_remote_code, fitted_for=fitted_for)
    [shift] = alone.steer(base, tokenizer).shifts
    source = shift.sources[0]
    assert isinstance(source, Logits)
    return replace(source, name=f"{name} {source.name.removeprefix('expert ')}")
