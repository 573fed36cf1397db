"""The methods that are there, for people: what each acts on, where it comes from, what it needs."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table
from rich.text import Text

ACTS = {
    "steer": "each token",
    "attach": "the model",
    "revise": "answers",
    "prompt": "the prompt",
}


class Method(NamedTuple):
    """One line of ``plugalign methods``."""

    name: str
    surface: str
    paper: str
    needs: str


METHODS = (
    Method(
        "dexperts", "steer", "Liu et al. 2021 (DExperts), 2024 (proxy tuning)",
        "an expert, an anti-expert or both: models or LoRA adapters",
    ),
    Method(
        "fudge", "steer", "Yang and Klein 2021",
        "a small causal classifier of beginnings of texts",
    ),
    Method(
        "fudge_head", "steer", "after Yang and Klein 2021",
        "a linear head on the model's own hidden states",
    ),
    Method("self_debias", "steer", "Schick et al. 2021", "nothing"),
    Method(
        "nullspace", "steer", "Ravfogel et al. 2020 (INLP), Liang et al. 2021 (A-INLP), Belrose "
        "et al. 2023 (LEACE)",
        "a subspace of the hidden states",
    ),
    Method(
        "prefix", "attach", "Qian et al. 2022 (contrastive prefixes)",
        "trained keys and values in front of the prompt",
    ),
    Method(
        "prefix_contrast", "steer", "Qian et al. 2022, as a contrast pair",
        "the same prefixes, of both classes",
    ),
    Method("self_critique", "revise", "Saunders et al. 2022", "nothing"),
)  # fmt: skip


def table() -> Table:
    """All methods, a row each."""
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("method", "acts on", "paper", "needs fitted"):
        grid.add_column(heading, header_style="dim", no_wrap=heading == "method")
    for method in METHODS:
        name = Text(method.name, style="bold")
        grid.add_row(name, ACTS[method.surface], method.paper, method.needs)
    return grid
