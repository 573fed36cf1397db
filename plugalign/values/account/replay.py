"""Does a traced run give the same tokens again? Its seed, hashes and versions say what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugalign.evaluation.comparison.prompts import Prompts, Row, load_prompts
from plugalign.evaluation.run_folder.describe import describe_chat, describe_model, versions
from plugalign.files.shown import shown
from plugalign.generation.chat_format import ChatChoice, choose_chat
from plugalign.loading import load_controllers, resolve_model
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts
from plugalign.values.account import controllers as parts
from plugalign.values.account.reading import TracedAnswer, TraceFile
from plugalign.values.account.recording import Recorder
from plugalign.values.account.records import RunLine
from plugalign.values.account.strata import ALL, Strata

MOST_POCKET_PROMPTS = 100


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Attributes:
        answers: how many were generated again; same: how many have the same token ids.
        first: the first that has not: prompt, sample, and the step at which it parts.
        versions: those that differ from the run's, with what they were and are.
    """

    answers: int
    same: int
    first: tuple[int, int, int] | None
    versions: Mapping[str, tuple[str, str]]

    def __str__(self) -> str:
        said = f"{self.same} of {self.answers} answers have the same tokens again"
        if self.first is not None:
            prompt, sample, step = self.first
            said += f"; the first other one is prompt {prompt}, sample {sample}, at token {step}"
        changed = [f"{name} was {old} and is {new}" for name, (old, new) in self.versions.items()]
        return said + "".join(f"; {each}" for each in changed)


def replay(
    path: Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    controllers: Mapping[str, Any] | None = None,
    prompts: str | Path | Sequence[Any] | None = None,
    dtype: str = "auto",
) -> Replay:
    """Generates the answers of a trace file again and compares their tokens.

    Args:
        path: the file, or the folder that it lies in.
        model, tokenizer: by default the one that the file names.
        controllers: by name; by default those in the folders that the file names.
        prompts: by default those in the file that the trace file names.

    Raises:
        ValueError: if the file's chain does not hold, or model, controllers or prompts are not
            those of the run; names what differs.
    """
    file = TraceFile(path)
    run, recorded = file.run, list(file.answers())
    texts = _prompts(run, prompts)
    _check_prompts(recorded, texts)
    given = _given(run, controllers)
    loaded = load_controllers(given)
    if model is None and not run.pocket and run.model_path is None:
        raise ValueError(f"the run does not say where {run.model.name} lies; give the model")
    model = run.model_path if model is None else model
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    before, now = run.model, describe_model(model, tokenizer)
    for what in ("weights", "vocabulary", "dtype"):
        if getattr(before, what) != getattr(now, what):
            raise ValueError(
                f"the model's {what} are not those of the run ({getattr(before, what)} then, "
                f"{getattr(now, what)} now); give the same model with --model"
            )
    folders = {name: str(g) if isinstance(g, (str, Path)) else None for name, g in given.items()}
    if differ := parts.differences(run.controllers, parts.described(loaded, folders)):
        name, what = next(iter(differ.items()))
        raise ValueError(f"the controller {shown(name)} is not that of the run: {what}")
    nothing = Strata("", (ALL,) * len(texts.texts), (None,) * len(texts.texts))
    chat = _chat(run, model, tokenizer)
    recorder = Recorder(model, tokenizer, loaded, texts, run.decoding, nothing, chat)
    return _compared(recorder, recorded, run)


def _given(run: RunLine, controllers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run's controllers, or where they lie."""
    found = dict(controllers or {})
    for name, record in run.controllers.items():
        if name in found:
            continue
        if record.folder is None:
            raise ValueError(f"the run does not say where {shown(name)} lies; give it by name")
        found[name] = record.folder
    if other := set(found) - set(run.controllers):
        raise ValueError(f"the run has no controller {shown(min(other))}")
    return {name: found[name] for name in run.controllers}


def _prompts(run: RunLine, prompts: Any) -> Prompts:
    source = run.prompts_path if prompts is None else prompts
    if source is None and run.pocket:
        source = pocket_prompts(MOST_POCKET_PROMPTS, PROMPT_SEED)
    if source is None:
        raise ValueError("the run's prompts were given as texts; give the same with --prompts")
    return load_prompts(source, run.count)


def _chat(run: RunLine, model: Any, tokenizer: Any) -> ChatChoice:
    """The turns that the run's prompts were put into.

    Raises:
        ValueError: if the tokenizer's chat template is another one now, or there is none.
    """
    if run.chat is None:
        return choose_chat(model, tokenizer, "off")
    choice = choose_chat(model, tokenizer, "on", run.chat.system)
    if describe_chat(choice).template != run.chat.template:
        raise ValueError(
            "the tokenizer's chat template is not that of the run; give the same with --model"
        )
    return choice


def _check_prompts(recorded: Sequence[TracedAnswer], prompts: Prompts) -> None:
    """Refuses prompts whose hashes are not those of the run."""
    hashes = prompts.hashes()
    for each in recorded:
        number = each.answer.prompt
        if number >= len(hashes) or hashes[number] != each.answer.prompt_sha256:
            raise ValueError(
                f"prompt {number} is not that of the run: its hash differs; give the same prompts "
                "with --prompts"
            )


def _compared(recorder: Recorder, recorded: Sequence[TracedAnswer], run: RunLine) -> Replay:
    wanted = {(each.answer.prompt, each.answer.sample): each.ids for each in recorded}
    parted = dict[Row, int]()
    for batch in recorder.batches:
        if not any(row in wanted for row in batch):
            continue
        for row, lines in recorder.batch(batch):
            found = [line.token for line in lines if line.kind == "token"]
            if row in wanted and found != wanted[row]:
                pairs = zip(found, wanted[row], strict=False)
                alike = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
                parted[row] = min(len(found), len(wanted[row])) if alike is None else alike
    first = next(((*row, step) for row, step in sorted(parted.items())), None)
    changed = {
        name: (run.versions.get(name, "unknown"), version)
        for name, version in versions().items()
        if run.versions.get(name) != version
    }
    return Replay(len(wanted), len(wanted) - len(parted), first, changed)
