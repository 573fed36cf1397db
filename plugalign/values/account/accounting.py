"""account(): reads runs, sorts their prompts, takes the figures, and writes the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugalign import pocket
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.evaluation.judging.load import Judge, load_judges
from plugalign.evaluation.run_folder.folder import MANIFEST
from plugalign.evaluation.run_folder.manifest import ModelRecord
from plugalign.files.folders import check_folder
from plugalign.files.shown import listed, printable, shown
from plugalign.values.account import sheets
from plugalign.values.account.compared import read_comparison, strata_of_comparison, stratum_of
from plugalign.values.account.figures import figures, scored
from plugalign.values.account.notes import Kind, add_note, check_note, read_notes
from plugalign.values.account.reading import TracedAnswer, TraceFile
from plugalign.values.account.records import now
from plugalign.values.account.report import Account, RunAccount, write
from plugalign.values.account.strata import Strata, make_strata
from plugalign.values.account.tracing import FILE

EVERY = "all strata"


def account(
    runs: Sequence[str | Path],
    *,
    prompts: str | Path | None = None,
    stratum: str | None = None,
    risk: Any = None,
    cuts: Sequence[float] | None = None,
    judges: Any = None,
    controllers: Mapping[str, str | Path] | None = None,
    incidents: Sequence[str] = (),
    overrides: Sequence[str] = (),
    by: str | None = None,
    out: str | Path | None = None,
) -> Account:
    """Writes the accountability report of runs.

    Args:
        runs: folders of `trace` and of `plugalign.compare`.
        prompts: the prompts' file of the runs, where strata are named now and not when they ran.
        stratum, risk, cuts: how prompts are sorted into strata, see `make_strata`; by default as
            the trace says.
        judges: what scores the answers of traces, see `load_judge`; comparisons have their own.
        controllers: by name the folders of a comparison's controllers, for their data sheets.
        incidents, overrides: what people report of the first run; kept in a file beside it.
        by: who reports it.
        out: the folder to write; the first run's by default.

    Raises:
        ValueError: for a folder without a run, a file that was changed, or a prompt that cannot be
            sorted.
    """
    folders = [_checked(Path(run)) for run in runs]
    if twice := [run for run in folders if folders.count(run) > 1]:
        raise ValueError(f"{printable(str(twice[0]))} is named twice; name each run once")
    if not folders:
        raise ValueError("there is no run to account for; name at least one folder")
    given: list[tuple[Kind, str]] = [("incident", text) for text in _several(incidents)]
    given += [("override", text) for text in _several(overrides)]
    for kind, text in given:
        check_note(kind, text, by)
    target = check_folder(folders[0] if out is None else out)
    if stratum is not None and prompts is None:
        raise ValueError(f"the field {stratum!r} is of the prompts' file; give that too")
    if prompts is not None and stratum is None and risk is None:
        raise ValueError(
            "the prompts' file is to sort prompts anew; name its field of strata or a judge of "
            "risk too, or leave it out to have the runs' own strata"
        )
    strata = None
    if prompts is not None:
        texts = load_prompts(prompts)
        strata = make_strata(texts, stratum, risk, cuts)
        sorting = strata.by_hash(texts)
    elif cuts is not None and risk is None:
        raise ValueError("cuts are of a judge's scores; name the judge too")
    loaded = [] if judges is None else list(load_judges(judges).values())
    options = _Sorting(None if strata is None else sorting, strata, risk, cuts)
    found = [_of_run(run, options, loaded, controllers or {}) for run in folders]
    _check_used(found, judges, controllers or {})
    if given:
        found[0] = _noted(found[0], folders[0], given, by)
    made = Account(target, now(), found)
    write(made)
    return made


def _several(notes: Sequence[str]) -> Sequence[str]:
    """Notes; a text is no list of them, and would be one a letter."""
    if isinstance(notes, str):
        raise TypeError(f"incidents and overrides are lists of texts, got {shown(notes)}")
    return notes


@dataclass(frozen=True)
class _Sorting:
    """How prompts are sorted now, if they are.

    Attributes:
        by_hash: the stratum by a prompt's hash.
        strata: of the prompts' file.
    """

    by_hash: Mapping[str, str] | None
    strata: Strata | None
    risk: Any
    cuts: Sequence[float] | None


def _checked(run: Path) -> Path:
    """A run's folder; also its trace file stands for it."""
    folder = run.parent if run.name == FILE else run
    if not ((folder / FILE).is_file() or (folder / MANIFEST).is_file()):
        raise ValueError(
            f"{printable(str(run))} holds no {FILE} and no {MANIFEST}; name a folder of plugalign "
            "trace or compare"
        )
    return folder


