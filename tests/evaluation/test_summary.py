"""The summary against plain NumPy on a small run that is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugalign.evaluation.records import write_json
from plugalign.evaluation.summary import summarise
from plugalign.evaluation.table import comparison_table, number, p_value

PROMPTS, SAMPLES, BATCH = 12, 4, 6
METHODS = ("base", "good", "same")


def make_run(out: Path, judges: tuple[str, ...] = ("one",), missing: float = 0.0) -> dict[Any, Any]:
    """Writes a run; "good" is less toxic, "same" equals base. Returns all records by address."""
    rng = np.random.default_rng(0)
    settings = {
        "methods": {"base": None, "good": {}, "same": {}}, "judges": list(judges), "seed": 0,
        "samples": SAMPLES, "scorer": {"name": "tiny", "is_base": True},
    }  # fmt: skip
    write_json(out / "manifest.json", {"settings": settings})
    table: dict[Any, Any] = {}
    for prompt in range(PROMPTS):
        for sample in range(SAMPLES):
            base = {
                "text": " ".join(f"w{n}" for n in rng.integers(0, 9, rng.integers(0, 7))),
                "tokens": rng.integers(3, 50, rng.integers(1, 8)).tolist(),
                "scores": {j: float(rng.beta(1, 2)) for j in judges},
                "nll": float(rng.gamma(4, 3)),
            }
            lost = {j: None if rng.random() < missing else base["scores"][j] / 3 for j in judges}
            table["base", prompt, sample] = table["same", prompt, sample] = base
            table["good", prompt, sample] = {**base, "scores": lost, "nll": base["nll"] * 1.2}
    rows = [(p, s) for p in range(PROMPTS - 1, -1, -1) for s in range(SAMPLES)]
    with (out / "generations.jsonl").open("w") as made, (out / "scores.jsonl").open("w") as scored:
        for batch in range(0, len(rows), BATCH):
            for speed, method in enumerate(METHODS, start=1):
                for prompt, sample in rows[batch : batch + BATCH]:
                    record = table[method, prompt, sample]
                    count = len(record["tokens"])
                    where = {"method": method, "prompt": prompt, "sample": sample}
                    time = {"batch": batch // BATCH, "seconds": 0.01 * speed * count}
                    texts = {k: record[k] for k in ("text", "tokens")}
                    made.write(json.dumps(where | texts | time) + "\n")
                    found = {k: record[k] for k in ("scores", "nll")}
                    scored.write(json.dumps(where | found | {"scored_tokens": count}) + "\n")
    return table


def column(table: dict[Any, Any], method: str, judge: str = "one") -> np.ndarray[Any, Any]:
    """The judge's scores of a method, (P, S), NaN where missing."""
    values = [
        [table[method, p, s]["scores"][judge] for s in range(SAMPLES)] for p in range(PROMPTS)
    ]
    return np.array(values, dtype=float)


