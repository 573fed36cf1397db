"""Trains FUDGE's predictor: from every prefix of a text, what is the label of the full text?

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
from plugalign.engine.readers.positions import position_ids
from plugalign.fitting import workspace
from plugalign.fitting.answers import PLAIN, Frame, frame_of
from plugalign.fitting.budget import affordable_steps, time_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Batch, Examples, auc, encoded, end_tokens
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Seed,
    ShareBelowOne,
    Weight,
    fit_function,
)
from plugalign.fitting.training import steps_of_an_epoch, train

ENDED = 0.5  # share of the texts that may be broken off
TRAINING = 0.95  # share of the time, before the predictor is measured


class FudgeSettings(FitSettings):
    """Settings of `fit_fudge`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        width: of the predictor; layers and heads: likewise.
        steps: at most; it ends when held-out texts are classified no better.
        dropped: share of the tokens and of the last hidden units that are hidden in training.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, a small and unsure predictor needs more.
        minutes: make fewer steps where these take longer.
    """

    desired: str | None = None
    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    steps: Count = 800
    batch_size: Count = 64
    lr: LearningRate = 1e-3
    dropped: ShareBelowOne = 0.2
    max_length: Count = 64
    seed: Seed = 0
    k: Count = 200
    weight: Weight = 8.0
    minutes: Minutes | None = None


@fit_function(FudgeSettings)
def fit_fudge(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: FudgeSettings
) -> Fudge:
    """Trains a predictor of the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `FudgeSettings`.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    sides, predictor = data.binary(settings.desired), _fresh(model, settings)
    frame = frame_of(model, tokenizer, settings)

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes).part(TRAINING)
        learnt, held = encoded(
            tokenizer, sides, settings.max_length, settings.seed, end=False, frame=frame
        )
        ends = end_tokens(model, tokenizer, frame)
        measured = _trained(predictor, learnt, held, ends, model.device, settings, folder, clock)
        fitted = Fudge(
            predictor,
            k=settings.k,
            weight=settings.weight,
            fitted_for=identify(model, tokenizer),
        )
        fitted.save_pretrained(result)
        return measured

    about = frame.record()
    record = workspace.record("fudge", model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    return Fudge.from_pretrained(out)


def _trained(
    predictor: Predictor,
    learnt: Examples,
    held: Examples,
    ends: Sequence[int],
    device: torch.device,
    settings: FudgeSettings,
    folder: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Trains the predictor in place and measures it on the held-out texts."""
    pick = learnt.picks(settings.batch_size, settings.seed)
    frame = learnt.frame
    hazard = len(learnt) / sum(len(row) - frame.first for row in learnt.rows)

    def loss(step: int) -> Tensor:
        batch = broken_off(learnt.batch(pick(step), device), ends, hazard, frame)
        scores = _thinned(predictor, batch.ids, batch.mask, settings.dropped)
        return prefix_loss(scores, batch.label, batch.learnt, batch.weight)

    parameters, title = dict(predictor.named_parameters()), "FUDGE predictor"
    note = folder / "predictor.json"

    def held_loss() -> float:
        return _judged(predictor, held, settings.batch_size, device)[0]

    look = held_loss if len(held) else None
    steps, looks = affordable_steps(
        loss,
        parameters,
        settings.steps,
        clock,
        title=title,
        note=note,
        looking=time_of(look, parameters),
    )
    epoch = steps_of_an_epoch(len(learnt), settings.batch_size)
    watch = None if look is None else HeldOut(look, looks, epoch=epoch)
    losses = train(
        parameters=parameters,
        loss=loss,
        steps=steps,
        most=settings.steps,
        lr=settings.lr,
        title=title,
        seed=settings.seed,
        checkpoint=folder / "predictor.checkpoint",
        weight_decay=0.01,
        held_out=watch,
        clock=clock,
    )
    if watch is None:
        return {"steps": len(losses)}
    found = _judged(predictor, held, settings.batch_size, device)[1]
    return {"steps": len(losses), "held_out": {**watch.best, "auc": found}}


@torch.no_grad()
def _judged(
    predictor: Predictor, held: Examples, batch_size: int, device: torch.device
) -> tuple[float, float]:
    """The loss of held-out texts, and the AUC of all their prefixes' scores."""
    scores, labels, weights = [], [], []
    for texts in held.in_order(batch_size):
        ids, mask, learnt, label, weight = held.batch(texts, device)
        seen = learnt.bool()
        scores.append(predictor(ids, mask)[seen])
        labels.append(label[:, None].expand_as(ids)[seen])
        weights.append(weight[:, None].expand_as(ids)[seen])
    joined = [torch.cat(part) for part in (scores, labels, weights)]
    one = torch.ones_like(joined[0])[:, None]
    loss = prefix_loss(joined[0][:, None], joined[1], one, joined[2])
    return float(loss), auc(*joined)


def _fresh(model: Any, settings: FudgeSettings) -> Predictor:
    """An untrained predictor of the base's tokens, on its device."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        vocab_size = model.get_output_embeddings().weight.shape[0]
        predictor = Predictor(vocab_size, settings.width, settings.layers, settings.heads)
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


def broken_off(batch: Batch, ends: Sequence[int], hazard: float, frame: Frame = PLAIN) -> Batch:
    """Texts of which some end at a random place by one of the end tokens; torch's random numbers
    decide.

    Args:
        hazard: the probability of an end behind each token of a text that may be broken off. It is
            the same at all places of all texts, or where an end stands would tell their lengths.
        frame: what stands around the texts, of which nothing is broken off.
    """
    ids, mask, _, label, weight = batch
    if not ends:
        return batch
    ids, mask = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (ids, mask))
    lengths = mask.sum(1)
    place = torch.ones(len(ids), device=ids.device)
    if hazard < 1:  # where no text is longer than a token, all end behind it
        place.geometric_(hazard)
    place = place.long() + frame.first
    token = torch.tensor(ends, device=ids.device)[torch.randint(len(ends), (len(ids),))]
    chosen = (torch.rand(len(ids), device=ids.device) < ENDED) & (place <= lengths)
    column = torch.arange(ids.shape[1], device=ids.device)
    at = chosen[:, None] & (column == place[:, None])
    behind = chosen[:, None] & (column > place[:, None])
    ids = torch.where(at, token[:, None], ids)
    mask = torch.where(at, 1, mask).masked_fill(behind, 0)
    return Batch(ids, mask, frame.learnt(mask), label, weight)


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
    """The predictor's logits ``(B, T)`` with some tokens and last hidden units dropped."""
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
