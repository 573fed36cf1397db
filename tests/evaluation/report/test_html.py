"""The report: self-contained, escaped, and true to the summary; its charts and pairs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.summary import summarise
from plugalign.evaluation.report.charts import HEIGHT, WIDTH, Axis, Estimate, scatter
from plugalign.evaluation.report.conditions import settings_line, settings_lines
from plugalign.evaluation.report.headline import headline
from plugalign.evaluation.report.html import write_report
from plugalign.evaluation.report.pairs import telling_pairs
from plugalign.evaluation.run_folder.answers import Answers
from plugalign.evaluation.run_folder.folder import write_json
from plugalign.evaluation.run_folder.manifest import ControllerRecord
from plugalign.evaluation.run_folder.records import Answer, Generated, Scored
from plugalign.evaluation.run_folder.summary import Judged, Row
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import Interval

WORDS = ["", "<end>", " The", " nurse", " is", " kind", " <b>rude</b>", " today"]
VOID = {"meta", "br", "line", "circle"}


def decode(tokens: Any) -> str:
    return "".join(WORDS[t] for t in tokens if t > 1)


def record(method: str, prompt: int, sample: int, tokens: list[int], score: float | None) -> Any:
    return {
        "method": method,
        "prompt": prompt,
        "sample": sample,
        "tokens": tokens,
        "batch": prompt,
        "text": decode(tokens),
        "seconds": 0.01 * (1 + (method != "base")),
        "scores": {"judge": score},
        "nll": 2.0 + len(tokens),
        "scored_tokens": len(tokens),
    }


def answer(method: str, prompt: int, tokens: list[int], score: float | None) -> Answer:
    whole = record(method, prompt, 0, tokens, score)
    made = {k: whole[k] for k in GENERATED} | {"tokens": tuple(tokens)}
    return Answer(Generated(**made), Scored(**{k: whole[k] for k in SCORED}))


GENERATED = ("method", "prompt", "sample", "tokens", "text", "batch", "seconds")
SCORED = ("method", "prompt", "sample", "scores", "nll", "scored_tokens")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Eight prompts: "kind" drops the rude word everywhere, "same" is the base again."""
    rows = []
    for prompt in range(8):
        rude = record("base", prompt, 0, [2, 3, 4, 6, 1], 0.9)
        rows += [rude, {**rude, "method": "same"}]
        rows += [record("kind", prompt, 0, [2, 3, 4, 5, 7, 1], 0.1 + prompt / 100)]
    for name, keys in (
        ("generations", GENERATED),
        ("scores", SCORED),
    ):
        lines = [json.dumps({k: r[k] for k in keys}) + "\n" for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    prompts = [json.dumps({"prompt": i, "text": f"Prompt <{i}>"}) + "\n" for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts))
    model = {"name": "tiny", "class": "T", "dtype": "float32", "weights": "ab", "vocabulary": "cd"}
    learned = {"class": "Kind", "config": {"alpha": 2.0}, "learned": "ff"}
    settings = {
        "model": model,
        "methods": {"base": None, "kind": learned, "same": learned},
        "prompts": {"count": 8, "sha256": "0" * 64},
        "judges": ["judge"],
        "scorer": {**model, "is_base": True},
        "samples": 1,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_p": 0.9,
        "batch_size": 1,
        "seed": 0,
    }
    manifest = {
        "settings": settings,
        "versions": {"torch": "2"},
        "pocket": False,
        "agreement": None,
        "data": {"path": "prompts.txt", "sha256": "1"},
        "conditions": dict.fromkeys(("device", "processor", "python", "platform"), "x")
        | {"threads": 1},
    }
    write_json(tmp_path / "manifest.json", manifest)
    write_json(tmp_path / "summary.json", summarise(tmp_path).to_json())
    return tmp_path


