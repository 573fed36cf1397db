"""Styles of two classes of training texts."""

from __future__ import annotations

from plugalign.fitting.data import Labelled
from plugalign.fitting.style import differences, in_one_style


def test_one_style_has_no_capitals_and_no_marks_at_words() -> None:
    data = Labelled(("Well, he's  RIGHT!", "well , he ' s right !"), ("0", "1"))
    plain = in_one_style(data)
    assert plain == Labelled(2 * ("well , he ' s right !",), ("0", "1"), one_style=True)
    assert in_one_style(plain) == plain and data.texts[0] == "Well, he's  RIGHT!"


def test_combining_marks_stay_with_their_letters() -> None:
    data = Labelled(("नमस्ते। CAFÉ", "naïve €5"), ("0", "1"))
    assert in_one_style(data).texts == ("नमस्ते । café", "naïve € 5")


def test_differences_are_named_with_their_shares() -> None:
    good, bad = ["He is kind.", "Good", "so it is"], ["fool !", "what , you ?", "No", "oh"]
    assert list(differences(good, bad)) == [
        "67% of desired texts have a capital, 25% of the others",
        "0% of desired texts have a space before a punctuation mark, 50% of the others",
    ]


def test_alike_styles_say_nothing() -> None:
    assert not list(differences(["a b", "c d.", "E"], ["A", "f, g", "h"]))
    plain = in_one_style(Labelled(("He, now.", "then !"), ("0", "1")))
    assert not list(differences(*plain.binary()))
