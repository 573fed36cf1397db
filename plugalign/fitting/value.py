"""Fits a value discriminator and measures it on texts it has not seen: ``plugalign fit value``.

The model is frozen, and each text is read once. A quarter of the texts calibrates the head, another
quarter is held out; the rest is learned from, which also picks the layer by cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plugalign.algebra.data_sheet import UNSTATED, Notes, Provenance
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.fingerprint import file_hash, fingerprint
from plugalign.fitting import workspace
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.labelled import fair_order
from plugalign.fitting.pooled_states import keep_pooled_states
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.guiding import guide
from plugalign.values.discriminator.head import Labels, calibrate, fewest_for, fit_head
from plugalign.values.discriminator.measuring import layer_scores, measured
from plugalign.values.discriminator.readers import Reader
from plugalign.values.discriminator.sheet import INTENDED, LIMITS, DataFile, Sheet

FEWEST, CALIBRATED, HELD_OUT = 128, 64, 32  # different texts: in all, to calibrate, to measure
SHARE = 0.25  # of all texts, for either of the latter, where that is more
FEWEST_OF_A_CLASS = 10  # to calibrate
READING = 0.7  # of the time

GUIDE = "guide"  # the folder of a controller that steers by it, inside its own

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Which texts are for what, as their numbers."""

    learned: Numbers
    calibrated: Numbers
    held_out: Numbers


@dataclass(frozen=True)
class FittedValue:
    """A discriminator that was fitted, and where it is."""

    sheet: Sheet
    out: Path

    def describe(self) -> str:
        """What it is worth and how to use it."""
        return f"{self.sheet.summary()}\n{use_of(self.out)}"


def use_of(out: Path) -> str:
    """How a saved discriminator is used."""
    name = out.resolve().name
    found = f"It is in {out}; plugalign compare takes it as --judge {name}={out}"
    if (out / GUIDE).is_dir():
        found += f", and to steer its model as --controllers {name}={out / GUIDE}"
    return found


def fit_value(
    reader: Reader,
    source: str,
    data: Labelled,
    out: Path,
    *,
    statement: str,
    desired: str | None = None,
    files: Sequence[Path] = (),
    licence: str | None = None,
    level: float = 0.9,
    seed: int = 0,
    minutes: float | None = None,
) -> FittedValue:
    """Fits a discriminator for a statement and saves it in ``out``.

    A run that was killed and is started again continues.

    Args:
        reader: reads texts, at one or several layers, of which the best is taken.
        source: the hub id or folder of its model.
        data: texts and labels.
        desired: the label of texts that conform, see `Labelled.binary`.
        files: the files of the data, for the data sheet.
        licence: of the data, for the data sheet.
        level: the coverage of verdict sets.
        seed: which texts are held out, and which are read where the time is short.
        minutes: read fewer texts where these take longer; None is no bound.

    Raises:
        ValueError: for too few texts, a level that they cannot have, or an ``out`` that is taken.
    """
    texts, conforms = distinct(data, desired)
    split(texts, conforms, level, seed)  # says now what it would say once they are read
    order = reading_order(texts, conforms, seed)
    least = fewest_to_read(conforms[order], level)

    record = {
        "method": "value",
        "model": {**model_record(reader), "layers": list(reader.layers)},
        "data": {
            "texts": {"conforms": int(conforms.sum()), "breaks": int((~conforms).sum())},
            "sha256": fingerprint(texts, conforms.tolist()),
        },
        "settings": {"statement": statement, "licence": licence, "level": level, "seed": seed},
        "chat": {"used": False, "why": "a value is learnt from plain texts"},
    }

    def work(folder: Path, result: Path) -> dict[str, Any]:
        path, clock = folder / "read", Clock(minutes).part(READING)
        wanted = [texts[i] for i in order]
        states = keep_pooled_states(reader, wanted, statement, path, clock, least)
        used = order[: most_to_use(conforms[order[: len(states)]], level)]
        states, read = states[np.argsort(used)], np.sort(used)
        chosen, labels = [texts[i] for i in read], conforms[read]
        parts = split(chosen, labels, level, seed)
        about = {
            "files": tuple(DataFile(name=path.name, sha256=file_hash(path)) for path in files),
            "licence": licence,
        }
        found = fitted(reader, states, chosen, labels, parts, statement, level, source)
        found.sheet = found.sheet.model_copy(update=about)
        found.save(result)
        if reader.kind == "causal":
            steering = guide(found)
            steering.provenance = _provenance(record, found.sheet)
            steering.save_pretrained(result / GUIDE)
        return {"texts": len(read), **_measured(found.sheet)}

    workspace.make(out, record, work)
    return FittedValue(Sheet.load(out), out)


def model_record(reader: Reader) -> dict[str, Any]:
    """What fit.json says of the model that reads."""
    return {
        "name": reader.model_name,
        "weights": fingerprint(reader.identity.probe)[:16],
        "kind": reader.kind,
        "max_tokens": reader.max_tokens,
    }


def _provenance(record: dict[str, Any], sheet: Sheet) -> Provenance:
    """What the guide's own data sheet says."""
    notes = Notes(
        license=sheet.licence or "unknown",
        training_data=", ".join(file.name for file in sheet.files) or UNSTATED,
        intended_use=INTENDED,
        limitations=LIMITS,
    )
    return Provenance({**record, "measured": _measured(sheet)}, notes)


