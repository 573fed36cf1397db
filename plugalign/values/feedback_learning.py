"""Teaches a saved equilibrium what people's feedback says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.algebra.saving import AGAIN, TENSORS
from plugalign.controllers.equilibrium import Equilibrium
from plugalign.evaluation.run_folder.folder import full_disk_named, locked
from plugalign.files.fingerprint import file_hash
from plugalign.files.folders import check_folder
from plugalign.files.messages import Prompt
from plugalign.files.replacing import replacing
from plugalign.files.saved import read_tensors
from plugalign.files.shown import printable
from plugalign.generation.chat_format import ChatFormat, choose_chat
from plugalign.generation.wrap import wrap
from plugalign.loading import resolve_model
from plugalign.values.feedback import FIELDS, Choice, KnownTexts, known_texts, read_feedback
from plugalign.values.feedback_history import (
    Feedback,
    Lesson,
    append,
    check_new,
    following,
    last_hash,
    read_history,
)
from plugalign.values.preferences import (
    Belief,
    agreement,
    most_probable,
    nothing_known,
    projected_gradient,
)
from plugalign.values.preferences_evidence import Evidence, evidence

Learner = Literal["map", "gradient"]
RIDGE = 1.0  # of a first lesson
LEARNERS = {"map": most_probable, "gradient": projected_gradient}


@dataclass(frozen=True)
class Taught:
    """An equilibrium after feedback, and all lessons up to now."""

    equilibrium: Equilibrium
    history: tuple[Lesson, ...]

    def table(self) -> Table:
        """Of each feature its weight, how sure it is, and what of it acts."""
        learned, confidence = self.equilibrium.preferences, self.equilibrium.confidence
        acting = self.equilibrium.strength * learned.bounded(confidence)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("feature", overflow="fold")
        for heading in ("theta", "standard error", f"acts at {confidence:g}"):
            table.add_column(heading, justify="right", no_wrap=True)
        errors = [None] * len(acting)
        if learned.covariance is not None:
            errors = Belief(learned.theta, learned.covariance).standard_errors().tolist()
        rows = zip(learned.features, learned.theta.tolist(), errors, acting.tolist(), strict=True)
        for name, theta, error, weight in rows:
            doubt = "none given" if error is None else f"{error:.4g}"
            table.add_row(printable(name), f"{theta:+.4g}", doubt, f"{weight:+.4g}")
        return table

    def summary(self) -> str:
        """What the last lesson was, in a sentence."""
        last, count = self.history[-1], len(self.history)
        given, (before, after) = last.feedback, last.agreement
        when = last.time.isoformat(sep=" ", timespec="seconds")
        return (
            f"{count} {'lesson' if count == 1 else 'lessons'}; the last was {printable(given.file)}"
            f" (pairs {given.pairs}, likes {given.likes}, edits {given.edits}) at {when}: theta "
            f"agrees with {after:.0%} of it, before with {before:.0%}; {last.outside:.0%} of its "
            "tokens were none of the candidates"
        )


def load_taught(folder: str | Path) -> Taught:
    """A saved equilibrium with its history.

    Raises:
        ValueError: if the folder holds none, or its history is damaged; names the file.
    """
    path = check_folder(folder, "the equilibrium")
    if not path.is_dir():
        raise ValueError(f"the equilibrium: {printable(str(folder))} is no folder")
    equilibrium = Controller.from_pretrained(path)
    if not isinstance(equilibrium, Equilibrium):
        raise ValueError(
            f"{printable(str(folder))} holds a {type(equilibrium).__name__}; feedback teaches an "
            "Equilibrium, which a saved one may be the reference of"
        )
    history = read_history(path)
    return Taught(following(equilibrium, history, path), tuple(history))


def teach(
    folder: str | Path,
    feedback: str | Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    texts: str | Path | None = None,
    learner: Learner = "map",
    ridge: float | None = None,
    keep: float = 1.0,
    dtype: str = "auto",
    chat: str = "auto",
    system: str | None = None,
) -> Taught:
    """Learns from a file of feedback, and writes theta and a line of history into the folder.

    What was known before is the prior, so feedback may come piece by piece.

    Args:
        folder: of a saved `Equilibrium`.
        feedback: ``.jsonl`` or ``.csv``, see `plugalign.values.feedback`.
        model, tokenizer: a causal language model; or a hub id or folder; None is the pocket model.
        texts: a run of ``plugalign compare`` whose texts the feedback names.
        learner: "map" for the most probable theta, "gradient" for online projected gradient.
        ridge: the precision of the prior where nothing has been learned yet; 1 by default.
        keep: the share of the earlier evidence that still counts.
        dtype: of a model that is given by name, see `plugalign.files.precision.chosen_dtype`.
        chat: "on", "off" or "auto" (for instruct models): whether prompts stand in the tokenizer's
            chat template in front of the texts. With ``texts`` they stand as they did in that run.
        system: a system message in front of each chat.

    Raises:
        ValueError: for anything wrong with the arguments or files, before any work; names it.
    """
    _check_rule(learner, ridge, keep)
    path, source = Path(folder), Path(feedback)
    taught = load_taught(path)
    run = None if texts is None else known_texts(Path(texts))
    choices, digest = read_feedback(source, run), file_hash(source)
    _catch_up(path, taught.equilibrium)
    check_new(taught.history, digest)
    ridge = _first_ridge(path, taught.equilibrium, ridge)
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    wrap(model, tokenizer, taught.equilibrium)  # refuses another model or tokenizer
    stands = chat_of_texts(model, tokenizer, choices, run, chat, system)
    with locked(path):
        if read_history(path) != list(taught.history):
            raise ValueError(f"{printable(str(path))} was taught by another process; try again")
        read = read_choices(model, tokenizer, taught.equilibrium, choices, stands)
        _check_seen(source, read[1])
        lesson = Lesson(
            time=datetime.now(UTC),
            feedback=_described(source, digest, choices),
            model=model_name(model),
            chat=stands is not None,
            system=None if stands is None else stands.system,
            previous=last_hash(path),
            **_learned(taught.equilibrium, *read, learner, ridge, keep),
        )
        append(path, lesson)
        history = (*taught.history, lesson)
        equilibrium = following(taught.equilibrium, history, path)
        _write_tensors(path, equilibrium)
    return Taught(equilibrium, history)


def _check_rule(learner: str, ridge: float | None, keep: float) -> None:
    if learner not in LEARNERS:
        raise ValueError(f"a learner is one of {', '.join(LEARNERS)}, got {learner!r}")
    # Refuses numbers that are out of their range.
    nothing_known(1, RIDGE if ridge is None else ridge).fading(keep)


def _first_ridge(folder: Path, equilibrium: Equilibrium, ridge: float | None) -> float | None:
    """The precision of the prior of a first lesson; None behind another, which is the prior.

    Raises:
        ValueError: for one that is given there.
    """
    if equilibrium.preferences.covariance is None:
        return RIDGE if ridge is None else ridge
    if ridge is not None:
        raise ValueError(
            f"{printable(str(folder))} has learned before, and what it knows is the prior, so a "
            f"ridge ({ridge:g}) has no place; leave it out, or give keep to let it count less"
        )
    return None


def _check_seen(source: Path, seen: Evidence) -> None:
    """Refuses feedback from which nothing can be learned."""
    if bool((seen.outside == seen.tokens).all()):
        raise ValueError(
            f"{printable(str(source))}: none of its {int(seen.tokens.sum())} tokens is among the "
            "candidates of the equilibrium's reference, so nothing can be learned from it; give "
            "texts of the model's own, or a reference with more candidates"
        )


def _described(source: Path, digest: str, choices: Sequence[Choice]) -> Feedback:
    kinds = [choice.kind for choice in choices]
    counts = {f"{kind}s": kinds.count(kind) for kind in FIELDS}
    return Feedback(file=source.name, sha256=digest, **counts)


def _learned(
    equilibrium: Equilibrium,
    differences: Tensor,
    seen: Evidence,
    learner: Learner,
    ridge: float | None,
    keep: float,
) -> dict[str, Any]:
    """What a lesson says of how it learned from choices, as `read_choices` gives them."""
    prior = known_of(equilibrium, ridge, keep)
    belief = LEARNERS[learner](differences, prior)
    return {
        "learner": learner,
        "keep": keep,
        "ridge": ridge,
        "theta": dict(zip(equilibrium.preferences.features, belief.theta.tolist(), strict=True)),
        "covariance": belief.covariance.tolist(),
        "agreement": (agreement(differences, prior.theta), agreement(differences, belief.theta)),
        "outside": float(seen.outside.sum() / seen.tokens.sum()),
    }


def known_of(equilibrium: Equilibrium, ridge: float | None, keep: float) -> Belief:
    """What an equilibrium knows of theta already, as a prior.

    Args:
        ridge: the precision where nothing has been learned yet.
        keep: the share of earlier evidence that still counts; the ridge is none, and stays.
    """
    learned = equilibrium.preferences
    if learned.covariance is not None:
        return Belief(learned.theta, learned.covariance).fading(keep)
    prior = nothing_known(len(learned.theta), RIDGE if ridge is None else ridge)
    return Belief(learned.theta, prior.covariance)


def chat_of_texts(
    model: Any,
    tokenizer: Any,
    choices: Sequence[Choice],
    run: KnownTexts | None,
    mode: str,
    system: str | None,
) -> ChatFormat | None:
    """How prompts stand in front of their texts: as a run had them, where there is one.

    Raises:
        ValueError: see `choose_chat`; or if a run's prompts stood in another template, or
            otherwise than is asked for.
    """
    if run is not None:
        if mode != "auto" or system is not None:
            raise ValueError(
                f"{run.place} says how its prompts stood; leave out --chat and --system"
            )
        used = run.chat is not None and run.chat.used
        mode = "on" if used else "off"
        system = run.chat.system if run.chat is not None and used else None
    conversations = not all(isinstance(each.prompt, str) for each in choices)
    found = choose_chat(model, tokenizer, mode, system, conversations=conversations).format
    if run and run.chat and found and run.chat.template != found.template:
        raise ValueError(
            f"the prompts of {run.place} stood in another chat template than that of "
            f"'{model_name(model)}'; give the model of that run"
        )
    return found


def read_choices(
    model: Any,
    tokenizer: Any,
    equilibrium: Equilibrium,
    choices: Sequence[Choice],
    chat: ChatFormat | None = None,
) -> tuple[Tensor, Evidence]:
    """``Phi(better) - Phi(worse)`` of each choice ``(N, F)``, and the evidence of all texts.

    Args:
        chat: how prompts stand in front of texts, see `evidence`.

    Raises:
        ValueError, FloatingPointError: see `evidence`.
    """
    asked: list[tuple[int, float, Prompt, str]] = []
    for number, choice in enumerate(choices):
        for sign, text in ((1.0, choice.better), (-1.0, choice.worse)):
            if text is not None:
                asked.append((number, sign, choice.prompt, text))
    numbers, signs, prompts, texts = zip(*asked, strict=True)
    seen = evidence(model, tokenizer, equilibrium, prompts, texts, chat)
    signed = seen.phi * torch.tensor(signs, dtype=torch.float64)[:, None]
    found = torch.zeros(len(choices), seen.phi.shape[1], dtype=torch.float64)
    return found.index_add(0, torch.tensor(numbers), signed), seen


def _catch_up(folder: Path, equilibrium: Equilibrium) -> None:
    """Writes what the last lesson taught, where a kill came between it and the tensors: who loads
    the folder reads those alone."""
    with locked(folder):
        saved = read_tensors(folder / TENSORS, AGAIN)
        learned = equilibrium.tensors()
        if saved.keys() != learned.keys() or any(
            not torch.equal(saved[name], tensor) for name, tensor in learned.items()
        ):
            _write_tensors(folder, equilibrium)


def _write_tensors(folder: Path, equilibrium: Equilibrium) -> None:
    """Replaces the learned tensors; a kill leaves the old ones or the new ones."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in equilibrium.tensors().items()}
    with full_disk_named(folder), replacing(folder / TENSORS) as half:
        half.write_bytes(save(tensors))
