"""The accountability report of runs: HTML, Markdown and JSON.

It supports record-keeping and oversight; it is no statement that anything conforms to a law or a
standard, and does not say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from plugalign import pocket
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.evaluation.judging.load import Judge, load_judges
from plugalign.evaluation.run_folder.folder import MANIFEST, replace_text, write_json
from plugalign.files.folders import check_folder
from plugalign.files.shown import printable
from plugalign.values.account import sheets
from plugalign.values.account.compared import (
    Compared,
    read_comparison,
    strata_of_comparison,
    stratum_of,
)
from plugalign.values.account.figures import FEW, LARGE, Stratum, figures, scored, to_json
from plugalign.values.account.notes import Kind, add_note, read_notes
from plugalign.values.account.page import environment
from plugalign.values.account.reading import TracedAnswer, TraceFile, Verified
from plugalign.values.account.records import NoteLine, now
from plugalign.values.account.strata import Strata, make_strata
from plugalign.values.account.tracing import FILE

JSON, MARKDOWN, HTML = "account.json", "account.md", "account.html"
KEPT = timedelta(days=184)  # six months, whichever they are
WORDS = (  # a part of the account, the functions of NIST's framework, the Act's articles
    (
        "strata, prompts by hash, who changed which token",
        "MEASURE",
        "art. 12(2)(a): situations that may present a risk",
    ),
    (
        "KL, bounds and judged scores, with intervals",
        "MEASURE",
        "art. 12(2)(b): post-market monitoring",
    ),
    (
        "incidents and overrides that people report",
        "MANAGE, GOVERN",
        "art. 12(2)(c): monitoring of operation",
    ),
    ("data sheets: data, licence, intended use, limits", "MAP", ""),
    ("fingerprints, versions, settings, seed", "GOVERN", ""),
    (
        "the hash-chained file, and until when it is kept",
        "GOVERN",
        "art. 19: logs are kept for six months at least",
    ),
)


@dataclass(frozen=True)
class RunAccount:
    """One run: a trace or a comparison.

    Attributes:
        path: its folder.
        model: the model's record; versions, began: of the run, as far as it says.
        verified, strata: of a trace; compared: of a comparison.
        notes: what people reported.
    """

    path: str
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    began: str | None
    sorted_by: str
    controllers: Sequence[sheets.ControllerAccount]
    notes: Sequence[NoteLine]
    verified: Verified | None = None
    strata: Sequence[Stratum] = ()
    compared: Compared | None = None

    @property
    def keep_until(self) -> str | None:
        """The day until which its files should be kept at least, six months after it began."""
        if self.began is None:
            return None
        return str((datetime.fromisoformat(self.began) + KEPT).date())


@dataclass(frozen=True)
class Account:
    """An account of runs.

    Attributes:
        out: where account.html, account.md and account.json are.
    """

    out: Path
    time: str
    runs: Sequence[RunAccount]

    @property
    def page(self) -> Path:
        """The report."""
        return self.out / HTML

    @property
    def findings(self) -> list[str]:
        """What a reader must know first, a sentence each."""
        return [sentence for run in self.runs for sentence in _findings(run)]

    def to_json(self) -> dict[str, Any]:
        """The content of account.json."""
        return {
            "time": self.time,
            "findings": self.findings,
            "runs": [_run_json(run) for run in self.runs],
        }


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
    if not folders:
        raise ValueError("there is no run to account for; name at least one folder")
    target = check_folder(folders[0] if out is None else out)
    if stratum is not None and prompts is None:
        raise ValueError(f"the field {stratum!r} is of the prompts' file; give that too")
    strata = None
    if prompts is not None:
        texts = load_prompts(prompts)
        strata = make_strata(texts, stratum, risk, cuts)
        sorting = strata.by_text(texts)
    elif cuts is not None and risk is None:
        raise ValueError("cuts are of a judge's scores; name the judge too")
    loaded = [] if judges is None else list(load_judges(judges).values())
    options = _Sorting(None if strata is None else sorting, strata, risk, cuts)
    found = [_of_run(run, options, loaded, controllers or {}) for run in folders]
    given: list[tuple[Kind, str]] = [("incident", text) for text in incidents]
    given += [("override", text) for text in overrides]
    if given:
        found[0] = _noted(found[0], folders[0], given, by)
    made = Account(target, now(), found)
    _write(made)
    return made


@dataclass(frozen=True)
class _Sorting:
    """How prompts are sorted now, if they are.

    Attributes:
        by_text: the stratum by a prompt's hash.
        strata: of the prompts' file.
    """

    by_text: Mapping[str, str] | None
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
    if sorting.risk is not None and sorting.by_text is None:
        raise ValueError(
            f"{folder} holds hashes of prompts, which no judge can score; give the prompts too"
        )
    file = TraceFile(folder)
    answers = [each for each in file.answers() if each.tokens]
    names = [_stratum(each, sorting.by_text) for each in answers]
    scores = scored(judges, answers)
    groups = dict.fromkeys(names) if len(set(names)) == 1 else {**dict.fromkeys(names), "all": None}
    strata = []
    for group in groups:
        chosen = [i for i, name in enumerate(names) if group in (name, "all")]
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
    )


def _stratum(each: TracedAnswer, by_text: Mapping[str, str] | None) -> str:
    answer = each.answer
    if by_text is None:
        return answer.stratum
    return stratum_of(answer.prompt_sha256, answer.prompt, by_text)


def _of_comparison(
    folder: Path, sorting: _Sorting, controllers: Mapping[str, str | Path]
) -> RunAccount:
    by_text, how = sorting.by_text, "nothing, all prompts are one"
    if sorting.strata is not None:
        how = sorting.strata.how
    elif sorting.risk is not None:
        cuts = None if sorting.cuts is None else tuple(sorting.cuts)
        strata, texts = strata_of_comparison(folder, sorting.risk, cuts)
        by_text, how = strata.by_text(texts), strata.how
    compared = read_comparison(folder, by_text, how)
    manifest, known = compared.manifest, dict[str, str | Path]()
    if manifest.pocket:
        own = pocket.parts() / "controllers"
        known |= {each.name: each for each in own.iterdir() if each.is_dir()}
    known |= controllers
    model = manifest.settings.model
    return RunAccount(
        path=str(folder),
        model={} if model is None else model.model_dump(mode="json", by_alias=True),
        versions=manifest.versions,
        began=None,
        sorted_by=how,
        controllers=sheets.of_comparison(manifest.settings.methods, known),
        notes=read_notes(folder),
        compared=compared,
    )


def _noted(
    run: RunAccount, folder: Path, given: Sequence[tuple[Kind, str]], by: str | None
) -> RunAccount:
    """The run with notes that are written down beside it now."""
    head = None if run.verified is None else run.verified.head
    for kind, text in given:
        add_note(folder, kind, text, by, head)
    return _replaced(run, read_notes(folder))


def _replaced(run: RunAccount, notes: Sequence[NoteLine]) -> RunAccount:
    values = {name: getattr(run, name) for name in run.__dataclass_fields__}
    return RunAccount(**{**values, "notes": notes})


def _findings(run: RunAccount) -> Iterator[str]:
    """What a reader must know of one run, the worst first."""
    for each in run.controllers:
        if each.status != sheets.SAME:
            yield f"Controller {each.name} of {run.path}: {each.status}."
    for stratum in run.strata[:-1] if len(run.strata) > 1 else run.strata:
        for owner, bounds in stratum.bounds.items():
            if bounds.excess is not None and bounds.excess > 1e-6:
                yield (
                    f"A bound of {owner} was broken in {stratum.name}: by {bounds.excess:.3g} at "
                    "the worst token."
                )
    if run.verified is not None:
        yield _chain_finding(run.path, run.verified)
    if run.notes:
        kinds = [note.kind for note in run.notes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in ("incident", "override"))
        yield f"People reported of {run.path}: {counts}."
    names = {stratum.name for stratum in run.strata if stratum.few}
    names |= {each.stratum for each in (run.compared.figures if run.compared else ()) if each.few}
    if names:
        listed = ", ".join(sorted(names))
        yield f"Fewer than {FEW} prompts, so that intervals say little: {listed} of {run.path}."
    if unknown := [c.name for c in run.controllers if c.sheet and c.sheet["license"] == "unknown"]:
        yield f"Nobody has stated a licence of {', '.join(unknown)}."


def _chain_finding(path: str, verified: Verified) -> str:
    said = f"{path}: the chain of {verified.lines} lines holds"
    if not verified.complete:
        said += ", but the run has not ended, or lines were removed at the end"
    if verified.resumed:
        said += f"; it was continued {verified.resumed} times"
    return said + f". Its last hash is {verified.head}."


def _run_json(run: RunAccount) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": run.path,
        "model": dict(run.model),
        "versions": dict(run.versions),
        "began": run.began,
        "keep_until": run.keep_until,
        "strata_by": run.sorted_by,
        "controllers": [
            {**to_json(each), "component": each.component()} for each in run.controllers
        ],
        "notes": [note.model_dump(mode="json") for note in run.notes],
    }
    if run.verified is not None:
        chain = to_json(run.verified)
        del chain["run"]
        found |= {"chain": chain, "strata": to_json(run.strata)}
    if run.compared is not None:
        found["methods"] = to_json(run.compared.figures)
    return found


def _write(made: Account) -> None:
    made.out.mkdir(parents=True, exist_ok=True)
    templates = environment()
    values = {"account": made, "few": FEW, "large": LARGE, "same": sheets.SAME, "words": WORDS}
    write_json(made.out / JSON, made.to_json())
    for name in (MARKDOWN, HTML):
        replace_text(made.out / name, templates.get_template(f"{name}.j2").render(**values))
