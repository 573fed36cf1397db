"""Progress: lines now and then where nobody looks on, a log in any case."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plugalign.evaluation.comparison.progress import Progress


class Run:
    """Work of ten pieces of five answers, ten seconds each."""

    def __init__(self) -> None:
        self.seconds, self.done = 0.0, 0

    def work(self) -> Iterator[None]:
        for _ in range(10):
            self.seconds, self.done = self.seconds + 10, self.done + 5
            yield


def shown(tmp_path: Path, terminal: bool) -> tuple[list[str], list[str]]:
    """What stands on the console and in the log."""
    console, run = Console(file=StringIO(), force_terminal=terminal, width=80), Run()
    with Progress(tmp_path, console, every=30, clock=lambda: run.seconds) as progress:
        progress.stage("generating", 50, lambda: run.done, run.work())
    log = (tmp_path / "progress.log").read_text().splitlines()
    return console.file.getvalue().splitlines(), [line.split(" ", 2)[2] for line in log]  # type: ignore[attr-defined]


def test_lines_come_at_once_then_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    expected = [
        "generating: 5 of 50 answers, about 1:30 left",
        "generating: 20 of 50 answers, about 1:00 left",
        "generating: 35 of 50 answers, about 0:30 left",
        "generating: 50 of 50 answers",
    ]
    assert shown(tmp_path, terminal=False) == (expected, expected)


def test_a_terminal_gets_a_bar_and_the_log_the_lines(tmp_path: Path) -> None:
    screen, log = shown(tmp_path, terminal=True)
    assert len(log) == 4 and log[-1] == "generating: 50 of 50 answers"
    assert not any("about" in line for line in screen) and any("50/50" in line for line in screen)


def test_nothing_is_said_where_there_is_nothing_to_do_and_errors_are_logged(tmp_path: Path) -> None:
    console = Console(file=StringIO())
    with Progress(tmp_path, console) as progress:
        progress.stage("scoring", 5, lambda: 5, iter(()))
    assert not (tmp_path / "progress.log").exists() and console.file.getvalue() == ""  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), Progress(tmp_path, console):
        raise KeyboardInterrupt
    assert "stopped: KeyboardInterrupt" in (tmp_path / "progress.log").read_text()


def test_a_run_says_what_it_does_where_standard_error_is_no_terminal(
    tiny: Any, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plugalign.evaluation.comparison.compare import compare

    compare(
        tiny(),
        tokenizer,
        methods=["self_debias"],
        prompts=["w1", "w2"],
        max_new_tokens=2,
        samples=1,
        judges={"none": lambda texts: [0.0] * len(texts)},
        out=tmp_path,
    )
    said = capsys.readouterr().err
    for line in ("warming up 3 methods", "generating: 6 of 6 answers", "scoring: 6 of 6 answers"):
        assert line in said and line in (tmp_path / "progress.log").read_text()
