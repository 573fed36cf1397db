"""tune(): chooses a setting of a controller on held-out prompts, within budgets.

A stronger setting steers further and costs more of the text. What is chosen is the setting with the
best judged figure among those that keep perplexity and length near the base's.

Settings are halved from round to round (`plugalign.evaluation.halving`). Each round is a comparison
of its own (`plugalign.evaluation.comparison.compare`), on the same prompts and noise for all of
them. Rounds are small, so settings go by the expected maximum of a prompt's scores first: a share
of prompts knows only two values of each, and needs more of them to tell two settings apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rich.table import Table

from plugalign.algebra.controller import Controller
from plugalign.algebra.saving import CONFIG
from plugalign.catalogue import ALONE
from plugalign.evaluation.comparison.compare import Comparison, compare
from plugalign.evaluation.comparison.prompts import Prompts, load_prompts
from plugalign.evaluation.comparison.references import BASE
from plugalign.evaluation.comparison.variants import by_method, changed, variants
from plugalign.evaluation.halving import Budgets, Search, Trial
from plugalign.evaluation.metrics.metric import TOXICITY, Metric
from plugalign.evaluation.report.pareto import write_picture
from plugalign.evaluation.report.tuning_table import doubt, tuning_table
from plugalign.evaluation.run_folder.folder import MANIFEST, read_json, replace_text, write_json
from plugalign.files.folders import check_folder
from plugalign.files.shown import shown_path
from plugalign.loading import load_controllers, unfitted
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts

TUNING, PICTURE = "tuning.json", "pareto.svg"
POCKET_PROMPTS = 100
METRICS = tuple(sorted(TOXICITY, key=lambda metric: metric.threshold is not None))


@dataclass(frozen=True)
class Tuning:
    """What was found, and where its files are.

    Attributes:
        out: the folder with tuning.json, pareto.svg and a comparison in each round-N/.
        chosen: the best setting within the budgets, None where none of them is.
        trials: all settings, the best first.
        found: the content of tuning.json.
    """

    out: Path
    chosen: Trial | None
    trials: tuple[Trial, ...]
    found: dict[str, Any] = field(repr=False)

    @property
    def picture(self) -> Path:
        """Every setting's judged figure against its perplexity."""
        return self.out / PICTURE

    def table(self) -> Table:
        """The settings as a table for a terminal."""
        return tuning_table(self.found, self.trials, self.chosen)

    @property
    def doubt(self) -> str | None:
        """What must be said of a choice that is not shown to be better than base."""
        return doubt(self.found["metric"], self.chosen)

    def __rich__(self) -> Table:
        return self.table()


def tune(
    controllers: Mapping[str, Controller | str | Path],
    settings: Mapping[str, Any],
    *,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Sequence[Any] | None = None,
    limit: int | None = None,
    budgets: Budgets | None = None,
    perplexity_model: Any = None,
    metrics: Sequence[Metric] | None = None,
    seed: int = 0,
    out: str | Path = "plugalign-tune",
    resume: bool = False,
    **options: Any,
) -> Tuning:
    """Chooses a controller's setting, and writes it into the controller's folder.

    The folder gets the setting in its config.json, and a tuning.json with what it was chosen by.
    Where no setting keeps the budgets, nothing is written there. The prompts are used up: test on
    others, since the best of several is better here than it will be elsewhere.

    Args:
        controllers: one controller or its folder, by its name. The folder of a method that needs
            nothing fitted, by the method's name, need not be there: it gets the defaults.
        settings: by "name.setting" the values to try; of several settings all combinations.
        model: see `plugalign.compare`; so are all other arguments that are not explained here.
        prompts: held-out prompts, which are taken in an order drawn from the seed.
        budgets: what a setting may cost.
        perplexity_model: see `plugalign.compare`; with it, the perplexity of budgets, table and
            picture is this model's.
        metrics: settings go by the first one's figure, those with equal ones by the next one's; by
            default the expected maximum, the mean, and then shares.
        options: further arguments of `plugalign.compare`: judges, samples, scorer, ...
        out: the folder to write.

    Raises:
        ValueError: for anything wrong with the arguments, before any work.
    """
    if len(controllers) != 1:
        raise ValueError(
            f"one controller is tuned at a time, got {', '.join(controllers) or 'none'}"
        )
    [(name, given)] = controllers.items()
    if name == BASE:
        raise ValueError(f"'{BASE}' is the name of the plain model; rename that controller")
    budgets, out = budgets or Budgets(), check_folder(out)
    folder = None if isinstance(given, Controller) else _own_folder(name, given)
    if folder is not None and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"out: {out} lies in the controller's own folder; name another folder")
    controller = _at_first(name, given)
    rows = variants(name, controller, by_method({name: controller}, settings).get(name, {}))
    if len(rows) < 2:
        raise ValueError(f"there is nothing to choose from; give {name}.SETTING several values")
    candidates = {row: changed(name, controller, changes) for row, changes in rows.items()}
    texts = _prompts(model, prompts, limit)
    search = Search(rows, budgets, Random(seed).sample(texts.every, len(texts.every)))
    options |= {"model": model, "tokenizer": tokenizer, "seed": seed, "resume": resume}
    options |= {"perplexity_model": perplexity_model}
    options |= {"metrics": METRICS if metrics is None else metrics}
    runs = _searched(search, candidates, out, options)
    found = _evidence(search, runs, controller, texts, seed)
    write_json(out / TUNING, found)
    write_picture(out / PICTURE, search.points(), search.metric, found["perplexity_model"])
    if folder is not None and search.chosen is not None:
        chosen = candidates[search.chosen.row]
        if not folder.exists():
            chosen.save_pretrained(folder)
        _write_choice(folder, chosen, found)
    return Tuning(out, search.chosen, search.ranked(), found)


