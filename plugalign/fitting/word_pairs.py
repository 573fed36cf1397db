"""A direction from pairs of words, such as gender's (Bolukbasi et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plugalign.controllers.nullspace import output_embedding
from plugalign.fitting.erasure import Array, principal_direction

Pairs = Sequence[tuple[str, str]]

# Bolukbasi et al. 2016, the definitional pairs of gender.
GENDER_PAIRS: Pairs = (
    ("she", "he"),
    ("her", "his"),
    ("woman", "man"),
    ("Mary", "John"),
    ("herself", "himself"),
    ("daughter", "son"),
    ("mother", "father"),
    ("gal", "guy"),
    ("girl", "boy"),
    ("female", "male"),
)


def word_direction(model: Any, tokenizer: Any, pairs: Pairs) -> Array:
    """The direction ``(D,)`` from the second to the first words among output embeddings.

    Raises:
        ValueError: if no pair consists of two single tokens, or the words of one do not differ.
    """
    embedding = output_embedding(model).cpu().double().numpy()
    differences: list[Array] = []
    for pair in pairs:
        first, second = (_single_token(tokenizer, word) for word in pair)
        if first is None or second is None:
            continue
        differences.append(embedding[first] - embedding[second])
        if not differences[-1].any():
            raise ValueError(
                f"the words of the pair {tuple(pair)} are the same to the model, so they give no "
                "direction; name two that differ"
            )
    if not differences:
        raise ValueError(f"none of the pairs {list(pairs)} consists of two single tokens")
    return principal_direction(np.stack(differences))


def _single_token(tokenizer: Any, word: str) -> int | None:
    """The token of a word inside a text, if it is one."""
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    return None
