"""Data sheets: what a saved controller was made of, how well it did, and what it is for.

A saved controller's README.md is its data sheet (after Gebru et al. 2021 and Mitchell et al. 2019).
What a fit knows of it stands in ``fit.json`` beside it and is filled in; what only people know
(licence, intended use, limits) stands in the front matter of README.md, as on the Hugging Face hub,
and is kept when the controller is saved again. What nobody has written down is called so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from plugalign.files.text import read_text

README, FIT = "README.md", "fit.json"
UNSTATED = "not stated"
LEARNED_LIMIT = (
    "What it learned holds for texts like those that it learned from, as do figures on texts held "
    "out of these: on others it may do worse. It steers whatever separated its classes."
)
PARTS_LIMIT = "The limits of its parts are its own too."
SETTINGS_LIMIT = (
    "Nothing was learned: what it does follows from its settings, the model and the prompt alone."
)


@dataclass(frozen=True)
class Notes:
    """What people state about a controller: keyword arguments of ``save_pretrained(folder,
    model_card_kwargs={...})``, and keys in the front matter of README.md.

    Attributes:
        license: an identifier as on the hub, such as "apache-2.0".
        training_data: where the data comes from, and its own licence.
        intended_use: what it is for, and what it is not for.
        limitations: what is known to go wrong.
    """

    license: str = "unknown"
    training_data: str = UNSTATED
    intended_use: str = UNSTATED
    limitations: str = UNSTATED

    def __post_init__(self) -> None:
        for each in fields(self):
            if not isinstance(value := getattr(self, each.name), str) or not value.strip():
                raise ValueError(f"{each.name} of a data sheet must be words, got {value!r:.60}")


@dataclass(frozen=True)
class Provenance:
    """Where a loaded or fitted controller comes from.

    Attributes:
        fit: the content of its fit.json, None where it was not fitted by ``plugalign fit``.
        notes: what people state of it.
    """

    fit: Mapping[str, Any] | None = None
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True)
class DataSheet:
    """A controller's data sheet.

    Attributes:
        controller, kind: its saved name and its class.
        summary: the first words of the class's description.
        fitted_for: the model that it was fitted for, None where it fits any.
        provenance: where it comes from.
        parts: of a sum, or behind a gate: weights and data sheets.
        learned: whether it has tensors or models of its own.
    """

    controller: str
    kind: str
    summary: str
    fitted_for: str | None = None
    provenance: Provenance = field(default_factory=Provenance)
    parts: tuple[tuple[float, DataSheet], ...] = ()
    learned: bool = False

    @property
    def texts(self) -> dict[str, int]:
        """How many texts of each label it learned from, those that were held out included."""
        return dict((self.provenance.fit or {}).get("data", {}).get("texts", {}))

    @property
    def held_out(self) -> dict[str, float]:
        """What was measured on texts that it did not learn from, such as "auc" and "loss"."""
        return dict(_measured((self.provenance.fit or {}).get("measured", {})))

    @property
    def evaluation(self) -> str:
        """`held_out` in a sentence."""
        if not self.held_out:
            return "Nothing was measured on texts held out, or it was not recorded."
        found = "; ".join(f"{name} {value:g}" for name, value in self.held_out.items())
        return f"On texts held out of the fit: {found}."

    @property
    def limits(self) -> str:
        """What is known to go wrong, or what follows from how it was made."""
        stated = self.provenance.notes.limitations
        if stated != UNSTATED:
            return stated
        if self.learned or self.provenance.fit is not None or self.fitted_for is not None:
            return LEARNED_LIMIT
        return PARTS_LIMIT if self.parts else SETTINGS_LIMIT

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        fit, notes = self.provenance.fit or {}, self.provenance.notes
        return {
            "controller": self.controller,
            "class": self.kind,
            "summary": self.summary,
            "fitted_for": self.fitted_for,
            "method": fit.get("method"),
            "texts": self.texts,
            "n": sum(self.texts.values()) or None,
            "data_sha256": fit.get("data", {}).get("sha256"),
            "held_out": self.held_out,
            "license": notes.license,
            "training_data": notes.training_data,
            "intended_use": notes.intended_use,
            "limitations": self.limits,
            "parts": [{"weight": weight, **part.to_json()} for weight, part in self.parts],
        }

    def markdown(self) -> str:
        """The content of README.md."""
        front = {"library_name": "plugalign", "tags": ["model_hub_mixin", "plug-in alignment"]}
        front |= {each.name: getattr(self.provenance.notes, each.name) for each in fields(Notes)}
        head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
        return f"---\n{head}---\n\n" + "\n".join(self._body()) + "\n"

    def _body(self) -> Iterator[str]:
        yield from (f"# {self.kind}, a controller of plugalign", "", self.summary, "")
        yield "- Fitted for: " + (self.fitted_for or "no model in particular")
        yield f"- Settings: config.json (controller `{self.controller}`)"
        yield from ("", "## Training data", "", *self._data(), "")
        yield from ("## Evaluation", "", self.evaluation, "")
        yield from ("## Intended use", "", self.provenance.notes.intended_use, "")
        yield from ("## Limits", "", self.limits)
        if self.parts:
            yield from ("", "## Parts", "", "| weight | controller | texts | held out | licence |")
            yield "| --- | --- | --- | --- | --- |"
            yield from (part.row(weight) for weight, part in self.parts)
            yield from ("", "Each part's folder holds a data sheet of its own.")
        yield from ("", "## How to use it", "", "```python", "import plugalign", "")
        yield 'controller = plugalign.Controller.from_pretrained("this folder")'
        yield "steered = plugalign.wrap(model, tokenizer, controller)"
        yield "```"

    def row(self, weight: float) -> str:
        """A line of the table of parts."""
        n = sum(self.texts.values())
        measured = ", ".join(f"{name} {value:g}" for name, value in self.held_out.items())
        licence = self.provenance.notes.license
        return f"| {weight:g} | {self.kind} | {n or '-'} | {measured or '-'} | {licence} |"

    def _data(self) -> Iterator[str]:
        yield f"Source: {self.provenance.notes.training_data}."
        if not self.texts:
            yield "How much it learned from was not recorded, or nothing was learned."
            return
        listed = ", ".join(f"{count} of “{label}”" for label, count in self.texts.items())
        yield f"n = {sum(self.texts.values())} texts ({listed}), those held out included."
        yield f"SHA-256 of texts and labels: {self.to_json()['data_sha256']}"


def _measured(found: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, float]]:
    """The losses and AUCs among what a fit has measured, nested ones by all their names."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _measured(value, "" if name == "held_out" else f"{front}{name} ")
        elif name in ("auc", "loss") or name.endswith(("_auc", "_loss", "accuracy")):
            yield f"{front}{name}", float(value)


