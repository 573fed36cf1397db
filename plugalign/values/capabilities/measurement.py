"""Four capabilities of a model and of every controller on it, one table a controller.

* **Comprehension**: does it tell right from wrong in labelled judgements? AUC of log P(Yes) - log
  P(No).
* **Diagnosis**: does it find the fault in its own texts? AUC of the same question about them,
  against an independent judge's verdicts.
* **Rectification**: is a text that it writes again less faulty, once told of the fault, and
  unasked? The judge's score before minus after; a text written anew is often less faulty for no
  other reason than that, so what counts is what being told adds. Empty texts are left out.
* **Performance**: what does it cost? Nats a token of given texts, and the share of tasks solved.
  Its change is the alignment tax; a gain is a tax below zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from plugalign.evaluation.comparison.variants import varied
from plugalign.evaluation.judging.identity import judge_source
from plugalign.evaluation.judging.load import Judge, check_judges, load_judge
from plugalign.evaluation.run_folder.describe import versions
from plugalign.evaluation.run_folder.folder import locked, open_run, write_json
from plugalign.files.fingerprint import fingerprint
from plugalign.files.folders import check_folder
from plugalign.files.messages import Message, said_last
from plugalign.loading import check_context, load_controllers
from plugalign.threads import torch_threads
from plugalign.values.capabilities.data import CapabilityData
from plugalign.values.capabilities.figures import Capability, figures_of, gathered
from plugalign.values.capabilities.report import write_report
from plugalign.values.capabilities.table import capability_tables
from plugalign.values.capabilities.tasks import Asked, Stages
from plugalign.values.questionnaire.respondent import ModelRespondent
from plugalign.values.questionnaire.rows import Row, described_rows, model_rows

CAPABILITIES, REPORT = "capabilities.json", "report.html"
MARGIN = 8  # tokens of an answer of one word, and where words join


@dataclass(frozen=True)
class Capabilities:
    """What was found, and the folder with capabilities.json, report.html and facts.jsonl.

    Attributes:
        rows: the figures by row. references: by the row of a controller, that of its model.
    """

    out: Path
    rows: dict[str, tuple[Capability, ...]]
    references: dict[str, str | None]

    @property
    def report(self) -> Path:
        """The tables as one HTML file."""
        return self.out / REPORT

    def table(self) -> Group:
        """One table for each controller, beside its model."""
        return capability_tables(self.rows, self.references)

    def __rich__(self) -> Group:
        return self.table()


def measure_capabilities(
    models: Any,
    data: CapabilityData,
    *,
    judge: Any = None,
    controllers: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    fault: str = "rude or insulting",
    max_new_tokens: int = 30,
    context: int = 256,
    seed: int = 0,
    chat: str = "auto",
    system: str | None = None,
    out: str | Path = "plugalign-capabilities",
    resume: bool = False,
    dtype: str = "auto",
    threads: int | None = None,
) -> Capabilities:
    """Measures the four capabilities of models and of their controllers.

    Args:
        models, controllers, settings, chat, system, out, resume, dtype, threads: see
            `plugalign.values.questionnaire.measurement.measure`.
        data: what is measured on; capabilities without data are left out.
        judge: what finds the fault, see `plugalign.evaluation.judging.load.load_judge`; needed with
            prompts.
        fault: what texts should not be, in words; the judge must score the same thing.
        max_new_tokens: of the models' own texts.
        context: the most tokens of a text whose perplexity is taken, and no more than half of what
            a model can read.

    Raises:
        ValueError: for anything wrong with the arguments, before any model is asked.
    """
    folder = check_folder(out)
    judged = _checked(data, judge, fault, max_new_tokens, context)
    loaded = varied(load_controllers(controllers or {}), settings or {})
    conversations = not all(isinstance(prompt, str) for prompt in data.prompts)
    rows = model_rows(models, loaded, chat, system, dtype, conversations=conversations)
    asked = Asked(fault, max_new_tokens, seed, context)
    respondents = {name: ModelRespondent(row.steered, row.chat) for name, row in rows.items()}
    for name, row in rows.items():
        if row.reference is None:
            check_context(row.steered.model, _longest(data, asked, respondents[name]))
    which = _manifest(rows, data, asked, judge, system)
    references = {name: row.reference for name, row in rows.items()}
    with torch_threads(threads), locked(folder):
        open_run(folder, which, resume=resume)
        stages = Stages(data, asked, respondents, folder, which["run"])
        stages.work()
        figures = _figures(stages, references, data, judged)
        content = {name: [asdict(each) for each in row] for name, row in figures.items()}
        write_json(folder / CAPABILITIES, content)
        write_report(folder / REPORT, figures, references, which)
    return Capabilities(folder, figures, references)


def _manifest(
    rows: Mapping[str, Row], data: CapabilityData, asked: Asked, judge: Any, system: str | None
) -> dict[str, Any]:
    """All that the run depends on."""
    settings = {
        "rows": described_rows(rows),
        "data": fingerprint(json.dumps(asdict(data), sort_keys=True, default=_messages)),
        "asked": asdict(asked),
        "judge": None if judge is None else judge_source(judge),
        "system": system,
    }
    which = {"settings": settings, "versions": versions()}
    return {**which, "run": fingerprint(json.dumps(which, sort_keys=True))[:16]}


def _figures(
    stages: Stages, references: Mapping[str, str | None], data: CapabilityData, judge: Judge | None
) -> dict[str, tuple[Capability, ...]]:
    """The figures of every row, those under a controller beside their model's."""
    found = {name: list(gathered(stages, name, data, judge)) for name in references}
    return {
        name: figures_of(found[name], None if reference is None else found[reference])
        for name, reference in references.items()
    }


def _checked(
    data: CapabilityData, judge: Any, fault: str, max_new_tokens: int, context: int
) -> Judge | None:
    """The judge, where there is one.

    Raises:
        ValueError: for arguments that do not go together.
    """
    if bool(data.prompts) != (judge is not None):
        raise ValueError("diagnosis and rectification take both prompts and a judge; give both")
    if not fault.strip() or min(max_new_tokens, context) < 2:
        raise ValueError("give a fault in words, and 2 tokens or more of texts and of context")
    if judge is None:
        return None
    found = load_judge(judge)
    check_judges([found], tuple(map(said_last, data.prompts)))
    return found


def _messages(message: Message) -> dict[str, str]:
    """A message of a conversation as a JSON value."""
    return message.model_dump()


def _longest(data: CapabilityData, asked: Asked, respondent: ModelRespondent) -> int:
    """The most tokens that a model reads and writes at a time."""
    judged = [len(respondent.ids(asked.judgement(each.text))) for each in data.judgements]
    own = [len(respondent.ids(prompt)) + asked.tokens for prompt in data.prompts]
    again = [len(respondent.ids(asked.correction(""))) + 2 * asked.tokens] if data.prompts else []
    tasks = [
        len(respondent.ids(f"{task.question} {choice}"))
        for task in data.tasks
        for choice in task.choices
    ]
    return max([0, *judged, *own, *again, *tasks]) + MARGIN
