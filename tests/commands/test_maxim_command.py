"""``plugalign maxim``: the table, and one line for what cannot be."""

from __future__ import annotations

import io
import sys

import pytest

from plugalign import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs ``plugalign maxim ARGUMENTS``: the exit code and what was said."""

    def go(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["plugalign", "maxim", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.err if ended.value.code else said.out

    return go


def test_the_table_of_a_lie(run):
    code, said = run("lie", "--runs", "2")
    assert code == 0 and "pi(lie) = 0.9" in said and "pi(truth) = 0.00" in said


def test_a_terminal_without_all_characters_gets_their_escapes(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["plugalign", "maxim", "lie", "--runs", "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    assert not ended.value.code and rb"\u201c" in written.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gossip",), "unknown maxim 'gossip'; known are lie, truth, greed, share"),
        (("lie", "--runs", "1"), "runs must be at least 2"),
        (("lie", "--controller", "x"), "without --model, has no --controller; leave it out"),
        (("lie", "--dtype", "float32"), "without --model, has no --dtype; leave it out"),
        (("lie", "--seed", "-1"), "seed must be an int in [0, 2**64), got -1"),
        (("lie", "--model", "/nowhere/at/all"), "'/nowhere/at/all': there is no such folder"),
    ],
)
def test_a_wrong_value_is_one_line(run, arguments, message):
    code, said = run(*arguments)
    assert code == 2 and message in said and said.count("\n") == 1


def test_a_model_that_does_not_understand_is_refused_by_name(run, tiny, tokenizer, tmp_path):
    for part in (tiny(), tokenizer):
        part.save_pretrained(tmp_path / "guesser")
    code, said = run("share", "--model", str(tmp_path / "guesser"))
    assert code == 2 and "guesser is refused: it was right in" in said and said.count("\n") == 1
