"""tune(): the search against a plain reading of its rule, and the pocket world end to end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from numpy.typing import ArrayLike
from rich.console import Console

import plugalign as pa
from plugalign import pocket
from plugalign.evaluation import halving
from plugalign.evaluation.halving import Budgets, Search
from plugalign.evaluation.metrics.metric import Metric
from plugalign.evaluation.report.numbers import number
from plugalign.evaluation.report.pareto import write_picture
from plugalign.evaluation.statistics.paired import FloatArray, maximum, mean_score
from plugalign.evaluation.tuning import tune
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts

METRICS = [{"name": "toxicity", "better": "lower"}]


def figure(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value}


def summary(prompts: int, rows: Mapping[str, tuple[float | None, float, float]]) -> Any:
    """A summary of rows by (toxicity, perplexity, length); the base has (1, 100, 10)."""
    methods = {"base": (1.0, 100.0, 10.0), **rows}
    found = {
        name: {"toxicity": figure(t), "corpus_perplexity": figure(p), "length": figure(n)}
        for name, (t, p, n) in methods.items()
    }
    rest: dict[str, Any] = {"cut_alike": {}, "references": {}, "metrics": METRICS}
    return {"reference": "base", "prompts": prompts, "methods": found, **rest}


def search_of(rows: int, prompts: int = 128, **budgets: Any) -> Search:
    names = {f"d[alpha={n}]": {"alpha": float(n)} for n in range(rows)}
    return Search(names, Budgets(**budgets), [f"p{n}" for n in range(prompts)])


@pytest.mark.parametrize(
    ("rows", "prompts", "rounds"),
    [
        (2, 128, [(128, 2)]),
        (3, 128, [(32, 3), (128, 2)]),
        (4, 128, [(32, 4), (128, 2)]),
        (8, 128, [(20, 8), (32, 4), (128, 2)]),
        (9, 512, [(20, 9), (32, 5), (128, 3), (512, 2)]),
        (4, 40, [(20, 4), (40, 2)]),
        (8, 20, [(20, 8)]),
        (4, 5, [(5, 4)]),
    ],
)
def test_settings_are_halved_while_prompts_grow(
    rows: int, prompts: int, rounds: list[tuple[int, int]]
) -> None:
    search, found = search_of(rows, prompts), []
    for count, kept in search.rounds():
        found.append((count, len(kept)))
        search.note(summary(count, {r: (0.01 * int(r[8:-1]), 100, 10) for r in kept}), kept)
    assert found == rounds
    assert search.chosen is not None and search.chosen.row == "d[alpha=0]"
    assert sum(c * k for c, k in found) <= 3 * prompts * 2 or prompts < 40


def test_the_best_within_the_budgets_is_chosen_and_not_the_best() -> None:
    search = search_of(4, max_perplexity=1.15, max_length_change=0.2)
    rows = {
        "d[alpha=0]": (0.9, 100.0, 10.0),
        "d[alpha=1]": (0.4, 115.0, 12.0),  # at the very edge of both
        "d[alpha=2]": (0.2, 116.0, 10.0),
        "d[alpha=3]": (0.1, 90.0, 7.5),
    }
    search.note(summary(128, rows), list(rows))
    assert [trial.row[8] for trial in search.ranked()] == ["1", "0", "2", "3"]
    assert search.chosen is not None and search.chosen.settings == {"alpha": 1.0}
    within = {trial.row[8]: trial.within for trial in search.ranked()}
    assert within == {"0": True, "1": True, "2": False, "3": False}


def test_nothing_is_chosen_where_nothing_keeps_the_budgets() -> None:
    search = search_of(2)
    rows = {"d[alpha=0]": (0.1, 300.0, 10.0), "d[alpha=1]": (0.2, 200.0, 10.0)}
    search.note(summary(128, rows), list(rows))
    assert search.chosen is None
    assert [trial.row[8] for trial in search.ranked()] == ["1", "0"]


def test_what_has_no_figure_is_last_and_never_chosen() -> None:
    search = search_of(2)
    rows = {"d[alpha=0]": (None, 100.0, 10.0), "d[alpha=1]": (0.9, 100.0, 10.0)}
    search.note(summary(128, rows), list(rows))
    assert search.chosen is not None and search.chosen.row == "d[alpha=1]"
    assert [p[0] for p in search.points()] == ["base", "d[alpha=1]"]
    alone = search_of(2)
    empty = {row: (0.1, None, 10.0) for row in rows}
    alone.note(summary(128, empty), list(rows))  # type: ignore[arg-type]
    assert alone.chosen is None


def test_a_metric_that_is_better_high() -> None:
    search = search_of(2)
    found = summary(128, {"d[alpha=0]": (0.1, 100.0, 10.0), "d[alpha=1]": (0.2, 90.0, 10.0)})
    found["metrics"] = [{"name": "toxicity", "better": "higher"}]
    search.note(found, list(search.rows))
    assert search.chosen is not None and search.chosen.row == "d[alpha=1]"
    assert [trial.efficient for trial in search.ranked()] == [True, False]


def test_efficient_is_what_no_other_is_better_than_in_both() -> None:
    search = search_of(4)
    places = [(0.5, 90.0), (0.3, 95.0), (0.4, 97.0), (0.1, 110.0)]
    rows = {r: (t, p, 10.0) for r, (t, p) in zip(search.rows, places, strict=True)}
    search.note(summary(128, rows), list(rows))
    assert {t.row[8]: t.efficient for t in search.ranked()} == {
        "0": True,
        "1": True,
        "2": False,
        "3": True,
    }


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"max_perplexity": 0}, "max_perplexity is a ratio to the base's above 0, got 0"),
        ({"max_perplexity": float("nan")}, "above 0, got nan"),
        ({"max_perplexity_cut_alike": -1}, "max_perplexity_cut_alike is a ratio .* got -1"),
        ({"max_cost": 0.0}, "max_cost is a ratio to the base's above 0, got 0"),
        ({"max_length_change": -0.1}, "a part of the base's length, not negative, got -0.1"),
    ],
)
def test_budgets_that_cannot_be(budgets: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budgets(**budgets)


def test_a_narrow_choice_does_not_hide_what_breaks() -> None:
    """Twice the perplexity of the base cut alike at most, by default; unknown is not within."""
    search = search_of(3)
    rows = dict.fromkeys(search.rows, (0.1, 60.0, 10.0))
    found = summary(128, rows)
    cut = {"d[alpha=0]": 29.0, "d[alpha=1]": 30.0, "d[alpha=2]": None}
    found["cut_alike"] = {row: f"base {row}" for row in cut}
    found["references"] = {f"base {r}": {"corpus_perplexity": figure(v)} for r, v in cut.items()}
    search.note(found, list(rows))
    assert search.chosen is not None and search.chosen.settings == {"alpha": 1.0}
    excess = [trial.excess for trial in search.ranked()]
    assert excess == [0.0, pytest.approx(60 / 29 - 2), math.inf]
    over = [trial.over for trial in search.ranked()]
    cut_alike = "max_perplexity_cut_alike"
    assert over == [{}, {cut_alike: pytest.approx(60 / 29 - 2)}, {cut_alike: None}]


@pytest.mark.parametrize(
    ("better", "ends", "p_value", "improves"),
    [
        ("lower", (-0.3, -0.1), 0.01, True),
        ("lower", (-0.3, 0.1), 0.01, False),
        ("lower", (0.1, 0.3), 0.01, False),
        ("lower", (-0.3, 0.0), 0.01, False),
        ("higher", (0.1, 0.3), 0.01, True),
        ("higher", (-0.3, -0.1), 0.01, False),
        ("lower", (None, None), 0.01, False),
        ("lower", (-0.3, -0.3), 1.0, False),  # of one prompt
        ("lower", (-0.3, -0.1), None, False),
    ],
)
def test_what_improves_on_base(
    better: str, ends: tuple[float | None, float | None], p_value: float | None, improves: bool
) -> None:
    search = search_of(2)
    found = summary(128, dict.fromkeys(search.rows, (0.5, 100.0, 10.0)))
    found["metrics"] = [{"name": "toxicity", "better": better}]
    for row in search.rows:
        difference = dict(zip(("low", "high"), ends, strict=True))
        found["methods"][row]["toxicity"] |= {"difference": difference, "p_value": p_value}
    search.note(found, list(search.rows))
    assert {trial.improves(search.metric) for trial in search.ranked()} == {improves}


def test_what_costs_too_much_is_over_the_budget() -> None:
    search = search_of(3, 8, max_cost=1.5)
    for _, kept in search.rounds():
        found = summary(8, {name: (0.1 * n, 100.0, 10.0) for n, name in enumerate(search.rows)})
        times = dict(
            zip(search.rows, ({"value": 1.6}, {"value": 1.5}, {"value": None}), strict=True)
        )
        for name, time in times.items():
            found["methods"][name]["ratio_per_answer"] = time
        search.note(found, kept)
    assert search.chosen is not None and search.chosen.settings == {"alpha": 1.0}
    assert [trial.excess for trial in search.ranked()] == pytest.approx([0.0, 0.1, math.inf])


def test_the_budget_of_perplexity_goes_by_an_outside_model_where_there_is_one() -> None:
    rows = {"d[alpha=0]": (0.9, 100.0, 10.0), "d[alpha=1]": (0.1, 100.0, 10.0)}
    outside = {"base": 50.0, "d[alpha=0]": 50.0, "d[alpha=1]": 75.0}
    without, within = summary(128, rows), summary(128, rows)
    for name, value in outside.items():
        within["methods"][name]["outside_corpus_perplexity"] = figure(value)
    within["perplexity_model"] = "other"
    chosen = {}
    for key, found in (("own", without), ("outside", within)):
        search = search_of(2)
        search.note(found, list(rows))
        assert search.chosen is not None
        chosen[key] = search.chosen.settings["alpha"]
        ratios = {trial.row[8]: trial.perplexity_ratio for trial in search.ranked()}
        assert ratios == {"0": 1.0, "1": 1.0 if key == "own" else 1.5}
        drawn = {name: perplexity["value"] for name, perplexity, *_ in search.points()}
        assert drawn == (outside if key == "outside" else dict.fromkeys(outside, 100.0))
    assert chosen == {"own": 1.0, "outside": 0.0}


@pytest.mark.parametrize(("bound", "chosen"), [({}, 1.0), ({"max_perplexity_cut_alike": 1.2}, 2.0)])
def test_perplexity_stands_beside_that_of_the_base_cut_alike(
    bound: dict[str, float], chosen: float
) -> None:
    """A narrower choice lowers perplexity by itself; what has no support is over the base."""
    search = search_of(3, **bound)
    rows = {
        "d[alpha=0]": (0.1, 120.0, 10.0),
        "d[alpha=1]": (0.2, 100.0, 10.0),
        "d[alpha=2]": (0.3, 100.0, 10.0),
    }
    found = summary(128, rows)
    found["cut_alike"] = {"d[alpha=1]": "base (top-p 0.9)"}
    found["references"] = {"base (top-p 0.9)": {"corpus_perplexity": figure(80.0)}}
    search.note(found, list(rows))
    trials = {trial.row[8]: trial for trial in search.ranked()}
    ratios = {row: (t.perplexity_ratio, t.perplexity_ratio_cut_alike) for row, t in trials.items()}
    assert ratios == {"0": (1.2, None), "1": (1.0, 1.25), "2": (1.0, None)}
    assert search.chosen is not None and search.chosen.settings == {"alpha": chosen}


# ------------------------------------------------------------------ the pocket world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fitted controller that may be changed."""
    return Path(shutil.copytree(pocket.parts() / "controllers" / "dexperts_lora", tmp_path / "d"))


