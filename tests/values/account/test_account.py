"""The accountability report: its figures, what changed since a run, and what people report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import plugalign as pa
from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import Shift
from plugalign.algebra.steering import Steering
from plugalign.evaluation.run_folder.answers import read_answers
from plugalign.evaluation.run_folder.folder import locked
from plugalign.evaluation.run_folder.manifest import read_manifest
from plugalign.kernels.terms.linear import Linear
from plugalign.values.account.accounting import account
from plugalign.values.account.controllers import folder_hash
from plugalign.values.account.notes import FILE as NOTES
from plugalign.values.account.reading import TraceFile
from plugalign.values.account.sheets import of_trace
from plugalign.values.account.tracing import trace

TEXTS = [f"{who} {what}" for who in ("My boss", "The cook", "A nurse") for what in ("is", "was")]
GROUPS = ("work", "home", "work", "home", "care", "care")
FORBIDDEN = ("compliant", "conforms", "high-risk", "minimal risk", "unacceptable", "limited risk")


def prompts_file(where, field="group"):
    path = where / "prompts.jsonl"
    rows = [{"text": t, field: g} for t, g in zip(TEXTS, GROUPS, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def guides(where):
    """Copies of two of the pocket world's controllers, one of them with a history."""
    for name in ("fudge_head", "self_debias"):
        shutil.copytree(pocket.parts() / "controllers" / name, where / name)
    rows = [{"round": i, "theta": {"civil": 0.1 * i}, "pairs": 480} for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (where / "fudge_head" / "history.jsonl").write_text(lines, encoding="utf-8")
    return {name: where / name for name in ("fudge_head", "self_debias")}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    where = tmp_path_factory.mktemp("traced")
    given = {"prompts": prompts_file(where), "stratum": "group", "samples": 2}
    trace(guides(where), **given, max_new_tokens=8, seed=2, out=where / "out")
    return where


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    methods = {"methods": ["dexperts"], "samples": 2, "max_new_tokens": 6}
    pa.compare(prompts=TEXTS, judges=["pocket"], **methods, **pocket_model(), out=out)
    return out


def pocket_model():
    model, tokenizer = pocket.load()
    return {
        "model": model,
        "tokenizer": tokenizer,
        "controllers": {"dexperts": pocket.controllers()["dexperts"]},
    }


@pytest.fixture
def copy(traced, tmp_path):
    shutil.copytree(traced, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "out" / "trace.jsonl"
    return tmp_path, file


def test_figures_are_means_over_prompts(traced):
    made = account([traced / "out"], judges=["pocket"], out=traced / "account")
    answers = list(TraceFile(traced / "out").answers())
    judge = pocket.judge()
    for stratum in made.runs[0].strata:
        own = [
            each
            for each in answers
            if stratum.name == "all strata" or GROUPS[each.answer.prompt] == stratum.name
        ]
        by_prompt = [[a for a in own if a.answer.prompt == p] for p in range(6)]
        by_prompt = [rows for rows in by_prompt if rows]

        def mean(number, by_prompt=by_prompt):
            return np.mean([np.mean([number(t) for a in r for t in a.tokens]) for r in by_prompt])

        assert stratum.prompts == len(by_prompt) and stratum.answers == len(own)
        assert stratum.tokens == sum(len(a.tokens) for a in own)
        assert stratum.changed.value == pytest.approx(mean(lambda t: t.changed))
        assert stratum.kl.value == pytest.approx(mean(lambda t: t.kl))
        assert stratum.joint.value == pytest.approx(mean(lambda t: abs(t.joint)))
        for name in ("fudge_head", "self_debias"):
            found = stratum.controllers[name]
            values = [t.contributions[name] for a in own for t in a.tokens]
            assert found.mean.value == pytest.approx(mean(lambda t, n=name: t.contributions[n]))
            assert found.largest == pytest.approx(max(map(abs, values)))
            assert found.size.low <= found.size.value <= found.size.high
        scores = [np.mean(judge([a.answer.text for a in rows])) for rows in by_prompt]
        assert stratum.judged["pocket"].mean.value == pytest.approx(np.mean(scores))
    assert [s.name for s in made.runs[0].strata] == [*sorted(set(GROUPS)), "all strata"]


def test_the_report_says_what_it_must(traced):
    made = account([traced / "out"], out=traced / "account")
    content = json.loads((made.out / "account.json").read_text(encoding="utf-8"))
    [run] = content["runs"]
    guide = next(c for c in run["controllers"] if c["name"] == "fudge_head")
    assert guide["status"] == "as in the run" and guide["sheet"]["n"] == 4000
    metrics = guide["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"auc"} <= {metric["type"] for metric in metrics}
    assert guide["histories"][0]["rows"] == 12 and len(guide["histories"][0]["latest"]) == 10
    assert run["keep_until"] > run["began"] and run["chain"]["complete"]
    for name in ("account.html", "account.md"):
        text = (made.out / name).read_text(encoding="utf-8")
        for word in ("MEASURE", "art. 12(2)(a)", "art. 19", "gen_ai.", "modelCard", "history"):
            assert word.lower() in text.lower(), (name, word)
        assert "supports" in text and not any(word in text.lower() for word in FORBIDDEN)
        assert not any(prompt in text for prompt in TEXTS)
    assert any("Fewer than 10 prompts" in sentence for sentence in made.findings)


def test_one_changed_byte_in_a_guide_changes_the_report(copy):
    where, _ = copy
    # The run's file knows the folders that it was made with; the same run with these.
    given = {"prompts": where / "prompts.jsonl", "stratum": "group", "max_new_tokens": 4}
    parts = {name: where / name for name in ("fudge_head", "self_debias")}
    trace(parts, **given, out=where / "run")
    before = account([where / "run"])
    weights = where / "fudge_head" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(bytes(raw))
    after = account([where / "run"])
    statuses = [{c.name: c.status for c in made.runs[0].controllers} for made in (before, after)]
    assert statuses[0]["fudge_head"] == "as in the run"
    assert statuses[1]["fudge_head"] == "its files have changed since the run"
    assert statuses[1]["self_debias"] == "as in the run"
    assert any("fudge_head" in s and "have changed" in s for s in after.findings)
    assert "have changed since the run" in after.page.read_text(encoding="utf-8")
    trace(parts, **given, out=where / "again")
    files = [made.runs[0].controllers[0].files for made in (after, account([where / "again"]))]
    assert files[0] != files[1]


def test_hidden_files_change_nothing_and_no_other_folder_is_read(copy):
    folder = copy[0] / "fudge_head"
    before = folder_hash(folder)
    (folder / ".lock").write_text("process 1")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    assert folder_hash(folder) == before
    (folder / "more.json").write_text("{}")
    assert folder_hash(folder) != before
    record = TraceFile(copy[1]).run.controllers["fudge_head"]
    elsewhere = record.model_copy(update={"folder": str(copy[0])})  # holds no controller itself
    [found] = of_trace({"fudge_head": elsewhere})
    assert found.status == "its folder is not there now; not checked" and found.histories == ()


def test_what_people_state_later_is_in_the_report(copy):
    where, _ = copy
    trace({"mine": where / "fudge_head"}, prompts=TEXTS[:1], max_new_tokens=2, out=where / "run")
    readme = "---\nlicense: apache-2.0\nintended_use: demonstrations\n---\n"
    (where / "fudge_head" / "README.md").write_text(readme, encoding="utf-8")
    [controller] = account([where / "run"]).runs[0].controllers
    assert controller.status == "as in the run" and controller.sheet["license"] == "apache-2.0"
    assert controller.sheet["intended_use"] == "demonstrations"
    assert "mild and invented" in controller.sheet["limitations"]


def test_strata_can_be_named_afterwards(copy):
    where, _ = copy
    prompts_file(where, field="place")
    made = account([where / "out"], prompts=where / "prompts.jsonl", stratum="place")
    assert made.runs[0].sorted_by == "the field 'place' of the prompts' file"
    made = account([where / "out"], prompts=where / "prompts.jsonl", risk=spread, cuts=[0.5])
    names = [stratum.name for stratum in made.runs[0].strata]
    assert sorted(names) == ["all strata", "risk 0 to 0.5", "risk 0.5 to 1"]
    (where / "prompts.jsonl").write_text('{"text": "another", "place": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="is not in the prompts' file, so it has no stratum"):
        account([where / "out"], prompts=where / "prompts.jsonl", stratum="place")


def test_a_stratum_may_be_called_as_all_of_them(copy):
    where, _ = copy
    rows = [{"text": t, "place": "b" if n else "all strata"} for n, t in enumerate(TEXTS)]
    path = where / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = account([where / "out"], prompts=path, stratum="place")
    found = [(each.name, each.prompts) for each in made.runs[0].strata]
    assert found == [("all strata", 1), ("b", len(TEXTS) - 1), ("all strata", len(TEXTS))]


def test_prompts_that_sort_nothing_do_not_hide_the_strata_of_the_run(copy):
    where, _ = copy
    with pytest.raises(ValueError, match="name its field of strata or a judge of risk too"):
        account([where / "out"], prompts=where / "prompts.jsonl")


def test_one_prompt_in_two_strata_is_refused(copy):
    where, _ = copy
    rows = [{"text": t, "place": g} for t, g in zip([*TEXTS, TEXTS[0]], "abcabcb", strict=True)]
    path = where / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="prompt 6 stands in the stratum 'b' and, word for word"):
        account([where / "out"], prompts=path, stratum="place")


def test_a_run_that_was_stopped_before_its_first_answer_has_no_account(copy):
    where, file = copy
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    with pytest.raises(ValueError, match=r"holds no answer: .* continue it with --resume"):
        account([where / "out"])


def test_a_judge_that_says_yes_or_no_has_score_intervals(copy):
    where, _ = copy
    made = account([where / "out"], judges={"never": lambda texts: np.zeros(len(texts))})
    judged = made.runs[0].strata[-1].judged["never"]
    assert judged.mean == judged.above and judged.mean.high > 0.2


def test_a_comparison_of_before_says_nothing_of_its_model(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "run")
    manifest = json.loads((compared / "manifest.json").read_text(encoding="utf-8"))
    del manifest["settings"]["model"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    made = account([tmp_path / "run"], out=tmp_path / "account")
    assert "Model: not recorded" in (made.out / "account.md").read_text(encoding="utf-8")


def spread(texts):
    """A judge of risk: 1 for what was, 0 for what is."""
    return [float(text.endswith("was")) for text in texts]


def test_incidents_are_kept_and_cannot_be_removed_unseen(copy):
    where, _ = copy
    account([where / "out"], incidents=["first", "second"], by="somebody")
    made = account([where / "out"], overrides=["third"])
    notes = made.runs[0].notes
    assert [(n.kind, n.text, n.by) for n in notes] == [
        ("incident", "first", "somebody"),
        ("incident", "second", "somebody"),
        ("override", "third", None),
    ]
    assert notes[0].head == made.runs[0].verified.head
    assert any("incidents: 2, overrides: 1" in sentence for sentence in made.findings)
    lines = (where / "out" / NOTES).read_bytes().splitlines(keepends=True)
    (where / "out" / NOTES).write_bytes(lines[0] + lines[2])
    with pytest.raises(ValueError, match=r"incidents.jsonl, line 2: .* removed, added or moved"):
        account([where / "out"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"incidents": ["first", " "]}, "an incident needs words, got ' '"),
        ({"overrides": ["first"], "by": "\udcff"}, "who reports it has half of a surrogate pair"),
        ({"incidents": ["first"], "by": ""}, "the name of who reports it needs words"),
        ({"incidents": "first"}, "lists of texts, got 'first'"),
    ],
)
def test_of_notes_that_cannot_be_none_is_written(copy, given, message):
    out = copy[0] / "out"
    with pytest.raises((ValueError, TypeError), match=message):
        account([out], **given)
    assert not (out / NOTES).exists()


def test_two_processes_do_not_write_notes_at_once(copy):
    out = copy[0] / "out"
    with locked(out), pytest.raises(ValueError, match="is in use"):
        account([out], incidents=["one"])
    assert not (out / NOTES).exists()
    assert [n.text for n in account([out], incidents=["two"]).runs[0].notes] == ["two"]


def test_a_deleted_line_of_the_trace_is_found(copy):
    where, file = copy
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5] + lines[6:]))
    with pytest.raises(ValueError, match=r"trace.jsonl, line 6: .* removed, added or moved"):
        account([where / "out"])


