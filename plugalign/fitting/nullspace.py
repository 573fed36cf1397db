"""Fits the subspace that nullspace projection removes: LEACE, INLP, A-INLP, a word direction.

The data are hidden states: what the LM head reads at several random positions of each text. The
projection meets every position while the model decodes, and what is removed at the ends of whole
texts stays visible inside them (Liang et al. 2021 cut every sentence at a random word). The label
shows in other directions at the last position of a text than inside of it; those of both are
removed. A fifth of the texts is held out; fresh linear probes on them say how well the label can be
found before and after, at random positions inside of texts and at their last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from plugalign.algebra.identity import identify
from plugalign.controllers.nullspace import Nullspace, output_embedding
from plugalign.fitting import workspace
from plugalign.fitting.answers import PLAIN, Frame, frame_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled, tokenized
from plugalign.fitting.erasure import (
    Array,
    Split,
    held_out_texts,
    inlp,
    leace,
    split_by_text,
)
from plugalign.fitting.progress import say
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    Minutes,
    Seed,
    Strength,
    check_context,
    fit_function,
)
from plugalign.fitting.states import FEWEST as LEAST
from plugalign.fitting.states import States, drawn_columns, keep_states
from plugalign.fitting.word_pairs import Pairs, word_direction

Variant = Literal["leace", "inlp", "a-inlp", "direction"]

FEWEST = 10  # texts of each label
READING, LEARNING = 0.75, 0.8  # shares of what is left of the time
MOST = 2**26  # numbers in the states that are learnt from, which are half a GiB in float64


class NullspaceSettings(FitSettings):
    """Settings of `fit_nullspace`.

    Attributes:
        variant: "leace", "inlp", "a-inlp", or "direction", the first principal direction of
            ``pairs``.
        classifiers: how many INLP trains at most; it ends once they find nothing.
        pairs: definitional pairs of words, such as `word_pairs.GENDER_PAIRS`: they give the
            direction, and A-INLP's guide, which without them is the first direction removed.
        positions: how many random positions of each text are learnt from, beside its last. 0
            takes the last alone, for a label that only matters where the texts end.
        max_length: of a text, in tokens; longer ones are cut.
        strength: of the controller that is returned and saved.
        minutes: read fewer texts, and train fewer classifiers, where these take longer; probes
            that measure what was left take what they need.
    """

    variant: Variant = "leace"
    classifiers: Count = 80
    pairs: Pairs = ()
    positions: Annotated[int, Field(ge=0, le=1024)] = 4
    max_length: Count = 64
    batch_size: Count = 32
    seed: Seed = 0
    strength: Strength = 1.0
    minutes: Minutes | None = None


@fit_function(NullspaceSettings)
def fit_nullspace(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: NullspaceSettings
) -> Nullspace:
    """Fits the controller on texts with two or more labels and saves it in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `NullspaceSettings`.

    Raises:
        ValueError: for settings out of range, an unknown variant, too few texts of a label, pairs
            that are not single tokens, or labels that the hidden states do not show.
    """
    frame = frame_of(model, tokenizer, settings)
    check_context(model, len(frame.context) + settings.max_length)
    if settings.variant == "direction" and not settings.pairs:
        raise ValueError(
            "variant 'direction' needs pairs of words, such as word_pairs.GENDER_PAIRS"
        )
    guide = word_direction(model, tokenizer, settings.pairs) if settings.pairs else None
    _check_labels(data.labels)

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes)
        texts, places = _read(model, tokenizer, data, settings, frame, folder, clock)
        basis, time = folder / "basis.safetensors", clock.part(LEARNING)
        found = _projection(settings.variant, places, guide, settings.classifiers, basis, time)
        tensors: dict[str, Any] = {k: torch.tensor(x).float() for k, x in found.items()}
        origin = identify(model, tokenizer)
        controller = Nullspace(**tensors, strength=settings.strength, fitted_for=origin)
        controller.save_pretrained(result)
        return {"texts": texts, **_measured(controller, places)}

    about = frame.record()
    record = workspace.record("nullspace", model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    return Nullspace.from_pretrained(out)


def _read(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    settings: NullspaceSettings,
    frame: Frame,
    folder: Path,
    clock: Clock,
) -> tuple[int, dict[str, Split]]:
    """How many texts were read, no more than there is memory for, and the states at each place of
    them."""
    rows, labels = _encoded(tokenizer, data, settings.max_length, settings.seed, frame)
    count, seed, fewest = settings.positions, settings.seed, _fewest(labels)
    rows = rows[: max(fewest, _most_texts(model, settings))]
    columns = [drawn_columns(len(row), count, seed, i, frame.first) for i, row in enumerate(rows)]
    kept = keep_states(
        model,
        rows,
        folder / "states",
        settings.batch_size,
        columns=columns,
        shared=frame.first,
        clock=clock.part(READING),
        least=fewest,
    )
    count = len(kept)
    return count, _splits(kept, columns[:count], rows[:count], labels[:count], settings.seed)


def _measured(controller: Nullspace, places: Mapping[str, Split]) -> dict[str, Any]:
    """How many directions are removed, and what probes find before and after."""
    directions = controller.removed.shape[1]
    probes = {name: _probed(part, controller) for name, part in places.items()}
    for name, probe in probes.items():
        say(_described(name, probe, directions))
    return {"directions": directions, "probe": probes}


def _most_texts(model: Any, settings: NullspaceSettings) -> int:
    """How many texts there is memory for."""
    of_a_text = min(1 + settings.positions, settings.max_length)
    return MOST // (output_embedding(model).shape[1] * of_a_text)


def _fewest(labels: Any) -> int:
    """How many of the first texts have `FEWEST` of each label; `LEAST` are read anyway."""
    behind = (np.flatnonzero(labels == name)[FEWEST - 1] + 1 for name in np.unique(labels))
    return max(LEAST, *map(int, behind))


def _check_labels(labels: Any) -> None:
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < FEWEST:
        found = ", ".join(f"'{n}': {c}" for n, c in zip(names, counts, strict=True))
        raise ValueError(f"nullspace needs two labels with {FEWEST} texts each, found {found}")


def _encoded(
    tokenizer: Any, data: Labelled, max_length: int, seed: int, frame: Frame = PLAIN
) -> tuple[list[list[int]], Any]:
    """Token ids of the texts in a random order, so that the first of them are a fair sample, and
    their labels."""
    rows = tokenized(tokenizer, data.texts, framed=not frame.context)
    kept = [
        ([*frame.context, *row[:max_length]], y)
        for row, y in zip(rows, data.labels, strict=True)
        if row
    ]
    order = np.random.default_rng(seed).permutation(len(kept))
    labels = np.array([kept[i][1] for i in order])
    _check_labels(labels)
    return [kept[i][0] for i in order], labels


def _splits(
    states: States,
    columns: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    labels: Any,
    seed: int,
) -> dict[str, Split]:
    """The states inside of texts and at their last position, with the same texts held out. A place
    that only texts of one label have, as where all others have a single token, is none."""
    _check_labels(labels)
    values: Array = states.values.double().numpy()
    texts = np.repeat(np.arange(len(states)), [len(each) for each in columns])
    held, label = held_out_texts(rows, labels, seed), labels[texts]
    last = np.append(texts[1:] != texts[:-1], True)
    parts = {
        name: split_by_text(values[here], label[here], texts[here], held)
        for name, here in (("inside", ~last), ("last", last))
    }
    return {
        name: part
        for name, part in parts.items()
        if len(np.unique(part.train_labels)) > 1 and len(part.held)
    }


def _probed(split: Split, controller: Nullspace) -> dict[str, float]:
    """How often a fresh linear probe finds the held-out labels, before and after, and guessing."""
    removed = controller.removed.double().numpy()
    read = removed if controller.read is None else controller.read.double().numpy()
    center = 0.0 if controller.center is None else controller.center.double().numpy()
    train, held = (x - ((x - center) @ read) @ removed.T for x in (split.train, split.held))
    after = split._replace(train=train, held=held)
    shares = {
        "before": split.probe()[1],
        "after": after.probe()[1],
        "guessing": split.guessing,
    }
    return {name: round(share, 4) for name, share in shares.items()}


def _described(place: str, probe: Mapping[str, float], directions: int) -> str:
    """What a probe found at one place of texts, in words."""
    where = "at random positions inside of texts" if place == "inside" else "at their last position"
    return (
        f"{where} a linear probe finds the label of {probe['before']:.1%} before and "
        f"{probe['after']:.1%} after (guessing finds {probe['guessing']:.1%}; {directions} "
        f"directions removed; held-out texts)"
    )


def _projection(
    variant: Variant,
    places: Mapping[str, Split],
    guide: Array | None,
    classifiers: int,
    path: Path,
    clock: Clock,
) -> dict[str, Any]:
    """The tensors of a `Nullspace`, by name."""
    if variant == "leace":
        states, labels, place = (
            np.concatenate(part)
            for part in zip(
                *((s.train, s.train_labels, [name] * len(s.train)) for name, s in places.items()),
                strict=True,
            )
        )
        removed, read, center = leace(states, labels, place)
        return {"removed": removed, "read": read, "center": center}
    if variant == "direction":
        assert guide is not None
        return {"removed": guide[:, None]}
    basis = inlp([*places.values()], classifiers, path, clock)
    if variant == "inlp":
        return {"removed": basis}
    return {"removed": basis, "guide": basis[:, 0] if guide is None else guide}
