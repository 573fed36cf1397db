"""What each study's tuning chose beside the default of today, as Markdown.

The rule: a default is what all studies chose where they agree, but for what `KEPT` says, and stays
as it was where they do not, or where there is one study alone. Where no study found a value within
its budgets, it is the value that costs least.

python benchmarks/defaults_table.py
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from results_tools import ANTI

from plugalign.catalogue import FITTERS, METHODS
from plugalign.evaluation.run_folder.folder import read_json
from plugalign.evaluation.tuning import TUNING
from plugalign.fitting.command import fitter
from plugalign.fitting.settings import settings_of

RESULTS = Path(__file__).parent / "results"
STUDIES = (
    "smollm2/texts",
    "smollm2/experts",
    "smollm2/further",
    "smollm2/chats",
    "smollm2/further-chats",
    "gemma3/texts",
    "gemma3/further",
)
# What is made with a setting of its own, and the method that it is.
VARIANTS = {ANTI: "dexperts"}
# Defaults that stay though all studies chose another value, and why.
KEPT = {"nullspace": "only 1 removes the subspace, which is what the method is for"}


def chosen(study: str, name: str) -> str | None:
    """What a study chose for a method, "none" where nothing kept the budgets, None where it was not
    tuned."""
    found = _tuned(study).get(name)
    if found is None:
        return None
    return "none" if found["chosen"] is None else f"{next(iter(found['chosen'].values())):g}"


def default(name: str, setting: str) -> str:
    """The default of today; empty where the user must give the setting."""
    name = VARIANTS.get(name, name)
    if name in FITTERS:
        found = settings_of(fitter(name)[0])[setting]
    else:
        (method,) = (each for each in METHODS if each.name == name)
        made = getattr(importlib.import_module(method.module), method.kind)
        found = inspect.signature(made).parameters[setting].default
    return "" if found in (inspect.Parameter.empty, None) else f"{found:g}"


def rows() -> Iterator[tuple[str, str, list[str | None], str]]:
    """Methods, their settings, what the studies chose, and the defaults."""
    settings: dict[str, str] = {}
    for study in STUDIES:
        for name, found in _tuned(study).items():
            settings[name] = next(iter(found["trials"][0]["settings"]))
    for name, setting in settings.items():
        yield name, setting, [chosen(study, name) for study in STUDIES], default(name, setting)


def table() -> Iterator[str]:
    """The lines of the table."""
    heads = ["method", "setting", *(study.replace("/", ", ") for study in STUDIES), "default"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, setting, found, given in rows():
        yield f"| {' | '.join([f'`{name}`', setting, *(x or '' for x in found), given])} |"


def _tuned(study: str) -> Mapping[str, Any]:
    """What a study tuned; what a part of it in a folder of its own tuned again goes before."""
    folder, found = RESULTS / study, dict[str, Any]()
    for path in (folder / TUNING, *sorted(folder.glob(f"*/{TUNING}"))):
        found |= read_json(path)
    return found


if __name__ == "__main__":
    print("\n".join(table()))
