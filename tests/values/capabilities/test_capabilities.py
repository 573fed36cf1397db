"""The four capabilities of one respondent who judges, finds and mends, and of one who does not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_models import make_chat_model, make_chat_tokenizer

from plugalign import cli, pocket
from plugalign.algebra.controller import Composition
from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.statistics.intervals import tango, wilson
from plugalign.generation.chat import encode
from plugalign.generation.chat_format import choose_chat
from plugalign.generation.wrap import wrap
from plugalign.values.capabilities.data import CapabilityData, Judgement, Task, load_data
from plugalign.values.capabilities.figures import figures_of, gathered
from plugalign.values.capabilities.measurement import measure_capabilities
from plugalign.values.capabilities.report import write_report
from plugalign.values.capabilities.table import capability_tables
from plugalign.values.capabilities.tasks import NATS, Asked, Stages
from plugalign.values.questionnaire.respondent import ModelRespondent

N = 24
RUDE = "you fool"
DATA = CapabilityData(
    judgements=tuple(
        Judgement(f"{'good' if n % 2 else 'bad'} deed {n}", bool(n % 2)) for n in range(N)
    ),
    prompts=tuple(f"Say {n}." for n in range(N)),
    texts=("one", "two", "three"),
    tasks=tuple(Task(f"Which is {n}?", (str(n), "much too long a wrong one"), 0) for n in range(N)),
)
ASKED = Asked("rude", tokens=10, seed=0, context=64)


class Able:
    """Judges, finds and mends without a fault; two of three of its own texts are rude."""

    told = "Fine {n}."
    nats_each = 2.0

    def log_probs(self, prompt: str, answers: Any) -> list[float]:
        if answers[0] != "Yes":
            return [-0.01, -90.0]
        yes = "good" in prompt if "deed" in prompt else RUDE in prompt
        return [-0.1, -2.0] if yes else [-2.0, -0.1]

    def write(self, prompts: Any, tokens: int, sampler: Any = None) -> list[str]:
        assert tokens == 10
        found = []
        for prompt in prompts:
            n = int("".join(c for c in prompt if c.isdigit()))
            own = f"Text {n}" if n % 3 == 0 else f"{RUDE} {n}"
            found.append("Fine." if "is rude" in prompt else own)
        return found

    def nats(self, text: str, context: int) -> tuple[float, int]:
        return self.nats_each * len(text), len(text)


class Unable(Able):
    """Knows nothing, mends nothing, and says what is in texts less well."""

    nats_each = 3.0

    def log_probs(self, prompt: str, answers: Any) -> list[float]:
        return [-1.0, -1.0]

    def write(self, prompts: Any, tokens: int, sampler: Any = None) -> list[str]:
        return super().write([p.replace("is rude", "") for p in prompts], tokens, sampler)


def judge() -> Judge:
    return Judge("words", lambda texts: [float(RUDE in text) for text in texts])


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    stages = Stages(DATA, ASKED, {"able": Able(), "unable": Unable()}, tmp_path, "run")  # type: ignore[dict-item]
    stages.work()
    found = {name: list(gathered(stages, name, DATA, judge())) for name in ("able", "unable")}
    able, unable = found["able"], found["unable"]
    return {
        "able": figures_of(able, None),
        "unable": figures_of(unable, able),
        "same": figures_of(able, able),
    }


def by_name(figures: Any) -> Any:
    return {figure.name: figure for figure in figures}


def test_what_is_known_is_found(rows: Any) -> None:
    able, unable = by_name(rows["able"]), by_name(rows["unable"])
    assert able["AUC of moral judgements"].value.value == 1.0
    assert able["AUC of faults in own texts"].value.value == 1.0
    assert able["fault of own texts"].value.value == pytest.approx(2 / 3)
    assert able["fault taken away, once told"].value.value == pytest.approx(2 / 3)
    assert able["fault taken away, unasked"].value.value == 0.0
    assert able["what being told adds"].value.value == pytest.approx(2 / 3)
    assert able["nats a token"].value.value == 2.0 and able["tasks solved"].value.value == 1.0
    assert unable["AUC of moral judgements"].value.value == 0.5
    assert unable["AUC of moral judgements"].change.value == -0.5
    assert unable["what being told adds"].change.value == pytest.approx(-2 / 3)
    assert unable["what being told adds"].p_adjusted < 0.01
    assert unable["nats a token"].change.value == 1.0


def test_texts_without_a_score_are_not_counted(tmp_path: Path) -> None:
    stages = Stages(DATA, ASKED, {"able": Able()}, tmp_path, "run")  # type: ignore[dict-item]
    stages.work()

    def picky(texts: Any) -> list[float]:
        return [np.nan if "Text 0" in text else float(RUDE in text) for text in texts]

    found = by_name(figures_of(list(gathered(stages, "able", DATA, Judge("picky", picky))), None))
    assert found["AUC of faults in own texts"].texts == N - 1
    assert found["fault of own texts"].texts == N - 1
    assert found["what being told adds"].texts == N - 1


class Silent(Able):
    """Says nothing where it is told of a fault in text 1, or in any other by ``every``."""

    def __init__(self, every: bool):
        self.every = every

    def write(self, prompts: Any, tokens: int, sampler: Any = None) -> list[str]:
        texts = super().write(prompts, tokens, sampler)
        silent = ["is rude" in p and (self.every or f"{RUDE} 1\n" in p) for p in prompts]
        return ["" if quiet else text for quiet, text in zip(silent, texts, strict=True)]


def test_to_say_nothing_is_not_to_mend(tmp_path: Path) -> None:
    rows = {"once": Silent(every=False), "never": Silent(every=True)}
    stages = Stages(DATA, ASKED, rows, tmp_path, "run")  # type: ignore[arg-type]
    stages.work()
    once, never = (
        by_name(figures_of(list(gathered(stages, name, DATA, judge())), None)) for name in rows
    )
    mended = once["fault taken away, once told"]
    assert mended.texts == N - 1 and mended.value == tango(N * 2 // 3 - 1, 0, N - 1)
    assert once["fault taken away, unasked"].texts == N
    assert never["fault taken away, once told"].value is None
    assert never["what being told adds"].texts == 0


def test_what_is_counted_has_score_intervals(rows: Any) -> None:
    """A bootstrap of 24 of 24, or of a change that no text has, is a point."""
    able, unable = by_name(rows["able"]), by_name(rows["unable"])
    assert able["tasks solved"].value == wilson(1.0, N)
    assert able["fault of own texts"].value == wilson(2 / 3, N)
    assert able["fault taken away, once told"].value == tango(N * 2 // 3, 0, N)
    assert able["fault taken away, unasked"].value == tango(0, 0, N)
    assert unable["tasks solved"].value == wilson(0.0, N)
    assert unable["tasks solved"].change == tango(0, N, N)
    assert unable["what being told adds"].change == tango(0, N * 2 // 3, N)
    nats = unable["nats a token"]
    assert nats.change.low == nats.change.high == 1.0  # is no count


def test_one_table_a_controller_in_80_columns(rows: Any) -> None:
    console = Console(width=80, record=True)
    both = {name: rows[name] for name in ("able", "unable")}
    console.print(capability_tables(both, {"able": None, "unable": "able"}))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("AUC of moral judgements" in line for line in lines) == 1
    assert any("0.50*" in line and "1.00" in line for line in lines)


def test_the_page_has_a_table_for_each_controller_and_loads_nothing(
    rows: Any, tmp_path: Path
) -> None:
    name = "<i>able</i>"
    found = {name: rows["able"], "worse": rows["unable"], "same": rows["same"]}
    asked = {"fault": "rude", "tokens": 10, "seed": 0, "context": 64}
    settings = {"asked": asked, "judge": "words", "system": None}
    write_report(
        tmp_path / "page.html",
        found,
        {name: None, "worse": name, "same": name},
        {"settings": settings},
    )
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<i>" not in html and not re.search(r"src=|http|<script|@import", html)
    assert re.findall("<h2>(.*)</h2>", html) == ["worse", "same", "How it was measured"]
    _, worse, same = html.split("<table>")
    assert worse.count("AUC of moral judgements") == 1 and "<b>0.50*</b>" in worse
    assert '<td class="worse"><b>-0.50</b><small>-0.' in worse
    assert "Worse: AUC of moral judgements; AUC of faults in own texts; fault taken away" in html
    assert 'class="worse"' not in same and "No change is distinguishable from chance." in html


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Dies(Able):
        def nats(self, text: str, context: int) -> tuple[float, int]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(DATA, ASKED, {"a": Dies()}, tmp_path, "run").work()  # type: ignore[dict-item]

    class Forgets(Able):
        def write(self, prompts: Any, tokens: int, sampler: Any = None) -> list[str]:
            raise AssertionError("what is known is asked again")

    stages = Stages(DATA, ASKED, {"a": Forgets()}, tmp_path, "run")  # type: ignore[dict-item]
    stages.work()
    np.testing.assert_array_equal(stages.numbers("a", NATS), [6.0, 6.0, 10.0])


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("field", "rows", "message"),
    [
        ("judgements", [{"text": "x", "label": 2}], "line 1: 'label' must be 1 .right. or 0"),
        ("judgements", [{"text": "x", "label": 1}], "1 of 1 judged texts are right; give 2"),
        ("judgements", [{"label": 1}], "line 1: no field 'text' or 'scenario'"),
        ("tasks", [{"question": "x", "choices": ["a"], "answer": 0}], "must be two texts or more"),
        ("tasks", [{"question": "x", "choices": ["a", "b"], "answer": 2}], "from 0 to 1, got '2'"),
    ],
)
def test_bad_data_names_file_line_and_cure(
    tmp_path: Path, field: str, rows: Any, message: str
) -> None:
    given = dict.fromkeys(("judgements", "prompts", "texts", "tasks"))
    given[field] = lines(tmp_path / "data.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        load_data(**given, limit=None)


def test_judgements_of_one_kind_are_refused_before_any_model_is_asked() -> None:
    with pytest.raises(ValueError, match="3 of 3 judged texts are right; give 2 or more of either"):
        CapabilityData(judgements=tuple(Judgement(f"w{n}", True) for n in range(3)))


def test_scenarios_and_excuses_are_read(tmp_path: Path) -> None:
    rows = [{"label": str(n % 2), "scenario": "Do it.", "excuse": f"But {n}."} for n in range(4)]
    found = load_data(lines(tmp_path / "d.jsonl", *rows), None, None, None, None)
    assert found.judgements[1] == Judgement("Do it. But 1.", True)


MESSAGES = [
    {"role": "system", "content": "the dog"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "on the mat"},
]


def test_a_conversation_is_read_whole(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"messages": MESSAGES}, {"text": "the mat"})
    data = load_data(None, path, None, None, None)
    tokenizer = make_chat_tokenizer()
    model = make_chat_model()
    asked = ModelRespondent(wrap(model, tokenizer, Composition()), choose_chat(model, tokenizer))
    chat = {"tokenize": False, "add_generation_prompt": True}
    for prompt, turns in zip(
        data.prompts, (MESSAGES, [{"role": "user", "content": "the mat"}]), strict=True
    ):
        assert asked.ids(prompt) == encode(tokenizer, tokenizer.apply_chat_template(turns, **chat))
    plain = {
        "judge": judge(),
        "out": tmp_path / "out",
        "max_new_tokens": 2,
        "models": [str(pocket.parts() / "pocket")],
    }
    with pytest.raises(ValueError, match="'pocket' has no chat template, which a prompt of mess"):
        measure_capabilities(data=data, **plain)
    with pytest.raises(ValueError, match="the perplexity is of texts; give 'text', not"):
        load_data(None, None, path, None, None)
    with pytest.raises(ValueError, match="the prompt has a system message of its own"):
        choose_chat(model, tokenizer, system="be kind").format.ids(data.prompts[0])


def test_a_run_does_not_go_on_in_another_chat_template(tmp_path: Path) -> None:
    model, tokenizer, other = make_chat_model(), make_chat_tokenizer(), make_chat_tokenizer()
    other.chat_template = "{{ 'w1 w2 ' }}" + other.chat_template
    data = CapabilityData(judgements=tuple(Judgement(f"w{n}", bool(n % 2)) for n in range(4)))
    given = {"data": data, "chat": "on", "out": tmp_path / "out", "resume": True}
    measure_capabilities([(model, tokenizer)], **given)
    with pytest.raises(ValueError, match="template") as caught:
        measure_capabilities([(model, other)], **given)
    assert "\n" not in str(caught.value)
    measure_capabilities([(model, tokenizer)], **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to measure on; give judgements, prompts, texts or tasks"),
        (["--prompts", "P"], "diagnosis and rectification take both prompts and a judge"),
        (["--texts", "P", "--judge", "pocket"], "take both prompts and a judge; give both"),
        (["--texts", "P", "--fault", " "], "--fault is empty"),
        (["--prompts", "P", "--judge", "pocket", "--max-new-tokens", "100"], "the context of"),
    ],
)
def test_the_commands_errors_come_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    options: list[str],
    message: str,
) -> None:
    prompts = lines(tmp_path / "p.jsonl", {"text": "The nurse"})
    given = [prompts if option == "P" else option for option in options]
    model, out = str(pocket.parts() / "pocket"), tmp_path / "out"
    arguments = ["plugalign", "capabilities", model, *given, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and len(said) == 1 and message in said[0]
    assert not out.exists()


def test_the_command_on_the_pocket_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    parts = pocket.parts()
    prompts = lines(tmp_path / "p.jsonl", {"text": "The nurse"}, {"text": "The cook was"})
    given = ["--prompts", prompts, "--texts", prompts, "--judge", "pocket"]
    given += ["--controllers", f"nulls={parts / 'controllers' / 'nullspace'}"]
    given += ["--max-new-tokens", "6", "--out", str(tmp_path / "out"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["plugalign", "capabilities", str(parts / "pocket"), *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out.replace("\n", "")  # paths may be longer than a line
    assert not ended.value.code and "pocket + nulls" in said and "report.html" in said
    assert "<h2>pocket + nulls</h2>" in (tmp_path / "out" / "report.html").read_text()
    found = json.loads((tmp_path / "out" / "capabilities.json").read_text())
    names = {figure["name"]: figure for figure in found["pocket + nulls"]}
    assert names["nats a token"]["change"]["value"] != 0
    assert "faulty" in names["AUC of faults in own texts"]["note"]
