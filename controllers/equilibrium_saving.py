"""What a saved equilibrium is made of: settings, tables of tokens, and its parts in subfolders.

A part that stands in several places (a classifier that steers and is a principle's scorer) is saved
once, and loaded once: it is then read once a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.saving import Settings
from plugalign.controllers.principles import Preferences, Principle
from plugalign.controllers.principles_scorers import Scorer, TokenTable

PART = r"^(reference|(principle|controller|feature)_[0-9]{1,3})$"
Part = Annotated[str, Field(pattern=PART)]  # a subfolder, or a tensor


class ScorerSettings(BaseModel):
    """A feature: its name, and where its scorer is: in a subfolder, or among the tensors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    name: str
    scorer: Part
    is_table: bool
    vocabulary: str | None


class PrincipleSettings(ScorerSettings):
    """A principle."""

    epsilon: float | None
    priority: int
    controller: Part | None


class EquilibriumSettings(Settings):
    """Bounds, budget and strength, and where the parts are."""

    epsilon: float
    kappa: float | None
    strength: float
    confidence: float
    k: int
    reference: Part | None
    principles: list[PrincipleSettings]
    features: list[ScorerSettings]


def placed(
    reference: Controller | None, principles: Iterable[Principle], preferences: Preferences
) -> dict[str, Scorer]:
    """Every part once, by the name under which it is saved: that of the first place in which it
    stands."""
    named: list[tuple[str, Scorer | None]] = [("reference", reference)]
    for i, principle in enumerate(principles):
        named += [(f"principle_{i}", principle.scorer), (f"controller_{i}", principle.controller)]
    named += [(f"feature_{i}", s) for i, s in enumerate(preferences.features.values())]
    found = dict[str, Scorer]()
    for name, part in named:
        if part is not None and not any(part is other for other in found.values()):
            found[name] = part
    return found


def place_of(part: Scorer | None, places: Mapping[str, Scorer]) -> str | None:
    """The name under which a part is saved."""
    return next((name for name, other in places.items() if other is part), None)


def settings_of(
    places: Mapping[str, Scorer],
    reference: Controller | None,
    principles: Iterable[Principle],
    preferences: Preferences,
) -> dict[str, Any]:
    """Where all parts are, as `EquilibriumSettings` says it."""

    def scorer(name: str, part: Scorer) -> dict[str, Any]:
        vocabulary = part.vocabulary if isinstance(part, TokenTable) else None
        return {
            "name": name,
            "scorer": place_of(part, places),
            "is_table": isinstance(part, TokenTable),
            "vocabulary": vocabulary,
        }

    return {
        "reference": place_of(reference, places),
        "principles": [
            {
                **scorer(p.name, p.scorer),
                "epsilon": p.epsilon,
                "priority": p.priority,
                "controller": place_of(p.controller, places),
            }
            for p in principles
        ],
        "features": [scorer(*each) for each in preferences.features.items()],
    }


def folders(config: Mapping[str, Any]) -> list[str]:
    """The names of the parts that are controllers, each once."""
    scorers = [*config["principles"], *config["features"]]
    named = [config["reference"], *(s["scorer"] for s in scorers if not s["is_table"])]
    named += [p["controller"] for p in config["principles"]]
    return list(dict.fromkeys(name for name in named if name is not None))


def tables(config: Mapping[str, Any]) -> dict[str, int]:
    """The tensors that are tables of tokens, with their dimensions."""
    scorers = [*config["principles"], *config["features"]]
    return {each["scorer"]: 1 for each in scorers if each["is_table"]}


def loaded(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], parts: Mapping[str, Any]
) -> tuple[list[Principle], Preferences]:
    """Principles and preferences of a saved equilibrium.

    Raises:
        ValueError: if they contradict each other.
    """
    made: dict[str, Scorer] = {**parts}

    def scorer(settings: Mapping[str, Any]) -> Scorer:
        place = settings["scorer"]
        if settings["is_table"] and place not in made:
            made[place] = TokenTable(tensors[place], settings["vocabulary"])
        return made[place]

    principles = [
        Principle(
            p["name"], scorer(p), p["epsilon"], p["priority"], parts.get(p["controller"] or "")
        )
        for p in config["principles"]
    ]
    features = {each["name"]: scorer(each) for each in config["features"]}
    if len(features) < len(config["features"]):
        raise ValueError("two features have one name")
    return principles, Preferences(features, tensors["theta"], tensors.get("covariance"))
