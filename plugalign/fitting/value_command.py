"""What ``plugalign fit value`` does with its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.fitting import workspace
from plugalign.fitting.data import load_data
from plugalign.fitting.progress import say
from plugalign.fitting.value import distinct, fit_value, model_record, split, use_of
from plugalign.values.discriminator.contrast import ValueContrast, negated
from plugalign.values.discriminator.loading import load_reader
from plugalign.values.discriminator.readers import CausalReader, EncoderReader

LEVEL = 0.9  # of verdict sets


def fit_value_files(
    paths: Sequence[Path],
    out: Path,
    *,
    statement: str | None = None,
    model: str | None = None,
    encoder: str | None = None,
    negation: str | None = None,
    licence: str | None = None,
    level: float | None = None,
    desired: str | None = None,
    read: Mapping[str, Any] | None = None,
    minutes: float | None = None,
) -> str:
    """Fits a discriminator to files of labelled texts, or makes one without labels.

    Args:
        paths: of the data; none for a statement against its negation.
        model: a causal language model to read with. encoder: a sentence encoder in its place.
        negation: where there is no data.
        licence, level, desired: of data, see `fit_value`.
        read: the columns of the data and how much of it, see `load_data`.
        minutes: see `fit_value`; without data it takes seconds.

    Returns:
        What there is to say at the end.

    Raises:
        ValueError: for options that do not go together, before any work, or see `fit_value`.
    """
    if statement is None or not statement.strip():
        raise ValueError('fit value needs --statement, such as "It respects others."')
    if (model is None) == (encoder is None):
        raise ValueError("fit value needs one of --model and --encoder to read texts with")
    workspace.check_out(out)
    if not paths:
        of_data = {"licence": licence, "desired": desired, "level": level}
        if given := [name for name, value in of_data.items() if value is not None]:
            raise ValueError(f"--{given[0]} is of data; give --data, or leave it out")
        return _without_labels(out, statement, negation, model, encoder)
    if negation is not None:
        raise ValueError("--negation is for a value without data; leave it out")
    level = LEVEL if level is None else level
    data = load_data(list(paths), **(read or {}))
    split(*distinct(data, desired), level)  # says now what a fit would say once the model is there
    return fit_value(
        _reader(model, encoder),
        str(model or encoder),
        data,
        out,
        statement=statement,
        desired=desired,
        files=paths,
        licence=licence,
        level=level,
        minutes=minutes,
    ).describe()


def _reader(model: str | None, encoder: str | None) -> CausalReader | EncoderReader:
    name = str(model or encoder)
    say(f"loading {name}")
    return load_reader("encoder" if model is None else "causal", name)


def _without_labels(
    out: Path, statement: str, negation: str | None, model: str | None, encoder: str | None
) -> str:
    negation = negated(statement) if negation is None else negation
    reader, source = _reader(model, encoder), str(model or encoder)
    contrast = ValueContrast(statement, negation, reader, source)
    contrast.contrasts(["It is a fine day."])  # refuses a statement that is longer than the context

    def work(folder: Path, result: Path) -> dict[str, Any]:
        contrast.save(result)
        return {}

    record = {
        "method": "value",
        "model": model_record(reader),
        "settings": {"statement": statement, "negation": negation},
    }
    workspace.make(out, record, work)
    return f"{contrast.sheet.summary()}\n{use_of(out)}"
