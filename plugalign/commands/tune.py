"""``plugalign tune``: chooses a setting of a controller on held-out prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from plugalign.commands import compare as shared
from plugalign.commands import options
from plugalign.commands.console import fail, quiet_libraries, show

OUT = "plugalign-tune"

Controller = Annotated[
    str,
    typer.Argument(
        metavar="NAME=FOLDER",
        help="The controller that is tuned. The folder of a method "
        "that needs nothing fitted, such as self_debias=FOLDER, is made.",
    ),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME.SETTING=A,B,…",
        help="The values to choose from; may be repeated, for all combinations.",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(help="Held-out ones, as for compare."),
]
MaxPerplexity = Annotated[
    float, typer.Option(help="The largest perplexity of all tokens, over the base's.")
]
MaxLengthChange = Annotated[
    float, typer.Option(help="How much longer or shorter answers may be, as a part of the base's.")
]
MaxCost = Annotated[
    float | None,
    typer.Option(help="The longest an answer may take, over the base's.", show_default="no bound"),
]
MaxCutAlike = Annotated[
    float,
    typer.Option(
        help="The largest perplexity over that of the base within the method's own support, such "
        "as its top-p.",
    ),
]
PerplexityModel = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of an outside model, whose perplexity the budget goes by.",
        show_default="the scorer",
    ),
]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]


def tune(
    context: typer.Context,
    controller: Controller,
    settings: Set,
    model: shared.Model = None,
    prompts: Prompts = None,
    limit: shared.Limit = None,
    chat: shared.Chat = None,
    system: options.System = None,
    judge: shared.Judges = None,
    scorer: shared.Scorer = None,
    perplexity_model: PerplexityModel = None,
    max_perplexity: MaxPerplexity = 1.15,
    max_length_change: MaxLengthChange = 0.2,
    max_cost: MaxCost = None,
    max_perplexity_cut_alike: MaxCutAlike = 2.0,
    samples: shared.Samples = None,
    max_new_tokens: shared.NewTokens = None,
    min_new_tokens: shared.MinNewTokens = None,
    temperature: shared.Temperature = None,
    top_p: shared.TopP = None,
    top_k: shared.TopK = None,
    greedy: shared.Greedy = False,
    num_beams: shared.NumBeams = None,
    repetition_penalty: shared.RepetitionPenalty = None,
    batch_size: shared.BatchSize = None,
    seed: shared.Seed = None,
    out: Out = None,
    dtype: shared.Dtype = None,
    threads: options.Threads = None,
    resume: shared.Resume = False,
    trust: shared.Trust = False,
) -> None:
    """Choose a setting within budgets of perplexity, length and cost, and write it into FOLDER."""
    given = context.params | {  # all options by name; these hold several things
        "controllers": options.named([controller], "tune"),
        "settings": options.settings(settings, "--set"),
        "judges": options.judges(judge),
        "greedy": greedy or None,
        "resume": resume or None,
    }
    bounds = ("max_perplexity", "max_length_change", "max_cost", "max_perplexity_cut_alike")
    for name in ("controller", "judge", "trust", *bounds):
        del given[name]
    chosen = shared.chosen_options(None, given, trust=trust, usual_out=OUT)
    from plugalign.evaluation.halving import Budgets
    from plugalign.evaluation.tuning import tune as run

    quiet_libraries()
    budgets = Budgets(max_perplexity, max_length_change, max_cost, max_perplexity_cut_alike)
    tuning = run(**chosen, budgets=budgets, command=options.command_line())
    show(tuning.table())
    show(f"The picture: {tuning.picture}")
    if tuning.doubt is not None:
        show(f"Note: {tuning.doubt}.")
    if tuning.chosen is None:
        fail(
            "no setting keeps the budgets, so the controller is left as it was; try weaker values "
            "or other budgets"
        )
        raise typer.Exit(1)
