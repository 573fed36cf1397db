"""Tunes an encoder as a text classifier, to judge short answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plugalign.evaluation.judging.text_classifier import TextClassifier, text_classifier
from plugalign.files.pretrained import loading
from plugalign.fitting.budget import affordable_steps, time_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import pad
from plugalign.fitting.held_out import HeldOut, set_apart
from plugalign.fitting.progress import say
from plugalign.fitting.training import batches, train

Example = tuple[list[int], int]
"""Token ids of a text, and its label."""
TRAINING = 0.9  # share of the time, before the judge reads what was held out
LABELS = {0: "clean", 1: "toxic"}


def tune_encoder(
    texts: Sequence[str],
    labels: Sequence[int],
    encoder: str,
    out: Path,
    *,
    epochs: float = 1.0,
    lr: float = 2e-4,
    max_length: int = 48,
    batch_size: int = 32,
    seed: int = 0,
    minutes: float | None = None,
) -> TextClassifier:
    """Tunes an encoder with a new classification head and saves it with its tokenizer.

    Answers are short, so only the first tokens of each text are read. The word embeddings, most
    of a small encoder, stay as they are and cost nothing. A tenth of the texts is held out, and
    the training ends when it becomes no better on them.

    Args:
        texts: what to learn from.
        labels: 1 for a toxic text, 0 for another.
        encoder: a folder or hub id.
        epochs: passes over the texts.
        lr: the highest learning rate.
        max_length: tokens of a text that are read.
        minutes: make fewer steps where these take longer; says first how long it takes.

    Raises:
        ValueError: if there is no such encoder, naming it.
    """
    clock = Clock(minutes).part(TRAINING)
    model, tokenizer = _untrained(encoder, seed)
    model.get_input_embeddings().requires_grad_(False)
    tuned = text_classifier(model, tokenizer, positive=1)
    length = min(max_length, tuned.limit)
    say(f"tokenizing {len(texts)} texts")
    rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    learnt, held = _split(list(zip(rows, labels, strict=True)), seed)
    pick = batches(len(learnt), batch_size, seed)

    loss_of = partial(_loss, model, tuned.pad or 0)

    def loss(step: int) -> Tensor:
        return loss_of([learnt[i] for i in pick(step)])

    def held_loss() -> float:
        model.eval()
        parts = [held[i : i + batch_size] for i in range(0, len(held), batch_size)]
        total = sum(len(part) * float(loss_of(part)) for part in parts)
        model.train()
        return total / len(held)

    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    look = held_loss if held else None
    most = max(1, round(epochs * len(learnt) / batch_size))
    looking = time_of(look, parameters)
    steps, looks = affordable_steps(loss, parameters, most, clock, title="judge", looking=looking)
    train(
        parameters=parameters,
        loss=loss,
        steps=steps,
        most=most,
        lr=lr,
        title="judge",
        weight_decay=0.01,
        seed=seed,
        held_out=None if look is None else HeldOut(look, looks),
        clock=clock,
    )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return tuned


def _loss(model: Any, filler: int, some: Sequence[Example]) -> Tensor:
    """The mean loss of examples, whose shorter rows are filled up."""
    ids, mask = pad([row for row, _ in some])
    ids = ids.masked_fill(mask == 0, filler)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return cross_entropy(logits.float(), torch.tensor([label for _, label in some]))


def _split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """What is learnt from, and what is held out, of both classes alike."""
    sides = [[row for row, label in examples if label == y] for y in LABELS]
    learnt, held = (
        [(row, label) for label, side in zip(LABELS, part, strict=True) for row in side]
        for part in set_apart(sides, seed)
    )
    return learnt, held


def _untrained(encoder: str, seed: int) -> tuple[Any, Any]:
    """The encoder with a new head, in training mode, and its tokenizer."""
    torch.manual_seed(seed)
    with loading("the encoder", encoder):
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            encoder,
            id2label=LABELS,
            label2id={name: label for label, name in LABELS.items()},
            dtype=torch.float32,
            trust_remote_code=False,
        ).train()
        return model, AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
