"""A trace file, read answer by answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plugalign.files.shown import printable
from plugalign.values.account.chain import read_chain
from plugalign.values.account.records import (
    AnswerLine,
    EndLine,
    ResumedLine,
    RunLine,
    TokenLine,
    line_of,
)


@dataclass(frozen=True)
class TracedAnswer:
    """An answer and the lines of its tokens."""

    answer: AnswerLine
    tokens: tuple[TokenLine, ...]

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        return [line.token for line in self.tokens]


@dataclass(frozen=True)
class Verified:
    """A trace file whose chain holds.

    Attributes:
        run: what it depends on.
        head: its last hash.
        lines, answers, tokens: how many there are.
        unfinished: tokens of answers that a killed run did not end.
        complete: whether its last line says that the run ended.
        resumed: how often it was continued.
    """

    run: RunLine
    head: str
    lines: int
    answers: int
    tokens: int
    unfinished: int
    complete: bool
    resumed: int


class TraceFile:
    """Reads a trace file once, verifying its chain.

    Args:
        path: the file, or the folder that it lies in.

    Attributes:
        run: its first line.
        verified: what was found; None before all answers were read.

    Raises:
        ValueError: if there is no such file, or it does not begin with a run.
    """

    def __init__(self, path: Path):
        self.path = path / "trace.jsonl" if path.is_dir() else path
        self._links = read_chain(self.path)
        first = next(self._links, None)
        line = None if first is None else line_of(first)
        if first is None or not isinstance(line, RunLine):
            raise ValueError(f"{printable(str(self.path))} does not begin with a run of a trace")
        self.run, self._head = line, first.hash
        self.verified: Verified | None = None

    def answers(self) -> Iterator[TracedAnswer]:
        """Every answer.

        Raises:
            ValueError: for a line that is damaged, or that does not belong where it stands; names
                file and line.
        """
        lines, answers, tokens, unfinished, resumed = 1, 0, 0, 0, 0
        waiting, complete = list[TokenLine](), False
        for link in self._links:
            line, self._head, lines = line_of(link), link.hash, lines + 1
            if isinstance(line, RunLine) or complete:
                raise ValueError(f"{link.place}: a line behind the end of the run")
            if isinstance(line, TokenLine):
                waiting.append(line)
                continue
            if isinstance(line, AnswerLine):
                if not _belong(waiting, line):
                    raise ValueError(f"{link.place}: the tokens before it are not this answer's")
                answers, tokens = answers + 1, tokens + len(waiting)
                yield TracedAnswer(line, tuple(waiting))
            else:
                unfinished += len(waiting)
            complete, resumed = isinstance(line, EndLine), resumed + isinstance(line, ResumedLine)
            if isinstance(line, EndLine) and (line.answers, line.tokens) != (answers, tokens):
                raise ValueError(
                    f"{link.place}: it counts {line.answers} answers of {line.tokens} tokens, and "
                    f"there are {answers} of {tokens}"
                )
            waiting = []
        self.verified = Verified(
            self.run,
            self._head,
            lines,
            answers,
            tokens,
            unfinished + len(waiting),
            complete,
            resumed,
        )


def verify(path: Path) -> Verified:
    """Reads a whole trace file and checks that no line was changed, removed or moved.

    Raises:
        ValueError: naming file and line.
    """
    file = TraceFile(path)
    for _ in file.answers():
        pass
    assert file.verified is not None
    return file.verified


def _belong(tokens: list[TokenLine], answer: AnswerLine) -> bool:
    """Whether these are an answer's tokens, all of them and in order."""
    wanted = [(answer.prompt, answer.sample, step) for step in range(answer.output_tokens)]
    return [(line.prompt, line.sample, line.step) for line in tokens] == wanted