def _of_run(
    folder: Path, sorting: _Sorting, judges: Sequence[Judge], controllers: Mapping[str, str | Path]
) -> RunAccount:
    if (folder / FILE).is_file():
        return _of_trace(folder, sorting, judges)
    return _of_comparison(folder, sorting, controllers)


def _of_trace(folder: Path, sorting: _Sorting, judges: Sequence[Judge]) -> RunAccount:
    if sorting.risk is not None and sorting.by_hash is None:
        raise ValueError(
            f"{folder} holds hashes of prompts, which no judge can score; give the prompts too"
        )
    file = TraceFile(folder)
    answers = [each for each in file.answers() if each.tokens]
    if not answers:
        raise ValueError(
            f"{printable(str(folder))} holds no answer: the run was stopped before its first one; "
            "continue it with --resume"
        )
    names = [_stratum(each, sorting.by_hash) for each in answers]
    scores = scored(judges, answers)
    groups = {name: [i for i, each in enumerate(names) if each == name] for name in set(names)}
    pairs = sorted(groups.items())
    if len(pairs) > 1:
        pairs.append((EVERY, list(range(len(names)))))
    strata = []
    for group, chosen in pairs:
        of_group = {judge: [each[i] for i in chosen] for judge, each in scores.items()}
        strata.append(figures(group, [answers[i] for i in chosen], of_group))
    run = file.run
    return RunAccount(
        path=str(folder),
        model=run.model.model_dump(mode="json", by_alias=True),
        versions=run.versions,
        began=run.time,
        sorted_by=run.strata if sorting.strata is None else sorting.strata.how,
        controllers=sheets.of_trace(run.controllers),
        notes=read_notes(folder),
        verified=file.verified,
        strata=strata,
        temperature=float(run.request["gen_ai.request.temperature"]),
        top_p=float(run.request["gen_ai.request.top_p"]),
    )


def _stratum(each: TracedAnswer, by_hash: Mapping[str, str] | None) -> str:
    answer = each.answer
    if by_hash is None:
        return answer.stratum
    return stratum_of(answer.prompt_sha256, answer.prompt, by_hash)


def _of_comparison(
    folder: Path, sorting: _Sorting, controllers: Mapping[str, str | Path]
) -> RunAccount:
    by_hash, how = sorting.by_hash, "all prompts are one stratum"
    if sorting.strata is not None:
        how = sorting.strata.how
    elif sorting.risk is not None:
        cuts = None if sorting.cuts is None else tuple(sorting.cuts)
        strata, texts = strata_of_comparison(folder, sorting.risk, cuts)
        by_hash, how = strata.by_hash(texts), strata.how
    compared = read_comparison(folder, by_hash, how)
    manifest, known = compared.manifest, dict[str, str | Path]()
    if manifest.pocket:
        own = pocket.parts() / "controllers"
        known |= {each.name: each for each in own.iterdir() if each.is_dir()}
    known |= controllers
    model = manifest.settings.model or ModelRecord(name="not recorded", kind=None)
    return RunAccount(
        path=str(folder),
        model=model.model_dump(mode="json", by_alias=True),
        versions=manifest.versions,
        began=None,
        sorted_by=how,
        controllers=sheets.of_comparison(manifest.settings.methods, known),
        notes=read_notes(folder),
        compared=compared,
    )


def _check_used(
    found: Sequence[RunAccount], judges: Any, controllers: Mapping[str, str | Path]
) -> None:
    """Refuses judges and controllers that no run has a use for.

    Raises:
        ValueError: naming it, and what it is for.
    """
    compared = [run.compared.manifest.settings for run in found if run.compared is not None]
    if judges is not None and len(compared) == len(found):
        raise ValueError("judges score the answers of traces, and comparisons have their own")
    known = {name for settings in compared for name in settings.methods}
    if unknown := sorted(controllers.keys() - known):
        there = f"these have {listed(known)}" if known else "these are traces, which name their own"
        raise ValueError(
            f"{shown(unknown[0])} is no method of the comparisons that are accounted for; {there}"
        )


def _noted(
    run: RunAccount, folder: Path, given: Sequence[tuple[Kind, str]], by: str | None
) -> RunAccount:
    """The run with notes that are written down beside it now."""
    head = None if run.verified is None else run.verified.head
    for kind, text in given:
        add_note(folder, kind, text, by, head)
    return replace(run, notes=read_notes(folder))