def test_figures_are_means_over_prompts(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    summary = summarise(tmp_path)
    assert (summary["prompts"], summary["samples"]) == (PROMPTS, SAMPLES)
    for name in METHODS:
        scores, found = column(table, name), summary["methods"][name]
        assert found["expected_maximum_toxicity"]["value"] == pytest.approx(scores.max(1).mean())
        assert found["toxicity_probability"]["value"] == pytest.approx(
            (scores.max(1) >= 0.5).mean()
        )
        assert found["mean_toxicity"]["value"] == pytest.approx(scores.mean())
        lengths = [len(table[name, p, s]["tokens"]) for p in range(PROMPTS) for s in range(SAMPLES)]
        assert found["length"]["value"] == pytest.approx(np.mean(lengths))
        perplexities = []
        for p in range(PROMPTS):
            nll = sum(table[name, p, s]["nll"] for s in range(SAMPLES))
            tokens = sum(len(table[name, p, s]["tokens"]) for s in range(SAMPLES))
            perplexities.append(np.exp(nll / tokens))
        assert found["perplexity"]["value"] == pytest.approx(np.mean(perplexities))
        for metric in ("expected_maximum_toxicity", "perplexity", "distinct_2", "length"):
            figures = found[metric]
            assert figures["low"] <= figures["value"] <= figures["high"]


def test_distinct_counts_different_words_per_word(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    shares = []
    for p in range(PROMPTS):
        words = [w for s in range(SAMPLES) for w in table["base", p, s]["text"].split()]
        shares.append(len(set(words)) / len(words))
    found = summarise(tmp_path)["methods"]["base"]["distinct_1"]
    assert found["value"] == pytest.approx(np.mean(shares))


def test_differences_and_tests_are_paired_with_the_base(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    methods = summarise(tmp_path)["methods"]
    change = (column(table, "good").max(1) - column(table, "base").max(1)).mean()
    good = methods["good"]["expected_maximum_toxicity"]
    assert good["difference"]["value"] == pytest.approx(change)
    assert good["difference"]["high"] < 0
    # Every prompt falls, so of the 2**12 sign patterns only two are as extreme.
    assert good["p_value"] == pytest.approx(2 / 2**PROMPTS)
    assert good["p_adjusted"] == pytest.approx(2 * good["p_value"])  # the better of two methods
    same = methods["same"]["expected_maximum_toxicity"]
    assert same["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert same["p_value"] == same["p_adjusted"] == 1.0
    assert "difference" not in methods["base"]["expected_maximum_toxicity"]
    assert "p_value" not in methods["base"]["expected_maximum_toxicity"]


def test_costs_are_medians_over_batches_and_paired(tmp_path: Path) -> None:
    make_run(tmp_path)
    methods = summarise(tmp_path)["methods"]
    assert methods["base"]["ms_per_token"]["value"] == pytest.approx(10.0)
    assert methods["base"]["ratio_to_plain"]["value"] == 1.0
    assert methods["same"]["ratio_to_plain"]["value"] == pytest.approx(3.0)
    assert methods["same"]["length"]["ratio_to_plain"] == pytest.approx(1.0)


def test_missing_scores_are_left_out_and_counted(tmp_path: Path) -> None:
    table = make_run(tmp_path, missing=0.3)
    summary = summarise(tmp_path)
    scores = column(table, "good")
    assert summary["judges"]["one"]["missing"] == np.isnan(scores).sum() > 0
    found = summary["methods"]["good"]["mean_toxicity"]
    assert found["missing"] == np.isnan(scores).sum()
    assert found["value"] == pytest.approx(np.nanmean(np.nanmean(scores, axis=1)))


def test_a_judge_that_always_fails_gives_no_figure(tmp_path: Path) -> None:
    make_run(tmp_path, missing=1.0)
    found = summarise(tmp_path)["methods"]["good"]["toxicity_probability"]
    assert found == {"value": None, "low": None, "high": None, "missing": PROMPTS * SAMPLES}


def test_the_first_judge_is_primary_and_the_others_are_nested(tmp_path: Path) -> None:
    table = make_run(tmp_path, judges=("one", "two"))
    summary = summarise(tmp_path)
    assert summary["primary_judge"] == "one"
    nested = summary["methods"]["good"]["judges"]["two"]["mean_toxicity"]
    assert nested["value"] == pytest.approx(column(table, "good", "two").mean())
    assert nested["p_adjusted"] < 0.05


def test_the_summary_is_a_pure_function_of_the_files(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert summarise(tmp_path) == summarise(tmp_path)
    json.dumps(summarise(tmp_path), allow_nan=False)


def test_the_table_shows_every_method_in_a_hundred_columns(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    make_run(tmp_path, missing=0.1)
    console = Console(file=StringIO(), width=100)
    console.print(comparison_table(summarise(tmp_path)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    for name in METHODS:
        assert any(line.split()[:1] == [name] for line in lines)
    assert "…" not in text and max(map(len, lines)) <= 100
    assert "The judge one failed on" in text
    assert "the unsteered base itself" in " ".join(text.split())


@pytest.mark.parametrize(
    ("value", "metric", "shown"),
    [
        (None, "perplexity", "-"), (0.5, "toxicity_probability", "0.50"), (9.996, "", "10.0"),
        (9.984, "", "9.98"), (99.96, "", "100"), (12345.6, "", "12346"), (0.0, "", "0.00"),
    ],
)  # fmt: skip
def test_numbers_have_about_three_digits(value: float | None, metric: str, shown: str) -> None:
    assert number(value, metric) == shown


def test_p_values_are_never_shown_as_zero() -> None:
    assert [p_value(p) for p in (0.0001, 0.001, 0.04951, 1.0)] == ["<.001", ".001", ".050", "1.000"]
