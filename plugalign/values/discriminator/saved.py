"""Loads saved discriminators of several values; those that read with one model share it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugalign.evaluation.judging.files import CONFIG, kind_of
from plugalign.files.json_text import read_object
from plugalign.files.shown import shown_path
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.judgement import Discriminator

KINDS: Mapping[str, Any] = {kind.KIND: kind for kind in (ValueDiscriminator, ValueContrast)}


def load_discriminators(folders: Mapping[str, str | Path]) -> dict[str, Discriminator]:
    """Discriminators by principle, in the order that is given.

    Raises:
        ValueError: for a folder that holds none, or see `ValueDiscriminator.load`.
    """
    found: dict[str, Discriminator] = {}
    models: dict[tuple[str, str], tuple[Any, Any]] = {}
    for name, folder in folders.items():
        kind = kind_of(Path(folder))
        if kind is None or kind not in KINDS:
            raise ValueError(
                f"{shown_path(folder)} holds no value discriminator; plugalign fit value makes one"
            )
        config = read_object(Path(folder) / CONFIG)
        key = (str(config.get("reader")), str(config.get("model")))
        loaded = KINDS[kind].load(folder, *models.get(key, (None, None)))
        models[key] = (loaded.reader.model, loaded.reader.tokenizer)
        found[name] = loaded
    return found
