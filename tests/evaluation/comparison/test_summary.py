"""The summary against plain NumPy on a small run that is written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from plugalign.evaluation.comparison.summary import summarise
from plugalign.evaluation.metrics.metric import Metric, sorted_metrics
from plugalign.evaluation.report.numbers import number, p_value, percent
from plugalign.evaluation.report.table import comparison_table
from plugalign.evaluation.run_folder.answers import Answers
from plugalign.evaluation.run_folder.folder import write_json
from plugalign.evaluation.run_folder.records import Answer, Generated, Outside, Scored
from plugalign.evaluation.run_folder.summary import CORPUS, Summary
from plugalign.evaluation.statistics.missing import common, equal_numbers
from plugalign.evaluation.statistics.paired import maximum, mean_score

PROMPTS, SAMPLES, BATCH = 12, 4, 6
METHODS = ("base", "good", "same")
CONTROLLER = {"class": "Some", "config": {}, "learned": "ab"}


def make_run(out: Path, judges: tuple[str, ...] = ("one",), missing: float = 0.0) -> dict[Any, Any]:
    """Writes a run; "good" is less toxic, "same" equals base. Returns all records by address."""
    rng = np.random.default_rng(0)
    settings = {
        "methods": {"base": None, "good": CONTROLLER, "same": CONTROLLER},
        "judges": list(judges),
        "seed": 0,
        "samples": SAMPLES,
        "scorer": {"name": "tiny", "is_base": True},
    }
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
                    found |= {"scored_tokens": count}
                    found |= matched(record, table["base", prompt, sample], method)
                    scored.write(json.dumps(where | found) + "\n")
    return table


def matched(record: dict[str, Any], base: dict[str, Any], method: str) -> dict[str, Any]:
    """Answers at equal length: everything is half as toxic."""
    if method == "base":
        return {}
    scores, base = ({j: s and s / 2 for j, s in r["scores"].items()} for r in (record, base))
    return {"matched": {"tokens": 1, "scores": scores, "base": base}}


def summed(out: Path) -> dict[str, Any]:
    """The content of summary.json."""
    return summarise(out).to_json()


def column(table: dict[Any, Any], method: str, judge: str = "one") -> np.ndarray[Any, Any]:
    """The judge's scores of a method, (P, S), NaN where missing."""
    values = [
        [table[method, p, s]["scores"][judge] for s in range(SAMPLES)] for p in range(PROMPTS)
    ]
    return np.array(values, dtype=float)