SMALL: dict[str, Any] = {"samples": 2, "max_new_tokens": 8, "limit": 12}


def test_the_chosen_setting_and_its_evidence_are_in_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halving, "FEWEST", 8)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    values = {"d.alpha": [0.0, 2.0, "0.5", 1]}
    tuning = tune({"d": folder}, values, budgets=Budgets(9, 9), out=tmp_path / "out", **SMALL)
    assert tuning.chosen is not None
    chosen = tuning.chosen.settings["alpha"]
    loaded = pa.load(folder)
    assert isinstance(loaded, pa.DExperts) and loaded.alpha == chosen
    found = json.loads((folder / "tuning.json").read_text())
    assert found == json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert found["chosen"] == {"alpha": chosen} and found["before"] == {"alpha": 1.0}
    bounds = {"max_perplexity": 9, "max_length_change": 9, "max_cost": None}
    assert (
        found["budgets"] == bounds | {"max_perplexity_cut_alike": 2}
        and found["perplexity_model"] is None
    )
    assert [trial["prompts"] for trial in found["trials"]] == [12, 12, 8, 8]
    assert [each["prompts"] for each in found["rounds"]] == [8, 12]
    last = json.loads((tmp_path / "out" / "round-2" / "summary.json").read_text())
    names = {trial["row"] for trial in found["trials"][:2]}
    assert set(last["methods"]) == {"base", *names}
    assert found["metric"]["name"] == "expected_maximum_toxicity"
    expected = {n: last["methods"][n]["expected_maximum_toxicity"]["value"] for n in names}
    assert expected[tuning.chosen.row] == min(expected.values())
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads(before[folder / "config.json"]) | {"alpha": chosen}
    changed = {p for p in folder.rglob("*") if p.is_file() and p.read_bytes() != before.get(p)}
    assert changed <= {folder / "config.json", folder / "tuning.json"}
    assert tuning.table().row_count == 5
    alike = last["references"][last["cut_alike"][tuning.chosen.row]]["corpus_perplexity"]["value"]
    own, ratio = tuning.chosen.perplexity["value"], tuning.chosen.perplexity_ratio
    assert tuning.chosen.perplexity_ratio_cut_alike == pytest.approx(own / alike)
    console = Console(file=StringIO(), width=80)
    console.print(tuning)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"{number(ratio)} / {number(own / alike)}" in said and "x base / cut" in said
    assert "budgets are 9.00 / 2.00" in said and "alpha=0.5" in said
    base = last["methods"]["base"]["expected_maximum_toxicity"]
    assert f"base 12 {number(base['value'])} [{number(base['low'])}, " in said
    assert tuning.chosen.improves(found["metric"]) == found["improves"] == (tuning.doubt is None)


