"""Trains a judge and measures how far it agrees with reference scores, such as Perspective's.

    python benchmarks/judge.py --train comments.jsonl --kind encoder --encoder MiniLM-L6 \\
        --out ./judge --agree scored.jsonl:continuation:perspective_toxicity

A judge must not learn from the data that the controllers learn from, and continuations are short,
so an encoder is tuned on the first tokens of each comment only. The result loads with
``plugalign compare --judge ./judge`` (for tfidf ``./judge/judge.joblib``).
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import joblib
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plugalign.evaluation.agreement import Agreement, agreement
from plugalign.evaluation.judges import Judge, load_judge
from plugalign.evaluation.linear_judge import LinearJudge
from plugalign.evaluation.statistics import Interval
from plugalign.fitting.data import load_data, pad
from plugalign.fitting.training import batches, fingerprint, train, working_folder

Kind = Literal["encoder", "tfidf", "linear"]
console = Console()


@dataclass(frozen=True)
class Tuning:
    """How an encoder is tuned."""

    epochs: float
    lr: float
    max_length: int
    bf16: bool
    seed: int
    batch_size: int = 32


def main(
    agree: Annotated[
        list[str], typer.Option(help="FILE:TEXT_FIELD:SCORE_FIELD of reference scores; repeatable")
    ],
    comments: Annotated[
        Path | None, typer.Option("--train", help="comments: text, label (1 = toxic)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where the trained judge goes")] = None,
    judge: Annotated[str | None, typer.Option(help="measure this judge; train nothing")] = None,
    kind: Annotated[Kind, typer.Option(help="what to train")] = "encoder",
    encoder: Annotated[str | None, typer.Option(help="folder or hub id of the encoder")] = None,
    epochs: Annotated[float, typer.Option(help="passes over the comments")] = 1.0,
    lr: Annotated[float, typer.Option(help="highest learning rate of the encoder")] = 2e-4,
    max_length: Annotated[int, typer.Option(help="tokens of a comment that are read")] = 48,
    bf16: Annotated[bool, typer.Option(help="tune in bfloat16, where the CPU has it")] = False,
    seed: Annotated[int, typer.Option(help="equal seeds give equal judges")] = 0,
) -> None:
    """Trains a judge on comments (or takes one) and prints its agreement."""
    references = {spec: _reference(spec) for spec in agree}
    if (judge is None) == (comments is None or out is None):
        raise typer.BadParameter("give either --train with --out, or --judge")
    if judge is None and kind == "encoder" and encoder is None:
        raise typer.BadParameter("--kind encoder needs --encoder")
    if comments is not None and out is not None:
        start = time.perf_counter()
        texts, labels = _comments(comments)
        if encoder is not None and kind == "encoder":
            tuning = Tuning(epochs, lr, max_length, bf16, seed)
            judge = tune_encoder(texts, labels, encoder, out, tuning)
        else:
            judge = {"linear": fit_linear, "tfidf": fit_tfidf}[kind](texts, labels, out)
        console.print(f"trained in {time.perf_counter() - start:.0f} s, saved as {judge}")
    found = {spec: _measure(load_judge(judge), *rows) for spec, rows in references.items()}
    console.print(_table(str(judge), found))
    if out is not None:
        report = {Path(spec).name: asdict(result) for spec, (result, _) in found.items()}
        (out / "agreement.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def fit_linear(texts: list[str], labels: list[int], out: Path) -> str:
    """The package's own `LinearJudge`."""
    LinearJudge.fit(texts, labels).save(out)
    return str(out)


def fit_tfidf(texts: list[str], labels: list[int], out: Path) -> str:
    """Words with their neighbours and characters within words, weighted, then a regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3)
    regression = LogisticRegression(C=4.0, solver="liblinear", random_state=0)
    pipeline = make_pipeline(make_union(words, letters), regression).fit(texts, labels)
    out.mkdir(parents=True, exist_ok=True)
    joblib.dump(pipeline, out / "judge.joblib")
    return str(out / "judge.joblib")


def tune_encoder(
    texts: list[str], labels: list[int], encoder: str, out: Path, tuning: Tuning
) -> str:
    """Tunes an encoder with a classification head and saves it with its tokenizer."""
    torch.manual_seed(tuning.seed)  # the head is new
    names = {0: "clean", 1: "toxic"}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label=names, label2id={v: k for k, v in names.items()}, dtype=torch.float32
    ).train()
    # Most of a small encoder is its word embeddings: left as they are, they cost nothing.
    model.get_input_embeddings().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = tokenizer(texts, truncation=True, max_length=tuning.max_length)["input_ids"]
    targets, batch = torch.tensor(labels), batches(len(rows), tuning.batch_size, tuning.seed)

    def loss(step: int) -> Tensor:
        chosen = batch(step)
        ids, mask = pad([rows[i] for i in chosen])
        with torch.autocast("cpu", torch.bfloat16) if tuning.bf16 else nullcontext():
            logits = model(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits.float(), targets[chosen])

    with working_folder(out) as work:
        train(
            parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
            loss=loss,
            steps=max(1, round(tuning.epochs * len(rows) / tuning.batch_size)),
            lr=tuning.lr,
            title="judge",
            checkpoint=work / "checkpoint.pt",
            weight_decay=0.01,
            seed=tuning.seed,
            run=fingerprint(encoder, rows, labels, tuning.bf16, tuning.batch_size),
        )
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return str(out)


def _comments(path: Path) -> tuple[list[str], list[int]]:
    clean, toxic = load_data(path).binary()
    return [*clean, *toxic], [0] * len(clean) + [1] * len(toxic)


def _reference(spec: str) -> tuple[list[str], list[float]]:
    """The texts of a file that have a score."""
    path, text, score = spec.rsplit(":", 2)
    lines = Path(path).read_text("utf-8").split("\n")
    rows = [row for row in map(json.loads, filter(None, lines)) if row[score] is not None]
    return [row[text] for row in rows], [row[score] for row in rows]


def _measure(judge: Judge, texts: list[str], reference: list[float]) -> tuple[Agreement, float]:
    """The agreement, and how many texts were judged per second."""
    start = time.perf_counter()
    scores = judge(texts)
    speed = len(texts) / (time.perf_counter() - start)
    return agreement(scores, reference), speed


def _table(name: str, found: dict[str, tuple[Agreement, float]]) -> Table:
    table = Table(title=f"judge {name}: agreement with reference scores (threshold 0.5)")
    for column in ("texts", "n", "AUC", "Spearman", "toxic (reference)", "texts/s"):
        table.add_column(column)
    for spec, (result, speed) in found.items():
        shares = f"{result.toxic:.3f} ({result.reference_toxic:.3f})"
        auc, rho = _interval(result.auc), _interval(result.spearman)
        name = Path(spec).name.rsplit(":", 1)[0]
        table.add_row(name, str(result.texts), auc, rho, shares, f"{speed:.0f}")
    return table


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()  # a new head is what is wanted here
    typer.run(main)
