"""People's feedback on texts, as choices: pairs, likes and edits, one a line.

    {"prompt": "I think", "chosen": " so too.", "rejected": " not, you fool."}      a pair
    {"prompt": "I think", "text": " so too.", "liked": true}                        a like
    {"prompt": "I think", "text": " so, fool.", "edited": " so too."}               an edit

An edited text is chosen over what it was. A text that is liked or not stands against the average
answer of the reference, whose evidence is 0. With a run of ``plugalign compare`` texts may be
named: "prompt" is then the number of a prompt, and a text ``{"method": "base", "sample": 0}``.
A prompt may also be a list of messages, which a model reads in a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from plugalign.evaluation.comparison.prompts import prompts_of_run
from plugalign.evaluation.run_folder.folder import GENERATIONS, PROMPTS
from plugalign.evaluation.run_folder.journal import read_journal
from plugalign.evaluation.run_folder.manifest import ChatRecord, read_manifest
from plugalign.evaluation.run_folder.records import Count, Generated, Key, described
from plugalign.files.messages import Prompt
from plugalign.files.rows import Row, read_rows
from plugalign.files.shown import listed, printable, shown
from plugalign.files.typed import validated

Kind = Literal["pair", "like", "edit"]
FIELDS: dict[Kind, tuple[str, str]] = {
    "pair": ("chosen", "rejected"),
    "like": ("text", "liked"),
    "edit": ("text", "edited"),
}


@dataclass(frozen=True)
class Choice:
    """What somebody said of one or two texts behind a prompt.

    Attributes:
        place: the file and the line, for messages.
        kind: how it was said.
        better, worse: the texts; None for the reference's average answer, never both.
    """

    place: str
    kind: Kind
    prompt: Prompt
    better: str | None
    worse: str | None


@dataclass(frozen=True)
class KnownTexts:
    """The texts of a run, by which feedback may name them.

    Attributes:
        prompts: its prompts. answers: the text of each answer.
        chat: whether its prompts stood in a chat; None of a run that does not say.
    """

    place: str
    prompts: tuple[Prompt, ...]
    answers: Mapping[Key, str]
    chat: ChatRecord | None = None

    @property
    def methods(self) -> list[str]:
        return sorted({method for method, _, _ in self.answers})


class NamedText(BaseModel):
    """The name of an answer to a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: str
    sample: Count


def known_texts(run: Path) -> KnownTexts:
    """The texts of a run of ``plugalign compare``.

    Raises:
        ValueError: if the folder holds none, or a line of it is damaged; names the file.
    """
    for name in (PROMPTS, GENERATIONS):
        if not (run / name).is_file():
            raise ValueError(f"{printable(str(run))} holds no {name}, so it is no run of compare")
    answers = read_journal(run / GENERATIONS, Generated, None)
    texts = {key: answer.text for key, answer in answers.items()}
    prompts, settings = prompts_of_run(run).every, read_manifest(run).settings
    return KnownTexts(printable(str(run)), prompts, texts, settings.chat)


def read_feedback(path: Path, known: KnownTexts | None = None) -> list[Choice]:
    """The choices in a ``.jsonl`` or ``.csv`` file.

    Args:
        known: a run whose texts may be named.

    Raises:
        ValueError: naming the file, the line and the cure: for a row of another form, a text that
            is empty or not known, or two texts that are one.
    """
    found = [_choice(row, known) for row in read_rows(path)]
    if not found:
        raise ValueError(f"{printable(str(path))} holds no feedback; give it one choice per line")
    return found


def _choice(row: Row, known: KnownTexts | None) -> Choice:
    kinds = [kind for kind, names in FIELDS.items() if all(map(row.has, names))]
    if len(kinds) != 1 or not row.has("prompt"):
        raise ValueError(
            f"{row.place}: the fields are {listed(row.fields)}; a pair has prompt, chosen and "
            "rejected, a like prompt, text and liked, an edit prompt, text and edited"
        )
    kind = kinds[0]
    prompt = _prompt(row, known)
    if kind == "like":
        text, label = _text(row, "text", known), row.label("liked")
        if label not in ("0", "1"):
            raise ValueError(
                f"{row.place}: 'liked' must be true or false, got {shown(row.fields['liked'])}"
            )
        return Choice(row.place, kind, prompt, *((text, None) if label == "1" else (None, text)))
    names = FIELDS[kind] if kind == "pair" else FIELDS[kind][::-1]
    better, worse = (_text(row, name, known) for name in names)
    if better == worse:
        raise ValueError(f"{row.place}: {names[0]!r} and {names[1]!r} are the same text")
    return Choice(row.place, kind, prompt, better, worse)


def _prompt(row: Row, known: KnownTexts | None) -> Prompt:
    number = row.fields.get("prompt")
    if isinstance(number, list):
        return row.conversation("prompt")
    if isinstance(number, bool) or not isinstance(number, int):
        return row.text("prompt")
    if known is None:
        raise ValueError(
            f"{row.place}: 'prompt' is the number {number}; say of which run, with --texts RUN"
        )
    if not 0 <= number < len(known.prompts):
        raise ValueError(
            f"{row.place}: {known.place} has the prompts 0 to {len(known.prompts) - 1}, and no "
            f"{number}"
        )
    return known.prompts[number]


def _text(row: Row, name: str, known: KnownTexts | None) -> str:
    """A text that stands in a field, or that is named there."""
    value = row.fields.get(name)
    if not isinstance(value, Mapping) or "text" in value:
        return row.text(name)
    named = validated(NamedText, value, f"{row.place}: {name}")
    number = row.fields.get("prompt")
    if known is None or not isinstance(number, int):
        raise ValueError(
            f"{row.place}: {name!r} names a text; say of which run, with --texts RUN, and give the "
            "number of its prompt"
        )
    if named.method not in known.methods:
        raise ValueError(
            f"{row.place}: {name!r} names the method {shown(named.method)}; {known.place} has "
            f"{', '.join(known.methods)}"
        )
    key = (named.method, number, named.sample)
    if key not in known.answers:
        raise ValueError(f"{row.place}: {known.place} has no answer {described(key)}")
    if not known.answers[key].strip():
        raise ValueError(f"{row.place}: the answer {described(key)} is empty; leave it out")
    return known.answers[key]
