"""Whether two classes of training texts differ in style, and one style for both.

A contrast of two classes steers all that separates them. Where one class has capitals and the other
has none, or a tokenizer has set one's punctuation marks apart, that is steered too, and less of
what the labels mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

from plugalign.fitting.data import Labelled

SPACED = re.compile(r"\w\s+[.,!?;:]")
MARKS = "PS"  # punctuation and symbols, by the first letter of their Unicode category
# What is looked at in a text, by the words that say it.
TRAITS = {"a capital": re.compile(r"[A-Z]"), "a space before a punctuation mark": SPACED}
FAR = 0.3  # between the shares of texts that have a trait in both classes


def in_one_style(data: Labelled) -> Labelled:
    """The same texts in lower case, with a space around every punctuation mark.

    It is for contrasts of two classes, in which a style that both have cancels out. An expert, an
    anti-expert or a prefix alone would learn it.
    """
    return replace(data, texts=tuple(map(_plain, data.texts)), one_style=True)


def differences(good: Sequence[str], bad: Sequence[str]) -> Iterator[str]:
    """What sets the style of the desired texts apart from that of all others, in words; nothing
    where they are alike."""
    for words, trait in TRAITS.items():
        of_good, of_bad = (_share(trait, side) for side in (good, bad))
        if abs(of_good - of_bad) > FAR:
            yield f"{of_good:.0%} of desired texts have {words}, {of_bad:.0%} of the others"


def _plain(text: str) -> str:
    apart = (f" {c} " if unicodedata.category(c)[0] in MARKS else c for c in text.lower())
    return " ".join("".join(apart).split())


def _share(trait: re.Pattern[str], texts: Sequence[str]) -> float:
    return sum(bool(trait.search(text)) for text in texts) / len(texts)
