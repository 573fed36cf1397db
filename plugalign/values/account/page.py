"""trace.html: the answers of a trace, each token coloured by what was done to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from plugalign.evaluation.report.templates import environment
from plugalign.evaluation.run_folder.folder import replace_text
from plugalign.values.account.reading import TracedAnswer, TraceFile
from plugalign.values.account.records import TokenLine

TEMPLATE = "trace.html.j2"
MOST = 200  # answers on the page; the file has all
FULL = 2.0  # nats of a joint shift from which a colour is at its strongest
LISTED = 5  # tokens of an answer whose contributions are listed


@dataclass(frozen=True)
class Token:
    """A token as it is shown.

    Attributes:
        strength: in per cent, of the colour.
        raised: whether its probability was raised.
        bound: "repaired" or "active", where a bound was; else None.
        title: everything about it in a line.
    """

    text: str
    strength: int
    raised: bool
    changed: bool
    bound: str | None
    title: str
    line: TokenLine


@dataclass(frozen=True)
class Shown:
    """An answer as it is shown, and its tokens with the largest shifts."""

    answer: Any
    tokens: list[Token]
    largest: list[Token]


def write_page(file: Path, page: Path) -> None:
    """Writes the page of a trace file, which is verified on the way.

    Raises:
        ValueError: for a damaged file; names the line.
    """
    trace = TraceFile(file)
    shown, changed = list[Shown](), 0
    for each in trace.answers():
        changed += sum(line.changed for line in each.tokens)
        if len(shown) < MOST:
            shown.append(_shown(each))
    replace_text(
        page,
        templates()
        .get_template(TEMPLATE)
        .render(
            run=trace.run,
            found=trace.verified,
            answers=shown,
            changed=changed,
            most=MOST,
            full=FULL,
        ),
    )


def templates() -> Environment:
    """jinja2's environment for the templates of this folder."""
    return environment("plugalign.values.account", cell=in_markdown)


def in_markdown(value: Any) -> str:
    """A text as a part of a line or of a table's cell in Markdown, none of it obeyed."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    for character in "|`[*":
        line = line.replace(character, f"\\{character}")
    return line


def _shown(each: TracedAnswer) -> Shown:
    pairs = zip(each.answer.pieces, each.tokens, strict=True)
    tokens = [_token(piece, line) for piece, line in pairs]
    by_size = sorted(tokens, key=lambda token: -abs(token.line.joint or 0))
    return Shown(each.answer, tokens, [t for t in by_size[:LISTED] if t.line.joint])


def _token(piece: str, line: TokenLine) -> Token:
    joint = line.joint or 0.0
    return Token(
        piece,
        round(min(1.0, abs(joint) / FULL) * 100),
        joint > 0,
        line.changed,
        bound_of(line),
        "; ".join(_facts(line)),
        line,
    )


def bound_of(line: TokenLine) -> str | None:
    """Whether a bound was repaired or active at a token, as certificates say."""
    for name, word in (("repair", "repaired"), ("active", "active")):
        if any((found.get(name) or 0) > 0 for found in line.certificates.values()):
            return word
    return None


def _facts(line: TokenLine) -> Iterator[str]:
    yield f"token {line.token}, step {line.step}"
    if line.log_p is not None and line.log_q is not None:
        yield f"log p {line.log_p:.2f}, log q {line.log_q:.2f}"
    yield from (f"{name} {_signed(value)}" for name, value in line.contributions.items())
    yield f"together {_signed(line.joint)}"
    yield f"KL {0 if line.kl is None else line.kl:.3f}, {line.support} tokens possible"
    for owner, found in line.certificates.items():
        listed = ", ".join(f"{name} {0 if v is None else v:.3g}" for name, v in found.items())
        yield f"{owner}: {listed}"


def _signed(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.2f}"
