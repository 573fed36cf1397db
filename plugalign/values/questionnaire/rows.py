"""The rows of a table: every model by itself, and under each controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.evaluation.run_folder.describe import describe_controller, describe_model
from plugalign.files.shown import check_name, shown
from plugalign.generation.chat_format import ChatChoice, choose_chat
from plugalign.generation.wrap import Steered, wrap
from plugalign.loading import resolve_model


@dataclass(frozen=True)
class Row:
    """One respondent.

    Attributes:
        reference: the row of its model without controllers; None for that row itself.
    """

    steered: Steered
    reference: str | None
    controller: Controller | None
    chat: ChatChoice


def model_rows(
    models: Sequence[Any],
    controllers: Mapping[str, Controller],
    chat: str,
    system: str | None,
    dtype: str,
    *,
    conversations: bool = False,
) -> dict[str, Row]:
    """Every model by itself and under each controller, by the name of the row.

    Args:
        chat, system, conversations: see `plugalign.generation.chat_format.choose_chat`.

    Raises:
        ValueError: for a model that is there twice, a controller that does not fit one, or a chat
            that cannot be.
    """
    if not models:
        raise ValueError("name at least one model")
    rows: dict[str, Row] = {}
    for given in models:
        model, tokenizer = given if isinstance(given, tuple) else (given, None)
        model, tokenizer = resolve_model(model, tokenizer, dtype)
        name = check_name(Path(model_name(model)).name, "a model")
        asked = choose_chat(model, tokenizer, chat, system, conversations=conversations)
        if name in rows:
            raise ValueError(f"two models are called {shown(name)}; name each once")
        rows[name] = Row(wrap(model, tokenizer, Controller()), None, None, asked)
        for label, controller in controllers.items():
            _check_revises(label, controller)
            steered = wrap(model, tokenizer, controller)
            rows[f"{name} + {label}"] = Row(steered, name, controller, asked)
    return rows


def _check_revises(name: str, controller: Controller) -> None:
    if any(part.overrides("revise") for weight, part in controller.parts() if weight):
        raise ValueError(
            f"{name} revises finished answers, so no answer to a questionnaire has a probability "
            "under it; leave it out"
        )


def described_rows(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Models and controllers as a manifest has them."""
    return {
        name: {
            "model": describe_model(row.steered.model, row.steered.tokenizer).model_dump(),
            "controller": None
            if row.controller is None
            else describe_controller(row.controller).model_dump(by_alias=True, mode="json"),
            "chat": row.chat.format is not None,
            "template": None if row.chat.format is None else row.chat.format.template,
        }
        for name, row in rows.items()
    }
