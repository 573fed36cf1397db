"""Trains reward models for RAD and ARGS: the base's body with a new head that gives one number.

Both methods ask what a text is worth at every token, so both are trained on every prefix, with the
label of the full text. RAD's reward lies between 0 and 1 (Deng and Raffel 2023, section 2.2), and
longer prefixes, which tell more, weigh more::

    loss = sum_t t (r(x_1..t) - y)^2 / sum_t t                y = 1 for the desired class

That of ARGS tells which of two texts is the better one (Khanov et al. 2024, equation 1), here of
any two of a step's texts with different labels, at every length that both reach::

    loss = -log sigmoid(r(x_1..t) - r(x'_1..t))                x of the desired class, x' not

Some texts of a batch are broken off by an end token, as `plugalign.fitting.fudge` does. The body
learns by LoRA adapters, which are then added to its weights, where the papers tune all weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.controllers.args import ARGS
from plugalign.controllers.rad import RAD
from plugalign.controllers.reward_guided import RewardGuided
from plugalign.fitting import workspace
from plugalign.fitting.answers import frame_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.labelled import Batch, encoded
from plugalign.fitting.low_rank import check_peft
from plugalign.fitting.reward_student import Loss, RewardFitSettings, RewardStudent, check_body
from plugalign.fitting.settings import Count, Weight, check_context, fit_function

WORKING = 0.97  # share of the time, before the reward model is saved
REWARD = "reward"


class RADFitSettings(RewardFitSettings):
    """Settings of `fit_rad`.

    Attributes:
        k: candidates of the controller that is returned and saved. beta: its strength.
    """

    k: Count = 20
    beta: Weight = 30.0


class ARGSFitSettings(RewardFitSettings):
    """Settings of `fit_args`.

    Attributes:
        k: candidates of the controller that is returned and saved. weight: its strength.
    """

    k: Count = 10
    weight: Weight = 1.0


@fit_function(RADFitSettings)
def fit_rad(model: Any, tokenizer: Any, data: Labelled, out: Path, settings: RADFitSettings) -> RAD:
    """Trains a reward model between 0 and 1 and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `RADFitSettings`.

    Raises:
        ValueError: for settings out of range, data without both classes, or a model that has no
            sequence classifier.
        ImportError: if peft is missing.
    """
    make = partial(RAD, k=settings.k, beta=settings.beta)
    _fit(RAD.name, squared_error, make, model, tokenizer, data, out, settings)
    return RAD.from_pretrained(out)


@fit_function(ARGSFitSettings)
def fit_args(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: ARGSFitSettings
) -> ARGS:
    """Trains a Bradley-Terry reward model and saves the controller in ``out``, as `fit_rad` does.

    The keyword arguments are those of `ARGSFitSettings`.
    """
    make = partial(ARGS, k=settings.k, weight=settings.weight)
    _fit(ARGS.name, bradley_terry, make, model, tokenizer, data, out, settings)
    return ARGS.from_pretrained(out)


def squared_error(rewards: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The squared errors against the texts' labels; a prefix weighs as much as it is long."""
    place = batch.learnt.cumsum(1) * batch.learnt
    share = batch.weight[:, None] * place / place.sum(1, keepdim=True).clamp(min=1)
    return (share * (rewards - batch.label[:, None]).square()).sum(), share.sum()


def bradley_terry(rewards: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """``-log sigmoid`` of how far each text of the desired class is ahead of each other one, at
    every length that both reach."""
    good, bad = batch.label == 1, batch.label == 0
    ahead = rewards[good][:, None] - rewards[bad]  # (G, U, T)
    both = batch.learnt[good][:, None] * batch.learnt[bad]
    return -(logsigmoid(ahead) * both).sum(), both.sum()


def _fit(
    method: str,
    loss: Loss,
    make: Callable[[Path], RewardGuided],
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    settings: RewardFitSettings,
) -> None:
    """Trains a reward model and saves a controller of it.

    Args:
        make: the controller of a reward model's folder.
    """
    frame, sides = frame_of(model, tokenizer, settings), data.binary(settings.desired)
    check_context(model, len(frame.context) + settings.max_length + 1)  # and an end token
    check_body(model)
    check_peft()

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes).part(WORKING)
        student = RewardStudent(model, tokenizer, loss, settings, frame)
        learnt, held = encoded(
            tokenizer, sides, settings.max_length, settings.seed, end=False, frame=frame
        )
        measured = student.trained(learnt, held.alternating(), folder, clock)
        student.model.save_pretrained(folder / REWARD)
        tokenizer.save_pretrained(folder / REWARD)
        make(folder / REWARD).save_pretrained(result)
        return measured

    about = frame.record()
    record = workspace.record(method, model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
