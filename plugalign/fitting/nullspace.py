"""Fits the subspace that nullspace projection removes: LEACE, INLP, A-INLP, a word direction.

The data are hidden states: what the LM head reads at the last position of each text, since that is
what the projection meets while the model decodes. A fifth of the texts is held out; a fresh linear
probe on them says how well the label can be found before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from plugalign.controllers.nullspace import Nullspace, output_embedding
from plugalign.fitting.data import Labelled, pad
from plugalign.fitting.erasure import Array, Split, inlp, leace, principal_direction, write
from plugalign.fitting.training import check_settings, fingerprint, working_folder
from plugalign.identity import Identity
from plugalign.tokens import token_ids

Variant = Literal["leace", "inlp", "a-inlp", "direction"]
Pairs = Sequence[tuple[str, str]]

# Bolukbasi et al. 2016, the definitional pairs of gender.
GENDER_PAIRS: Pairs = (
    ("she", "he"), ("her", "his"), ("woman", "man"), ("Mary", "John"), ("herself", "himself"),
    ("daughter", "son"), ("mother", "father"), ("gal", "guy"), ("girl", "boy"), ("female", "male"),
)  # fmt: skip
CHUNK = 512  # texts between two writes
FEWEST = 10  # texts of each label


def fit_nullspace(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    variant: Variant = "leace",
    classifiers: int = 80,
    pairs: Pairs = (),
    max_length: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    strength: float = 1.0,
) -> Nullspace:
    """Fits the controller and saves it in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        data: texts with two or more labels.
        variant: "leace", "inlp", "a-inlp", or "direction", the first principal direction of
            ``pairs``.
        classifiers: how many INLP trains at most; it ends once they find nothing.
        pairs: definitional pairs of words, such as `GENDER_PAIRS`: they give the direction, and
            A-INLP's guide, which without them is the first direction removed.
        max_length: of a text, in tokens; longer ones are cut.
        strength: of the controller that is returned and saved.

    Raises:
        ValueError: for settings out of range, an unknown variant, too few texts of a label, pairs
            that are not single tokens, or labels that the hidden states do not show.
    """
    check_settings(classifiers=classifiers, max_length=max_length, batch_size=batch_size)
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    if variant == "direction" and not pairs:
        raise ValueError("variant 'direction' needs pairs of words, such as GENDER_PAIRS")
    guide = word_direction(model, tokenizer, pairs) if pairs else None
    rows, labels = _encoded(tokenizer, data, max_length)
    origin = Identity.of(model, tokenizer)
    made_of = fingerprint(rows, batch_size, str(sorted(origin.to_dict().items())))
    with working_folder(out) as work:
        states = hidden_states(model, rows, batch_size, work / made_of[:16])
        split = Split.of(states, labels, seed)
        found = _projection(
            variant, split, guide, classifiers, work / f"{made_of[:16]}-{seed}.safetensors"
        )
        tensors: dict[str, Any] = {k: torch.tensor(x).float() for k, x in found.items()}
        controller = Nullspace(**tensors, strength=strength, fitted_for=origin)
        _report(split, controller)
        controller.save_pretrained(out)
    return controller


def _projection(
    variant: Variant, split: Split, guide: Array | None, classifiers: int, path: Path
) -> dict[str, Any]:
    """The tensors of a `Nullspace`, by name."""
    if variant == "leace":
        removed, read, center = leace(split.train, split.train_labels)
        return {"removed": removed, "read": read, "center": center}
    if variant == "direction":
        assert guide is not None
        return {"removed": guide[:, None]}
    basis = inlp(split, classifiers, path)
    if variant == "inlp":
        return {"removed": basis}
    return {"removed": basis, "guide": basis[:, 0] if guide is None else guide}


def word_direction(model: Any, tokenizer: Any, pairs: Pairs) -> Array:
    """The direction ``(D,)`` from the second to the first words among output embeddings.

    Raises:
        ValueError: if no pair consists of two single tokens.
    """
    embedding = output_embedding(model).cpu().double().numpy()
    ids = [[_single_token(tokenizer, word) for word in pair] for pair in pairs]
    known = [(a, b) for a, b in ids if a is not None and b is not None]
    if not known:
        raise ValueError(f"none of the pairs {list(pairs)} consists of two single tokens")
    return principal_direction(np.stack([embedding[a] - embedding[b] for a, b in known]))


def hidden_states(model: Any, rows: Sequence[Sequence[int]], batch_size: int, work: Path) -> Array:
    """What the head reads at the last position of each row of token ids, ``(N, D)``.

    Chunks are kept in ``work`` as they are done, and read from there where they are.
    """
    work.mkdir(parents=True, exist_ok=True)
    chunks = []
    starts = range(0, len(rows), CHUNK)
    for start in track(starts, "hidden states", console=Console(stderr=True)):
        path = work / f"{start}.safetensors"
        if not path.is_file():
            some = rows[start : start + CHUNK]
            write(path, {"states": torch.cat(list(_batches(model, some, batch_size)))})
        chunks.append(load_file(path)["states"])
    states: Array = torch.cat(chunks).double().numpy()
    return states


@torch.no_grad()
def _batches(model: Any, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[Tensor]:
    """Last states ``(B, D)`` batch by batch. The head is made to compute one column, not all."""
    seen: list[Tensor] = []

    def shorten(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0][:, -1:], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(shorten)
    try:
        for start in range(0, len(rows), batch_size):
            ids, mask = (x.to(model.device) for x in pad(rows[start : start + batch_size]))
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            last = mask.sum(1) - 1
            yield seen.pop()[torch.arange(len(ids)), last].float().cpu()
    finally:
        handle.remove()


def _encoded(tokenizer: Any, data: Labelled, max_length: int) -> tuple[list[list[int]], Any]:
    rows = token_ids(tokenizer, data.texts)
    kept = [(row[:max_length], y) for row, y in zip(rows, data.labels, strict=True) if row]
    labels = np.array([y for _, y in kept])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < FEWEST:
        found = ", ".join(f"'{n}': {c}" for n, c in zip(names, counts, strict=True))
        raise ValueError(f"nullspace needs two labels with {FEWEST} texts each, found {found}")
    return [row for row, _ in kept], labels


def _single_token(tokenizer: Any, word: str) -> int | None:
    """The token of a word inside a text, if it is one."""
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    return None


def _report(split: Split, controller: Nullspace) -> None:
    """Says on stderr how well a fresh probe finds the held-out labels, before and after."""
    removed = controller.removed.double().numpy()
    read = removed if controller.read is None else controller.read.double().numpy()
    center = 0.0 if controller.center is None else controller.center.double().numpy()
    erased = [x - ((x - center) @ read) @ removed.T for x in (split.train, split.held)]
    after = split._replace(train=erased[0], held=erased[1])
    Console(stderr=True).print(
        f"a linear probe finds the label of {split.probe()[1]:.1%} of the held-out texts before "
        f"and {after.probe()[1]:.1%} after ({removed.shape[1]} directions removed; guessing finds "
        f"{split.guessing:.1%})"
    )
