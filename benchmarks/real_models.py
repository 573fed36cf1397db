"""Results on real models by one command: smollm2, gemma3 and the like, on texts and on chats.

For each kind of prompts, texts to continue and what a user says in a chat:

1. every method that learns is fitted with its defaults, on chats inside the assistant's turn;
2. the strength of each is chosen on prompts of their own, within budgets of the outside model's
   perplexity and of length (`plugalign tune`);
3. all methods that are fitted or work alone, and those that are made of other parts
   (further_methods.py), answer the held-out prompts, and two judges score them, trained on other
   data than the guides: an encoder, and TF-IDF.

Texts are the toxic half of RealToxicityPrompts; a chat asks to continue one of them. Perplexity is
the base's own, and that of an outside model. A model without a chat template has no chats. What the
data and the work folder hold is said in results_tools.py; the same command goes on where it was
killed::

    python benchmarks/real_models.py --model SMOLLM2 --perplexity-model GEMMA3 --encoder MINILM \\
        --data DATA --work WORK/smollm2 --out benchmarks/results/smollm2
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from further_methods import NEEDS, Further
from further_methods import STRENGTHS as FURTHER_STRENGTHS
from results_tools import (
    ANTI,
    PROMPTS,
    fit_judges,
    fit_methods,
    load_guides,
    prompts_between,
    reference_sets,
    write_results,
)

from plugalign.algebra.controller import Controller
from plugalign.catalogue import ALONE, FITTERS
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.halving import Budgets
from plugalign.evaluation.run_folder.folder import MANIFEST, write_json
from plugalign.evaluation.tuning import TUNING, tune
from plugalign.files.precision import chosen_dtype, explained
from plugalign.fitting.data import Labelled
from plugalign.fitting.progress import duration, say
from plugalign.generation.chat import chat_of
from plugalign.loading import load_model, unfitted

REQUEST = "Continue this text: {}"
USED = 200  # prompts at the beginning of the file, on which defaults were tried
KINDS = {"texts": "off", "chats": "on"}  # of prompts, and whether they are a user's turn
METHODS = (*FITTERS, ANTI, *ALONE, *NEEDS)
# The strength of each method, and the values that are tried; the others have none.
STRENGTHS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "args": ("weight", (1, 4, 16)),
    "pplm": ("stepsize", (0.02, 0.05, 0.1)),
    "rad": ("beta", (10, 30, 100)),
    "fudge": ("weight", (2, 4, 8, 16)),
    "fudge_head": ("weight", (2, 4, 8, 16)),
    "nullspace": ("strength", (0.5, 1)),
    "prefix_contrast": ("alpha", (0.5, 1, 2, 4)),
    "self_critique": ("threshold", (0.5, 0.7, 0.9)),
    "self_debias": ("decay", (10, 50, 100)),
    **FURTHER_STRENGTHS,
    "dexperts": ("alpha", (1, 2, 4, 8)),
    "dexperts_anti": ("alpha", (0.5, 1, 2, 4)),
    "dexperts_lora": ("alpha", (1, 2, 4, 8)),
}


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        prompts: held-out ones of each kind. samples: answers to each.
        tuning: prompts that settings are chosen on. tuning_samples: answers to each.
        new_tokens: of an answer, at most.
        batch_size: answers at a time. minutes: of a fit.
    """

    prompts: int
    samples: int
    tuning: int
    tuning_samples: int
    new_tokens: int
    batch_size: int
    minutes: float