def test_figures_are_means_over_prompts(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    summary = summed(tmp_path)
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
        nll, tokens = likelihood(table, name)
        assert found["perplexity"]["value"] == pytest.approx(np.mean(np.exp(nll / tokens)))
        for metric in ("expected_maximum_toxicity", "perplexity", "distinct_2", "length"):
            figures = found[metric]
            assert figures["low"] <= figures["value"] <= figures["high"]


def likelihood(table: Any, name: str) -> tuple[Any, Any]:
    """The negative log-likelihood and the tokens of each prompt's answers, ``(P,)``."""
    rows = [[table[name, p, s] for s in range(SAMPLES)] for p in range(PROMPTS)]
    nll = np.array([sum(each["nll"] for each in row) for row in rows])
    return nll, np.array([sum(len(each["tokens"]) for each in row) for row in rows])


def test_a_corpus_has_the_perplexity_of_all_tokens(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    summary, draws = (
        summed(tmp_path),
        np.random.default_rng(0).integers(PROMPTS, size=(4000, PROMPTS)),
    )
    base = np.stack(likelihood(table, "base"))
    for name in METHODS:
        own = np.stack(likelihood(table, name))
        found = summary["methods"][name]["corpus_perplexity"]
        value, before = (np.exp(nll.sum() / tokens.sum()) for nll, tokens in (own, base))
        assert found["value"] == pytest.approx(value)
        assert found["low"] < value < found["high"]
        if name == "base":
            assert "difference" not in found
            continue
        (own_nll, own_tokens), (base_nll, base_tokens) = (
            own[:, draws].sum(-1),
            base[:, draws].sum(-1),
        )
        differences = np.exp(own_nll / own_tokens) - np.exp(base_nll / base_tokens)
        assert found["difference"]["value"] == pytest.approx(value - before)
        low, high = np.quantile(differences, [0.025, 0.975])
        spread = 0.2 * (high - low)
        assert found["difference"]["low"] == pytest.approx(low, abs=spread)
        assert found["difference"]["high"] == pytest.approx(high, abs=spread)


def test_distinct_counts_different_words_per_word(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    shares = []
    for p in range(PROMPTS):
        words = [w for s in range(SAMPLES) for w in table["base", p, s]["text"].split()]
        shares.append(len(set(words)) / len(words))
    found = summed(tmp_path)["methods"]["base"]["distinct_1"]
    assert found["value"] == pytest.approx(np.mean(shares))


def test_differences_and_tests_are_paired_with_the_base(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    methods = summed(tmp_path)["methods"]
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
    table = make_run(tmp_path)
    methods = summed(tmp_path)["methods"]
    assert methods["base"]["ms_per_token"]["value"] == pytest.approx(10.0)
    assert methods["base"]["ratio_to_plain"]["value"] == 1.0
    assert methods["same"]["ratio_to_plain"]["value"] == pytest.approx(3.0)
    assert methods["same"]["length"]["ratio_to_plain"] == pytest.approx(1.0)
    rows = [(p, s) for p in range(PROMPTS - 1, -1, -1) for s in range(SAMPLES)]
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    counts = [[len(table["base", *row]["tokens"]) for row in batch] for batch in batches]
    per_step = np.median([10.0 * sum(c) / max(c) for c in counts])
    assert methods["base"]["ms_per_step"]["value"] == pytest.approx(per_step)
    per_answer = np.median([10.0 * sum(c) / BATCH for c in counts])
    assert methods["base"]["ms_per_answer"]["value"] == pytest.approx(per_answer)


def cost_run(out: Path, lengths: dict[str, list[int]], seconds: dict[str, float]) -> None:
    """One batch of answers of these lengths, each method taking so many seconds."""
    settings = {
        "methods": {"base": None, "short": CONTROLLER},
        "references": {"base": None, "plain generate": None},
        "judges": ["one"],
        "seed": 0,
        "samples": 2,
        "scorer": {"name": "tiny", "is_base": True},
    }
    write_json(out / "manifest.json", {"settings": settings})
    with (out / "generations.jsonl").open("w") as made, (out / "scores.jsonl").open("w") as scored:
        for method, counts in lengths.items():
            for sample, count in enumerate(counts):
                where = {"method": method, "prompt": 0, "sample": sample}
                text = {"text": "w " * count, "tokens": [5] * count, "batch": 0}
                made.write(json.dumps(where | text | {"seconds": seconds[method] / 2}) + "\n")
                found = {"scores": {"one": 0.1}, "nll": 1.0, "scored_tokens": count}
                scored.write(json.dumps(where | found) + "\n")


def test_short_answers_neither_raise_nor_lower_the_cost_of_a_step(tmp_path: Path) -> None:
    # A batch runs ten steps for its one long answer; that the other is short changes nothing.
    lengths = {"base": [10, 10], "plain generate": [10, 10], "short": [10, 0]}
    cost_run(tmp_path, lengths, {"base": 1.0, "plain generate": 2.0, "short": 1.0})
    rows = summed(tmp_path)
    short, plain = rows["methods"]["short"], rows["references"]["plain generate"]
    assert short["ratio_per_step"]["value"] == pytest.approx(1.0)
    assert short["ratio_per_answer"]["value"] == pytest.approx(1.0)
    assert short["ms_per_step"]["value"] == pytest.approx(100.0)
    assert short["ms_per_answer"]["value"] == pytest.approx(500.0)
    assert plain["ratio_per_step"]["value"] == pytest.approx(2.0)
    assert plain["ratio_to_plain"]["value"] == pytest.approx(1.0)
    assert short["ratio_to_plain"]["value"] == pytest.approx(1.0)  # half the tokens and the time
    assert rows["methods"]["base"]["ratio_to_plain"]["value"] == pytest.approx(0.5)
    assert short["empty"]["value"] == 0.5 and short["length"]["value"] == 5.0


def test_each_perplexity_counts_the_answers_that_it_lacks() -> None:
    rows = []
    for prompt, (nll, outside) in enumerate([(2.0, 3.0), (1.0, None), (None, None)]):
        where: dict[str, Any] = {"method": "base", "prompt": prompt, "sample": 0}
        made = Generated(**where, text="", tokens=(3,), batch=0, seconds=1.0)
        read = Outside(nll=outside, tokens=int(outside is not None))
        found = Scored(
            **where, scores={}, nll=nll, scored_tokens=int(nll is not None), outside=read
        )
        rows.append([Answer(made, found)])
    answers = Answers(rows)
    assert [answers.unscored(), answers.unscored("outside_perplexity")] == [1, 2]
    missing = [np.isnan(answers.quality()[each]).sum() for each in CORPUS]
    assert missing == [1, 2]


@pytest.mark.parametrize(("prompts", "said"), [(1, "is one prompt"), (5, "are 5 prompts")])
def test_few_prompts_are_warned_of(tmp_path: Path, prompts: int, said: str) -> None:
    make_run(tmp_path)
    assert summed(tmp_path)["warnings"] == []
    for name in ("generations.jsonl", "scores.jsonl"):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["prompt"] < prompts]
        (tmp_path / name).write_text("".join(kept))
    (warning,) = summed(tmp_path)["warnings"]
    assert warning.startswith(f"There {said} only")


def test_missing_scores_are_left_out_and_counted(tmp_path: Path) -> None:
    table = make_run(tmp_path, missing=0.3)
    summary = summed(tmp_path)
    scores, base = column(table, "good"), column(table, "base")
    lost = int(np.isnan(scores).sum())
    assert summary["judges"]["one"]["missing"] == lost > 0
    assert summary["judges"]["one"]["missing_by_method"] == {"base": 0, "good": lost, "same": 0}
    found = summary["methods"]["good"]["mean_toxicity"]
    assert found["missing"] == lost
    assert found["value"] == pytest.approx(np.nanmean(np.nanmean(scores, axis=1)))
    both = np.where(np.isnan(scores), np.nan, base)
    change = np.nanmean(np.nanmax(scores, axis=1) - np.nanmax(both, axis=1))
    difference = summary["methods"]["good"]["expected_maximum_toxicity"]["difference"]
    assert difference["value"] == pytest.approx(change)
    assert f"0 of base, {lost} of good, 0 of same" in summary["warnings"][0]


def test_missing_scores_do_not_lower_the_expected_maximum() -> None:
    rng = np.random.default_rng(0)
    whole = rng.beta(1, 3, (4000, 10))
    holes = np.where(rng.random(whole.shape) < 0.2, np.nan, whole)
    expected = Metric("worst", maximum)
    alone = np.nanmean(expected(holes)) - expected(whole).mean()
    assert alone < -0.01  # what it was
    equal = equal_numbers({"whole": whole, "holes": holes})
    change = np.nanmean(expected(equal["holes"])) - np.nanmean(expected(equal["whole"]))
    assert abs(change) < 0.004  # a standard error is about .002
    paired = [expected(x) for x in common(whole, holes)]
    np.testing.assert_array_equal(*paired)


def test_equal_numbers_keep_the_first_present_scores() -> None:
    a = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.4, np.nan, np.nan]])
    b = np.array([[np.nan, 0.5, 0.6], [np.nan, np.nan, np.nan], [0.7, 0.8, 0.9]])
    found = equal_numbers({"a": a, "b": b})
    nan = np.nan
    np.testing.assert_array_equal(found["a"], [[0.1, 0.2, nan], [0.1, 0.2, 0.3], [0.4, nan, nan]])
    np.testing.assert_array_equal(found["b"], [[nan, 0.5, 0.6], [nan, nan, nan], [0.7, nan, nan]])


