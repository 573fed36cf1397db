"""Trains FUDGE's predictor: from every prefix of a text, what is the label of the whole?

The loss is the binary cross-entropy of each position (Yang and Klein 2021, section 3.1). Both
classes weigh the same, however many texts each has. Some texts of a batch are broken off at a
random place by an end token: that a text ends there says nothing about its label, so the predictor
does not promote or forbid stopping. The token embeddings start from the base's own, by principal
components where the predictor is narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from plugalign.algebra.identity import identify
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.engine.readers.prefix_cache import position_ids
from plugalign.fitting import workspace
from plugalign.fitting.budget import affordable_steps
from plugalign.fitting.data import Labelled
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Batch, Examples, auc, encoded, end_tokens
from plugalign.fitting.settings import (
    Count,
    LearningRate,
    Minutes,
    Seed,
    ShareBelowOne,
    Weight,
    checked,
)
from plugalign.fitting.training import train

ENDED = 0.5  # share of the texts that may be broken off


@checked
def fit_fudge(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    width: Count = 128,
    layers: Count = 2,
    heads: Count = 4,
    steps: Count = 800,
    batch_size: Count = 64,
    lr: LearningRate = 1e-3,
    dropped: ShareBelowOne = 0.2,
    max_length: Count = 64,
    seed: Seed = 0,
    k: Count = 200,
    weight: Weight = 8.0,
    minutes: Minutes | None = None,
) -> Fudge:
    """Trains a predictor of the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        width: of the predictor; layers and heads: likewise.
        steps: at most; it ends when held-out texts are told apart no better.
        dropped: share of the tokens and of the last hidden units that are hidden in training.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, a small and unsure predictor needs more.
        minutes: make fewer steps where these take longer.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    sides, predictor = data.binary(desired), _fresh(model, width, layers, heads, seed)
    settings = {
        "desired": desired,
        "width": width,
        "layers": layers,
        "heads": heads,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "dropped": dropped,
        "max_length": max_length,
        "seed": seed,
        "k": k,
        "weight": weight,
    }

    def work(folder: Path, result: Path) -> dict[str, Any]:
        learnt, held = encoded(tokenizer, sides, max_length, seed, end=False)
        pick, ends = learnt.picks(batch_size, seed), end_tokens(model, tokenizer)
        hazard = len(learnt) / sum(map(len, learnt.rows))

        def loss(step: int) -> Tensor:
            batch = broken_off(learnt.of(pick(step), model.device), ends, hazard)
            ids, mask, label, share = batch
            return prefix_loss(_thinned(predictor, ids, mask, dropped), label, mask, share)

        parameters, title = dict(predictor.named_parameters()), "FUDGE predictor"
        note = folder / "predictor.json"
        chosen = affordable_steps(loss, parameters, steps, minutes, title=title, note=note)
        watch = HeldOut(lambda: _judged(predictor, held, batch_size, model.device)[0])
        train(
            parameters=parameters,
            loss=loss,
            steps=chosen,
            lr=lr,
            title=title,
            seed=seed,
            checkpoint=folder / "predictor.checkpoint",
            weight_decay=0.01,
            held_out=watch if len(held) else None,
        )
        origin = identify(model, tokenizer)
        Fudge(predictor, k=k, weight=weight, fitted_for=origin).save_pretrained(result)
        if not len(held):
            return {"steps": chosen}
        found = _judged(predictor, held, batch_size, model.device)[1]
        return {"steps": chosen, "held_out": {**watch.best, "auc": found}}

    workspace.make(out, workspace.record("fudge", model, tokenizer, data, settings), work)
    return Fudge.from_pretrained(out)


@torch.no_grad()
def _judged(
    predictor: Predictor, held: Examples, batch_size: int, device: torch.device
) -> tuple[float, float]:
    """The loss of held-out texts, and the AUC of all their prefixes' scores."""
    scores, labels, weights = [], [], []
    for texts in held.in_order(batch_size):
        ids, mask, label, weight = held.of(texts, device)
        seen = mask.bool()
        scores.append(predictor(ids, mask)[seen])
        labels.append(label[:, None].expand_as(ids)[seen])
        weights.append(weight[:, None].expand_as(ids)[seen])
    whole = [torch.cat(part) for part in (scores, labels, weights)]
    one = torch.ones_like(whole[0])[:, None]
    loss = prefix_loss(whole[0][:, None], whole[1], one, whole[2])
    return float(loss), auc(*whole)


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


def broken_off(batch: Batch, ends: Sequence[int], hazard: float) -> Batch:
    """Texts of which some end at a random place by one of the end tokens; torch's random numbers
    decide.

    Args:
        hazard: the probability of an end behind each token of a text that may be broken off. It is
            the same at all places of all texts, or where an end stands would tell their lengths.
    """
    ids, mask, label, weight = batch
    if not ends:
        return batch
    ids, mask = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (ids, mask))
    lengths = mask.sum(1)
    place = torch.empty(len(ids), device=ids.device).geometric_(hazard).long()  # 1 and up
    token = torch.tensor(ends, device=ids.device)[torch.randint(len(ends), (len(ids),))]
    chosen = (torch.rand(len(ids), device=ids.device) < ENDED) & (place <= lengths)
    column = torch.arange(ids.shape[1], device=ids.device)
    at = chosen[:, None] & (column == place[:, None])
    behind = chosen[:, None] & (column > place[:, None])
    ids = torch.where(at, token[:, None], ids)
    mask = torch.where(at, 1, mask).masked_fill(behind, 0)
    return Batch(ids, mask, label, weight)


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
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=position_ids(mask),
        use_cache=False,
    )
    logits: Tensor = predictor.head(dropout(output.last_hidden_state, dropped)).squeeze(-1)
    return logits
