"""``plugalign trace`` and ``account``: options arrive, errors are one line with exit code 2."""

from __future__ import annotations

import sys

import pytest

from plugalign import cli

SHORT = ("--limit", "3", "--max-new-tokens", "3")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs ``plugalign ARGUMENTS`` in a folder of its own: the exit code and what was said."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code or 0
        return int(code), said.out + (said.err if code == 2 else "")

    return go


def test_a_run_is_traced_verified_replayed_and_accounted_for(run, tmp_path):
    code, said = run("trace", *SHORT, "--samples", "2", "--risk", "pocket", "--cuts", "0.2,0.8")
    assert code == 0 and "6 answers of" in said and "Its last hash" in said
    path = tmp_path / "plugalign-trace" / "trace.jsonl"
    file = str(path)
    code, said = run("trace", "--verify", file)
    assert code == 0 and "the chain holds" in said
    code, said = run("trace", "--replay", file)
    assert code == 0 and "6 of 6 answers have the same tokens again" in said
    code, said = run(
        *("account", "plugalign-trace", "--judge", "pocket"),
        *("--incident", "something went wrong", "--by", "me"),
    )
    assert code == 0 and "The report: plugalign-trace/account.html" in said
    report = (tmp_path / "plugalign-trace" / "account.md").read_text(encoding="utf-8")
    assert "something went wrong" in report and "judged by pocket" in report
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    code, said = run("trace", "--verify", file)
    assert code == 2 and "line 4" in said and said.count("\n") == 1
    path.write_bytes(b"".join(lines[:-1]))
    code, said = run("trace", "--verify", file)
    assert code == 2 and "removed at the end" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "--verify", "x.jsonl", "--seed", "3"), "--verify has no --seed; leave it out"),
        (("trace", "--replay", "x.jsonl", "--out", "x"), "--replay has no --out; leave it out"),
        (("trace", "--verify", "x.jsonl"), "x.jsonl: cannot be read (no such file or directory)"),
        (("trace", "--risk", "pocket", "--cuts", "nan"), "cuts must be rising numbers"),
        (("trace", "--out="), "--out is empty, got ''; give a value or leave it out"),
        (("trace", "--cuts", "a"), "--cuts takes numbers with commas between, got 'a'"),
        (("trace", "--samples", "0"), "samples must be at least 1, got 0"),
        (("trace", "--controllers", "x"), "--controllers takes NAME=FOLDER, got 'x'"),
        (("trace", "--model", "somewhere"), "with a model of your own, give prompts too"),
        (("trace", "--set", "dexperts.alpha=1,2"), "a setting has one value in a trace"),
        (("trace", "--chat", "on"), "has no chat template, which --chat on needs"),
        (("trace", "--chat", "maybe"), "chat must be auto, on, off, got 'maybe'"),
        (("trace", "--system", "Be kind."), "--system is a message of a chat, and prompts are"),
        (("trace", "--replay", "x.jsonl", "--chat", "off"), "--replay has no --chat; leave it out"),
        (("trace", "--set", "dexperts.beta=1"), "DExperts has no setting 'beta'"),
        (("account",), "Missing argument 'RUN...'"),
        (("account", "nowhere"), "nowhere holds no trace.jsonl and no manifest.json"),
        (("account", ""), "argument 2 is empty, got ''"),
        (("account", "x", "--by", "me"), "--by names who reports an --incident or --override"),
    ],
)
def test_a_wrong_value_is_one_line_before_any_work(run, tmp_path, arguments, message):
    code, said = run(*arguments)
    assert code == 2 and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
