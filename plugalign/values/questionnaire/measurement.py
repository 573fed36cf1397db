"""measure(): puts a questionnaire to models, plain and steered, and says whether it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group

from plugalign.engine.context_length import context_length_of
from plugalign.evaluation.comparison.variants import varied
from plugalign.evaluation.run_folder.describe import conditions, versions
from plugalign.evaluation.run_folder.folder import MANIFEST, REPORT, locked, open_run, write_json
from plugalign.files.fingerprint import fingerprint
from plugalign.files.folders import check_folder
from plugalign.files.shown import shown
from plugalign.loading import load_controllers
from plugalign.threads import torch_threads
from plugalign.values.questionnaire.asking import Answered, Survey, ask
from plugalign.values.questionnaire.findings import Profile, profile
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.instrument_file import read_instrument
from plugalign.values.questionnaire.questions import FORMATS, Format
from plugalign.values.questionnaire.report import write_report
from plugalign.values.questionnaire.respondent import NEW_TOKENS, ModelRespondent
from plugalign.values.questionnaire.rows import Row, described_rows, model_rows
from plugalign.values.questionnaire.table import values_table

VALUES = "values.json"


@dataclass(frozen=True)
class Measurement:
    """What was found, and where its files are.

    Attributes:
        out: the folder with values.json, report.html, readings.jsonl, answers.jsonl and
            manifest.json.
        profiles: by row: of each model itself, and of the model under each controller.
    """

    out: Path
    instrument: Instrument = field(repr=False)
    profiles: dict[str, Profile]

    @property
    def report(self) -> Path:
        """The report, one self-contained HTML file."""
        return self.out / REPORT

    def table(self) -> Group:
        """The findings as tables for a terminal, the verdict first."""
        return values_table(self.instrument, list(self.profiles.values()))

    def __rich__(self) -> Group:
        return self.table()


def measure(
    models: Sequence[Any],
    *,
    instrument: str | Path | Instrument = "foundations",
    controllers: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    formats: Sequence[str] = FORMATS,
    chat: str = "auto",
    system: str | None = None,
    refusals: bool = True,
    out: str | Path = "plugalign-values",
    resume: bool = False,
    dtype: str = "auto",
    threads: int | None = None,
) -> Measurement:
    """Puts a questionnaire to models, side by side.

    Args:
        models: hub ids or folders, or pairs of a model and its tokenizer.
        instrument: an instrument file, or the name of one that ships with the package, see
            `plugalign.values.questionnaire.instrument_file.read_instrument`.
        controllers: by name, a controller or its folder; each steers every model in a row of its
            own, beside the model itself.
        settings: see `plugalign.compare`.
        formats: "options", "letters" or both; the first one scores.
        chat: "auto" asks instruct models in a chat, see
            `plugalign.generation.chat_format.choose_chat`; "on" insists, "off" never.
        system: the system message of the chats.
        refusals: whether items are also asked in words, to count what is declined.
        out: the folder to write; it must not hold another run.
        resume: continues a run in ``out``.
        dtype: the precision of models that are given by name, see `plugalign.compare`.
        threads: CPU threads of torch.

    Raises:
        ValueError: for anything wrong with the arguments, before any model is asked.
    """
    if not isinstance(refusals, bool):
        raise TypeError(f"refusals must be True or False, got {shown(refusals)}")
    folder = check_folder(out)
    given = instrument if isinstance(instrument, Instrument) else read_instrument(instrument)
    survey = Survey(given, _checked_formats(formats), refusals)
    loaded = load_controllers(controllers or {})
    rows = model_rows(models, varied(loaded, settings or {}), chat, system, dtype)
    respondents = {name: ModelRespondent(row.steered, row.chat) for name, row in rows.items()}
    _check_lengths(survey, rows, respondents)
    with torch_threads(threads), locked(folder):
        manifest = _manifest(survey, rows, system)
        open_run(folder, manifest, resume=resume)
        answered = ask(survey, respondents, folder, manifest["run"])
        found = summed_up(survey, answered, {n: r.reference for n, r in rows.items()})
        write_json(folder / VALUES, _content(given, manifest, found))
        write_report(folder / REPORT, given, list(found.values()), manifest)
    return Measurement(folder, given, found)


def summed_up(
    survey: Survey, answered: Mapping[str, Answered], references: Mapping[str, str | None]
) -> dict[str, Profile]:
    """The profiles of all rows, by their names.

    Args:
        references: by row, that of the same model without controllers, which stands before it.
    """
    found: dict[str, Profile] = {}
    for name, each in answered.items():
        reference = references[name]
        beside = None if reference is None else found[reference]
        found[name] = profile(name, each.readings, survey.scored, each.words, beside)
    return found


def _checked_formats(formats: Sequence[str]) -> tuple[Format, ...]:
    if isinstance(formats, str) or not formats or len(set(formats)) < len(formats):
        raise ValueError(f"formats are {' and '.join(FORMATS)}, each once; got {shown(formats)}")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"formats are {' and '.join(FORMATS)}, got {shown(unknown[0])}")
    known: dict[str, Format] = {name: name for name in FORMATS}
    return tuple(known[name] for name in formats)


def _check_lengths(
    survey: Survey, rows: Mapping[str, Row], respondents: Mapping[str, ModelRespondent]
) -> None:
    """Refuses questions that are longer than a model's context.

    Raises:
        ValueError: naming the model and both numbers.
    """
    for name, respondent in respondents.items():
        context = context_length_of(rows[name].steered.model)
        if rows[name].reference is not None or context is None:
            continue
        longest = NEW_TOKENS + max(len(respondent.ids(each.prompt)) for each in survey.asked)
        if longest > context:
            raise ValueError(
                f"a question and its answer take {longest} tokens, more than the context of "
                f"{shown(name)} ({context}); ask in the format options alone, or shorten wordings"
            )


def _manifest(survey: Survey, rows: Mapping[str, Row], system: str | None) -> dict[str, Any]:
    """Everything that the run depends on; "settings" and "versions" say which run it is."""
    instrument = survey.instrument
    described: dict[str, Any] = {
        "rows": described_rows(rows),
        "instrument": {
            "name": instrument.name,
            "sha256": fingerprint(json.dumps(asdict(instrument), sort_keys=True)),
        },
        "formats": list(survey.formats),
        "in_words": survey.in_words,
        "system": system,
    }
    which = {"settings": described, "versions": versions()}
    device = next(iter(rows.values())).steered.model.device
    return {
        **which,
        "conditions": conditions(device).model_dump(),
        "run": fingerprint(json.dumps(which, sort_keys=True))[:16],
    }


def _content(
    instrument: Instrument, manifest: Mapping[str, Any], profiles: Mapping[str, Profile]
) -> dict[str, Any]:
    """The content of values.json."""
    return {
        "instrument": {
            "name": instrument.name,
            "source": instrument.source,
            "licence": instrument.licence,
            "note": instrument.note,
            "scale": [0, instrument.levels - 1],
            "centred": instrument.centre,
        },
        "scored_by": manifest["settings"]["formats"][0],
        "rows": {name: each.to_json() for name, each in profiles.items()},
        "manifest": MANIFEST,
    }