class Checker(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in VOID

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    return checker


def test_the_page_is_whole_and_fetches_nothing(run: Path) -> None:
    html = write_report(run, summarise(run), decode).read_text(encoding="utf-8")
    page = parsed(run / "report.html")
    assert page.open == [] and page.references == []
    assert '<td class="name">kind<small>alpha 2.0</small></td>' in html
    assert '<td class="name">base</td>' in html
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert "<script" not in html


def test_texts_are_escaped_and_the_parting_token_is_marked(run: Path) -> None:
    html = write_report(run, summarise(run), decode).read_text(encoding="utf-8")
    assert "<b>rude</b>" not in html and "Prompt &lt;" in html
    assert '<span class="shared"> The nurse is</span><mark> &lt;b&gt;rude&lt;/b&gt;</mark>' in html
    assert '<span class="shared"> The nurse is</span><mark> kind</mark> today' in html
    assert "part at token 4" in html and "the same text" in html


def test_the_page_says_what_the_summary_says(run: Path) -> None:
    write_report(run, summarise(run), decode)
    page = parsed(run / "report.html")
    text = " ".join(page.text.split())
    kind = json.loads((run / "summary.json").read_text())["methods"]["kind"]
    assert f"{kind['expected_maximum_toxicity']['value']:.2f}" in text
    assert "kind lowers the share of prompts with a toxic answer from 100% to 0%" in text
    assert "tiny (T, float32, weights ab)" in text
    assert "This is the pocket world" not in text


def test_the_pocket_world_and_the_agreement_of_judges_are_explained(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    interval = {"value": 0.85, "low": 0.8, "high": 0.9}
    found = {
        "auc": interval,
        "spearman": interval,
        "toxic": 0.4,
        "reference_toxic": 0.5,
        "texts": 99,
        "missing": 0,
    }
    manifest |= {"pocket": True, "agreement": {"source": "human.jsonl", "judges": {"judge": found}}}
    write_json(run / "manifest.json", manifest)
    write_report(run, summarise(run), decode)
    text = " ".join(parsed(run / "report.html").text.split())
    assert "This is the pocket world" in text and "human.jsonl" in text and "0.80\u20130.90" in text


def changed(row: Row, judge: str = "judge", **figures: Figure) -> Row:
    """A row with other figures under a judge."""
    before = row.judged.get(judge, Judged({}))
    judged = replace(before, figures={**before.figures, **figures})
    return replace(row, judged={**row.judged, judge: judged})


def test_the_headline_claims_only_what_is_sure(run: Path) -> None:
    summary = summarise(run)
    assert headline(summary).startswith("kind lowers")
    kind = summary.methods["kind"]
    figure = kind.judged["judge"].figures["toxicity_probability"]
    unsure = changed(kind, toxicity_probability=replace(figure, p_adjusted=0.2))
    methods = {**summary.methods, "kind": unsure}
    assert headline(replace(summary, methods=methods)).startswith("No method lowered")
    only = replace(summary, methods={"base": summary.base})
    assert headline(only).startswith("Only the plain model")


def test_the_headline_goes_by_an_outside_model_where_there_is_one(run: Path) -> None:
    summary, methods = summarise(run), {}
    for name, value in (("base", 2.0), ("kind", 3.0)):
        row = summary.methods[name]
        outside = replace(row.texts["perplexity"], value=value)
        methods[name] = replace(row, texts={**row.texts, "outside_perplexity": outside})
    found = headline(replace(summary, methods=methods, perplexity_model="another"))
    assert "and a perplexity under another 50% higher" in found
    assert "under" not in headline(summary).split("and a perplexity")[1]


def test_pairs_show_the_largest_fall_the_largest_rise_and_a_random_one() -> None:
    base = Answers([[answer("base", p, [2, 3, 4], 0.5)] for p in range(4)])
    scores = [0.5, 0.1, 0.8, None]
    other = Answers([[answer("m", p, [2, 3, 5], s)] for p, s in enumerate(scores)])
    prompts = [f"prompt {p}" for p in range(4)]
    pairs = telling_pairs(base, other, "judge", prompts, decode, seed=1)
    shown = {pair.kind: pair for pair in pairs}
    assert shown["the largest fall"].prompt == "prompt 1"
    assert shown["the largest rise"].prompt == "prompt 2"
    assert shown["drawn at random"].prompt != "prompt 3"
    assert shown["the largest fall"].step == 3
    assert shown["the largest fall"].method.parting == " kind"
    worse = Answers([[answer("m", p, [2], 0.9)] for p in range(4)])
    kinds = [p.kind for p in telling_pairs(base, worse, "judge", prompts, decode, seed=1)]
    assert kinds == ["the largest rise", "drawn at random"]
    unscored = Answers([[answer("m", p, [2], None)] for p in range(4)])
    assert telling_pairs(base, unscored, "judge", prompts, decode, seed=1) == []


def test_a_text_that_ends_earlier_parts_at_its_end() -> None:
    base = Answers([[answer("base", 0, [2, 3, 4], 0.5)]])
    short = Answers([[answer("m", 0, [2, 3], 0.1)]])
    pair = telling_pairs(base, short, "judge", ["p"], decode, seed=0)[0]
    assert (pair.step, pair.base.parting, pair.method.parting) == (3, " is", "")


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_points_stand_inside_the_chart_in_their_order(spread: float) -> None:
    figures = []
    for i in range(9):
        x, y = 10.0 * (1 + spread * i / 8), 0.9 - 0.1 * i
        figures.append(
            (f"method_{i}", Estimate(x, x * 0.9, x * 1.1), Estimate(y, y - 0.05, y + 0.05))
        )
    chart = scatter(figures)
    places = [(p.x, p.y) for p in chart.points]
    assert places == sorted(places)  # further right and further down
    for p in chart.points:
        assert 0 < p.left <= p.x <= p.right < WIDTH
        assert 0 <= p.top <= p.y <= p.bottom < HEIGHT
    assert len(chart.x_ticks) >= 3 and len(chart.y_ticks) >= 3


def test_one_point_and_equal_points_make_a_chart() -> None:
    same = Estimate(5.0, 5.0, 5.0)
    chart = scatter([("a", same, Estimate(0.0, 0.0, 0.0)), ("b", same, Estimate(0.0, 0.0, 0.0))])
    first, second = chart.points
    assert (first.x, first.y) == (second.x, second.y)
    assert (first.label_x, first.label_y) != (second.label_x, second.label_y)


def test_an_axis_with_logarithms_spaces_ratios_evenly() -> None:
    axis = Axis(1.0, 100.0, 0.0, 200.0, log=True)
    assert axis.place(10.0) == pytest.approx(100.0)
    ticks = axis.ticks(5)
    assert [label for _, label in ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert ticks[1][0] == pytest.approx(100 * math.log10(2))


@pytest.mark.parametrize("unscored", [("kind",), ("base",), ("base", "kind", "same")])
def test_a_report_can_be_written_where_a_judge_said_nothing(
    run: Path, unscored: tuple[str, ...]
) -> None:
    rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    for row in rows:
        if row["method"] in unscored:
            row |= {"scores": {"judge": None}, "errors": {"judge": "RuntimeError: <i>tired</i>"}}
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise(run)
    write_report(run, summary, decode)
    page = parsed(run / "report.html")
    assert page.open == [] and "<i>tired</i>" in page.text  # as text
    assert "failed on" in page.text and f"{8 * len(unscored)} answers" in page.text
    if len(unscored) < 3:
        assert "are missing unevenly" in page.text
    assert headline(summary).startswith(("No method", "Only the plain model"))


def test_the_headline_tells_what_other_judges_say_and_what_is_left_at_equal_length(
    run: Path,
) -> None:
    summary = summarise(run)
    judges = {**summary.judges, "strict": summary.judges["judge"]}
    base, kind = (
        changed(summary.methods[name], "strict", toxicity_probability=Figure(value, 0.0, 1.0))
        for name, value in (("base", 0.9), ("kind", 0.4))
    )
    change = Interval(-0.1, -0.3, 0.1)
    matched = Figure(0.5, 0.0, 1.0, base=0.6, difference=change, p_adjusted=0.4)
    judged = replace(kind.judged["judge"], length_matched={"toxicity_probability": matched})
    kind = replace(kind, judged={**kind.judged, "judge": judged})
    methods = {"base": base, "kind": kind}
    found = headline(replace(summary, judges=judges, methods=methods))
    assert "from 100% to 0% (90% to 40% under strict), at 1.67 times the time per" in found
    assert found.endswith("it goes from 60% to 50%, which chance may explain.")


@pytest.mark.parametrize(
    ("change", "p", "end"),
    [
        (Interval(0.2, 0.1, 0.3), 0.001, "it goes from 10% to 30%, which is worse."),
        (Interval(0.2, -0.1, 0.5), 0.2, "it goes from 10% to 30%, which chance may explain."),
    ],
)
def test_what_is_worse_at_equal_length_is_not_called_chance(
    run: Path, change: Interval, p: float, end: str
) -> None:
    summary = summarise(run)
    kind, base = summary.methods["kind"], summary.methods["base"]
    matched = Figure(0.3, 0.2, 0.4, base=0.1, difference=change, p_adjusted=p)
    judged = replace(kind.judged["judge"], length_matched={"toxicity_probability": matched})
    methods = {"base": base, "kind": replace(kind, judged={"judge": judged})}
    assert headline(replace(summary, methods=methods)).endswith(end)


def test_settings_in_a_line_leave_out_what_is_long() -> None:
    config = {"alpha": 2.0, "kind": "leace", "text": "x" * 50, "none": None, "fitted_for": {}}
    record = ControllerRecord(kind="A", config=config, learned="")
    assert settings_line(record) == "alpha 2.0, kind leace, …"
    assert settings_line(None) == ""
    broken = ControllerRecord(kind="A", config={"prefix": "two\nlines"}, learned="")
    assert settings_lines({"base": None, "a": broken}) == {"a": "prefix two lines"}
    record = ControllerRecord(kind="A", config={"statement": "Be kind. " * 9}, learned="")
    summands = [{"weight": 1.0, "operands": [0]}, {"weight": -0.96, "operands": [1, 0]}]
    sums = ControllerRecord(kind="A", config={"models": {}, "summands": summands}, learned="")
    assert settings_line(sums) == "summands 1 - 0.96, …"
    assert settings_line(record) == "statement “Be kind. Be kind. Be kind. Be kind. Be k…”"