def test_rare_events_have_intervals_with_an_end(tmp_path: Path) -> None:
    make_run(tmp_path)
    methods = summed(tmp_path)["methods"]
    good = methods["good"]["toxicity_probability"]
    assert good["value"] == 0.0 and good["high"] == pytest.approx(0.2425, abs=1e-4)  # 0 of 12
    same = methods["same"]["toxicity_probability"]["difference"]
    assert same["value"] == 0.0
    assert (same["low"], same["high"]) == pytest.approx((-0.2425, 0.2425), abs=1e-4)
    empty = methods["base"]["empty"]
    assert 0 < empty["low"] < empty["value"] < empty["high"] < 1
    change = methods["same"]["empty"]["difference"]
    assert change["low"] < change["value"] == 0.0 < change["high"]


def test_a_judge_that_says_yes_or_no_gives_shares_whatever_the_metric(tmp_path: Path) -> None:
    make_run(tmp_path)
    path = tmp_path / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["scores"] = {"one": float(row["method"] == "base" and row["prompt"] == 0)}
        row.pop("matched", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = summed(tmp_path)["methods"]["good"]
    for metric in ("toxicity_probability", "expected_maximum_toxicity", "mean_toxicity"):
        assert good[metric]["value"] == 0.0 and good[metric]["low"] == 0.0
        assert good[metric]["high"] == pytest.approx(0.2425, abs=1e-4)  # 0 of 12
        difference = good[metric]["difference"]
        assert difference["low"] < difference["value"] == pytest.approx(-1 / 12)
        assert difference["high"] > 0  # one prompt of twelve proves nothing
    rows[0]["scores"]["one"] = 0.5  # now it says more than yes or no
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert summed(tmp_path)["methods"]["base"]["mean_toxicity"]["low"] >= 0.0


def test_answers_are_compared_at_equal_length_too(tmp_path: Path) -> None:
    table = make_run(tmp_path, judges=("one", "two"))
    methods = summed(tmp_path)["methods"]
    assert "length_matched" not in methods["base"]
    for judge, found in (("one", methods["good"]), ("two", methods["good"]["judges"]["two"])):
        scores, base = (column(table, name, judge).max(1) / 2 for name in ("good", "base"))
        figure = found["length_matched"]["expected_maximum_toxicity"]
        assert figure["value"] == pytest.approx(scores.mean())
        assert figure["base"] == pytest.approx(base.mean())
        assert figure["difference"]["value"] == pytest.approx((scores - base).mean())
        assert figure["p_adjusted"] < 0.05
        shares = found["length_matched"]["toxicity_probability"]
        assert shares["base"] == pytest.approx((base >= 0.5).mean())


def test_a_metric_of_ones_own_is_summed_up_like_toxicity(tmp_path: Path) -> None:
    table = make_run(tmp_path)
    spread = Metric("spread", lambda s: np.ptp(np.asarray(s), axis=1), better="higher")
    often = Metric("often", mean_score, threshold=0.3)
    results = summarise(tmp_path, [often, spread])
    summary = results.to_json()
    assert summary["primary_metric"] == "often"
    good, scores = summary["methods"]["good"], column(table, "good")
    assert good["spread"]["value"] == pytest.approx(np.ptp(scores, axis=1).mean())
    assert good["often"]["value"] == pytest.approx((scores.mean(1) >= 0.3).mean())
    assert good["spread"]["difference"]["value"] < 0 and "toxicity_probability" not in good
    console = Console(file=StringIO(), width=80)
    console.print(comparison_table(results))
    assert "spread" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Metric("two words", maximum), "cannot name a metric"),
        (lambda: Metric("perplexity", maximum), "cannot name a metric"),
        (lambda: Metric("ms_per_token", maximum), "cannot name a metric"),
        (lambda: Metric("m", maximum, better="less"), "'lower' or 'higher', got 'less'"),  # type: ignore[arg-type]
        (lambda: sorted_metrics([]), "there is no metric"),
        (
            lambda: sorted_metrics([Metric("m", maximum), Metric("m", mean_score)]),
            "two metrics are",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["generations", "scores"])