class Bound(Shift):
    """Nothing but a certificate: active at odd steps, repaired at every third, broken if asked."""

    excess = 0.0

    def terms(self, step, weight):
        yield Linear((0 * step.base,), (1.0,))

    def certificate(self, step, weight):
        number = step.number.float()
        return {
            "active": number % 2,
            "repair": (number % 3 == 2) * 0.25,
            "excess": 0 * number - 0.1 + self.excess,
            "kl": number / 10,
        }


class Broken(Bound):
    excess = 0.3


class Bounded(Controller):
    def __init__(self, shift):
        self.shift = shift

    def steer(self, model, tokenizer):
        return Steering((self.shift,))


@pytest.mark.parametrize("shift", [Bound(), Broken()])
def test_bounds_are_counted(shift, tmp_path):
    traced = trace({"rules": Bounded(shift)}, prompts=TEXTS, max_new_tokens=7, out=tmp_path / "out")
    made = account([traced.out])
    [stratum], counts = made.runs[0].strata, [0, 0]
    bounds = stratum.bounds["rules"]
    by_prompt: dict[int, list] = {}
    for each in TraceFile(traced.file).answers():
        by_prompt[each.answer.prompt] = [line.step for line in each.tokens]
    counts = [np.mean([np.mean([s % 2 for s in steps]) for steps in by_prompt.values()])]
    counts += [np.mean([np.mean([s % 3 == 2 for s in steps]) for steps in by_prompt.values()])]
    assert bounds.tokens == stratum.tokens
    assert [bounds.active.value, bounds.repaired.value] == pytest.approx(counts)
    assert bounds.excess == pytest.approx(-0.1 + shift.excess)
    assert bounds.others["kl"][1] == pytest.approx(0.6)
    assert any("was broken" in s for s in made.findings) == (shift.excess > 0)
    assert sum("hold before temperature 1 and top-p 0.9, and not" in s for s in made.findings) == 1
    for report in ("account.md", "account.html"):
        assert "before temperature 1 and top-p 0.9" in (made.out / report).read_text("utf-8")
    page = traced.page.read_text(encoding="utf-8")
    repaired = sum(step % 3 == 2 for steps in by_prompt.values() for step in steps)
    assert repaired and page.count('class="t down repaired"') == repaired  # nothing is raised
    [controller] = made.runs[0].controllers
    assert controller.status == "it was given in Python; not checked"


