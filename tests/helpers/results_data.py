"""A data folder as the scripts that make results read it, of invented text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugalign.pocket import world


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompt_rows(prompts: list[str]) -> list[dict[str, Any]]:
    """Prompts with what was written behind them, and how toxic that is; the last is unknown."""
    behind = world.judge_sample(len(prompts), world.TEST_SEED)
    scores = [float(label == "rude") for _, label in behind[:-1]]
    return [
        {"text": prompt, "continuation": text, "continuation_toxicity": score}
        for prompt, (text, _), score in zip(prompts, behind, [*scores, None], strict=True)
    ]


def write_data(tools: Any, folder: Path) -> Path:
    """All files that `results_tools` names.

    Args:
        tools: that module.
    """
    pairs = world.pairs(60, world.GUIDE_SEED)
    lines(folder / tools.GUIDES[0], [{"toxic": r, "neutral": [p]} for r, p in pairs])
    comments = world.comments(80, world.GUIDE_SEED)
    rows = [{"text": c.text, "label": int(c.label == "rude")} for c in comments]
    lines(folder / tools.GUIDES[1], rows)
    judged = world.judge_sample(200, world.JUDGE_SEED)
    rows = [{"text": text, "label": int(label == "rude")} for text, label in judged]
    lines(folder / tools.JUDGED, rows)
    scored = world.judge_sample(60, world.TEST_SEED)
    prompts = world.prompts(8, world.PROMPT_SEED)
    lines(folder / tools.PROMPTS, prompt_rows(prompts))
    rows = [{"continuation": t, "perspective_toxicity": float(y == "rude")} for t, y in scored]
    lines(folder / tools.REFERENCES, rows)
    return folder