@dataclass(frozen=True)
class Study:
    """One model, on one kind of prompts.

    Attributes:
        chat: "on" or "off".
        outside: another model and its tokenizer.
        judges: by name, their folders.
        data, work, out: folders.
        limit: at most so many texts of each data set.
        methods: what is compared, of `METHODS`.
    """

    model: Any
    tokenizer: Any
    chat: str
    outside: tuple[Any, Any]
    judges: Mapping[str, Path]
    data: Path
    work: Path
    out: Path
    sizes: Sizes
    limit: int | None = None
    methods: tuple[str, ...] = METHODS

    def run(self, texts: Labelled) -> None:
        """Fits, tunes, compares and writes the results.

        Args:
            texts: what guides learn from.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        fits, sizes = self.work / "fits", self.sizes
        chosen, found = self._tuned(self._controllers(texts, fits))
        run = self.work / "run"
        comparison = compare(
            controllers=chosen,
            prompts=self._prompts(sizes.tuning, sizes.prompts),
            agreement=reference_sets(self.data, self.work),
            samples=sizes.samples,
            out=run,
            resume=(run / MANIFEST).is_file(),
            perplexity_model=self.outside,
            **self._options(),
        )
        write_results(comparison, fits, next(iter(self.judges.values())).parent, self.out, None)
        write_json(self.out / TUNING, found)
        say(f"the results are in {self.out}, texts and report in {run}")

    def _controllers(self, texts: Labelled, fits: Path) -> dict[str, Controller]:
        """The methods by name, those that learn fitted."""
        names, model, tokenizer = {*self.methods}, self.model, self.tokenizer
        needed = names | ({"dexperts"} if ANTI in names else set())
        needed |= {each for name in names for each in NEEDS.get(name, ())}
        minutes, chat = self.sizes.minutes, self.chat
        made = fit_methods(model, tokenizer, texts, fits, minutes, chat, needed)
        made |= {name: each for name, each in unfitted().items() if name in ALONE}
        made |= Further(self, made, texts, fits).controllers(names)
        return {name: made[name] for name in METHODS if name in names}

    def _tuned(
        self, controllers: Mapping[str, Controller]
    ) -> tuple[dict[str, Controller], dict[str, Any]]:
        """The controllers with the strengths that were chosen, and the evidence without texts."""
        chosen, evidence = dict(controllers), {}
        prompts = self._prompts(0, self.sizes.tuning)
        for name in (name for name in STRENGTHS if name in controllers):
            setting, values = STRENGTHS[name]
            out = self.work / "tuning" / name
            say(f"tuning {name}")
            tuning = tune(
                {name: controllers[name]},
                {f"{name}.{setting}": list(values)},
                prompts=prompts,
                budgets=Budgets(),
                perplexity_model=self.outside,
                samples=self.sizes.tuning_samples,
                out=out,
                resume=(out / "round-1" / MANIFEST).is_file(),
                **self._options(),
            )
            if tuning.chosen is not None:
                chosen[name] = controllers[name].with_settings(**tuning.chosen.settings)
            else:
                say(f"no {setting} of {name} keeps the budgets; it is left as it was")
            kept = ("chosen", "before", "budgets", "metric", "judge", "samples", "trials")
            evidence[name] = {part: tuning.found[part] for part in kept}
        return chosen, evidence

    def _prompts(self, skip: int, count: int) -> list[Any]:
        """So many prompts behind those in use and ``skip`` more."""
        texts = prompts_between(self.data / PROMPTS, USED + skip, count)
        return [self.ask(text) for text in texts]

    def ask(self, text: str) -> Any:
        """The prompt to go on with a text: itself, or a user's turn."""
        if self.chat == "off":
            return text
        return [{"role": "user", "content": REQUEST.format(text.strip())}]

    def _options(self) -> dict[str, Any]:
        """The arguments of `compare` that all runs have in common."""
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "chat": self.chat,
            "judges": dict(self.judges),
            "max_new_tokens": self.sizes.new_tokens,
            "batch_size": self.sizes.batch_size,
        }


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    perplexity_model: Annotated[str, typer.Option(help="Of an outside model.")],
    encoder: Annotated[str, typer.Option(help="An encoder to tune as first judge.")],
    data: Annotated[Path, typer.Option(help="Folder with the data, see results_tools.py.")],
    work: Annotated[Path, typer.Option(help="Folder for fits, judges and runs; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each of them.")] = 10,
    tuning: Annotated[int, typer.Option(min=1, help="Prompts to choose settings on.")] = 40,
    tuning_samples: Annotated[int, typer.Option(min=1, help="Answers to each of them.")] = 3,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 50,
    minutes: Annotated[float, typer.Option(help="What a fit may take.")] = 10,
    limit: Annotated[int | None, typer.Option(help="At most so many texts of each fit.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="texts, chats, or both.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="All by default.")] = None,
    dtype: Annotated[str, typer.Option(help="The precision of the models.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    kinds = kind or list(KINDS)
    if unknown := sorted({*kinds} - {*KINDS}):
        raise typer.BadParameter(f"{unknown[0]} is no kind of prompts; take {' or '.join(KINDS)}")
    methods = tuple(method or METHODS)
    if unknown := sorted({*methods} - {*METHODS}):
        raise typer.BadParameter(f"{unknown[0]} is no method; take of {', '.join(METHODS)}")
    started = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(prompts, samples, tuning, tuning_samples, new_tokens, batch_size, minutes)
    judges = fit_judges(data, work / "judges", encoder, minutes=minutes, limit=limit)
    texts, precision = load_guides(data, limit), chosen_dtype(dtype)
    say(f"loading models in {explained(dtype)}")
    base, tokenizer = load_model(model, precision)
    outside = load_model(perplexity_model, precision)
    for name in kinds:
        if name == "chats" and chat_of(tokenizer) is None:
            say(f"{Path(model).name} has no chat template, so there are no chats")
            continue
        chat, folder, results = KINDS[name], work / name, out / name
        study = Study(
            model=base,
            tokenizer=tokenizer,
            chat=chat,
            outside=outside,
            judges=judges,
            data=data,
            work=folder,
            out=results,
            sizes=sizes,
            limit=limit,
            methods=methods,
        )
        study.run(texts)
    say(f"done in {duration(time.monotonic() - started)}")


if __name__ == "__main__":
    typer.run(main)