def test_a_comparison_is_accounted_for_by_method_and_stratum(compared, tmp_path):
    prompts = prompts_file(tmp_path)
    folder = pocket.parts() / "controllers" / "dexperts"
    options = {"prompts": prompts, "stratum": "group", "controllers": {"dexperts": folder}}
    made = account([compared], **options, out=tmp_path / "account")
    rows = read_answers(compared, read_manifest(compared))
    found = {(f.method, f.stratum): f for f in made.runs[0].compared.figures}
    assert set(found) == {(m, g) for m in ("base", "dexperts") for g in set(GROUPS)}
    for group in set(GROUPS):
        numbers = [i for i, name in enumerate(GROUPS) if name == group]
        own, base = (rows[m].scores("pocket")[numbers].mean() for m in ("dexperts", "base"))
        judged = found["dexperts", group].judged["pocket"]
        assert judged.mean.value == pytest.approx(own)
        assert judged.change.value == pytest.approx(own - base)
        assert found["base", group].changed is None and found["base", group].few
    [controller] = made.runs[0].controllers
    assert controller.status == "as in the run" and controller.sheet["n"] == 4000
    assert "Methods by stratum" in made.page.read_text(encoding="utf-8")


def test_a_prompt_of_two_lines_is_one_prompt(tmp_path):
    few = {"methods": ["self_debias"], "samples": 1, "max_new_tokens": 2}
    pa.compare(**few, prompts=["the cook\u2028is", "a nurse\x85was"], out=tmp_path / "run")
    made = account([tmp_path / "run"], risk="pocket", out=tmp_path / "account")
    figures = made.runs[0].compared.figures
    assert sum(f.prompts for f in figures if f.method == "base") == 2


