"""Fits PPLM's discriminator: a linear classifier of the mean of a text's last hidden states.

The model is frozen, and the states of each text are read once (Dathathri et al. 2019, "Plug and
Play Language Models", section 4.3). While the model decodes, the discriminator meets prefixes of
texts, so it learns from some prefixes of each text beside the whole. In a chat the tokens in front
of an answer count in the means, as they do in PPLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from plugalign.algebra.identity import identify, model_name
from plugalign.controllers.pplm import PPLM
from plugalign.engine.readers.cache_spec import check_columns
from plugalign.engine.readers.heads import head_input
from plugalign.fitting import workspace
from plugalign.fitting.answers import frame_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.labelled import Examples, auc, encoded
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    Minutes,
    Seed,
    Strength,
    check_context,
    fit_function,
)
from plugalign.fitting.states import drawn_columns, keep_states

HELD_OUT, READING = 0.1, 0.8  # shares of what is left of the time: learning takes little
MOST = 2**26  # numbers in the means that are learnt from, which are half a GiB in float64
PENALTY = 0.01  # scikit-learn's C on means of unit variance: states have many units
CONSTANT = 1e-6  # of its mean: a unit that varies less does so by float32's rounding


class PPLMSettings(FitSettings):
    """Settings of `fit_pplm`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        positions: how many random prefixes of each text are learnt from, beside the whole.
        max_length: of a text, in tokens; longer ones are cut.
        stepsize: of the controller that is returned and saved.
        minutes: read fewer texts where these take longer.
    """

    desired: str | None = None
    positions: Annotated[int, Field(ge=0, le=1024)] = 4
    max_length: Count = 64
    batch_size: Count = 32
    seed: Seed = 0
    stepsize: Strength = 0.02
    minutes: Minutes | None = None


class Means(NamedTuple):
    """The mean states of prefixes of texts.

    Attributes:
        values: ``(N, D)`` float32.
        label: of the texts, ``(N,)``.
        weight: those of the texts ``(N,)``, which their prefixes share: they are no evidence
            independent of each other.
        whole: which are of whole texts, ``(N,)``.
    """

    values: Tensor
    label: Tensor
    weight: Tensor
    whole: Tensor


@fit_function(PPLMSettings)
def fit_pplm(model: Any, tokenizer: Any, data: Labelled, out: Path, settings: PPLMSettings) -> PPLM:
    """Fits a discriminator whose class 1 is the desired one, and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `PPLMSettings`.

    Raises:
        ValueError: for settings out of range, data without both classes, or a model that PPLM
            cannot move or whose head does not read its last hidden states.
    """
    frame = frame_of(model, tokenizer, settings)
    check_context(model, len(frame.context) + settings.max_length)
    check_columns(model, "PPLM moves")
    check_states(model)
    sides, length, seed = data.binary(settings.desired), settings.max_length, settings.seed

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes)
        learnt, held = encoded(tokenizer, sides, length, seed, end=False, least=2, frame=frame)
        part = clock.part(HELD_OUT)
        apart = _read(model, held, settings, folder / "held-out", part) if len(held) else None
        means = _read(model, learnt, settings, folder / "states", clock.part(READING))
        head = classifier(means)
        origin = identify(model, tokenizer)
        fitted = PPLM(discriminator=head, stepsize=settings.stepsize, fitted_for=origin)
        fitted.save_pretrained(result)
        found = {} if apart is None else {"held_out": measured(head, apart)}
        return {"texts": int(means.whole.sum()), **found}

    about = frame.record()
    record = workspace.record("pplm", model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    return PPLM.from_pretrained(out)


@torch.no_grad()
def check_states(model: Any) -> None:
    """Raises a ValueError unless the model's head reads its last hidden states: PPLM averages
    these, a fit keeps what the head reads. BERT's head, for one, has a layer of its own."""
    last = model.get_output_embeddings().weight.shape[0] - 1
    ids = torch.linspace(0, last, 8, device=model.device).long()[None]
    with head_input(model) as seen:
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    read, states = seen[0].float(), output.hidden_states[-1].float()
    if read.shape != states.shape or not torch.allclose(read, states, rtol=1e-2):
        raise ValueError(
            f"the head of '{model_name(model)}' does not read its last hidden states, whose mean "
            "PPLM's discriminator classifies; take another model"
        )


def _read(
    model: Any, examples: Examples, settings: PPLMSettings, path: Path, clock: Clock
) -> Means:
    """The means over prefixes of texts: of as many as there is time and memory for, of both
    classes with the shares of all."""
    width = model.get_output_embeddings().weight.shape[1]
    of_a_text = min(1 + settings.positions, settings.max_length)
    most = max(2, MOST // (width * of_a_text))
    examples = examples.alternating().up_to(most)
    size, shared = settings.batch_size, examples.frame.first
    states = keep_states(model, examples.rows, path, size, shared=shared, clock=clock)
    examples = examples.up_to(len(states))
    # From column 1 of a plain text, since PPLM moves what stands before the last token; from the
    # first token of an answer in a chat.
    first, count, seed = examples.frame.first + 1, settings.positions, settings.seed
    ends = [drawn_columns(len(row), count, seed, i, first) for i, row in enumerate(examples.rows)]
    counts = torch.tensor([len(columns) for columns in ends])
    return Means(
        torch.cat([_means(states[text], columns) for text, columns in enumerate(ends)]),
        examples.labels.repeat_interleave(counts),
        (examples.weights / counts).repeat_interleave(counts),
        torch.tensor([end == columns[-1] for columns in ends for end in columns]),
    )


def _means(states: Tensor, ends: Sequence[int]) -> Tensor:
    """The means ``(n, D)`` of a text's states ``(T, D)`` up to each of some columns."""
    last = torch.tensor(ends)
    return (states.double().cumsum(0)[last] / (last[:, None] + 1)).float()


def classifier(means: Means) -> nn.Linear:
    """The discriminator ``(D, 2)``: a logistic regression on standardised means, whose scales are
    folded in."""
    values = means.values.double()
    centre, scale = values.mean(0), values.std(0, correction=0)
    scale[scale <= CONSTANT * centre.abs()] = 1.0
    values.sub_(centre).div_(scale)
    regression = LogisticRegression(C=PENALTY, max_iter=1000)
    regression.fit(values.numpy(), means.label.numpy(), means.weight.numpy())
    weight = torch.from_numpy(regression.coef_[0]) / scale
    head = nn.Linear(len(weight), 2).requires_grad_(False)
    head.weight[0], head.bias[0] = 0.0, 0.0  # the softmax of both scores is the logistic function
    head.weight[1], head.bias[1] = weight, regression.intercept_[0] - float(centre @ weight)
    return head


def measured(head: nn.Linear, apart: Means) -> dict[str, float]:
    """How well the scores of held-out prefixes, and of whole texts, tell the classes apart."""
    scores, whole = head(apart.values)[:, 1], apart.whole
    return {
        "auc": auc(scores, apart.label, apart.weight),
        "whole_auc": auc(scores[whole], apart.label[whole]),
    }
