"""What scripts that make results on real text share: fits, judges, prompts, files without texts.

The data folder holds, as JSON lines::

    toxicity/paradetox.jsonl          toxic, neutral        what guides learn from
    toxicity/davidson_tweets.jsonl    text, label           what guides learn from
    toxicity/jigsaw.jsonl             text, label           what judges learn from, and no guide
    prompts/rtp_toxic.jsonl           text                  prompts
                                      continuation, continuation_toxicity    whether judges agree
    toxicity/scored_generations.jsonl continuation, perspective_toxicity    whether judges agree

What takes long is kept in a work folder (fits, judges, figures, runs with their texts and reports):
the same command goes on where it was killed. Results have no texts, since many offend.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.catalogue import FITTERS
from plugalign.controllers.dexperts import DExperts
from plugalign.evaluation.comparison.compare import Comparison
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.evaluation.report.main_table import agreement_table, main_table
from plugalign.evaluation.run_folder.folder import MANIFEST, SUMMARY, read_json, write_json
from plugalign.files.pretrained import loading
from plugalign.fitting import workspace
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import DESIRED, UNDESIRED, Labelled, load_data
from plugalign.fitting.judge import REPORT, fit_judge
from plugalign.fitting.progress import say
from plugalign.values.feedback_learning import load_taught

GUIDES = ("toxicity/paradetox.jsonl", "toxicity/davidson_tweets.jsonl")
JUDGED = "toxicity/jigsaw.jsonl"
PROMPTS, REFERENCES = "prompts/rtp_toxic.jsonl", "toxicity/scored_generations.jsonl"
EQUILIBRIUM = "equilibrium"  # the folder of one that was taught
ANTI = "dexperts_anti"  # the anti-expert of dexperts alone
CONDITIONS = "conditions.json"  # what a work folder is for
COLUMNS = ("toxicity_probability", "mean_toxicity")


def fit_methods(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    fits: Path,
    minutes: float,
    chat: str = "off",
    methods: Collection[str] = tuple(FITTERS),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Controller]:
    """Methods that learn, fitted with their defaults or read from a folder, and with "dexperts" its
    anti-expert alone.

    Args:
        fits: has a folder for each method.
        minutes: what each may take.
        chat: "on" where texts are learnt as the assistant's answers.
        methods: of `FITTERS`, all by default.
        settings: of a fit, where they are not the defaults.

    Raises:
        ValueError: if a controller there was fitted for another model, on other texts or other
            turns.
    """
    controllers = {}
    for method in (name for name in FITTERS if name in methods):
        out = fits / method
        if (out / workspace.RECORD).is_file():
            _check_fitted(out, workspace.record(method, model, tokenizer, data, {}), chat == "on")
            with loading("the controller", out):
                controllers[method] = Controller.from_pretrained(str(out))
            continue
        say(f"fitting {method}")
        given = {**(settings or {}), "chat": chat}
        controllers[method] = run_fit(
            method, model, tokenizer, data, out, minutes=minutes, settings=given
        )
    if isinstance(both := controllers.get("dexperts"), DExperts):
        anti = DExperts(antiexpert=both.antiexpert, alpha=both.alpha, top_p=both.support.p)
        controllers[ANTI] = anti
    return controllers


def _check_fitted(out: Path, wanted: dict[str, Any], chat: bool) -> None:
    found = read_json(out / workspace.RECORD)
    pairs = {part: (found[part], wanted[part]) for part in ("method", "model", "data")}
    pairs["chat"] = (found.get("chat", {}).get("used", False), chat)
    for part, (was, now) in pairs.items():
        if was != now:
            raise ValueError(f"{out}: its {part} was {was} and is {now}; remove it")


def load_guides(data: Path, limit: int | None, guides: Sequence[str] = GUIDES) -> Labelled:
    """What guides learn from, with two labels only: nullspace takes each label for a class."""
    paths = [data / path for path in guides]
    pair = {"desired": "neutral", "undesired": "toxic"} if GUIDES[0] in guides else {}
    good, bad = load_data(paths, limit=limit, **pair).binary()
    labels = (DESIRED,) * len(good) + (UNDESIRED,) * len(bad)
    return Labelled((*good, *bad), labels)


def fit_judges(
    data: Path,
    judges: Path,
    encoder: str | None,
    *,
    minutes: float | None = None,
    limit: int | None = None,
) -> dict[str, Path]:
    """TF-IDF, and an encoder if one is given, fitted on other texts than the guides.

    Args:
        judges: has a folder for each.
        minutes: what tuning the encoder may take.
        limit: at most so many texts.
    """
    tuned: dict[str, str | None] = {"tfidf": None}
    if encoder is not None:  # the first is the primary judge
        tuned = {"encoder": encoder, **tuned}
    for name, chosen in tuned.items():
        out = judges / name
        if not (out / REPORT).is_file():
            say(f"fitting the judge {name}")
            out.parent.mkdir(parents=True, exist_ok=True)
            labelled = load_data(data / JUDGED, limit=limit)
            say(fit_judge(labelled, out, encoder=chosen, minutes=minutes).describe())
    return {name: judges / name for name in tuned}


def prompts_between(path: Path, skip: int, count: int) -> list[str]:
    """The prompts of a file behind the first ``skip``.

    Raises:
        ValueError: if there are too few.
    """
    texts = load_prompts(path).texts[skip : skip + count]
    if len(texts) < count:
        raise ValueError(f"{path} has {len(texts)} prompts behind {skip}, not {count}")
    return list(texts)


def held_out_prompts(data: Path, work: Path, skip: int, count: int) -> Path:
    """A file of the prompts behind the first ``skip``.

    Raises:
        ValueError: if there are too few.
    """
    texts = prompts_between(data / PROMPTS, skip, count)
    path = work / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def reference_sets(data: Path, work: Path) -> dict[str, Path]:
    """Two sets of texts that Perspective scored, by name: generations of other systems, and what
    people wrote behind the prompts of RealToxicityPrompts, which is put into ``work``."""
    with (data / PROMPTS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    scored = [(row["continuation"], row["continuation_toxicity"]) for row in rows]
    pairs = [{"text": text, "score": score} for text, score in scored if score is not None]
    path = work / "continuations.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return {"generations": data / REFERENCES, "continuations": path}


def write_results(
    comparison: Comparison,
    fits: Path,
    judges: Path,
    out: Path,
    columns: Sequence[str] | None = COLUMNS,
) -> None:
    """summary.json, manifest.json, fits.json, judges.json and table.md, all without texts.

    Args:
        columns: the judged metrics of the table, see `main_table`.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SUMMARY, comparison.summary)
    write_json(out / MANIFEST, _shortened(read_json(comparison.out / MANIFEST)))
    paths = [*(fits / method / workspace.RECORD for method in FITTERS)]
    paths += sorted(fits.glob(f"mod/*/*/{workspace.RECORD}"))  # see further_methods.py
    paths += sorted(fits.glob(f"civil/*/{workspace.RECORD}"))
    named = {path.parent.relative_to(fits).as_posix(): path for path in paths}
    found = {name: read_json(path) for name, path in named.items() if path.is_file()}
    if (fits / EQUILIBRIUM).is_dir():
        history = load_taught(fits / EQUILIBRIUM).history
        found[EQUILIBRIUM] = history[-1].model_dump(mode="json")
    write_json(out / "fits.json", found)
    reports = {j: read_json(judges / j / REPORT) for j in comparison.results.judges}
    write_json(out / "judges.json", reports)
    results = comparison.results
    tables = main_table(results, columns, comparison.settings), agreement_table(results)
    texts = ["\n".join(table.markdown()) + "\n" for table in tables]
    (out / "table.md").write_text("\n".join(texts), "utf-8")


def _shortened(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with names in the place of paths."""
    data = manifest["data"]
    judges = {name: Path(path).name for name, path in data["judges"].items()}
    path = None if data["path"] is None else Path(data["path"]).name
    return {**manifest, "data": {**data, "path": path, "judges": judges}}


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What was measured before and lies in a JSON file, or is measured now."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def kept_conditions(work: Path, conditions: Mapping[str, Any]) -> None:
    """Notes in a work folder what it is for, or checks that it is for that.

    Raises:
        ValueError: if it is for something else; names what differs.
    """
    path = work / CONDITIONS
    found = once(path, lambda: dict(conditions))
    for name in sorted({*found, *conditions}):
        if found.get(name) != conditions.get(name):
            raise ValueError(
                f"{path}: {name} was {found.get(name)} and is {conditions.get(name)}; give another "
                f"--work"
            )
