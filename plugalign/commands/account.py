"""``plugalign account``: the accountability report of traced and compared runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import compare as shared
from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of plugalign trace or compare.")
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="The runs' prompts, where strata are named now; runs may hold hashes only."),
]
Stratum = Annotated[
    str | None, typer.Option(metavar="FIELD", help="The field of --prompts that names strata.")
]
Risk = Annotated[
    str | None, typer.Option(metavar="JUDGE", help="Sorts prompts into strata by its score.")
]
Cuts = Annotated[
    str | None, typer.Option(metavar="A,B", help="Where scores are cut.", show_default="0.5")
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]JUDGE", help="Scores a trace's answers, see compare; may be repeated."
    ),
]
Controllers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER", help="Of a comparison, for its data sheet; may be repeated."
    ),
]
Incident = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Something went wrong; kept beside the first run."),
]
Override = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A person decided otherwise; kept beside the first run."),
]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who reports that.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write.", show_default="the first run")]


def account(
    runs: Runs,
    prompts: Prompts = None,
    stratum: Stratum = None,
    risk: Risk = None,
    cuts: Cuts = None,
    judge: Judges = None,
    controllers: Controllers = None,
    incident: Incident = None,
    override: Override = None,
    by: By = None,
    out: Out = None,
    trust: shared.Trust = False,
) -> None:
    """Account for runs: by stratum who changed what, data sheets, fingerprints, incidents."""
    judges: Any = options.judges(judge)
    if trust:
        judges = shared.trusted_judges(judges)
        risk = None if risk is None else shared.trusted_judges([risk])[0]
    if by is not None and not (incident or override):
        raise ValueError("--by names who reports an --incident or --override; give one of these")
    given = options.named(controllers, "--controllers")
    sorted_at = options.shares(cuts, "--cuts")
    quiet_libraries()
    from plugalign.values.account.accounting import account as run

    found = run(
        runs,
        prompts=prompts,
        stratum=stratum,
        risk=risk,
        cuts=sorted_at,
        judges=judges,
        controllers=given,
        incidents=incident or (),
        overrides=override or (),
        by=by,
        out=out,
    )
    for sentence in found.findings:
        show(sentence)
    show(f"The report: {found.page}")