def kindness(scores: ArrayLike) -> FloatArray:
    return 1 - mean_score(scores)


def test_settings_go_by_the_first_of_the_metrics_that_are_given(
    folder: Path, tmp_path: Path
) -> None:
    longest = Metric("longest", maximum, better="higher", measure=len)
    kindest = Metric("kindest", kindness, better="higher")
    values, out = {"d.alpha": [0.0, 1.0]}, tmp_path / "out"
    tuning = tune(
        {"d": folder}, values, budgets=Budgets(9, 9), out=out, metrics=[longest, kindest], **SMALL
    )
    assert tuning.found["metric"]["name"] == "kindest"
    figures = {trial.row: trial.figures["kindest"]["value"] for trial in tuning.trials}
    assert tuning.chosen is not None
    assert figures[tuning.chosen.row] == max(figures.values())


def test_held_out_prompts_of_the_pocket_world_are_not_those_of_compare(
    folder: Path, tmp_path: Path
) -> None:
    values = {"d.alpha": [0.5, 1.0]}
    tune({"d": folder}, values, budgets=Budgets(9, 9), out=tmp_path / "out", **SMALL)
    lines = (tmp_path / "out" / "round-1" / "prompts.jsonl").read_text().splitlines()
    held_out = {json.loads(line)["text"] for line in lines}
    assert len(held_out) == 12 and not held_out & set(pocket_prompts(100, PROMPT_SEED))


