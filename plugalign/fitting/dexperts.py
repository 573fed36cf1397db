"""Trains the expert and the anti-expert of DExperts (Liu et al. 2021).

Both start from the base and are tuned as plain language models, the expert on desired and the
anti-expert on all other texts: as full models, or as LoRA adapters of the base. See
`plugalign.fitting.student` for their loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plugalign.algebra.identity import identify
from plugalign.controllers.dexperts import ROLES, DExperts
from plugalign.fitting import workspace
from plugalign.fitting.answers import Frame, frame_of
from plugalign.fitting.budget import Affordable, affordable_look, affordable_steps, remember
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import auc, encoded
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Rank,
    Seed,
    Share,
    Weight,
    check_context,
    fit_function,
)
from plugalign.fitting.student import Rows, Student
from plugalign.fitting.training import steps_of_an_epoch, train

FEWEST = 8  # texts of a step, where a time is too short for all steps of more
FAR = 2  # a size that needs so many times the texts that there is time for will not fit either
WORKING = 0.97  # share of the time, before the experts are saved
RATE, WIDTH = 1e-4, 128  # the learning rate of full models, and up to which hidden size it holds
LORA_RATE = 1e-3


class DExpertsSettings(FitSettings):
    """Settings of `fit_dexperts`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        lora: adapters of the base on all linear layers instead of full models (needs peft).
        only: "expert" or "antiexpert" trains that one alone, in all of the time; the base stands
            in for the other one.
        rank: of the adapters.
        steps: of each expert, at most; it ends when held-out texts are explained no better.
        lr: by default 1e-3 for adapters, and for full models 1e-4 up to a hidden size of 128 and
            less in proportion to larger ones (as Yang et al. 2021, "Tensor Programs V", scale
            Adam's). Experts that drift far from the base differ in much besides the attribute,
            and the difference of two of them is noise.
        max_length: of a training text, in tokens; longer ones are cut.
        alpha: strength of the controller that is returned and saved.
        top_p: its base's support.
        minutes: make smaller steps where these take longer, down to eight texts, and then fewer;
            what the expert leaves is the anti-expert's.
    """

    desired: str | None = None
    lora: bool = False
    only: Literal["expert", "antiexpert"] | None = None
    rank: Rank = 16
    steps: Count = 300
    batch_size: Count = 32
    lr: LearningRate | None = None
    max_length: Count = 64
    seed: Seed = 0
    alpha: Weight = 2.0
    top_p: Share = 0.9
    minutes: Minutes | None = None

    def of(self, model: Any) -> DExpertsSettings:
        """The same settings, the learning rate being the model's own where none is given."""
        if self.lr is not None:
            return self
        width = model.get_input_embeddings().weight.shape[1]
        rate = LORA_RATE if self.lora else RATE * WIDTH / max(WIDTH, width)
        return self.model_copy(update={"lr": rate})

    @property
    def adapter_rank(self) -> int | None:
        """Of the adapters, None for full models."""
        return self.rank if self.lora else None

    @property
    def roles(self) -> tuple[str, ...]:
        """What is trained."""
        return ROLES if self.only is None else (self.only,)

    def recorded(self) -> dict[str, Any]:
        """For fit.json. The method's name says that adapters are trained."""
        found = super().recorded() | {"rank": self.adapter_rank}
        return {name: value for name, value in found.items() if name != "lora"}


@fit_function(DExpertsSettings)
def fit_dexperts(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: DExpertsSettings
) -> DExperts:
    """Trains both experts, or one, and saves the controller in ``out``, with one subfolder each.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `DExpertsSettings`.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if ``lora`` is asked for and peft is missing.
    """
    frame, settings = frame_of(model, tokenizer, settings), settings.of(model)
    check_context(model, len(frame.context) + settings.max_length)
    experts = _Experts(model, tokenizer, data.binary(settings.desired), settings, frame)
    method, about = "dexperts_lora" if settings.lora else "dexperts", frame.record()
    record = workspace.record(method, model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, experts.fit, workspace.write_data_sheet)
    return DExperts.from_pretrained(out)


@dataclass(frozen=True)
class _Part:
    """An expert to be trained.

    Attributes:
        rows: what it learns from. apart: what is held out.
        share: of the time left, which its clock has.
    """

    role: str
    rows: Rows
    apart: Rows
    clock: Clock
    share: float


@dataclass(frozen=True)
class _Experts:
    """A fit of the experts."""

    model: Any
    tokenizer: Any
    sides: tuple[Sequence[str], Sequence[str]]
    settings: DExpertsSettings
    frame: Frame

    def fit(self, folder: Path, result: Path) -> dict[str, Any]:
        """Trains them in ``folder``, saves the controller in ``result`` and measures them."""
        chosen, clock = self.settings, Clock(self.settings.minutes).part(WORKING)
        learnt, held = encoded(
            self.tokenizer,
            self.sides,
            chosen.max_length,
            chosen.seed,
            end=False,
            least=2,
            frame=self.frame,
        )
        sides = dict(zip(ROLES, zip(learnt.sides(), held.sides(), strict=True), strict=True))
        measured: dict[str, Any] = {}
        scores: dict[str, Tensor] = {}
        left = {role: _mean_length(sides[role][0]) for role in chosen.roles}
        for role in chosen.roles:
            # As many steps are planned for both: of longer texts they take longer.
            share = left[role] / sum(left.values())
            del left[role]
            part = _Part(role, *sides[role], clock.part(share), share)
            student, found = self._trained(part, len(held), folder)
            measured |= found
            scores[role] = student.log_likelihoods(held.rows, chosen.batch_size)
            for other in {*ROLES} - {*chosen.roles}:
                scores[other] = student.log_likelihoods(held.rows, chosen.batch_size, of_base=True)
            _save(student.model, self.tokenizer, folder / role)
        if len(held):
            gain = scores["expert"] - scores["antiexpert"]
            if chosen.only:  # it explains all texts better than the base, and long ones by more
                gain = gain / torch.tensor([len(r) - 1 - self.frame.first for r in held.rows])
            measured["auc"] = auc(gain, held.labels)
        origin = identify(self.model, self.tokenizer)
        expert, anti = (folder / role if role in chosen.roles else None for role in ROLES)
        fitted = DExperts(expert, anti, alpha=chosen.alpha, top_p=chosen.top_p, fitted_for=origin)
        fitted.save_pretrained(result)
        return measured

    def _trained(self, part: _Part, held: int, folder: Path) -> tuple[Student, dict[str, Any]]:
        """An expert, and what its held-out texts say.

        Args:
            held: how many texts of both sides it is measured on in the end, and where it is trained
                alone the base too.
        """
        role, rows, apart = part.role, part.rows, part.apart
        chosen = self.settings
        assert chosen.lr is not None  # see `DExpertsSettings.of`
        rank, frame = chosen.adapter_rank, self.frame
        student = Student(self.model, self.tokenizer, rank, chosen.seed, frame)
        looks_at = cache(lambda texts: student.held_loss(apart[:texts], chosen.batch_size))
        note = folder / f"{role}-look.json"
        looking = affordable_look(
            lambda texts: looks_at(texts)(),
            len(apart),
            student.learned,
            part.clock,
            read=chosen.steps * chosen.batch_size,
            note=note,
        )
        seen = looking.texts
        measuring = looking.each * held * len(ROLES) / len(chosen.roles)
        part = replace(part, clock=part.clock.part(but=measuring))
        batch_size, (steps, looks) = self._planned(part, student, looking.seconds, folder)
        remember(note, looking._asdict())
        epoch = steps_of_an_epoch(len(rows), batch_size)
        watch = HeldOut(looks_at(seen), looks, epoch=epoch) if seen else None
        losses = train(
            parameters=student.learned,
            loss=student.loss_of(rows, batch_size, chosen.seed),
            steps=steps,
            most=chosen.steps,
            lr=chosen.lr,
            title=role,
            seed=chosen.seed,
            checkpoint=folder / f"{role}.checkpoint",
            held_out=watch,
            clock=part.clock,
        )
        student.model.eval()
        found = {} if watch is None else {**watch.best, "texts": seen}
        return student, {"batch_size": batch_size, role: {"steps": len(losses), **found}}

    def _planned(
        self, part: _Part, student: Student, look: float, folder: Path
    ) -> tuple[int, Affordable]:
        """How many texts a step has, and how many steps there are: where the time is short, fewer
        texts, down to eight, rather than fewer steps. Sizes far from fitting are not timed.

        Args:
            look: the seconds of one at held-out texts.
        """
        chosen, size = self.settings, self.settings.batch_size
        while True:
            plan = affordable_steps(
                student.loss_of(part.rows, size, chosen.seed),
                student.learned,
                chosen.steps,
                part.clock,
                title=f"{part.role}, {size} texts a step",
                runs=len(chosen.roles),
                share=part.share,
                note=folder / f"steps-of-{size}.json",
                spare=student.spare,
                looking=lambda: look,
            )
            if plan.steps == chosen.steps or size <= FEWEST:
                return size, plan
            texts = plan.steps * size
            size = max(FEWEST, size // 2)
            while size > FEWEST and size * chosen.steps > FAR * texts:
                size = max(FEWEST, size // 2)


def _mean_length(rows: Rows) -> float:
    return sum(map(len, rows)) / len(rows)


def _save(student: Any, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face model folder, or the adapter alone if it is one."""
    if hasattr(student, "peft_config"):
        student.save_pretrained(folder, save_embedding_layers=False)
        return
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
