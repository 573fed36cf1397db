"""Results on real text by one command: fits every method, fits judges, compares, writes a folder.

Every method is fitted with its defaults, and no setting is chosen here. The defaults were tried on
some of the first prompts of the file, so the prompts are taken from behind them. What the data and
the work folder hold is said in results_tools.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from results_tools import (
    GUIDES,
    fit_judges,
    fit_methods,
    held_out_prompts,
    load_guides,
    reference_sets,
    write_results,
)

from plugalign.catalogue import ALONE, FITTERS
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.run_folder.folder import MANIFEST
from plugalign.fitting.progress import say
from plugalign.fitting.style import in_one_style
from plugalign.loading import load_model

RUN = "run"


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    data: Annotated[Path, typer.Option(help="Folder with the data, see results_tools.py.")],
    work: Annotated[Path, typer.Option(help="Folder for fits, judges and the run; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    encoder: Annotated[str | None, typer.Option(help="An encoder to tune as first judge.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Prompts that were used before.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 100,
    minutes: Annotated[float, typer.Option(help="What a fit may take.")] = 10,
    guides: Annotated[
        list[str] | None, typer.Option(help="Files of the data that guides learn from; both.")
    ] = None,
    one_style: Annotated[
        bool, typer.Option(help="Guides learn from lower case, spaces around punctuation marks.")
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of those that are fitted; all, and all that need none."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many texts for guides.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    chosen = held_out_prompts(data, work, skip, prompts)
    judges = fit_judges(data, work / "judges", encoder)
    texts = load_guides(data, limit, guides or GUIDES)
    if one_style:
        texts = in_one_style(texts)
    base, tokenizer = load_model(model)
    controllers = fit_methods(
        base, tokenizer, texts, work / "fits", minutes, methods=method or FITTERS
    )
    comparison = compare(
        base,
        tokenizer,
        methods=[*controllers, *([] if method else ALONE)],
        controllers=controllers,
        prompts=chosen,
        chat="off",
        judges=judges,
        agreement=reference_sets(data, work),
        samples=samples,
        max_new_tokens=new_tokens,
        batch_size=batch_size,
        out=work / RUN,
        resume=(work / RUN / MANIFEST).is_file(),
    )
    write_results(comparison, work / "fits", work / "judges", out)
    say(f"the results are in {out}, texts and report in {work / RUN}")


if __name__ == "__main__":
    typer.run(main)