def test_without_a_setting_in_the_budgets_nothing_is_written_and_a_run_is_resumed(
    folder: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    arguments: dict[str, Any] = {"budgets": Budgets(0.01, 0), "out": tmp_path / "out", **SMALL}
    tuning = tune({"d": folder}, {"d.alpha": [0.5, 1.0]}, **arguments)
    assert tuning.chosen is None and tuning.found["chosen"] is None
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match="already holds this run; continue it with --resume"):
        tune({"d": folder}, {"d.alpha": [0.5, 1.0]}, **arguments)
    again = tune({"d": folder}, {"d.alpha": [0.5, 1.0]}, **arguments, resume=True)
    assert again.found == tuning.found


def test_budgets_that_are_not_kept_are_named_and_so_is_a_choice_that_does_not_help(
    tmp_path: Path,
) -> None:
    controller, values = pa.SelfDebias(["This is rude:"]), {"s.decay": [0.0, 1e-6]}
    over = tune({"s": controller}, values, budgets=Budgets(0.5, 0), out=tmp_path / "a", **SMALL)
    console = Console(file=StringIO(), width=120)
    console.print(over)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "over perplexity" in said and "over budget" not in said and over.doubt is None
    kept = tune({"s": controller}, values, budgets=Budgets(9, 9), out=tmp_path / "b", **SMALL)
    assert kept.found["improves"] is False
    assert (kept.doubt or "").startswith("decay=") and "0.00 [0.00, 0.00]" in (kept.doubt or "")