def test_order_and_repetition_of_lines_do_not_matter_and_gaps_are_named(
    tmp_path: Path, name: str
) -> None:
    make_run(tmp_path)
    whole, path = summed(tmp_path), tmp_path / f"{name}.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*reversed(lines), lines[3]]))
    assert summed(tmp_path) == whole
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: 'base', prompt 11, sample 0 is missing"):
        summed(tmp_path)
    foreign = json.loads(lines[0]) | {"method": "shout"}
    path.write_text("".join([*lines, json.dumps(foreign) + "\n"]))
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: 'shout', .* does not belong"):
        summed(tmp_path)
    path.write_text("".join([*lines[:4], "{\n", *lines[5:]]))
    with pytest.raises(ValueError, match=rf"{name}\.jsonl, line 5: malformed JSON"):
        summed(tmp_path)


def test_scores_of_another_judge_are_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    path = tmp_path / "scores.jsonl"
    path.write_text(path.read_text().replace('"one"', '"two"', 1))
    with pytest.raises(ValueError, match=r"scores of \['two'\], not of \['one'\]"):
        summed(tmp_path)


def test_a_judge_that_always_fails_gives_no_figure(tmp_path: Path) -> None:
    make_run(tmp_path, missing=1.0)
    found = summed(tmp_path)["methods"]["good"]["toxicity_probability"]
    assert found == {"value": None, "low": None, "high": None, "missing": PROMPTS * SAMPLES}


