"""Trains one key/value prefix for each class of texts, by a contrastive loss.

``L = w_d * (-log softmax_c(-NLL_c(x))[y]) + w_g * NLL_y(x)`` over the classes c of a text x with
class y (Qian et al. 2022, equations 2 to 4): the right prefix must explain the text, and explain it
better than the other one. What is trained is `plugalign.fitting.prefix_student.Prefixes`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from plugalign.algebra.identity import identify
from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
from plugalign.fitting import workspace
from plugalign.fitting.answers import frame_of
from plugalign.fitting.budget import affordable_look, affordable_steps, remember
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Examples, auc, encoded
from plugalign.fitting.prefix_student import Prefixes
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Seed,
    Weight,
    check_context,
    fit_function,
)
from plugalign.fitting.training import steps_of_an_epoch, train

TRAINING = 0.97  # share of the time, but for what it takes to measure


class PrefixSettings(FitSettings):
    """Settings of `fit_prefix`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        prefix_length: P, positions of each prefix.
        width: of the map between the small matrix and the keys and values.
        steps: at most; it ends when held-out texts are classified and explained no better.
        lr: small models need far more than the paper's 5e-5 for GPT-2 medium.
        w_d: weight of classifying; w_g: of explaining the text.
        max_length: of a training text, in tokens; longer ones are cut.
        contrast: makes a controller of both prefixes, which adds ``alpha`` times their difference,
            instead of one that generates behind the desired prefix.
        minutes: make fewer steps where these take longer.
    """

    desired: str | None = None
    prefix_length: Count = 10
    width: Count = 256
    steps: Count = 400
    batch_size: Count = 16
    lr: LearningRate = 1e-3
    w_d: Weight = 0.5
    w_g: Weight = 0.5
    max_length: Count = 32
    seed: Seed = 0
    contrast: bool = False
    alpha: Weight = 2.0
    minutes: Minutes | None = None

    def recorded(self) -> dict[str, Any]:
        """For fit.json. The method's name says that both prefixes are used."""
        found = super().recorded() | {"alpha": self.alpha if self.contrast else None}
        return {name: value for name, value in found.items() if name != "contrast"}


@fit_function(PrefixSettings)
def fit_prefix(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: PrefixSettings
) -> PrefixTuning | PrefixContrast:
    """Trains the prefixes of both classes and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `PrefixSettings`.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if peft is missing; names the extra.
    """
    frame = frame_of(model, tokenizer, settings)
    check_context(model, len(frame.context) + settings.max_length + settings.prefix_length)
    sides = data.binary(settings.desired)

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes).part(TRAINING)
        learnt, held = encoded(
            tokenizer, sides, settings.max_length, settings.seed, end=True, least=2, frame=frame
        )
        said = len(frame.context)  # prefixes start from texts alone
        prefixes = Prefixes(
            model,
            tokenizer,
            [[row[said:] for row in side] for side in learnt.sides()],
            settings.prefix_length,
            settings.width,
            settings.seed,
            frame.first,
        )
        measured = _trained(prefixes, learnt, held, settings, folder, clock)
        with torch.no_grad():
            pair = prefixes.keys_values().detach().cpu()
        origin = identify(model, tokenizer)
        fitted = PrefixTuning(pair[0].clone(), pair[1].clone(), fitted_for=origin)
        chosen = fitted.against(settings.alpha) if settings.contrast else fitted
        chosen.save_pretrained(result)
        return measured

    method = "prefix_contrast" if settings.contrast else "prefix"
    about = frame.record()
    record = workspace.record(method, model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    kind = PrefixContrast if settings.contrast else PrefixTuning
    fitted: PrefixTuning | PrefixContrast = kind.from_pretrained(out)
    return fitted


def _trained(
    prefixes: Prefixes,
    learnt: Examples,
    held: Examples,
    settings: PrefixSettings,
    folder: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Trains the prefixes in place and measures them on the held-out texts."""
    pick = learnt.picks(settings.batch_size, settings.seed)

    def loss(step: int) -> Tensor:
        ids, mask, seen, label, _ = learnt.batch(pick(step), prefixes.model.device)
        nll = prefixes.nll(ids, mask, seen)
        return contrastive_loss(nll, (label == 0).long(), settings.w_d, settings.w_g)

    parameters, title = dict(prefixes.encoders.named_parameters()), "prefixes"
    note = folder / "prefix.json"

    def look(texts: int) -> float:
        return _judged(prefixes, held.first(texts), settings)[0]

    looked, read = folder / "look.json", settings.steps * settings.batch_size
    looking = affordable_look(look, len(held), parameters, clock, read=read, note=looked)
    clock = clock.part(but=looking.each * len(held))
    steps, looks = affordable_steps(
        loss,
        parameters,
        settings.steps,
        clock,
        title=title,
        note=note,
        looking=lambda: looking.seconds,
    )
    remember(looked, looking._asdict())
    epoch = steps_of_an_epoch(len(learnt), settings.batch_size)
    seen = looking.texts
    watch = HeldOut(partial(look, seen), looks, epoch=epoch) if seen else None
    losses = train(
        parameters=parameters,
        loss=loss,
        steps=steps,
        most=settings.steps,
        lr=settings.lr,
        title=title,
        seed=settings.seed,
        checkpoint=folder / "prefix.checkpoint",
        held_out=watch,
        clock=clock,
    )
    if watch is None:
        return {"steps": len(losses)}
    return {
        "steps": len(losses),
        "held_out": {
            **watch.best,
            "texts": len(held.first(seen)),
            "auc": _judged(prefixes, held, settings)[1],
        },
    }


@torch.no_grad()
def _judged(prefixes: Prefixes, held: Examples, settings: PrefixSettings) -> tuple[float, float]:
    """The mean loss of held-out texts, and the AUC of their likelihoods' ratio."""
    total, scores, labels = 0.0, [], []
    for texts in held.in_order(settings.batch_size):
        ids, mask, seen, label, _ = held.batch(texts, prefixes.model.device)
        nll = prefixes.nll(ids, mask, seen)
        loss = contrastive_loss(nll, (label == 0).long(), settings.w_d, settings.w_g)
        total += len(texts) * float(loss)
        scores.append(nll[1] - nll[0])
        labels.append(label)
    return total / len(held), auc(torch.cat(scores), torch.cat(labels))


def contrastive_loss(nll: Tensor, label: Tensor, w_d: float, w_g: float) -> Tensor:
    """``w_d`` times telling the classes apart plus ``w_g`` times explaining the text.

    Args:
        nll: each text's negative log-likelihood behind each class's prefix ``(C, B)``, in nats.
        label: the class of each text ``(B,)``.
    """
    apart = cross_entropy(-nll.T, label)
    return w_d * apart + w_g * nll.gather(0, label[None]).mean()