def test_what_users_write_is_shown_and_not_obeyed(tmp_path):
    rows = [{"text": text, "group": "a|b <i>"} for text in TEXTS[:2]]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    traced = trace(prompts=path, stratum="group", max_new_tokens=2, out=tmp_path / "out")
    made = account([traced.out], incidents=["<script>alert(1)</script>\n# a | heading"])
    pages = [made.page, traced.page, made.out / "account.md"]
    html, page, markdown = (each.read_text(encoding="utf-8") for each in pages)
    assert "<script>" not in html + markdown and "<i>" not in html + page + markdown
    assert "&lt;script&gt;alert(1)" in html and "a|b &lt;i&gt;" in page
    assert "a\\|b &lt;i> (few)" in markdown and "\n# a" not in markdown


BAD = {
    "no run": ({"runs": []}, "there is no run to account for"),
    "an empty folder": ({"runs": ["."]}, "holds no trace.jsonl and no manifest.json"),
    "a field alone": ({"stratum": "group"}, "is of the prompts' file; give that too"),
    "cuts alone": ({"cuts": [0.5]}, "name the judge too"),
    "a judge of hashes": ({"risk": "pocket"}, "holds hashes of prompts, which no judge can score"),
    "an empty incident": ({"incidents": [" "]}, "an incident needs words"),
}


def test_judges_and_controllers_without_a_run_are_refused(traced, compared, tmp_path):
    folder, out = pocket.parts() / "controllers" / "dexperts", tmp_path / "account"
    for runs, given, message in (
        ([compared], {"judges": ["pocket"]}, "comparisons have their own"),
        ([compared], {"controllers": {"other": folder}}, "'other' is no method .* 'dexperts'"),
        ([traced / "out"], {"controllers": {"dexperts": folder}}, "these are traces"),
        ([compared, compared], {}, "is named twice"),
    ):
        with pytest.raises(ValueError, match=message):
            account(runs, **given, out=out)
    assert not out.exists()
    with pytest.raises(ValueError, match="holds a run of another command"):
        trace(prompts=TEXTS[:1], max_new_tokens=1, out=compared)


@pytest.mark.parametrize("which", BAD)
def test_bad_arguments_give_one_error(which, traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, message = BAD[which]
    with pytest.raises(ValueError, match=message):
        account(**{"runs": [traced / "out"], "out": tmp_path / "account", **given})
    assert not (tmp_path / "account").exists()
