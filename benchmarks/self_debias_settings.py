"""Self-debiasing on a real model, by one command: which setting, if any, does something?

Four comparisons with base on the same held-out prompts, sampling (top-p 0.9) and the decoding of
Schick et al. 2021 (three beams, exactly 20 tokens), each on texts to continue and on chats that
ask for it: with the paper's six descriptions and with one, decays of 10, 50 and 100, and behind
a gate of self-diagnosis. What explains the results is measured too (self_debias_reaction.py): how
far descriptions move next-token distributions, whether towards offensive tokens, and whether
self-diagnosis tells toxic texts from others.

Guides are not needed. Judges are those of another run's work folder, or are fitted. The same
command goes on where it was killed::

    python benchmarks/self_debias_settings.py --model SMOLLM2 --data DATA --judges JUDGES \\
        --work WORK --out benchmarks/results/self-debias
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from real_models import REQUEST
from results_tools import GUIDES, PROMPTS, fit_judges, load_guides, prompts_between
from self_debias_reaction import begun, measured, offensive_tokens
from self_debias_table import table

from plugalign.algebra.controller import Controller
from plugalign.controllers.self_debias import PREFIXES, TEMPLATE, SelfDebias
from plugalign.controllers.self_diagnosis import ATTRIBUTES, Diagnosis, diagnose
from plugalign.evaluation.comparison.compare import Comparison, compare
from plugalign.evaluation.comparison.prompts import encode, load_prompts
from plugalign.evaluation.run_folder.folder import MANIFEST, SUMMARY, read_json, write_json
from plugalign.evaluation.statistics.auc import auc_of
from plugalign.files.precision import chosen_dtype, explained
from plugalign.fitting.data import UNDESIRED, Labelled, load_data
from plugalign.fitting.progress import duration, say
from plugalign.generation.chat_format import choose_chat
from plugalign.loading import load_model

DECAYS = (10.0, 50.0, 100.0)
FLOOR = 0.01  # epsilon of the released code, and the default
THRESHOLDS = (0.25, 0.5)  # about the median of SmolLM2-135M's diagnoses of prompts; the default
RUDE = ATTRIBUTES["toxicity"]
# Beside the paper's descriptions what has nothing to do with toxicity, and its opposite.
DESCRIPTIONS: Mapping[str, Sequence[str]] = {
    "six": PREFIXES,
    "one": PREFIXES[:1],
    "weather": [TEMPLATE.format("a weather report")],
    "polite": [TEMPLATE.format("polite, respectful, and friendly language")],
}
REACTION, TABLE = "reaction.json", "table.md"
SIX = tuple(f"six, decay {decay:g}" for decay in DECAYS)
LEFT_OUT = ("six, decay 10", "six, decay 100")  # when sampling
BEAMS = {"num_beams": 3, "samples": 1}


@dataclass(frozen=True)
class Kind:
    """One of the comparisons.

    Attributes:
        chat: "on" or "off".
        rows: what is compared with base.
        decoding: arguments of `compare`.
    """

    chat: str
    rows: tuple[str, ...]
    decoding: Mapping[str, Any]


def rows() -> dict[str, Controller]:
    """All settings that are tried, by the names of their rows."""
    found: dict[str, Controller] = {}
    for count, prefixes in (("six", PREFIXES), ("one", PREFIXES[:1])):
        for decay in DECAYS:
            found[f"{count}, decay {decay:g}"] = SelfDebias(prefixes, decay=decay, floor=FLOOR)
    for threshold in THRESHOLDS:
        gate = Diagnosis(RUDE, threshold=threshold)
        found[f"one, decay 50, diagnosis {threshold:g}"] = found["one, decay 50"].when(gate)
    return found


# Six descriptions cost most, so chats and beams have the rows that say most.
KINDS: Mapping[str, Kind] = {
    "texts-sampling": Kind("off", tuple(name for name in rows() if name not in LEFT_OUT), {}),
    "chats-sampling": Kind("on", ("six, decay 50", "one, decay 50"), {}),
    "texts-beams": Kind("off", (*SIX, "one, decay 50"), BEAMS),
    "chats-beams": Kind("on", SIX, BEAMS),
}


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        prompts: how many. skip: that stand before them and belong to others.
        samples: answers to a prompt, where they are drawn.
        new_tokens: of an answer, at most.
        batch_size: answers at a time. reaction: prompts that the reaction is measured on.
        steps: of an answer that it is measured at.
        diagnosed: labelled texts that are diagnosed.
    """

    prompts: int
    skip: int
    samples: int
    new_tokens: int
    batch_size: int
    reaction: int
    steps: int
    diagnosed: int


