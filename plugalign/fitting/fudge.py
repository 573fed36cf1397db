"""Trains FUDGE's predictor: from every prefix of a text, what is the label of the whole?

The loss is the binary cross-entropy of each position (Yang and Klein 2021, section 3.1). Both
classes weigh the same, however many texts each has. The token embeddings start from the base's
own, by principal components where the predictor is narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from plugalign.algebra.supports import TopK
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.engine.auxiliary import positions
from plugalign.fitting.data import Labelled, encode, pad
from plugalign.fitting.training import (
    batches,
    check_finite,
    check_settings,
    fingerprint,
    train,
    working_folder,
)
from plugalign.identity import Identity

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def fit_fudge(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    steps: int = 800,
    batch_size: int = 64,
    lr: float = 1e-3,
    dropped: float = 0.2,
    max_length: int = 64,
    seed: int = 0,
    k: int = 200,
    weight: float = 8.0,
) -> Fudge:
    """Trains a predictor of the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        width: of the predictor; layers and heads: likewise.
        dropped: share of the tokens and of the last hidden units that are hidden in training.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, a small and unsure predictor needs more.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    check_settings(
        width=width, layers=layers, heads=heads, steps=steps, batch_size=batch_size, lr=lr,
        max_length=max_length,
    )  # fmt: skip
    check_finite(weight=weight)
    TopK(k)
    _check_share(dropped)
    good, bad = (encode(tokenizer, texts, max_length) for texts in data.binary(desired))
    origin = Identity.of(model, tokenizer)
    predictor = _fresh(model, width, layers, heads, seed)
    batch = labelled_batches(good, bad, batch_size, seed, model.device)

    def loss(step: int) -> Tensor:
        ids, mask, label, share = batch(step)
        return prefix_loss(_thinned(predictor, ids, mask, dropped), label, mask, share)

    made_of = fingerprint(good, bad, predictor.shape, batch_size, dropped, origin.to_dict())
    with working_folder(out) as work:
        train(
            parameters=dict(predictor.named_parameters()), loss=loss, steps=steps, lr=lr,
            title=f"FUDGE predictor ({len(good)} + {len(bad)} texts)", seed=seed, run=made_of,
            checkpoint=work / "predictor.checkpoint", weight_decay=0.01,
        )  # fmt: skip
        controller = Fudge(predictor, k=k, weight=weight, fitted_for=origin)
        controller.save_pretrained(out)
    return controller


def _check_share(dropped: float) -> None:
    if not 0 <= dropped < 1:
        raise ValueError(f"dropped must be a share below 1, got {dropped}")


def _fresh(model: Any, width: int, layers: int, heads: int, seed: int) -> Predictor:
    """An untrained predictor of the base's tokens, on its device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vocab_size = model.get_output_embeddings().weight.shape[0]
        predictor = Predictor(vocab_size, width, layers, heads)
        start_from(predictor, model.get_input_embeddings().weight)
    return predictor.to(model.device)


def start_from(predictor: Predictor, embedding: Tensor) -> None:
    """Sets the token embeddings to the first principal components of the base's ``(V, D)``.

    They are scaled to unit variance as a whole; columns beyond D stay random.
    """
    own = predictor.backbone.embed_tokens.weight
    rows = embedding.detach().to(own.device, torch.float32)
    rows = rows - rows.mean(0)
    directions = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(-1)  # (D, D), largest first
    projected = rows @ directions[:, : own.shape[1]]
    count = min(len(own), len(projected))
    with torch.no_grad():
        own[:count, : projected.shape[1]] = projected[:count] / projected.std()


def labelled_batches(
    good: Sequence[Sequence[int]],
    bad: Sequence[Sequence[int]],
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Callable[[int], Batch]:
    """Maps a step to ids ``(B, T)``, mask ``(B, T)``, labels ``(B,)`` (1 is desired) and weights
    ``(B,)`` that make up for the classes' sizes."""
    rows, total = [*good, *bad], len(good) + len(bad)
    labels = torch.tensor([1.0] * len(good) + [0.0] * len(bad))
    weights = torch.where(labels == 1, total / (2 * len(good)), total / (2 * len(bad)))
    pick = batches(total, batch_size, seed, [len(row) for row in rows])

    def batch(step: int) -> Batch:
        chosen = pick(step)
        ids, mask = pad([rows[i] for i in chosen])
        parts = (ids, mask, labels[chosen], weights[chosen])
        return tuple(part.to(device) for part in parts)  # type: ignore[return-value]

    return batch


def prefix_loss(logits: Tensor, label: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of every prefix's binary cross-entropy against its text's label.

    Args:
        logits: ``(B, T)``. mask: ``(B, T)``. label: ``(B,)``. weight: ``(B,)``.
    """
    targets = label[:, None].expand_as(logits)
    losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    share = mask * weight[:, None]
    return (losses * share).sum() / share.sum()


def _thinned(predictor: Predictor, ids: Tensor, mask: Tensor, dropped: float) -> Tensor:
    """The predictor's logits ``(B, T)`` with whole tokens and last hidden units dropped."""
    embedded = predictor.backbone.embed_tokens(ids)
    embedded = embedded * dropout(torch.ones_like(embedded[..., :1]), dropped)
    output = predictor.backbone(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions(mask), use_cache=False
    )
    logits: Tensor = predictor.head(dropout(output.last_hidden_state, dropped)).squeeze(-1)
    return logits