def _searched(
    search: Search, candidates: Mapping[str, Controller], out: Path, options: dict[str, Any]
) -> list[Comparison]:
    """The comparison of every round, which the search has noted."""
    runs: list[Comparison] = []
    for count, kept in search.rounds():
        controllers = {row: candidates[row] for row in kept}
        prompts, folder = list(search.prompts[:count]), out / f"round-{len(runs) + 1}"
        runs.append(compare(controllers=controllers, prompts=prompts, out=folder, **options))
        search.note(runs[-1].summary, kept)
    return runs


def _own_folder(name: str, given: str | Path) -> Path:
    """The controller's folder, into which the setting is written; that of a method that needs
    nothing fitted is made then, inside a folder that is there: a hub id is none."""
    folder = Path(given)
    new = name in ALONE and not folder.exists() and folder.parent.is_dir()
    if not (folder.is_dir() or new):
        raise ValueError(
            f"{name}: {shown_path(given)} is no folder, and the chosen setting is written into the "
            f"controller's folder; download or save the controller first (the folders of "
            f"{', '.join(ALONE)} are made)"
        )
    return check_folder(folder, "the controller")


def _at_first(name: str, given: Controller | str | Path) -> Controller:
    """The controller with the settings that it has before it is tuned."""
    if isinstance(given, Controller) or Path(given).exists():
        return load_controllers({name: given})[name]
    return unfitted()[name]


def _prompts(model: Any, prompts: Any, limit: int | None) -> Prompts:
    """The held-out prompts; in the pocket world others than `compare` takes."""
    if prompts is not None:
        return load_prompts(prompts, limit)
    if model is not None:
        raise ValueError("with a model of your own, give prompts too")
    tests = pocket_prompts(POCKET_PROMPTS, PROMPT_SEED)
    others = pocket_prompts(2 * POCKET_PROMPTS, PROMPT_SEED + 1)
    return load_prompts([text for text in others if text not in tests][:POCKET_PROMPTS], limit)


def _evidence(
    search: Search,
    runs: Sequence[Comparison],
    controller: Controller,
    prompts: Prompts,
    seed: int,
) -> dict[str, Any]:
    """What was found, and on what: the content of tuning.json."""
    manifests = [read_json(each.out / MANIFEST) for each in runs]
    summary, settings, chosen = search.summaries[-1], manifests[-1]["settings"], search.chosen
    before, config = next(iter(search.rows.values())), controller.config()
    return {
        "controller": controller.name,
        "chosen": None if chosen is None else chosen.settings,
        "improves": None if chosen is None else chosen.improves(search.metric),
        "before": {setting: config[setting] for setting in before if setting in config},
        "budgets": asdict(search.budgets),
        "metric": search.metric,
        "judge": summary["primary_judge"],
        "model": settings["model"],
        "scorer": settings["scorer"],
        "perplexity_model": summary.get("perplexity_model"),
        "prompts": {
            "count": len(prompts.every),
            "path": prompts.path,
            "sha256": prompts.fingerprint(),
            "seed": seed,
        },
        "samples": settings["samples"],
        "max_new_tokens": settings["max_new_tokens"],
        "chat": settings["chat"],
        "base": summary["methods"][summary["reference"]],
        "trials": [asdict(trial) for trial in search.ranked()],
        "rounds": [
            {"folder": each.out.name, "run": manifest["run"], "prompts": each.summary["prompts"]}
            for each, manifest in zip(runs, manifests, strict=True)
        ],
        "versions": manifests[-1]["versions"],
    }


def _write_choice(folder: Path, chosen: Controller, found: dict[str, Any]) -> None:
    """The setting and what it was chosen by, into the controller's folder."""
    write_json(folder / TUNING, found)
    config = {"controller": chosen.name, **chosen.config()}
    replace_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
