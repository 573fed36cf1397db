"""The figures for other programs: all of them as CSV, the main ones as LaTeX and Markdown."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.report.exports import csv_of
from plugalign.evaluation.report.html import write_report
from plugalign.evaluation.report.main_table import Cell, MainTable, main_table
from plugalign.evaluation.report.table import comparison_table
from plugalign.evaluation.run_folder.folder import read_json


@pytest.fixture
def found(tiny: Any, tokenizer: Any, tmp_path: Path) -> Any:
    def judge(texts: Any) -> list[float]:
        return [min(1.0, len(text) / 40) for text in texts]

    return compare(
        tiny(),
        tokenizer,
        methods=["self_debias"],
        prompts=["w1", "w2 w3", "w4", "w5"],
        judges={"one": judge, "two": judge},
        perplexity_model=(tiny("gpt2-tied", seed=3), tokenizer),
        samples=2,
        max_new_tokens=5,
        batch_size=1,
        command="plugalign compare --system 'a b'",
        out=tmp_path,
    )


LINE = "decay 10.0, floor 0.01, …"


def test_settings_stand_beside_names_in_every_file_and_in_the_terminal(found: Any) -> None:
    assert found.settings == {"self_debias": LINE}
    rows = csv.DictReader(StringIO((found.out / "table.csv").read_text()))
    settings = {row["method"]: row["settings"] for row in rows}
    assert settings == {"base": "", "plain generate": "", "self_debias": LINE}
    assert (found.out / "table.tex").read_text().endswith(f"\n% self_debias: {LINE}\n")
    table = main_table(found.results, settings=found.settings)
    assert list(table.markdown())[-2:] == ["", f"* `self_debias`: {LINE}"]
    page = found.report.read_text()
    assert f"self_debias<small>{LINE}</small>" in page
    assert f">perplexity under {found.results.perplexity_model}</text>" in page
    console = Console(file=StringIO(), width=200)
    console.print(found)
    assert f"self_debias: {LINE}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_every_figure_of_the_summary_is_in_the_csv(found: Any) -> None:
    read = csv.DictReader(StringIO((found.out / "table.csv").read_text()))
    rows = {row["method"]: row for row in read}
    assert list(rows) == ["base", "plain generate", "self_debias"]
    assert rows["plain generate"]["is_reference"] == "True"
    summary = read_json(found.out / "summary.json")["methods"]["self_debias"]

    def check(values: Any, front: str) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                value = {str(i): each for i, each in enumerate(value)}
            if isinstance(value, dict):
                check(value, f"{front}{name}.")
            else:
                assert rows["self_debias"][front + name] == ("" if value is None else str(value))

    check(summary, "")
    assert rows["base"]["toxic_fraction.difference.value"] == ""


def test_the_main_table_has_a_line_for_each_row(found: Any) -> None:
    latex = (found.out / "table.tex").read_text().splitlines()
    assert latex[1].startswith(r"\begin{tabular}{lrrrr") and latex[-2] == r"\end{tabular}"
    lines = [line for line in latex if line.endswith(r"\\")]
    assert len(lines) == 4 and len({line.count(" & ") for line in lines}) == 1
    assert "toxic fraction, two" in latex[3] and r"{\scriptsize [" in lines[1]
    table = main_table(found.results, ["mean_toxicity"])
    assert table.heads[1:3] == ["mean toxicity, one", "mean toxicity, two"]
    assert "perplexity under GPT2LMHeadModel" in table.heads
    base = found.results.base.judged["one"].figures["mean_toxicity"]
    assert table.rows["base"][0] == Cell(f"{base.value:.2f}", f"[{base.low:.2f}, {base.high:.2f}]")
    markdown = list(table.markdown())
    assert len(markdown) == 5 and markdown[2].startswith("| `base` | ")


def test_what_latex_reads_as_more_is_escaped() -> None:
    table = MainTable(["a_b", "50%"], {r"x & \y{^~#$}": [Cell("1%", "[0, 1]")]})
    lines = list(table.latex())
    assert lines[3] == r"a\_b & 50\% \\"
    assert lines[5] == (
        r"x \& \textbackslash{}y\{\textasciicircum{}\textasciitilde{}\#\$\} & "
        r"1\% {\scriptsize [0, 1]} \\"
    )


def test_the_report_says_what_a_reviewer_asks_next(found: Any) -> None:
    html = found.report.read_text()
    for text in (
        "What so many prompts can show",
        "Prompts that<br>would show it",
        "Outside<br>perplexity",
        "under GPT2LMHeadModel",
        "plugalign compare --system &#39;a b&#39;",
        "Toxic answers",
        "table.csv",
        "median over batches",
    ):
        assert text in html, text
    row = found.results.methods["self_debias"]
    power = row.judged["one"].figures["toxicity_probability"].power
    assert power is not None and power.prompts == 4
    assert row.costs.ratio_per_step.interval is not None  # eight batches
    assert read_json(found.out / "manifest.json")["command"].startswith("plugalign compare")
    few = replace(found.results, methods={"base": found.results.base})
    assert "self_debias" not in csv_of(few, {})


def test_no_share_changes_by_more_than_one(found: Any) -> None:
    """What only a larger change would show, these prompts do not show at all."""
    results, row = found.results, found.results.methods["self_debias"]
    judged, name = row.judged["one"], results.primary.name
    assert results.primary.threshold is not None

    def shown(detectable: float) -> tuple[str, str]:
        power = replace(judged.figures[name].power, detectable=detectable)
        figures = {**judged.figures, name: replace(judged.figures[name], power=power)}
        rows = {"one": replace(judged, figures=figures), "two": row.judged["two"]}
        methods = {**results.methods, "self_debias": replace(row, judged=rows)}
        console = Console(file=StringIO(), width=200)
        summary = replace(results, methods=methods)
        console.print(comparison_table(summary, {}))
        page = write_report(found.out, summary, lambda ids: "").read_text()
        return console.file.getvalue(), page  # type: ignore[attr-defined]

    (few, many), (some, page) = shown(1.05), shown(0.95)
    assert "4 prompts show a change of 0.95" in some and "<td>0.95</td>" in page
    assert "prompts show a change" not in few and "<td>none</td>" in many
