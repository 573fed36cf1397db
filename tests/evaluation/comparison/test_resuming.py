"""One folder, one run: locks, other judges, damaged journals, and the same end after all of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.judging.linear import LinearJudge

PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9", "w12 w13"]
JOURNALS = ("generations.jsonl", "scores.jsonl")


def judge(texts: Sequence[str]) -> list[float]:
    return [min(1.0, sum(int(w[1:]) for w in t.split() if w[1:].isdigit()) / 600) for t in texts]


@pytest.fixture
def run(tiny: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "model": tiny(),
        "tokenizer": tokenizer,
        "prompts": PROMPTS,
        "methods": ["self_debias"],
        "judges": [judge],
        "samples": 2,
        "max_new_tokens": 4,
        "batch_size": 4,
    }


def contents(out: Path) -> list[list[dict[str, Any]]]:
    """Both journals without what differs from one run to the next."""
    timed = ("seconds", "check")
    return [
        [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines(out, name)]
        for name in JOURNALS
    ]


def lines(out: Path, name: str) -> list[str]:
    return (out / name).read_text().splitlines(keepends=True)


# ----------------------------------------------------------------------------- the lock


def test_a_second_compare_in_the_folder_is_refused_and_the_first_is_not_harmed(
    run: Any, tmp_path: Path
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def slow(texts: Sequence[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) > 1:  # the first call is the check before the work
            began.set()
            assert goes_on.wait(120)
        return judge(texts)

    errors: list[BaseException] = []

    def first() -> None:
        try:
            compare(**run | {"judges": {"judge": slow}}, out=tmp_path / "run")
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert began.wait(120)
        for again in ({"resume": True}, {}, {"samples": 1, "resume": True}):
            with pytest.raises(ValueError, match=r"run is in use: process \d+ on"):
                compare(**run | again, out=tmp_path / "run")
    finally:
        goes_on.set()
        thread.join(120)
    assert errors == []
    compare(**run, out=tmp_path / "alone")
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


# ----------------------------------------------------------------------------- which run it is


def fitted(folder: Path, strength: float) -> Path:
    texts = ["w1 w2", "w3 w4", "w90 w91", "w92 w93"]
    LinearJudge.fit(texts, [0, 0, 1, 1], n_features=64, strength=strength).save(folder)
    return folder


def test_another_judge_of_the_same_name_is_refused(run: Any, tmp_path: Path) -> None:
    settings = run | {"judges": {"mine": str(fitted(tmp_path / "judge", 4.0))}}
    first = compare(**settings, out=tmp_path / "run").summary
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    details = manifest["settings"]["judge_details"]["mine"]
    assert details["class"] == "LinearJudge" and details["threshold"] == 0.5
    assert len(details["sha256"]) == 64
    assert manifest["data"]["judges"] == {"mine": str(tmp_path / "judge")}
    moved = fitted(tmp_path / "elsewhere", 4.0)  # the same judge in another place
    again = compare(
        **settings | {"judges": {"mine": str(moved)}}, out=tmp_path / "run", resume=True
    )
    assert again.summary == first
    fitted(tmp_path / "judge", 0.01)
    with pytest.raises(ValueError, match=r"another run: judge_details\.mine\.sha256 was '"):
        compare(**settings, out=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"judge_details\.mine\.class was 'LinearJudge' and is"):
        compare(**settings | {"judges": {"mine": judge}}, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [*PROMPTS[:-1], "w99"]}, r"prompts\.sha256 was"),
        ({"prompts": PROMPTS[:-1]}, r"prompts\.count was 5 and is now 4"),
        ({"min_new_tokens": 2}, "min_new_tokens was 0 and is now 2"),
        ({"top_p": 0.8}, r"top_p was 0\.9 and is now 0\.8"),
        ({"methods": ["base"]}, r"methods\.self_debias was there and is missing now"),
    ],
)
def test_another_run_is_refused_by_what_differs(
    run: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    compare(**run, out=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    with pytest.raises(ValueError, match=f"holds another run: .*{message}"):
        compare(**run | change, out=tmp_path, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"} == before


# ----------------------------------------------------------------------------- journals


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("harm", ["reversed", "repeated", "gap", "half", "gone", "torn"])
def test_a_journal_that_lost_its_order_or_lines_ends_the_same(
    run: Any, tmp_path: Path, name: str, harm: str
) -> None:
    summary = compare(**run, out=tmp_path).summary
    whole, path = contents(tmp_path), tmp_path / name
    old = lines(tmp_path, name)
    harmed = {
        "reversed": old[::-1],
        "repeated": old + old[2:5],
        "gap": old[:5] + old[6:],
        "half": old[: len(old) // 2 + 1],
        "gone": [],
        "torn": [*old[:-1], old[-1][:-9]],
    }
    path.write_text("".join(harmed[harm]))
    if harm == "gone":
        path.unlink()
    again = compare(**run, out=tmp_path, resume=True).summary
    assert contents(tmp_path) == whole
    for method, row in summary["methods"].items():
        for figure in ("toxicity_probability", "perplexity", "length", "empty"):
            assert again["methods"][method][figure] == row[figure]


@pytest.mark.parametrize("name", JOURNALS)
def test_a_changed_line_and_one_of_another_run_are_named(
    run: Any, tmp_path: Path, name: str
) -> None:
    compare(**run, out=tmp_path / "run")
    compare(**run | {"seed": 1}, out=tmp_path / "other")
    path, old = tmp_path / "run" / name, lines(tmp_path / "run", name)
    values = json.loads(old[3])
    values["sample"] = 1 - values["sample"]  # crossed figures
    swapped = json.dumps(values, ensure_ascii=False, sort_keys=True) + "\n"
    for line in (swapped, lines(tmp_path / "other", name)[3], "{}\n", "null\n", "\n"):
        path.write_text("".join([*old[:3], line, *old[4:]]))
        with pytest.raises(ValueError, match=rf"{name}, line 4: .*; remove the line and run"):
            compare(**run, out=tmp_path / "run", resume=True)
    path.write_text("".join(old[:3] + old[4:]))  # the cure
    compare(**run, out=tmp_path / "run", resume=True)


def test_scores_of_other_answers_are_made_again(run: Any, tmp_path: Path) -> None:
    whole = compare(**run, out=tmp_path).summary
    from plugalign.evaluation.run_folder.journal import Journal
    from plugalign.evaluation.run_folder.records import Scored

    rows = [json.loads(line) for line in lines(tmp_path, "scores.jsonl")]
    name = json.loads((tmp_path / "manifest.json").read_text())["run"]
    (tmp_path / "scores.jsonl").unlink()
    keys = [(r["method"], r["prompt"], r["sample"]) for r in rows]
    forged = Journal(tmp_path / "scores.jsonl", Scored, [keys], name)
    for row in rows:
        del row["check"]
    forged.append([Scored(**row | {"answer": "0" * 16, "nll": 99.0}) for row in rows])
    again = compare(**run, out=tmp_path, resume=True).summary
    assert again["methods"]["base"]["perplexity"] == whole["methods"]["base"]["perplexity"]
