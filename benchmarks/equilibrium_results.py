"""Equilibrium alignment on real text by one command: crowds, what they teach, and an adversary.

The data folder holds, as JSON lines::

    toxicity/paradetox.jsonl        toxic, neutral    the principles: a head, and a table of words
    toxicity/davidson_tweets.jsonl  text, label       the feature "civil"
    sentiment/sst2_train.jsonl      text, label       "positive" and our judge, halves
    sentiment/sst2_test.jsonl       text, label       the crowds' own judge of sentiment
    toxicity/jigsaw.jsonl           text, label       the crowds' judge of toxicity and ours, halves
    prompts/sentiment_neutral.jsonl text              prompts of pairs, and of answers
    prompts/rtp_toxic.jsonl         text              prompts of answers

Two crowds choose between two answers of the top-down reference: one likes what is polite and
positive, the other what is rude, each by judges that no part of the equilibrium and no figure of
ours has seen. What they teach (``plugalign feedback``, in lessons) steers inside the bounds, and
without them. A third party looks for the worst theta there is. What takes long is kept in the work
folder, where the same command goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from equilibrium_cost import costs
from equilibrium_crowds import (
    CROWDS,
    answers_of,
    choose,
    fitted_heads,
    fitted_judges,
    make,
    teach_crowds,
    texts_of,
)
from equilibrium_pictures import draw
from equilibrium_report import report
from equilibrium_search import search
from equilibrium_variants import STRENGTH, acts, adversaries, firm_strengths, variants
from results_tools import once

from plugalign.controllers.equilibrium import Equilibrium
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.evaluation.run_folder.answers import Answers, read_answers
from plugalign.evaluation.run_folder.folder import MANIFEST, read_json, replace_text, write_json
from plugalign.evaluation.run_folder.manifest import read_manifest
from plugalign.evaluation.statistics.paired import PairedBootstrap, mean_score
from plugalign.files.precision import chosen_dtype
from plugalign.fitting.judge import REPORT
from plugalign.fitting.progress import say
from plugalign.generation.wrap import wrap
from plugalign.loading import load_model
from plugalign.trace import Trace
from plugalign.values.feedback_learning import load_taught

USED = 200  # toxic prompts at the beginning of the file, on which defaults were tried
OURS = ("judge_toxicity", "judge_negativity")  # judges of the figures; others are the crowds'


# ------------------------------------------------------------------ what came of it


def judged(
    answers: Mapping[str, Answers], names: Sequence[str], prompts: int
) -> dict[str, dict[str, Any]]:
    """Of each row the judged toxicity and positivity with intervals, and their changes from the
    top-down reference."""
    bootstrap = PairedBootstrap(prompts)

    def figures(name: str) -> dict[str, Any]:
        toxic, negative = (mean_score(answers[name].scores(j)) for j in OURS)
        return {"toxicity": toxic, "positivity": 1 - negative}

    against, found = figures("top_down"), {}
    for name in names:
        own = figures(name)
        found[name] = {
            kind: {
                "mean": vars(bootstrap.mean(own[kind])),
                "change": vars(bootstrap.difference(own[kind], against[kind])),
            }
            for kind in own
        }
    return found


def certified(
    model: Any, tokenizer: Any, controller: Equilibrium, prompts: Sequence[str], tokens: int
) -> dict[str, Any]:
    """What the certificates of all tokens of sampled answers say."""
    steered = wrap(model, tokenizer, controller)
    ids = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
    trace = Trace()
    torch.manual_seed(2)
    steered.generate(**ids, do_sample=True, top_k=0, max_new_tokens=tokens, trace=trace)
    alive = torch.stack(trace.alive).cpu()
    told = [step["Equilibrium"] for step in trace.certificates]
    columns = {name: torch.stack([step[name].cpu() for step in told]).double() for name in told[0]}

    def mean(values: torch.Tensor) -> dict[str, float]:
        by_prompt = (values * alive).sum(0) / alive.sum(0).clamp(min=1)
        return vars(PairedBootstrap(len(prompts)).mean(by_prompt.numpy()))

    names = [p.name for p in controller.principles]
    epsilons = [
        controller.epsilon if p.epsilon is None else p.epsilon for p in controller.principles
    ]
    return {
        "tokens": int(alive.sum()),
        "most_excess": float(columns["excess"][alive].max()),
        "kl": mean(columns["kl"]),
        "active": mean((columns["active"] > 0).double()),
        "repaired": mean((columns["repair"] > 0).double()),
        "principles": {
            name: {
                "expected": mean(columns[f"expected.{name}"]),
                "change": mean(columns[f"expected.{name}"] - columns[f"bound.{name}"] + epsilon),
            }
            for name, epsilon in zip(names, epsilons, strict=True)
        },
    }


def lessons(folder: Path) -> list[dict[str, Any]]:
    """Theta after each lesson, with standard errors."""
    found = []
    for lesson in load_taught(folder).history:
        errors = np.sqrt(np.diag(np.array(lesson.covariance))).tolist()
        found.append(
            {
                "pairs": lesson.feedback.pairs,
                "theta": lesson.theta,
                "standard_error": dict(zip(lesson.theta, errors, strict=True)),
                "agreement": lesson.agreement,
                "outside": lesson.outside,
            }
        )
    return found


def asked(data: Path, pairs: int, prompts: int) -> tuple[list[Any], list[Any]]:
    """Prompts of the crowds' pairs, and others that are answered: half neutral, half toxic."""
    neutral = load_prompts(data / "prompts/sentiment_neutral.jsonl").texts
    toxic = load_prompts(data / "prompts/rtp_toxic.jsonl").texts[USED:]
    answered = [*neutral[pairs : pairs + prompts // 2], *toxic[: prompts - prompts // 2]]
    return list(neutral[:pairs]), answered


def all_certificates(
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Any],
    prompts: Sequence[Any],
    new_tokens: int,
    work: Path,
) -> dict[str, Any]:
    """`certified` of every row that acts: of others there is nothing to certify."""
    found = {}
    for name, row in rows.items():
        if acts(row):
            say(f"certificates of {name}")
            make_them = partial(certified, model, tokenizer, row, prompts, new_tokens)
            found[name] = once(work / f"certificates-{name}.json", make_them)
    return found


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    data: Annotated[Path, typer.Option(help="Folder with the data, see the file's docstring.")],
    work: Annotated[Path, typer.Option(help="Folder for fits, feedback and runs; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    pairs: Annotated[int, typer.Option(min=8, help="Pairs of each crowd.")] = 480,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts that are answered.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 100,
    tried: Annotated[int, typer.Option(min=6, help="Theta that the search tries.")] = 1000,
    firm: Annotated[bool, typer.Option(help="Rows of crowds that use half of the budget.")] = False,
    minutes: Annotated[float, typer.Option(help="What a fit may take.")] = 10,
    limit: Annotated[int | None, typer.Option(help="At most so many texts for heads.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    texts = texts_of(data, limit)
    base, tokenizer = load_model(model, chosen_dtype(dtype))
    heads = fitted_heads(base, tokenizer, texts, work, minutes)
    judges = fitted_judges(texts, work)
    start = make(base, tokenizer, heads, texts["toxicity"])
    start.save_pretrained(work / "start")

    paired, chosen = asked(data, pairs, prompts)
    answers = once(
        work / "answers.json",
        lambda: answers_of(base, tokenizer, start, paired, new_tokens),
    )
    choose(paired, [tuple(pair) for pair in answers], judges, work / "feedback")
    taught = teach_crowds(work / "start", work, base, tokenizer)

    found = once(
        work / "search.json",
        lambda: search(base, tokenizer, taught["rude"], heads["civil"], chosen[::2], tried),
    )
    strengths = once(
        work / "firm.json",
        lambda: (
            firm_strengths(base, tokenizer, taught, heads["civil"], paired[:50]) if firm else {}
        ),
    )
    rows = variants(start, taught, strengths)
    rows |= adversaries(start, torch.tensor(found["theta"], dtype=torch.float64))
    comparison = compare(
        base,
        tokenizer,
        methods=list(rows),
        controllers=rows,
        prompts=chosen,
        judges={name: str(work / "judges" / name) for name in OURS},
        samples=samples,
        max_new_tokens=new_tokens,
        top_p=1.0,
        chat="off",
        batch_size=batch_size,
        out=work / "run",
        resume=(work / "run" / MANIFEST).is_file(),
    )
    polite = taught["polite"].with_settings(strength=STRENGTH)  # also where it is no row
    cost = once(
        work / "cost.json",
        lambda: costs(base, tokenizer, start, polite, chosen[::13][:8]),
    )
    read = read_answers(comparison.out, read_manifest(comparison.out))
    certificates = all_certificates(base, tokenizer, rows, chosen, new_tokens, work)
    results = {
        "model": Path(model).name,
        "pairs": pairs,
        "prompts": len(chosen),
        "samples": samples,
        "new_tokens": new_tokens,
        "strength": STRENGTH,
        "firm": strengths,
        "epsilon": start.epsilon,
        "kappa": start.kappa,
        "judged": judged(read, ["base", *rows], len(chosen)),
        "certificates": certificates,
        "lessons": {crowd: lessons(work / "taught" / crowd) for crowd in CROWDS},
        "search": found,
        "cost": cost,
        "judges": {name: read_json(work / "judges" / name / REPORT) for name in judges},
        "heads": {
            name: read_json(work / "heads" / name / "fit.json")["measured"] for name in heads
        },
    }
    write_json(out / "results.json", results)
    draw(results, out)
    replace_text(out / "README.md", report(results))
    say(f"the results are in {out}, texts and report in {work / 'run'}")


if __name__ == "__main__":
    typer.run(main)