def _measured(sheet: Sheet) -> dict[str, Any]:
    """What fit.json says of held-out texts; the sheet has more."""
    return {} if sheet.held_out is None else {"held_out": {"auc": sheet.held_out.auc.value}}


def distinct(data: Labelled, desired: str | None) -> tuple[list[str], Labels]:
    """Different texts and whether each conforms; a text with both labels is left out.

    Raises:
        ValueError: see `Labelled.binary`.
    """
    good, bad = data.binary(desired)
    both = set(good) & set(bad)
    sides = [[text for text in dict.fromkeys(side) if text not in both] for side in (good, bad)]
    return [*sides[0], *sides[1]], np.repeat([True, False], [len(side) for side in sides])


def reading_order(texts: Sequence[str], conforms: Labels, seed: int) -> Numbers:
    """All texts' numbers, so that the first of them are a fair sample of both classes."""
    sides = [
        sorted(
            np.flatnonzero(conforms == side).tolist(),
            key=lambda i: fingerprint("read", seed, texts[i]),
        )
        for side in (True, False)
    ]
    return np.array([*sides[0], *sides[1]])[fair_order(sides)]


def fewest_to_read(conforms: Labels, level: float) -> int:
    """How many of the first texts suffice for a discriminator, within a factor of two; all of them
    if fewer do not.

    Args:
        conforms: in the order in which they are read.
    """
    count = FEWEST
    while count < len(conforms) and _shares(conforms[:count], level) is None:
        count *= 2
    return min(count, len(conforms))


def most_to_use(conforms: Labels, level: float) -> int:
    """How many of the first texts make a discriminator: all, or a few less where rounding leaves
    the rarer class one too few to calibrate.

    Args:
        conforms: of those that were read, which are not fewer than `fewest_to_read`.
    """
    counts = range(len(conforms), 0, -1)
    return next(n for n in counts if _shares(conforms[:n], level) is not None)


def split(texts: Sequence[str], conforms: Labels, level: float = 0.9, seed: int = 0) -> Parts:
    """Parts in which both classes have the shares that they have in all.

    Raises:
        ValueError: for too few texts in all, or of a class.
    """
    sides = [np.flatnonzero(conforms == side) for side in (True, False)]
    shares = _shares(conforms, level)
    if shares is None:
        raise ValueError(
            f"a value discriminator needs {FEWEST} different labelled texts, and of each class "
            f"{_fewest_of_a_class(level)} in the part that calibrates it at level {level:g}, a "
            f"quarter or {CALIBRATED}; got {len(sides[0])} that conform and {len(sides[1])} that "
            f"do not. Give more, or none: leave --data out"
        )
    found: list[list[int]] = [[], [], []]
    for side, (first, second) in zip(sides, shares, strict=True):
        order = sorted(side.tolist(), key=lambda i: fingerprint(seed, texts[i]))
        found[0] += order[first + second :]
        found[1] += order[:first]
        found[2] += order[first : first + second]
    return Parts(*(np.array(numbers) for numbers in found))


def _shares(conforms: Labels, level: float) -> list[list[int]] | None:
    """How many texts of each class calibrate, and how many are held out; None if there are too few
    in all, or of a class."""
    fewest, count = _fewest_of_a_class(level), len(conforms)
    sizes = [max(least, round(SHARE * count)) for least in (CALIBRATED, HELD_OUT)]
    sides = [int((conforms == side).sum()) for side in (True, False)]
    shares = [[round(size * side / max(1, count)) for size in sizes] for side in sides]
    if count < FEWEST or min(calibrating for calibrating, _ in shares) < fewest:
        return None
    return shares


def _fewest_of_a_class(level: float) -> int:
    """To calibrate."""
    return max(FEWEST_OF_A_CLASS, fewest_for(level))


def fitted(
    reader: Reader,
    states: FloatArray,
    texts: Sequence[str],
    conforms: Labels,
    parts: Parts,
    statement: str,
    level: float = 0.9,
    source: str | None = None,
) -> ValueDiscriminator:
    """A discriminator by states that have been read, with its data sheet.

    Args:
        states: of the reader's layers, ``(n, L, D)``.
    """
    layers = layer_scores(states[parts.learned], conforms[parts.learned], reader.layers)
    best = max(layers, key=lambda layer: layers[layer], default=reader.layers[0])
    own = states[:, reader.layers.index(best)]
    head = fit_head(own[parts.learned], conforms[parts.learned])
    margins = head.margins(own)
    calibration = calibrate(margins[parts.calibrated], conforms[parts.calibrated], level)
    learned, apart = (
        ([texts[i] for i in part], conforms[part]) for part in (parts.learned, parts.held_out)
    )
    sheet = Sheet(
        statement=statement,
        model=reader.model_name,
        conforming=int(conforms.sum()),
        breaking=int((~conforms).sum()),
        learned=len(parts.learned),
        calibrated=len(parts.calibrated),
        level=level,
        layers=layers,
        held_out=measured(margins[parts.held_out], calibration, learned, apart),
    )
    return ValueDiscriminator(statement, reader.at(best), head, calibration, sheet, source=source)
