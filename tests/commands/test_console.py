"""What is printed: names as they are, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from rich.table import Table

from plugalign.commands.console import fail, message_of, show
from plugalign.commands.options import judges, named, names, sizes, value_of

HOSTILE = "\x1b[2J\x1b]0;owned\x9b31m\u202e\ud800 [/b] [link=x]y :smile:"
ESCAPED = r"\x1b[2J\x1b]0;owned\x9b31m\u202e\ud800 [/b] [link=x]y :smile:"


def test_names_in_tables_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE, no_wrap=True)
    table.add_row(HOSTILE)
    show(table)
    printed = capsys.readouterr().out
    assert " ".join(printed.split()).count(ESCAPED) == 4
    assert not set(printed) & set("\x1b\x07\x9b\u202e\ud800")


def test_texts_are_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show("x" * 500 + HOSTILE)
    assert capsys.readouterr().out == "x" * 500 + ESCAPED + "\n"


def test_errors_are_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    fail(f"two\nlines {HOSTILE}")
    assert capsys.readouterr().err == f"error: two lines {ESCAPED}\n"


def test_the_systems_errors_are_words() -> None:
    found = OSError(2, "No such file or directory", "/x/\x1by")
    assert message_of(found) == r"'/x/\x1by': no such file or directory"
    assert message_of(OSError(28, "No space left on device")) == (
        "no space left on device; free some space and run the same again"
    )
    noted = ValueError("said")
    noted.add_note("and more")
    assert message_of(noted) == "said and more"


def test_options_that_are_fine() -> None:
    assert names("base, self_debias", "--methods") == ["base", "self_debias"]
    assert named(["a=x,b=y=z", "c=w"], "--controllers") == {"a": "x", "b": "y=z", "c": "w"}
    assert sizes("1,8", "--batch") == [1, 8]
    assert judges(["pocket", "a=x"]) == {"pocket": "pocket", "a": "x"}
    assert judges(["pocket", "x"]) == ["pocket", "x"]
    assert judges(["a[/b]=pocket"]) == {"a[/b]": "pocket"}
    assert names(None, "") is named(None, "") is judges(None) is None


def test_the_value_of_an_option_that_was_refused() -> None:
    class Parameter:
        opts = ("--seed", "-s")

    for arguments in (["x", "--seed", "abc"], ["--seed=abc"], ["-s", "1", "-s", "abc"]):
        assert value_of(Parameter(), arguments) == ", got 'abc'"
    assert value_of(Parameter(), ["--seed"]) == value_of(None, ["a"]) == ""