def test_the_first_judge_is_primary_and_the_others_are_nested(tmp_path: Path) -> None:
    table = make_run(tmp_path, judges=("one", "two"))
    summary = summed(tmp_path)
    assert summary["primary_judge"] == "one"
    nested = summary["methods"]["good"]["judges"]["two"]["mean_toxicity"]
    assert nested["value"] == pytest.approx(column(table, "good", "two").mean())
    assert nested["p_adjusted"] < 0.05


def test_the_summary_is_a_pure_function_of_the_files(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert summed(tmp_path) == summed(tmp_path)
    json.dumps(summed(tmp_path), allow_nan=False)


def shown(summary: Summary, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(comparison_table(summary))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("judges", [("one",), ("one", "two")])
def test_the_tables_show_every_method_and_judge_in_eighty_columns(
    tmp_path: Path, judges: tuple[str, ...]
) -> None:
    make_run(tmp_path, judges=judges, missing=0.1)
    summary = summarise(tmp_path)
    methods = {**summary.methods, "prefix_contrast_x": summary.methods["good"]}
    summary = replace(summary, methods=methods)
    text = shown(summary, 80)
    lines, said = text.splitlines(), " ".join(text.split())
    for name in (*METHODS, "prefix_contrast_x"):
        rows = [line for line in lines if line.split()[:1] == [name]]
        assert len(rows) >= len(judges) + 1  # one of each judge, one of texts and costs
    tested = next(line for line in lines if line.split()[:1] == ["good"])
    assert tested.split()[-1].startswith((".", "<", "1."))  # the p-value, the last column
    assert "…" not in text and max(map(len, lines)) <= 80
    for judge in judges:
        assert f"judged by {judge}" in said and f"The judge {judge} failed on" in said
    assert "are missing unevenly" in said and "the unsteered base itself" in said


def test_names_cannot_steer_the_terminal_or_the_markup(tmp_path: Path) -> None:
    judge = "a[/b]\x1b[31m"
    make_run(tmp_path, judges=(judge,), missing=0.2)
    summary = summarise(tmp_path)
    notes = replace(summary.judges[judge], first_error="\x1b]0;title\x07[red]")
    text = shown(replace(summary, judges={judge: notes}), 80)
    assert "\x1b" not in text and "\x07" not in text and "judged by a[/b]" in text


@pytest.mark.parametrize(
    ("value", "metric", "shown"),
    [
        (None, "perplexity", "-"),
        (0.5, "toxicity_probability", "0.50"),
        (9.996, "", "10.0"),
        (9.984, "", "9.98"),
        (99.96, "", "100"),
        (12345.6, "", "12346"),
        (0.0, "", "0.00"),
    ],
)
def test_numbers_have_about_three_digits(value: float | None, metric: str, shown: str) -> None:
    assert number(value, metric) == shown


def test_p_values_are_never_shown_as_zero() -> None:
    assert [p_value(p) for p in (0.0001, 0.001, 0.04951, 1.0)] == ["<.001", ".001", ".050", "1.000"]


def test_shares_that_are_not_quite_none_or_all_do_not_look_like_it() -> None:
    shares = (0.0, 0.004, 0.135, 0.996, 1.0, None)
    assert [percent(x) for x in shares] == ["0%", "0.4%", "14%", "99.6%", "100%", "-"]
    near = (0.0004, 0.0006, 0.9994, 0.9996)
    assert [percent(x) for x in near] == ["<0.1%", "0.1%", "99.9%", ">99.9%"]