def read_provenance(folder: Path) -> Provenance:
    """What a saved controller's folder says of where it comes from.

    A README.md without front matter, or with another's, states nothing.

    Raises:
        ValueError: if fit.json is damaged, or a stated value is no text; names the file.
    """
    fit = None
    if (path := folder / FIT).is_file():
        try:
            fit = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged ({error.msg}); fit the controller again"
            ) from error
        if not isinstance(fit, dict):
            raise ValueError(f"{path} is damaged, it is no JSON object; fit the controller again")
    path = folder / README
    try:
        return Provenance(fit, Notes(**(_stated(path) if path.is_file() else {})))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; mend the line or remove it") from error


def known_provenance(folder: Path) -> Provenance:
    """`read_provenance` for a controller that is loaded, which works without: a fault is a
    warning."""
    try:
        return read_provenance(folder)
    except ValueError as error:
        why = f"{error}; until then nothing is known of where the controller comes from"
        warnings.warn(why, RuntimeWarning, stacklevel=4)
        return Provenance()


def _stated(path: Path) -> dict[str, str]:
    """What the front matter of a README.md states of a controller."""
    parts = read_text(path).split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError("malformed YAML in its front matter") from error
    known = {each.name for each in fields(Notes)}
    return {k: v for k, v in front.items() if k in known} if isinstance(front, dict) else {}
