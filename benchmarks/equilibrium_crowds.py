"""Crowds for `equilibrium_results`: what they are asked, what they choose, what they teach.

Principles, features, judges and crowds learn from texts of their own, so that no figure rewards
what two of them share.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plugalign.controllers.equilibrium import Equilibrium, Preferences, Principle, TokenTable
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.judging.load import load_judge
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import Labelled, encode, load_data
from plugalign.fitting.judge import REPORT, fit_judge
from plugalign.fitting.progress import progress, say
from plugalign.generation.wrap import wrap
from plugalign.values.feedback_learning import load_taught, teach

REFERENCE_WEIGHT, FEWEST = 2.0, 20
TASTE = 8.0  # of a crowd: the log odds of a choice for one unit of what it likes
CROWDS: dict[str, Callable[[Any, Any], Any]] = {
    "polite": lambda toxic, positive: positive - toxic,
    "rude": lambda toxic, positive: toxic,
}
LESSONS = 4


def halves(data: Labelled) -> tuple[Labelled, Labelled]:
    """Every other text."""
    return tuple(Labelled(data.texts[i::2], data.labels[i::2]) for i in (0, 1))  # type: ignore[return-value]


def texts_of(data: Path, limit: int | None) -> dict[str, Labelled]:
    """What heads and judges learn from, by their names; no two share a text."""
    jigsaw = halves(load_data(data / "toxicity/jigsaw.jsonl"))
    train = halves(load_data(data / "sentiment/sst2_train.jsonl"))
    pairs = {"desired": "neutral", "undesired": "toxic"}
    return {
        "toxicity": load_data(data / "toxicity/paradetox.jsonl", limit=limit, **pairs),
        "civil": load_data(data / "toxicity/davidson_tweets.jsonl", limit=limit),
        "positive": train[0],
        "judge_toxicity": jigsaw[0],
        "judge_negativity": train[1],
        "crowd_toxicity": jigsaw[1],
        "crowd_negativity": load_data(data / "sentiment/sst2_test.jsonl"),
    }


def fitted_heads(
    model: Any, tokenizer: Any, texts: Mapping[str, Labelled], work: Path, minutes: float
) -> dict[str, FudgeHead]:
    """The heads of principle and features, fitted or read from ``work``."""
    found = {}
    for name, desired in (("toxicity", None), ("civil", None), ("positive", "1")):
        out = work / "heads" / name
        if not out.exists():
            say(f"fitting the head '{name}'")
            options = {"desired": desired, "minutes": minutes, "settings": {"chat": "off"}}
            run_fit("fudge_head", model, tokenizer, texts[name], out, **options)  # type: ignore[arg-type]
        found[name] = FudgeHead.from_pretrained(out)
    return found


def fitted_judges(texts: Mapping[str, Labelled], work: Path) -> dict[str, Judge]:
    """Ours and the crowds', fitted or read from ``work``."""
    found = {}
    for name in ("judge_toxicity", "judge_negativity", "crowd_toxicity", "crowd_negativity"):
        out = work / "judges" / name
        if not (out / REPORT).is_file():
            desired = "1" if name.endswith("negativity") else None
            out.parent.mkdir(parents=True, exist_ok=True)
            say(f"{name}: {fit_judge(texts[name], out, desired=desired).describe()}")
        found[name] = load_judge(str(out), name=name)
    return found


def removed_words(tokenizer: Any, data: Labelled, rows: int) -> TokenTable:
    """Of each token how often editors took it out of a toxic sentence: the share by which it is
    rarer in the neutral ones."""
    neutral, toxic = data.binary()
    counts = torch.zeros(2, rows)
    for side, side_texts in enumerate((neutral, toxic)):
        ids = [token for text in encode(tokenizer, side_texts, 512, end=False) for token in text]
        counts[side] = torch.bincount(torch.tensor(ids), minlength=rows)
        counts[side] /= len(side_texts) / 1000  # in a thousand sentences
    share = (1 - counts[0] / counts[1].clamp(min=1e-9)).clamp(0, 1)
    often = counts[1] * len(toxic) / 1000 >= FEWEST
    return TokenTable(torch.where(often, share, torch.zeros_like(share)))


def make(model: Any, tokenizer: Any, heads: Mapping[str, FudgeHead], data: Labelled) -> Equilibrium:
    """The equilibrium before any feedback."""
    table = removed_words(tokenizer, data, model.get_output_embeddings().weight.shape[0])
    principles = [Principle("removed words", table), Principle("toxicity", heads["toxicity"])]
    features = {name: heads[name] for name in ("civil", "positive")}
    reference = heads["toxicity"].with_settings(weight=REFERENCE_WEIGHT)
    return Equilibrium(reference, principles, Preferences(features))


# ------------------------------------------------------------------ the crowds


def answers_of(
    model: Any, tokenizer: Any, controller: Equilibrium, prompts: Sequence[str], tokens: int
) -> list[tuple[str, str]]:
    """Two answers to each prompt, sampled under a controller."""
    steered, found = wrap(model, tokenizer, controller), list[tuple[str, str]]()
    torch.manual_seed(0)
    with progress("answering", len(prompts)) as bar:
        for start in range(0, len(prompts), 40):
            some = list(prompts[start : start + 40])
            ids = tokenizer(some, return_tensors="pt", padding=True, padding_side="left")
            ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
            made = steered.generate(
                **ids, do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=2
            )
            texts = tokenizer.batch_decode(
                made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True
            )
            found += zip(texts[::2], texts[1::2], strict=True)
            bar.advance(len(some))
    return found


def choose(
    prompts: Sequence[str],
    answers: Sequence[tuple[str, str]],
    judges: Mapping[str, Judge],
    folder: Path,
) -> None:
    """Writes what each crowd says of the answers, in files of one lesson each."""
    flat = [text for pair in answers for text in pair]
    toxic = judges["crowd_toxicity"](flat).reshape(-1, 2)
    positive = 1 - judges["crowd_negativity"](flat).reshape(-1, 2)
    folder.mkdir(parents=True, exist_ok=True)
    for crowd, likes in CROWDS.items():
        liked = likes(toxic, positive)
        first = 1 / (1 + np.exp(-TASTE * (liked[:, 0] - liked[:, 1])))
        chosen = (np.random.default_rng(1).random(len(first)) >= first).astype(int)
        rows = [
            json.dumps({"prompt": prompt, "chosen": pair[c], "rejected": pair[1 - c]}) + "\n"
            for prompt, pair, c in zip(prompts, answers, chosen, strict=True)
            if pair[0] != pair[1] and all(text.strip() for text in pair)
        ]
        for lesson, part in enumerate(np.array_split(rows, LESSONS)):
            (folder / f"{crowd}-{lesson}.jsonl").write_text("".join(part), "utf-8")


def teach_crowds(start: Path, work: Path, model: Any, tokenizer: Any) -> dict[str, Equilibrium]:
    """An equilibrium for each crowd, which has learned what it says."""
    found = {}
    for crowd in CROWDS:
        folder = work / "taught" / crowd
        if not folder.exists():
            shutil.copytree(start, folder)
        done = len(load_taught(folder).history)
        for lesson in range(done, LESSONS):
            given = work / "feedback" / f"{crowd}-{lesson}.jsonl"
            say(teach(folder, given, model=model, tokenizer=tokenizer).summary())
        found[crowd] = load_taught(folder).equilibrium
    return found