def test_a_controller_in_memory_is_tuned_and_nothing_but_out_is_written(tmp_path: Path) -> None:
    controller = pa.SelfDebias(["This is rude:"])
    values = {"s.decay": [1.0, 2.0]}
    tuning = tune({"s": controller}, values, budgets=Budgets(9, 9), out=tmp_path / "out", **SMALL)
    assert tuning.chosen is not None and controller.decay == 10
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "pareto.svg",
        "round-1",
        "tuning.json",
    ]


def test_an_outside_model_is_named_in_every_result(tmp_path: Path) -> None:
    values, out = {"s.decay": [1.0, 2.0]}, tmp_path / "out"
    outside = pocket.load()
    outside[0].name_or_path = "outside-8b"
    options = {**SMALL, "perplexity_model": outside, "budgets": Budgets(9, 9)}
    tuning = tune({"s": pa.SelfDebias(["This is rude:"])}, values, out=out, **options)
    assert tuning.chosen is not None
    assert json.loads((out / "tuning.json").read_text())["perplexity_model"] == "outside-8b"
    last = json.loads((out / "round-1" / "summary.json").read_text())["methods"]
    assert tuning.chosen.perplexity == last[tuning.chosen.row]["outside_corpus_perplexity"]
    assert str(tuning.table().caption) == "perplexity under outside-8b: of all tokens"
    assert "perplexity under outside-8b" in tuning.picture.read_text()


def test_results_do_not_go_into_the_controllers_own_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="lies in the controller's own folder"):
        tune({"d": folder}, {"d.alpha": [0.5, 1.0]}, out=folder / "tuned")
    assert not (folder / "tuned").exists()


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"d.alpha": [1.0]}}, r"nothing to choose from; give d\.SETTING several values"),
    ({"settings": {"x.alpha": [1.0, 2.0]}}, "of the method 'x', which is not compared"),
    ({"settings": {"d.alfa": [1.0, 2.0]}}, "DExperts has no setting 'alfa'; known are alpha"),
    ({"model": "some/model"}, "with a model of your own, give prompts too"),
    ({"controllers": {"d": "/nowhere/d"}}, "'/nowhere/d' is no folder, and the chosen setting"),
    ({"controllers": {"d": "/x", "e": "/y"}}, "one controller is tuned at a time, got d, e"),
    ({"controllers": {}}, "one controller is tuned at a time, got none"),
    ({"metrics": []}, "there is no metric; give at least one"),
    ({"controllers": {"base": "/x"}}, "'base' is the name of the plain model; rename"),
    ({"limit": 0}, "limit must be at least 1, got 0"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_refuses_before_any_work(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "controllers": {"d": folder},
        "settings": {"d.alpha": [0.5, 1.0]},
        "out": tmp_path / "out",
    }
    with pytest.raises(ValueError, match=message):
        tune(**arguments | change)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the picture


def test_the_picture_has_a_point_for_each_setting_and_names_are_escaped(tmp_path: Path) -> None:
    wide = {"value": 0.5, "low": 0.4, "high": 0.7}
    points = [
        ("base", figure(100.0), figure(0.9), "base"),
        ("<d & co>", figure(110.0), wide, "chosen"),
        ("other", figure(120.0), figure(0.6), "other"),
    ]
    write_picture(tmp_path / "p.svg", points, METRICS[0])
    svg = ElementTree.parse(tmp_path / "p.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    circles = svg.findall(f"{space}circle")
    assert len(circles) == 3
    heights = [float(circle.get("cy", "nan")) for circle in circles]
    assert heights[0] < heights[2] < heights[1]  # less toxic is further down
    texts = [text.text for text in svg.findall(f"{space}text")]
    assert {"base", "<d & co>", "other", "perplexity", "toxicity"} <= set(texts)


def test_a_picture_of_nothing_is_one(tmp_path: Path) -> None:
    write_picture(tmp_path / "p.svg", [], METRICS[0])
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
