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

from plugalign.evaluation.run_folder.folder import replace_text, write_json
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.account import sheets
from plugalign.values.account.compared import Compared
from plugalign.values.account.figures import FEW, LARGE, Stratum, to_json
from plugalign.values.account.page import templates
from plugalign.values.account.reading import Verified
from plugalign.values.account.records import NoteLine

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
        temperature, top_p: of a trace, with which tokens were drawn.
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
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def cut(self) -> str:
        """What acted on the controllers' distribution before a token was drawn."""
        return f"temperature {self.temperature:g} and top-p {self.top_p:g}"

    @property
    def drawn_as_bounded(self) -> bool:
        """Whether tokens were drawn of the distribution that bounds hold of."""
        return self.temperature == 1 and self.top_p == 1

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


def _findings(run: RunAccount) -> Iterator[str]:
    """What a reader must know of one run."""
    if run.strata:
        every = run.strata[-1]
        yield (
            f"{run.path}: the most probable token was changed at {_percent(every.changed)} of its "
            f"tokens, in the mean over {every.prompts} prompts; KL {every.kl.value:.3f} nats each."
        )
    for each in run.controllers:
        if each.status != sheets.SAME:
            yield f"Controller {each.name} of {run.path}: {each.status}."
    for stratum in run.strata:
        for owner, bounds in stratum.bounds.items():
            if bounds.excess is not None and bounds.excess > 1e-6:
                yield (
                    f"A bound of {owner} was broken in {stratum.name}: by {bounds.excess:.3g} at "
                    "the worst token."
                )
    if not run.drawn_as_bounded and any(stratum.bounds for stratum in run.strata):
        yield (
            f"Bounds in {run.path} hold before {run.cut}, and not of what was drawn after these."
        )
    if run.verified is not None:
        yield _chain_finding(run.path, run.verified)
    if run.notes:
        kinds = [note.kind for note in run.notes]
        counts = [f"{kind}s: {kinds.count(kind)}" for kind in ("incident", "override")]
        yield f"What people reported of {run.path}: {', '.join(counts)}."
    names = {stratum.name for stratum in run.strata if stratum.few}
    names |= {each.stratum for each in (run.compared.figures if run.compared else ()) if each.few}
    if names:
        listed = ", ".join(sorted(names))
        yield f"Fewer than {FEW} prompts, so that intervals say little: {listed} of {run.path}."
    if unknown := [c.name for c in run.controllers if c.sheet and c.sheet["license"] == "unknown"]:
        yield f"Nobody has stated a licence of {', '.join(unknown)} of {run.path}."


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


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


def write(made: Account) -> None:
    """Writes the report's three files."""
    made.out.mkdir(parents=True, exist_ok=True)
    pages = templates()
    values = {"account": made, "few": FEW, "large": LARGE, "same": sheets.SAME, "words": WORDS}
    write_json(made.out / JSON, made.to_json())
    for name in (MARKDOWN, HTML):
        replace_text(made.out / name, pages.get_template(f"{name}.j2").render(**values))