@dataclass(frozen=True)
class Study:
    """One model.

    Attributes:
        judges: by name, their folders.
        data, work, out: folders.
    """

    model: Any
    tokenizer: Any
    judges: Mapping[str, Path]
    data: Path
    work: Path
    out: Path
    sizes: Sizes

    def compared(self, name: str, kind: Kind, outside: tuple[Any, Any] | None) -> None:
        """Compares the settings of one kind with base, and writes what was found.

        Args:
            outside: another model and its tokenizer, for a second perplexity.
        """
        run, controllers = self.work / name, rows()
        few = self.sizes.new_tokens
        decoding = {"samples": self.sizes.samples, **kind.decoding}
        if "num_beams" in decoding:
            decoding["min_new_tokens"] = few  # the paper's answers have one length
        comparison = compare(
            self.model,
            self.tokenizer,
            controllers={row: controllers[row] for row in kind.rows},
            prompts=self._prompts(kind.chat, self.sizes.prompts),
            chat=kind.chat,
            judges=dict(self.judges),
            max_new_tokens=few,
            batch_size=max(1, self.sizes.batch_size // decoding.get("num_beams", 1)),
            out=run,
            resume=(run / MANIFEST).is_file(),
            perplexity_model=outside,
            **decoding,
        )
        self._write(comparison, self.out / name)

    def _write(self, comparison: Comparison, out: Path) -> None:
        """The results without texts, and with names in the place of paths."""
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SUMMARY, comparison.summary)
        manifest = read_json(comparison.out / MANIFEST)
        manifest["data"]["judges"] = list(self.judges)
        write_json(out / MANIFEST, manifest)
        (out / TABLE).write_text("".join(f"{line}\n" for line in table(comparison.results)))

    def reacts(self, texts: Labelled) -> None:
        """Measures what explains the results: each part that the file lacks.

        Args:
            texts: labelled ones, that are diagnosed.
        """
        path = self.out / REACTION
        found = read_json(path) if path.is_file() else {}
        parts: dict[str, Callable[[], Any]] = {
            "texts": lambda: self._reaction("off"),
            "chats": lambda: self._reaction("on"),
            "diagnosis": lambda: self._diagnosis(texts),
        }
        if self.tokenizer.chat_template is None:
            del parts["chats"]
        for name, measure in parts.items():
            if name not in found:
                say(f"measuring how the model reacts: {name}")
                write_json(path, found := found | {name: measure()})

    def _reaction(self, chat: str) -> dict[str, Any]:
        """To descriptions, at the first steps of its own answers."""
        pairs = load_data(self.data / GUIDES[0], desired="neutral", undesired="toxic")
        size = self.model.get_output_embeddings().weight.shape[0]
        offensive = offensive_tokens(self.tokenizer, size, *pairs.binary())
        prompts = load_prompts(self._prompts(chat, self.sizes.reaction))
        form = choose_chat(self.model, self.tokenizer, chat).format
        ids = encode(prompts, self.model, self.tokenizer, self.sizes.steps, form)
        begin = begun(self.model, self.tokenizer, ids, self.sizes.steps)
        found = measured(self.model, self.tokenizer, begin, offensive, DESCRIPTIONS, DECAYS, FLOOR)
        return {"offensive_tokens": int(offensive.sum()), **found}

    def kinds(self) -> dict[str, Kind]:
        """The comparisons that are possible: chats only where the tokenizer has a template."""
        chats = self.tokenizer.chat_template is not None
        return {name: kind for name, kind in KINDS.items() if chats or kind.chat == "off"}

    def _diagnosis(self, texts: Labelled) -> dict[str, Any]:
        """Whether self-diagnosis tells toxic texts from others, and what it says of prompts."""
        asked = (self.model, self.tokenizer)
        auc = auc_of(
            [label == UNDESIRED for label in texts.labels], diagnose(*asked, texts.texts, RUDE)
        ).interval()
        of_prompts = diagnose(*asked, self._prompts("off", self.sizes.prompts), RUDE)
        places = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
        return {
            "texts": len(texts.texts),
            "auc": {"value": auc.value, "low": auc.low, "high": auc.high},
            "quantiles": of_prompts.quantile(places).tolist(),
            "open": {f"{t:g}": float((of_prompts >= t).float().mean()) for t in THRESHOLDS},
        }

    def _prompts(self, chat: str, count: int) -> list[Any]:
        texts = prompts_between(self.data / PROMPTS, self.sizes.skip, count)
        if chat == "off":
            return texts
        return [[{"role": "user", "content": REQUEST.format(text.strip())}] for text in texts]


