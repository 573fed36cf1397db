"""The command line: options and specs arrive, errors are one line on stderr with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from plugalign import cli
from plugalign.algebra.class_names import CONTROLLERS, class_of
from plugalign.algebra.controller import Controller
from plugalign.catalogue import ALONE, METHODS
from plugalign.commands.compare import default_out
from plugalign.controllers.self_debias import SelfDebias
from plugalign.evaluation.comparison.spec import read_spec


@pytest.fixture
def model(tiny: Any, tokenizer: Any, tmp_path: Path) -> str:
    """A saved tiny model."""
    folder = tmp_path / "tiny-model"
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    (tmp_path / "p.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')
    return str(tmp_path / "p.jsonl")


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_judge.py").write_text("def half(texts):\n    return [0.5] * len(texts)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_judge:half"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``plugalign ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_compare_end_to_end(
    model: str,
    prompts_file: str,
    judge: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    SelfDebias(["w5 w6"], decay=10.0).save_pretrained(tmp_path / "debias")
    out = tmp_path / "out"
    arguments = [
        "compare",
        "--model",
        model,
        "--prompts",
        prompts_file,
        "--judge",
        f"mine={judge}",
        "--controllers",
        f"debias={tmp_path / 'debias'}",
        "--methods",
        "base,debias",
        "--samples",
        "2",
        "--max-new-tokens",
        "3",
        "--seed",
        "5",
        "--out",
        str(out),
    ]
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    assert "debias" in shown.out and "judged by mine" in shown.out
    assert "report.html" in shown.out.replace("\n", "")
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["seed"] == 5 and settings["samples"] == 2
    assert settings["methods"]["debias"]["config"]["decay"] == 10.0
    assert run(monkeypatch, *arguments) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "--resume") == 0
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--resume", "--seed", "6") == 2
    assert "another run: seed was 5 and is now 6" in capsys.readouterr().err


def test_a_spec_does_the_same_and_options_win(
    model: str,
    prompts_file: str,
    judge: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = tmp_path / "run.yaml"
    spec.write_text(
        f"model: {model}\nprompts: {prompts_file}\njudges: [{judge}]\nmethods: [self_debias]\n"
        f"samples: 1\nmax_new_tokens: 2\nseed: 1\nout: {tmp_path / 'out'}\n"
    )
    assert run(monkeypatch, "compare", "--spec", str(spec), "--samples", "2") == 2
    assert "is code, which a spec may name only with --trust" in capsys.readouterr().err
    assert run(monkeypatch, "compare", "--spec", str(spec), "--samples", "2", "--trust") == 0
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["samples"], settings["seed"], settings["max_new_tokens"]) == (2, 1, 2)
    assert list(settings["methods"]) == ["base", "self_debias"]


ERRORS = [
    (["--methods", "shout"], "unknown method 'shout'; known are base, self_critique, self_debias"),
    (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
    (["--samples", "-2"], "samples: input should be greater than or equal to 1, got -2"),
    (["--controllers", "self_debias"], "needs no folder; pass --methods self_debias"),
    (["--controllers", "oops"], "--controllers takes NAME=FOLDER, got 'oops'"),
    (["--controllers", "x=/nowhere/x"], "/nowhere/x"),
    (["--judge", "nobody:knows"], "nobody:knows"),
    (["--model", "/nowhere/model"], "cannot load the model '/nowhere/model'"),
    (["--spec", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[a[0] + a[1] for a, _ in ERRORS])
def test_errors_are_one_line_and_exit_2(
    model: str,
    prompts_file: str,
    judge: str,
    tmp_path: Path,
    change: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--model": model, "--prompts": prompts_file, "--judge": judge, "--out": "out"}
    options |= {} if change[0] == "--controllers" else {"--methods": "base"}
    options |= {change[0]: change[1]}
    flat = [part for pair in options.items() for part in pair]
    assert run(monkeypatch, "compare", *flat) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sample: 3", "unknown option 'sample' .*known are model, prompts"),
        ("samples: many", "samples: input should be a valid integer, got 'many'"),
        ("top_p: 1.5", "top_p: input should be less than or equal to 1"),
        ("samples: 3\n  seed: 1", "line 2: malformed YAML"),
        ("- a\n- b", "expected options"),
        ("controllers: [a]", "controllers: input should be a valid dictionary"),
    ],
)
def test_a_faulty_spec_names_the_option(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path / "s.yaml", {})


def test_an_empty_spec_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# nothing yet\n")
    assert read_spec(tmp_path / "s.yaml", {"seed": 3}) == {"seed": 3}


def test_the_default_folder_is_the_first_free_one_and_resuming_takes_the_last(
    tmp_path: Path,
) -> None:
    assert default_out(tmp_path, resume=False) == "plugalign-compare"
    assert default_out(tmp_path, resume=True) == "plugalign-compare"
    (tmp_path / "plugalign-compare").mkdir()
    assert default_out(tmp_path, resume=False) == "plugalign-compare-2"
    assert default_out(tmp_path, resume=True) == "plugalign-compare"
    (tmp_path / "plugalign-compare-2").mkdir()
    assert default_out(tmp_path, resume=True) == "plugalign-compare-2"


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plugalign.commands.methods.show", stop)
    assert run(monkeypatch, "methods") == 130
    said = capsys.readouterr().err
    assert said.startswith("error: interrupted; what was done is kept") and said.count("\n") == 1


def test_methods_lists_every_controller_with_the_surface_it_acts_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "methods") == 0
    shown = capsys.readouterr().out
    assert {m.name for m in METHODS} == set(CONTROLLERS) - {"composition", "gated"}
    for method in METHODS:
        assert method.name in shown
        kind = class_of(method.name, Controller, CONTROLLERS, "METHODS names")
        assert getattr(kind, method.surface) is not getattr(Controller, method.surface)


def test_help_loads_neither_torch_nor_transformers() -> None:
    """Neither that of the app nor of any command: it must be there at once."""
    code = (
        "import sys; from plugalign.cli import app\n"
        "for name in ([], *([c.callback.__name__] for c in app.registered_commands)):\n"
        "    try: app([*name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'scipy', 'numpy', 'yaml', 'jinja2')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for command in (
        "compare",
        "fit",
        "tune",
        "feedback",
        "trace",
        "account",
        "maxim",
        "bench",
        "methods",
    ):
        assert f"plugalign {command} [" in done.stdout or f" {command} [OPTIONS]" in done.stdout


@pytest.fixture
def words(tmp_path: Path) -> str:
    """A pickled pipeline."""
    texts, labels = ["kind words", "a fool", "so kind", "what a fool"], [0, 1, 0, 1]
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    joblib.dump(pipeline, tmp_path / "words.joblib")
    return str(tmp_path / "words.joblib")


SHORT = ["--methods", "base", "--limit", "1", "--samples", "1", "--max-new-tokens", "2"]


@pytest.mark.parametrize("place", ["option", "spec"])
def test_a_pickle_runs_only_with_trust_and_the_first_line_says_so(
    words: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "s.yaml").write_text(f"judges: {{mine: {words}}}\n")
    given = ["--judge", f"mine={words}"] if place == "option" else []
    given += ["--spec", str(tmp_path / "s.yaml")] if place == "spec" else []
    arguments = ["compare", *given, *SHORT, "--out", str(tmp_path / "out")]
    assert run(monkeypatch, *arguments) == 2
    refused = capsys.readouterr().err
    assert "words.joblib" in refused and "--trust" in refused
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, *arguments, "--trust") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{words} is a pickle: loading it runs code from that file, as --trust allows"


def test_help_says_that_joblib_is_a_pickle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "compare", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ".joblib file (a pickle, which runs code as it is loaded: needs --trust)" in shown


def test_help_says_which_methods_are_compared_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "compare", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{', '.join(ALONE)} need nothing fitted: name them here." in shown
    assert "[default: (those of --controllers; on the pocket world all)]" in shown


@pytest.mark.parametrize(
    "judges", ["[os:system]", "{a: 'os:system'}", "[pocket, x.joblib]", "['..:x']"]
)
def test_a_spec_cannot_name_code(tmp_path: Path, judges: str) -> None:
    (tmp_path / "s.yaml").write_text(f"judges: {judges}\n")
    with pytest.raises(ValueError, match="is code, which a spec may name only with --trust"):
        read_spec(tmp_path / "s.yaml", {})
    assert "judges" in read_spec(tmp_path / "s.yaml", {}, trust=True)


def test_a_spec_cannot_trust_itself(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("trust: true\njudges: [os:system]\n")
    with pytest.raises(ValueError, match="unknown option 'trust'"):
        read_spec(tmp_path / "s.yaml", {})


def test_a_judge_that_cannot_work_is_found_before_any_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "def broken(texts):\n    raise RuntimeError('no padding token is defined')\n"
    (tmp_path / "broken_judge.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--judge", "mine=broken_judge:broken", *SHORT, "--out", str(tmp_path / "out")]
    assert run(monkeypatch, "compare", *arguments) == 2
    error = capsys.readouterr().err
    assert "judge 'mine' cannot score" in error and "no padding token is defined" in error
    assert not (tmp_path / "out").exists()


def test_without_arguments_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    assert "compare" in capsys.readouterr().out
