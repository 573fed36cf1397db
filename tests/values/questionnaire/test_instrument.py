"""Instrument files: what ships, what users give, and one clear error for each fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from respondents import small, written
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline

from plugalign.evaluation.statistics.auc import auc_of
from plugalign.values.questionnaire.instrument_file import SHIPPED, VALIDITY, read_instrument
from plugalign.values.questionnaire.questions import orders, question, questions

MFQ = Path(__file__).resolve().parents[3] / "shared" / "data" / "values" / "mfq30.json"
ITEMS = small()["items"]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_balanced(name: str) -> None:
    found = read_instrument(name)
    assert len(found.dimensions) == 5 and found.levels == 6 and found.middle == 2.5
    for dimension in found.dimensions:
        own = [found.items[n] for n in found.of(dimension)]
        assert len(own) == 6 and sum(item.reversed for item in own) == 1
    assert "Not validated" in found.note and found.licence == "Apache-2.0"
    assert found.centre == (name == "basic-values")
    for part in found.parts:
        tests = [found.items[n] for n in found.numbers("validity", part)]
        for end in ("high", "low"):
            valences = [item.valence for item in tests if item.expected == end]
            assert len(valences) >= VALIDITY
            assert valences.count("good") == valences.count("bad")
        assert len(found.parts[part].wordings) >= 3
    assert [found.items[n].expected for n in found.numbers("catch")] == ["low", "high"]


@pytest.mark.parametrize("part", ["relevance", "agreement"])
def test_only_what_validity_items_say_tells_their_ends_apart(part: str) -> None:
    """Not length, tone or words: frames (the number in an id) are the same at both ends."""
    found = read_instrument("foundations")
    items = [found.items[n] for n in found.numbers("validity", part)]
    high = [item.expected == "high" for item in items]
    good = [item.valence == "good" for item in items]
    texts = [item.text for item in items]
    frames = [int(re.findall(r"\d+", item.id)[0]) for item in items]
    first = [text.split()[0] for text in texts]
    for cue in (
        [len(text.split()) for text in texts],
        [len(text) for text in texts],
        *([word == each for word in first] for each in set(first)),
    ):
        assert auc_of(high, cue).value == pytest.approx(0.5, abs=0.05)
    # Nor does the length tell the tone, so that it shows which of the two scores follow.
    assert auc_of(good, [len(text) for text in texts]).value == pytest.approx(0.5, abs=0.05)
    for frame in set(frames):
        ends: dict[bool, list[Any]] = {True: [], False: []}
        for item, end, text, each in zip(items, high, texts, frames, strict=True):
            if each == frame:
                ends[end].append((len(text.split()), text.split()[0], item.valence))
        assert sorted(ends[True]) == sorted(ends[False])
    words = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression())
    by_words = cross_val_predict(
        words, texts, high, groups=frames, cv=LeaveOneGroupOut(), method="decision_function"
    )
    assert auc_of(high, by_words.round(6)).value == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(not MFQ.is_file(), reason="needs the MFQ-30's items, which do not ship")
def test_a_published_instrument_is_read_as_it_is() -> None:
    found = read_instrument(MFQ)
    assert found.dimensions == ("harm", "fairness", "ingroup", "authority", "purity")
    assert all(len(found.of(dimension)) == 6 for dimension in found.dimensions)
    catch = [found.items[n] for n in found.numbers("catch")]
    assert [(item.id, item.expected) for item in catch] == [("6", "low"), ("22", "high")]
    instruction = found.parts["relevance"].wordings[0].instruction
    assert instruction.startswith("When you decide whether something is right or wrong, to what")


def test_letters_stand_for_every_answer_once() -> None:
    found = read_instrument("foundations")
    places = orders(6)
    assert [order[0] for order in places] == [0, 1, 2, 3, 4, 5, 5] and places[6][-1] == 0
    asked = question(found, 0, 0, places[2])
    lines = asked.prompt.split("\n")
    scale = found.parts["relevance"].scale
    assert lines[2] == f"A. {scale[2]}" and lines[7] == f"F. {scale[1]}"
    assert asked.answers == tuple("ABCDEF")
    assert lines[-2:] == ["Consideration: Whether someone was hurt", "Relevance:"]
    unseen = question(found, 0, 0, None)
    assert unseen.answers == scale and not any(label in unseen.prompt for label in scale)


def test_the_second_format_leaves_out_validity_items() -> None:
    found = read_instrument("foundations")
    asked = questions(found, ("options", "letters"), "options")
    tests = set(found.numbers("validity"))
    assert {q.format for q in asked if q.item in tests} == {"options"}
    assert len(asked) == 3 * (len(found.items) + 7 * (len(found.items) - len(tests)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None}, "there is no 'scale'; give the answers in order, from low to high"),
        ({"scale": ["yes"]}, "scale.*at least 2 items"),
        ({"scale": ["no", "no"]}, "the scale of 'agreement' has 'no' twice"),
        ({"scale": {"relevance": ["no", "yes"]}}, "the part 'agreement' has no scale"),
        ({"items": [*ITEMS, ITEMS[0]]}, "the id '0' stands there twice; keep one"),
        ({"items": [*ITEMS, {**ITEMS[0], "id": 9}]}, "'agreement: Statement number 0.' stands"),
        ({"items": [{"id": 1, "text": "x"}, *ITEMS]}, "item 1 has neither a 'dimension' nor"),
        ({"items": [{**ITEMS[0], "catch": "low"}]}, "item 0 has a dimension and is a catch item"),
        ({"items": [{**ITEMS[0], "catch": "both"}]}, "items.0.catch: input should be 'low' or"),
        ({"items": [{**ITEMS[0], "text": " "}]}, "items.0.text: a text is needed, got ' '"),
        ({"items": [{**ITEMS[0], "weight": 2}]}, "unknown option 'items.0.weight'"),
        ({"items": ITEMS[:1]}, "a profile has two dimensions or more"),
        ({"dimensions": ["a", "c"]}, "item '1' is of the dimension 'b', which 'dimensions' does"),
        ({"dimensions": ["a", "b", "c"]}, "the dimension 'c' has no item; give one, or leave it"),
        ({"items": [{**i, "part": "likeness"} for i in ITEMS]}, "'likeness' is none of .*wordings"),
        ({"parts": {"other": {}}}, "no item is of the part 'other'; give one, or leave it"),
        ({"agreement_prompt": "x", "parts": {"agreement": {"instruction": "y"}}}, "keep one"),
        ({"parts": {"agreement": {"validity": []}}}, "has 0 validity items of the high end"),
        (
            {"parts": {"agreement": {"wordings": [{"instruction": "x", "question": "{item}"}]}}},
            "parts.agreement.wordings.*at least 3 items",
        ),
        (
            {"parts": {"agreement": {"wordings": [{"instruction": "x", "question": "y"}] * 3}}},
            "a question holds {item} once",
        ),
        ({"nam": "x"}, "unknown option 'nam'"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, changes: Any, message: str) -> None:
    content = {k: v for k, v in small(**changes).items() if v is not None}
    path = written(tmp_path / "small.json", content)
    with pytest.raises(ValueError, match=message) as raised:
        read_instrument(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_scales_of_two_lengths_are_refused(tmp_path: Path) -> None:
    items = [*ITEMS, {"id": 9, "dimension": "a", "part": "relevance", "text": "It."}]
    scales = {"agreement": ["no", "yes"], "relevance": ["no", "some", "yes"]}
    path = written(tmp_path / "small.json", small(items=items, scale=scales))
    with pytest.raises(ValueError, match=re.escape("the scales differ in length")):
        read_instrument(path)


def test_malformed_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"name": "x",')
    with pytest.raises(ValueError, match=r"bad\.json: malformed JSON"):
        read_instrument(path)