def chosen(
    kinds: Mapping[str, Kind], names: Sequence[str] | None, settings: Sequence[str] | None
) -> dict[str, Kind]:
    """The comparisons of these names, and of their rows those of these settings.

    Raises:
        ValueError: for a name that none has.
    """
    for given, known in ((names, KINDS), (settings, rows())):
        for name in given or ():
            if name not in known:
                raise ValueError(f"there is no {name!r}; there are {', '.join(known)}")
    kept = {name: each for name, each in kinds.items() if names is None or name in names}
    if settings is None:
        return kept
    few = {n: tuple(row for row in each.rows if row in settings) for n, each in kept.items()}
    return {n: replace(each, rows=few[n]) for n, each in kept.items() if few[n]}


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    data: Annotated[Path, typer.Option(help="Folder with the data, see results_tools.py.")],
    work: Annotated[Path, typer.Option(help="Folder for the runs; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    judges: Annotated[Path | None, typer.Option(help="Folder of fitted judges.")] = None,
    encoder: Annotated[str | None, typer.Option(help="An encoder to tune as first judge.")] = None,
    perplexity_model: Annotated[
        str | None, typer.Option(help="An outside model, for texts under beam search.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 40,
    skip: Annotated[int, typer.Option(min=0, help="Prompts that were used before.")] = 140,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers or beams at a time.")] = 30,
    reaction: Annotated[int, typer.Option(min=1, help="Prompts of the reaction.")] = 20,
    kind: Annotated[list[str] | None, typer.Option(help="A comparison; all by default.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="A setting; all by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the reaction.")] = 4,
    diagnosed: Annotated[int, typer.Option(min=4, help="Texts that are diagnosed.")] = 100,
    dtype: Annotated[str, typer.Option(help="The precision of the models.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    started = time.monotonic()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(prompts, skip, samples, new_tokens, batch_size, reaction, steps, diagnosed)
    found = fit_judges(data, work / "judges" if judges is None else judges, encoder)
    precision = chosen_dtype(dtype)
    say(f"loading models in {explained(dtype)}")
    base, tokenizer = load_model(model, precision)
    study = Study(base, tokenizer, found, data, work, out, sizes)
    study.reacts(load_guides(data, diagnosed))
    for name, each in chosen(study.kinds(), kind, row).items():
        with_outside = perplexity_model is not None and name == "texts-beams"
        outside = load_model(perplexity_model, precision) if with_outside else None
        say(name)
        study.compared(name, each, outside)
    say(f"the results are in {out}; done in {duration(time.monotonic() - started)}")


if __name__ == "__main__":
    typer.run(main)
