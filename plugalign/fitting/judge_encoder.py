"""Tunes an encoder as a text classifier, to judge short answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plugalign.evaluation.judging.text_classifier import TextClassifier, text_classifier
from plugalign.files.pretrained import loading
from plugalign.fitting.data import pad
from plugalign.fitting.progress import say
from plugalign.fitting.training import batches, train

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
) -> TextClassifier:
    """Tunes an encoder with a new classification head and saves it with its tokenizer.

    Answers are short, so only the first tokens of each text are read. The word embeddings, most
    of a small encoder, stay as they are and cost nothing.

    Args:
        texts: what to learn from.
        labels: 1 for a toxic text, 0 for another.
        encoder: a folder or hub id.
        epochs: passes over the texts.
        lr: the highest learning rate.
        max_length: tokens of a text that are read.

    Raises:
        ValueError: if there is no such encoder, naming it.
    """
    model, tokenizer = _untrained(encoder, seed)
    model.get_input_embeddings().requires_grad_(False)
    tuned = text_classifier(model, tokenizer, positive=1)
    length = min(max_length, tuned.limit)
    say(f"tokenizing {len(texts)} texts")
    rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    targets, batch = torch.tensor(labels), batches(len(rows), batch_size, seed)

    def loss(step: int) -> Tensor:
        chosen = batch(step)
        ids, mask = pad([rows[i] for i in chosen])
        ids = ids.masked_fill(mask == 0, tuned.pad or 0)
        logits = model(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits.float(), targets[chosen])

    train(
        parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
        loss=loss,
        steps=max(1, round(epochs * len(rows) / batch_size)),
        lr=lr,
        title="judge",
        weight_decay=0.01,
        seed=seed,
    )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return tuned


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
