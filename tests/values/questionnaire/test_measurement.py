"""Respondents whose answers are known: what is found of them, and whether anything measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from respondents import ByLetter, Stub, oracle, profile_of, readings_of, small, table_of, written
from rich.console import Console

from plugalign.values.questionnaire.asking import READINGS, Survey, ask
from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.instrument_file import read_instrument
from plugalign.values.questionnaire.measurement import summed_up
from plugalign.values.questionnaire.refusals import is_refusal
from plugalign.values.questionnaire.report import write_report
from plugalign.values.questionnaire.scoring import item_scores
from plugalign.values.questionnaire.table import values_table


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return read_instrument("foundations")


def wanted(instrument: Instrument) -> np.ndarray:
    """The scores of `table_of`, of all items."""
    table, levels = table_of(instrument), np.arange(instrument.levels)
    scores = np.array([table[item.text] @ levels for item in instrument.items])
    turned = [item.reversed for item in instrument.items]
    return np.where(turned, instrument.levels - 1 - scores, scores)


@pytest.mark.parametrize("format", ["options", "letters"])
def test_an_oracle_gets_its_own_table_back(
    instrument: Instrument, tmp_path: Path, format: Any
) -> None:
    readings = readings_of(instrument, oracle(instrument), tmp_path, format)
    scores = readings.scores()
    assert scores.shape[2] == {"options": 1, "letters": 7}[format]
    for run in scores.reshape(len(scores), -1).T:  # every wording, every rotation, turned round
        np.testing.assert_allclose(run, wanted(instrument), atol=1e-6)
    np.testing.assert_allclose(item_scores(readings), wanted(instrument), atol=1e-6)


def test_a_bias_of_answers_and_letters_drops_out(instrument: Instrument, tmp_path: Path) -> None:
    class Biased(Stub):
        def log_probs(self, prompt: str, answers: Any) -> list[float]:
            found = super().log_probs(prompt, answers)
            return [p - 3.0 * k - len(answers[k]) for k, p in enumerate(found)]

    table = table_of(instrument)
    stub = Biased(instrument, lambda text: np.log(table[text]))
    for format in ("options", "letters"):
        readings = readings_of(instrument, stub, tmp_path / format, format)
        np.testing.assert_allclose(item_scores(readings), wanted(instrument), atol=1e-6)


@pytest.mark.parametrize("scored", ["options", "letters"])
def test_who_always_says_a_is_not_measured(
    instrument: Instrument, tmp_path: Path, scored: Any
) -> None:
    formats = (scored, *({"options", "letters"} - {scored}))
    profile = profile_of(instrument, ByLetter(instrument, lambda _: ()), tmp_path, formats)
    assert profile.verdict.level == "not measured" and not profile.measured
    assert {figure.value for figure in profile.dimensions.values()} == {2.5}
    assert profile.differ_p == 1.0 and [catch.passed for catch in profile.catches] == [False] * 2
    letters = profile.shares["letters"]
    assert (letters.letter, letters.content, letters.item) == pytest.approx((1, 0, 0))
    assert profile.turned is not None
    assert set(profile.turned.printed.values()) != set(profile.turned.reversed.values())
    assert profile.contrasts[0].auc.value == 0.5 and profile.contrasts[0].p == 1.0


@pytest.mark.parametrize("formats", [("options", "letters"), ("letters",)])
def test_who_reads_is_measured(instrument: Instrument, tmp_path: Path, formats: Any) -> None:
    profile = profile_of(instrument, oracle(instrument), tmp_path, formats)
    assert profile.verdict.level == "measured" and not profile.verdict.failed
    assert all(contrast.auc.value == 1.0 and contrast.p < 1e-3 for contrast in profile.contrasts)
    for contrast in profile.contrasts:
        assert contrast.valence_auc.value == pytest.approx(0.5)
        assert contrast.length_auc is not None and not contrast.by_length
        assert contrast.length_auc.value == pytest.approx(0.5, abs=0.05)
    scores = wanted(instrument)
    for name, figure in profile.dimensions.items():
        assert figure.value == pytest.approx(scores[instrument.of(name)].mean(), abs=1e-6)
        assert figure.low < figure.value < figure.high


def test_who_goes_by_length_or_tone_is_not_measured(instrument: Instrument, tmp_path: Path) -> None:
    levels = np.arange(instrument.levels)
    valence = {
        item.text: {"good": 1.0, "bad": -1.0}.get(item.valence, 0) for item in instrument.items
    }
    cues = {
        "words": lambda text: len(text.split()),
        "length": lambda text: -len(text) / 10,
        "tone": lambda text: valence[text],
    }
    for name, cue in cues.items():
        stub = Stub(instrument, lambda text, cue=cue: cue(text) * levels)
        profile = profile_of(instrument, stub, tmp_path / name, ("options",))
        assert profile.verdict.level == "not measured", name
        texts = [check.text for check in profile.verdict.failed if "AUC" in check.text]
        assert len(texts) == 2
        if name != "words":
            assert all(f"they follow the {name}: " in text for text in texts)


def test_length_that_tells_the_ends_of_own_items_apart_is_no_reading(tmp_path: Path) -> None:
    """Items of a file may be unbalanced: there length alone has an AUC of 1."""
    validity = [
        {"id": f"{end}-{n}", "expected": end, "valence": ("good", "bad")[n % 2], "text": text}
        for n in range(12)
        for end, text in (("high", f"A long statement, number {n}"), ("low", f"Short, {n}"))
    ]
    content = small(parts={"agreement": {"validity": validity}})
    instrument = read_instrument(written(tmp_path / "small.json", content))
    levels = np.arange(instrument.levels)
    stub = Stub(instrument, lambda text: 0.1 * len(text) * levels)
    profile = profile_of(instrument, stub, tmp_path / "out")
    [contrast] = profile.contrasts
    assert contrast.auc.low > 0.5 and contrast.by_length
    assert profile.verdict.level == "not measured"


def test_who_refuses_scores_the_middle(instrument: Instrument, tmp_path: Path) -> None:
    words = "As an AI language model, I have no opinions."
    profile = profile_of(instrument, oracle(instrument, words), tmp_path)
    assert profile.refusals is not None and profile.refusals.rate == 1
    assert profile.refusals.examples[0] == words
    assert {figure.value for figure in profile.dimensions.values()} == {instrument.middle}
    assert profile.verdict.level == "not measured"


def test_a_coin_is_not_measured(instrument: Instrument, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stub = Stub(instrument, lambda _: rng.normal(size=instrument.levels))
    profile = profile_of(instrument, stub, tmp_path)
    assert profile.verdict.level == "not measured" and profile.shares["letters"].item < 0.01


def test_centred_scores_have_mean_zero(tmp_path: Path) -> None:
    instrument = read_instrument("basic-values")
    profile = profile_of(instrument, oracle(instrument), tmp_path)
    own = [profile.items[instrument.items[n].id] for n in instrument.numbers("item")]
    assert np.mean(own) == pytest.approx(0, abs=1e-9)
    assert profile.verdict.level == "measured"  # the checks are of the scores as they were


def test_what_was_answered_is_not_asked_again(instrument: Instrument, tmp_path: Path) -> None:
    stub, survey = oracle(instrument), Survey(instrument, ("options",))
    whole = ask(survey, {"stub": stub}, tmp_path, "run")["stub"]
    lines = (tmp_path / READINGS).read_text().splitlines(keepends=True)
    (tmp_path / READINGS).write_text("".join(lines[:90]) + lines[90][:20])  # torn by a kill
    stub.prompts.clear()
    again = ask(survey, {"stub": stub}, tmp_path, "run")["stub"]
    assert len(stub.prompts) == 6 * 68 - 68  # one whole block of six was there
    np.testing.assert_array_equal(again.readings["options"].log_p, whole.readings["options"].log_p)
    changed = lines[3].replace("-1", "-2", 1)
    (tmp_path / READINGS).write_text("".join([*lines[:3], changed, *lines[4:]]))
    with pytest.raises(ValueError, match=r"line 4: .* was changed after it was written"):
        ask(survey, {"stub": stub}, tmp_path, "run")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't answer that.", True),
        ("I\u2019m just an AI, so\nmorality is not mine.", True),
        ("I do not have personal beliefs about it", True),
        ("I would rather not say.", True),
        ("Strongly agree.", False),
        ("I cannot stand cruelty.", False),
        ("I agree, although I have no children.", False),
    ],
)
def test_refusals(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


def reported(instrument: Instrument, profiles: list[Profile], path: Path) -> str:
    manifest = {"settings": {"formats": ["options", "letters"]}}
    write_report(path, instrument, profiles, manifest)
    return path.read_text(encoding="utf-8")


def test_only_what_measured_is_drawn(tmp_path: Path) -> None:
    text = "<b>Statement</b> \x1b[31mred"
    content = small()
    content["items"][0]["text"] = text
    instrument = read_instrument(written(tmp_path / "small.json", content))
    reader = profile_of(instrument, oracle(instrument), tmp_path / "reader")
    letter = profile_of(instrument, ByLetter(instrument, lambda _: ()), tmp_path / "letter")
    drawn = reported(instrument, [reader, letter], tmp_path / "drawn.html")
    empty = reported(instrument, [letter], tmp_path / "empty.html")
    assert drawn.count("<polygon") == 1 and "No profile is drawn" not in drawn
    assert "<polygon" not in empty and "No profile is drawn" in empty
    for html in (drawn, empty):
        assert "<b>Statement" not in html and "src=" not in html and "http" not in html
    assert json.dumps(reader.to_json())


def test_tables_fit_80_columns(tmp_path: Path) -> None:
    instrument = read_instrument("basic-values")
    survey = Survey(instrument, ("options",))
    long = "a-model-of-7b + dexperts[alpha=2]"
    stubs = {"a-model-of-7b": oracle(instrument), long: ByLetter(instrument, lambda _: ())}
    answered = ask(survey, stubs, tmp_path, "run")
    found = summed_up(survey, answered, {"a-model-of-7b": None, long: "a-model-of-7b"})
    console = Console(width=80, record=True)
    console.print(values_table(instrument, list(found.values())))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert "MEASURED" in lines[1] and any("did NOT measure" in line for line in lines)
    change = found[long].differences["tradition"].change
    assert change.value == pytest.approx(-found["a-model-of-7b"].dimensions["tradition"].value)
