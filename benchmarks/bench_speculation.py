"""How much of a draft stays, and whether drafting pays, for fitted controllers on real prompts.

Every prompt is continued with and without a draft, one row at a time and in turn, so a machine that
slows down slows both; times are processor time on a CPU.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from plugalign.algebra.controller import Controller
from plugalign.engine.speculative.drafts import Speculation
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.generation.wrap import Steered, wrap
from plugalign.loading import load_model


@dataclass(frozen=True)
class Row:
    """One method with one kind of draft.

    Attributes:
        kept: the part of the drafted tokens that stayed.
        emitted: tokens of a round.
        ratio: time per token over that without a draft.
    """

    method: str
    draft: str
    kept: float
    emitted: float
    ratio: float


def main(
    model: Annotated[str, typer.Option(help="hub id or folder")],
    prompts: Annotated[Path, typer.Option(help="JSON lines, as for compare")],
    controllers: Annotated[list[str], typer.Option(metavar="NAME=FOLDER", help="fitted")],
    out: Annotated[Path, typer.Option(help="JSON file, rewritten after every method")],
    draft: Annotated[str, typer.Option(help="base,prompt")] = "base,prompt",
    tokens: Annotated[int, typer.Option(help="drafted at a time")] = 4,
    limit: Annotated[int, typer.Option(help="prompts")] = 12,
    new_tokens: Annotated[int, typer.Option(help="at most")] = 40,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Times speculative decoding beside the same call without."""
    torch.set_num_threads(threads)
    base, tokenizer = load_model(model)
    texts = load_prompts(prompts, limit).texts
    rows: list[Row] = []
    for name, folder in (entry.split("=", 1) for entry in controllers):
        steered = wrap(base, tokenizer, Controller.from_pretrained(folder))
        for kind in draft.split(","):
            speculation = Speculation(kind, tokens)
            batches = [tokenizer(text, return_tensors="pt").to(base.device) for text in texts]
            times = measured(steered, batches, speculation, new_tokens, f"{name}, {kind}")
            emitted = speculation.emitted / max(speculation.rounds, 1)
            rows.append(Row(name, kind, speculation.acceptance, emitted, times[0] / times[1]))
        conditions = {"tokens": tokens, "prompts": limit, "new_tokens": new_tokens}
        conditions |= {"model": Path(model).name, "threads": threads}
        written = {"conditions": conditions, "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    Console().print(table(rows))


def measured(
    steered: Steered, batches: list[Any], speculation: Speculation, new_tokens: int, what: str
) -> tuple[float, float]:
    """Seconds per token with a draft and without."""
    seconds, counts = [0.0, 0.0], [0, 0]
    for seed, batch in enumerate(track(batches, what, console=Console(stderr=True))):
        for turn, options in enumerate(({"speculation": speculation}, {})):
            torch.manual_seed(seed)
            start = time.process_time()
            ids = steered.generate(
                **batch,
                max_new_tokens=new_tokens,
                do_sample=True,
                top_p=0.9,
                top_k=0,
                pad_token_id=steered.tokenizer.pad_token_id or 0,
                **options,
            )
            seconds[turn] += time.process_time() - start
            counts[turn] += ids.shape[1] - batch["input_ids"].shape[1]
    return seconds[0] / counts[0], seconds[1] / counts[1]


def table(rows: list[Row]) -> Table:
    """The rows for a terminal."""
    grid = Table(title="speculative decoding, batch 1")
    for heading in ("method", "draft", "kept", "tokens a round", "x without a draft"):
        grid.add_column(heading, justify="left" if heading in ("method", "draft") else "right")
    for row in rows:
        figures = (f"{row.kept:.0%}", f"{row.emitted:.2f}", f"{row.ratio:.2f}")
        grid.add_row(row.method, row.draft, *figures)
    return grid


if __name__ == "__main__":
    typer.run(main)
