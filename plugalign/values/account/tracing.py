"""Runs prompts under controllers and writes what was changed at every token, as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.evaluation.comparison.decoding import Decoding
from plugalign.evaluation.comparison.progress import Progress
from plugalign.evaluation.comparison.prompts import Prompts, Row, load_prompts
from plugalign.evaluation.comparison.variants import varied
from plugalign.evaluation.run_folder.describe import versions
from plugalign.evaluation.run_folder.folder import MANIFEST, locked
from plugalign.files.folders import check_folder
from plugalign.files.shown import shown
from plugalign.generation.chat_format import choose_chat
from plugalign.loading import load_controllers, resolve_model
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts
from plugalign.values.account.chain import Chain
from plugalign.values.account.page import write_page
from plugalign.values.account.recording import Recorder
from plugalign.values.account.records import (
    AnswerLine,
    EndLine,
    Line,
    ResumedLine,
    RunLine,
    content_of,
    line_of,
    now,
)
from plugalign.values.account.strata import make_strata

FILE, PAGE = "trace.jsonl", "trace.html"
POCKET = ("dexperts", "self_debias")  # of the pocket world's controllers
POCKET_PROMPTS = 20


@dataclass(frozen=True)
class Traced:
    """A traced run.

    Attributes:
        out: its folder.
        head: the last hash of its file. Kept elsewhere it proves that no line was changed since.
        answers, tokens: how many there are.
    """

    out: Path
    head: str
    answers: int
    tokens: int

    @property
    def file(self) -> Path:
        """What was changed at every token."""
        return self.out / FILE

    @property
    def page(self) -> Path:
        """The texts, coloured by intervention."""
        return self.out / PAGE


def trace(
    controllers: Mapping[str, Controller | str | Path] | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    prompts: str | Path | Sequence[Any] | None = None,
    chat: str = "auto",
    system: str | None = None,
    limit: int | None = None,
    stratum: str | None = None,
    risk: Any = None,
    cuts: Sequence[float] | None = None,
    store_prompts: bool = False,
    samples: int = 1,
    max_new_tokens: int = 20,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_p: float = 0.9,
    batch_size: int = 16,
    seed: int = 0,
    out: str | Path = "plugalign-trace",
    resume: bool = False,
    dtype: str = "auto",
) -> Traced:
    """Runs prompts under controllers, which steer together, and records every token.

    The folder gets trace.jsonl (`plugalign.values.account.records`), hash-chained, and trace.html.
    Without a model it is the pocket world.

    Args:
        controllers: by name, controllers or their folders.
        model, tokenizer, settings, prompts, chat, system, limit, dtype: see `plugalign.compare`. A
            setting has one value here.
        stratum, risk, cuts: how prompts are sorted into strata, see `make_strata`.
        store_prompts: whether prompts are written down; else only hashes of them are.
        samples: answers to each prompt; the others as for `plugalign.compare`.
        out: the folder to write.
        resume: continues a killed run in ``out``.

    Raises:
        ValueError, TypeError: for anything wrong with the arguments, before any work.
        OSError: if the disk is full; what was written is kept.
    """
    if not isinstance(store_prompts, bool):
        raise TypeError(f"store_prompts must be True or False, got {shown(store_prompts)}")
    decoding = Decoding(
        samples, max_new_tokens, temperature, top_p, batch_size, seed, min_new_tokens
    )
    out, texts = check_folder(out), _prompts(model, prompts, limit)
    strata = make_strata(texts, stratum, risk, cuts)
    given, folders = chosen_controllers(model, controllers)
    steered_by = varied(load_controllers(given), settings or {})
    if list(steered_by) != list(given):
        raise ValueError("a setting has one value in a trace, since all controllers steer together")
    path, is_pocket = str(model) if isinstance(model, (str, Path)) else None, model is None
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    turns = choose_chat(model, tokenizer, chat, system, conversations=texts.have_conversations)
    recorder = Recorder(model, tokenizer, steered_by, texts, decoding, strata, turns, store_prompts)
    recorder.check()
    with locked(out):
        return _run(recorder, recorder.run_line(folders, path, is_pocket), out, resume)


def chosen_controllers(
    model: Any, controllers: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Controllers by name, and where those lie that are given by a folder.

    Raises:
        ValueError: for none, with a model of one's own.
        TypeError: for controllers without names.
    """
    if controllers is None and model is None:
        controllers = {name: pocket.parts() / "controllers" / name for name in POCKET}
    if not controllers:
        raise ValueError("there is no controller; give at least one, as NAME=FOLDER")
    if not isinstance(controllers, Mapping):
        got = type(controllers).__name__
        raise TypeError(f"controllers must be controllers or folders by name, got {got}")
    folders = {
        name: str(given) if isinstance(given, (str, Path)) else None
        for name, given in controllers.items()
    }
    return dict(controllers), folders


def _prompts(model: Any, prompts: Any, limit: int | None) -> Prompts:
    if prompts is None and model is not None:
        raise ValueError("with a model of your own, give prompts too")
    if prompts is None:
        return load_prompts(pocket_prompts(POCKET_PROMPTS, PROMPT_SEED), limit)
    return load_prompts(prompts, limit)


def _run(recorder: Recorder, about: RunLine, out: Path, resume: bool) -> Traced:
    if (out / MANIFEST).exists():
        raise ValueError(f"{out} holds a run of another command; choose another --out")
    chain = Chain(out / FILE)
    lines = [line_of(link) for link in chain.links]
    done = _done(lines, about, recorder, out, resume)
    ended = bool(lines) and isinstance(lines[-1], EndLine)
    if not lines:
        chain.append([content_of(about)])
    elif not ended:
        chain.append([content_of(ResumedLine(time=now(), versions=versions()))])
    total = len(recorder.prompts.texts) * recorder.decoding.samples
    with Progress(out) as progress:
        progress.say(recorder.chat.note())
        progress.stage("tracing", total, lambda: len(done), recorder.work(chain, done))
    if not ended:
        end = EndLine(time=now(), answers=len(done), tokens=sum(done.values()))
        chain.append([content_of(end)])
    write_page(out / FILE, out / PAGE)
    return Traced(out, chain.head, len(done), sum(done.values()))


def _done(
    lines: Sequence[Line], about: RunLine, recorder: Recorder, out: Path, resume: bool
) -> dict[Row, int]:
    """The tokens of each answer that is there.

    Raises:
        ValueError: if the folder holds another run, or this one and ``resume`` is False.
    """
    if not lines:
        return {}
    first, same = lines[0], {"time", "conditions"}
    if not isinstance(first, RunLine):
        raise ValueError(f"{out / FILE} does not begin with a run; choose another --out")
    before, after = (line.model_dump(exclude=same) for line in (first, about))
    answers = [line for line in lines if isinstance(line, AnswerLine)]
    other = [name for name in after if before[name] != after[name]]
    if other := [*other, *_otherwise(answers, recorder)]:
        raise ValueError(f"{out} holds another run (its {other[0]} differs); choose another --out")
    if not resume:
        raise ValueError(
            f"{out} already holds this run; continue it with --resume, or choose another --out"
        )
    return {(line.prompt, line.sample): line.output_tokens for line in answers}


def _otherwise(answers: Sequence[AnswerLine], recorder: Recorder) -> Iterator[str]:
    """What answers say of their prompts, and a recorder would not."""
    if any(line.stratum != recorder.strata.names[line.prompt] for line in answers):
        yield "strata"
    if any((line.prompt_text is not None) != recorder.store_prompts for line in answers):
        yield "store_prompts"
