"""Trains FUDGE's head on the base's own hidden states.

Every pair of a prefix's last hidden state and the token that follows it is an example, its label
that of the whole text. The base is frozen. Hidden states and embeddings are scaled to unit size
while training, so that one learning rate suits every model; the scales are folded in afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.supports import TopK
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting.data import Labelled, encode
from plugalign.fitting.fudge import labelled_batches, prefix_loss
from plugalign.fitting.training import (
    check_context,
    check_finite,
    check_settings,
    fingerprint,
    train,
    working_folder,
)
from plugalign.identity import Identity


def fit_fudge_head(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    rank: int = 32,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 3e-3,
    max_length: int = 64,
    seed: int = 0,
    k: int = 200,
    weight: float = 8.0,
) -> FudgeHead:
    """Trains a head for the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        rank: of the interaction between prefix and token.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, more steers harder.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    check_settings(rank=rank, steps=steps, batch_size=batch_size, lr=lr, max_length=max_length)
    check_context(model, max_length)
    check_finite(weight=weight)
    TopK(k)
    good, bad = (encode(tokenizer, texts, max_length) for texts in data.binary(desired))
    origin = Identity.of(model, tokenizer)
    batch = labelled_batches(good, bad, batch_size, seed, model.device)
    embedding = model.get_output_embeddings().weight.detach().float()
    embedding_size = embedding.std()
    scaled = embedding / embedding_size
    hidden_size = hidden_states(model, *batch(0)[:2]).std()
    learned = _start(embedding, rank, seed)

    def loss(step: int) -> Tensor:
        ids, mask, label, share = batch(step)
        hidden = hidden_states(model, ids, mask)[:, :-1] / hidden_size
        logits = _logits(learned, hidden, scaled, ids[:, 1:])
        return prefix_loss(logits, label, mask[:, 1:], share)

    made_of = fingerprint(good, bad, rank, batch_size, origin.to_dict())
    with working_folder(out) as work:
        train(
            parameters=learned, loss=loss, steps=steps, lr=lr, seed=seed, run=made_of,
            title=f"FUDGE head ({len(good)} + {len(bad)} texts)",
            checkpoint=work / "head.checkpoint", weight_decay=0.01,
        )  # fmt: skip
        parts = _unscaled(learned, embedding, embedding_size, hidden_size)
        controller = FudgeHead(**parts, k=k, weight=weight, fitted_for=origin)
        controller.save_pretrained(out)
    return controller


@torch.no_grad()
def _unscaled(
    learned: Mapping[str, Tensor], embedding: Tensor, embedding_size: Tensor, hidden_size: Tensor
) -> dict[str, Any]:
    """The head for hidden states and embeddings as they are."""
    return {
        "left": learned["left"] / embedding_size,
        "right": learned["right"] / hidden_size,
        "token_bias": learned["token_bias"] + embedding @ (learned["token"] / embedding_size),
        "state": learned["state"] / hidden_size,
        "offset": learned["offset"].item(),
    }


@torch.no_grad()
def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """What the model's LM head reads, ``(B, T, D)`` in float32, for right-padded ids ``(B, T)``."""
    seen = []

    def keep_one_position(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0].float())
        return (args[0][:, :1], *args[1:])  # the logits are not needed and would cost the most

    handle = model.get_output_embeddings().register_forward_pre_hook(keep_one_position)
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def _logits(
    learned: Mapping[str, Tensor], hidden: Tensor, rows: Tensor, following: Tensor
) -> Tensor:
    """The score ``(B, T)`` of each following token ``(B, T)`` after its prefix's hidden state.

    Args:
        hidden: scaled hidden states ``(B, T, D)``. rows: the scaled embedding ``(V, D)``.
    """
    tokens = rows[following]
    bilinear = ((tokens @ learned["left"]) * (hidden @ learned["right"])).sum(-1)
    by_token = tokens @ learned["token"] + learned["token_bias"][following]
    return bilinear + by_token + hidden @ learned["state"] + learned["offset"]


def _start(embedding: Tensor, rank: int, seed: int) -> dict[str, Tensor]:
    """Zero but for the two factors of the interaction, which need to differ to learn."""
    vocab, width = embedding.shape
    generator = torch.Generator().manual_seed(seed)
    random = {
        name: torch.randn(width, rank, generator=generator) / width for name in ("left", "right")
    }
    zero = {"token": (width,), "token_bias": (vocab,), "state": (width,), "offset": ()}
    tensors = {**random, **{name: torch.zeros(shape) for name, shape in zero.items()}}
    return {name: tensor.to(embedding.device).requires_grad_() for name, tensor in tensors.items()}
