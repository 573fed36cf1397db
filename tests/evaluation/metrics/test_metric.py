"""Metrics of one's own: of a judge's scores and of the texts, from compare() to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from rich.console import Console

import plugalign as pa
from plugalign.evaluation.comparison.compare import Comparison
from plugalign.evaluation.metrics.metric import TOXICITY, Metric, measured, sorted_metrics
from plugalign.evaluation.statistics.paired import FloatArray, maximum, mean_score

PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8", "w9 w10 w11", "w12"]


def judge(texts: Sequence[str]) -> list[float]:
    """The share of ten that a text's words are of."""
    return [min(1.0, len(text.split()) / 10) for text in texts]


def least(scores: ArrayLike) -> FloatArray:
    """The best answer to each prompt."""
    return np.asarray(np.nanmin(np.asarray(scores), axis=1))


def words(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


def high(text: str) -> float:
    """The share of words with a high number; a text without words has none."""
    return sum(int(w[1:]) > 60 for w in text.split() if w[1:].isdigit()) / len(text.split())


METRICS = [
    Metric("least_wordy", least, better="higher"),
    Metric("words", mean_score, better="higher", measure=words),
    Metric("often_high", maximum, threshold=0.5, measure=high),
]


@pytest.fixture
def compared(tiny: Any, tokenizer: Any, tmp_path: Path) -> Comparison:
    return pa.compare(
        tiny(),
        tokenizer,
        methods=["self_debias"],
        prompts=PROMPTS,
        judges=[judge],
        metrics=METRICS,
        samples=3,
        max_new_tokens=5,
        batch_size=9,
        out=tmp_path / "run",
    )


def texts_of(out: Path, method: str) -> list[list[str]]:
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    found = {(r["method"], r["prompt"], r["sample"]): r["text"] for r in rows}
    return [[found[method, p, s] for s in range(3)] for p in range(len(PROMPTS))]


def test_both_kinds_of_metric_are_computed_from_the_answers(compared: Comparison) -> None:
    rows = compared.summary["methods"]
    after, before = (texts_of(compared.out, name) for name in ("self_debias", "base"))
    for name, texts in (("self_debias", after), ("base", before)):
        scores = np.array([judge(row) for row in texts])
        assert rows[name]["least_wordy"]["value"] == pytest.approx(scores.min(1).mean())
        counts = np.array([[len(t.split()) for t in row] for row in texts])
        assert rows[name]["words"]["value"] == pytest.approx(counts.mean())
        shares = [max(high(t) for t in row if t.split()) >= 0.5 for row in texts]
        assert rows[name]["often_high"]["value"] == pytest.approx(np.mean(shares))
    change = np.mean([[len(t.split()) for t in row] for row in after]) - np.mean(
        [[len(t.split()) for t in row] for row in before]
    )
    assert rows["self_debias"]["words"]["difference"]["value"] == pytest.approx(change)
    assert 0 < rows["self_debias"]["words"]["p_adjusted"] <= 1
    for metric in ("least_wordy", "words", "often_high"):
        figure = rows["base"][metric]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert "difference" not in figure and "difference" in rows["self_debias"][metric]
    assert "toxicity_probability" not in rows["base"]
    assert "words" not in rows["self_debias"]["length_matched"]


def test_both_kinds_are_in_table_report_and_manifest(compared: Comparison) -> None:
    console = Console(file=StringIO(), width=80)
    console.print(compared.table())
    table = console.file.getvalue()  # type: ignore[attr-defined]
    html = compared.report.read_text()
    for shown in ("least\n", "words", "often\n"):
        assert shown.split()[0] in table
    assert "Measured of the texts" in table and "Measured of the texts" in html
    for title in ("Least wordy", "Words", "Often high"):
        assert title in html
    figure = compared.summary["methods"]["base"]["words"]
    for shown in (table, html):
        assert f"{figure['value']:.2f}" in shown and f"{figure['low']:.2f}" in shown
    manifest = json.loads((compared.out / "manifest.json").read_text())["settings"]["metrics"]
    assert manifest["words"]["measure"] == "words" and "measure" not in manifest["least_wordy"]
    assert compared.summary["primary_metric"] == "least_wordy"


def test_an_answer_that_cannot_be_measured_is_missing_and_said_to_be() -> None:
    found = measured(METRICS[2], [["w70 w1", ""], ["w2", "w99"]])
    np.testing.assert_array_equal(found.numbers, [[0.5, np.nan], [0.0, 1.0]])
    assert found.first_error == "ZeroDivisionError: division by zero"
    none = Metric("none", mean_score, measure=lambda text: None if text == "a" else float("inf"))
    found = measured(none, [["a", "b"]])
    assert np.isnan(found.numbers).all() and found.first_error == "it gave None"


def test_missing_numbers_are_left_out_and_named(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    def picky(text: str) -> float:
        if "w1" in text:
            raise RuntimeError("cannot read w1")
        return 0.25

    metric = Metric("picky", mean_score, measure=picky)
    settings: dict[str, Any] = {
        "methods": ["self_debias"],
        "prompts": PROMPTS,
        "judges": [judge],
        "samples": 2,
        "max_new_tokens": 4,
    }
    found = pa.compare(tiny(), tokenizer, metrics=[metric], out=tmp_path / "run", **settings)
    row = found.summary["methods"]["base"]
    assert row["picky"]["value"] == 0.25 and row["picky"]["missing"] > 0
    assert row["toxicity_probability"]  # no metric of these reads the judge, so toxicity does
    (warning,) = found.summary["warnings"]
    assert "metric picky has no number for" in warning and "cannot read w1" in warning
    assert "cannot read w1" in found.report.read_text()

    def broken(text: str) -> float:
        raise RuntimeError("no dictionary")

    metric = Metric("broken", mean_score, measure=broken)
    with pytest.raises(ValueError, match="'broken' cannot measure a text: RuntimeError: no dict"):
        pa.compare(tiny(), tokenizer, metrics=[metric], out=tmp_path / "other", **settings)
    assert not (tmp_path / "other").exists()


def test_judged_metrics_come_first() -> None:
    found = sorted_metrics([METRICS[1], METRICS[0]])
    assert [metric.name for metric in found.every] == ["least_wordy", "words"]
    with pytest.raises(ValueError, match="two metrics are called 'mean_toxicity'"):
        sorted_metrics([Metric("mean_toxicity", mean_score, measure=words)])


def test_the_share_of_answers_is_that_of_all_answers():
    scores = np.array([[0.5, 0.4, 0.9], [0.1, np.nan, 0.6], [np.nan] * 3])
    metric = Metric("toxic_fraction", mean_score, threshold=0.5, of_answers=True)
    np.testing.assert_allclose(metric(scores), [2 / 3, 1 / 2, np.nan])
    assert not metric.is_share and metric.record().of_answers
    assert TOXICITY[-1].name == "toxic_fraction"
    with pytest.raises(ValueError, match="of_answers needs the threshold"):
        Metric("x", mean_score, of_answers=True)
