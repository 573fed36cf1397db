"""Fitting reward models: the losses against NumPy, and rewards that tell the classes apart."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, CLOSE, make_chat_model, make_chat_tokenizer
from transformers import AutoModelForSequenceClassification

import plugalign
from plugalign.algebra.controller import Controller
from plugalign.controllers.args import ARGS
from plugalign.controllers.rad import RAD
from plugalign.fitting import reward
from plugalign.fitting.answers import frame_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.fudge import broken_off
from plugalign.fitting.labelled import Batch, auc, encoded
from plugalign.fitting.reward import (
    RADFitSettings,
    bradley_terry,
    fit_args,
    fit_rad,
    squared_error,
)
from plugalign.fitting.reward_student import RewardStudent, untrained
from plugalign.fitting.states import head_inputs

FITS = {"rad": fit_rad, "args": fit_args}
OPTIONS: dict[str, Any] = {
    "rank": 4,
    "steps": 250,
    "batch_size": 16,
    "lr": 1e-2,
    "max_length": 12,
    "seed": 2,
}


def corpus(seed: int, count: int = 600) -> Labelled:
    """Undesired texts hold one of w60 .. w69 in the first half; all others are w10 .. w49."""
    generator = np.random.default_rng(seed)
    texts = []
    for row in range(count):
        words = list(generator.integers(10, 50, size=6))
        if row % 3 == 0:
            words[generator.integers(3)] = generator.integers(60, 70)
        texts.append(" ".join(f"w{w}" for w in words))
    return Labelled(tuple(texts), tuple("1" if row % 3 == 0 else "0" for row in range(count)))


def batch(learnt: Any, label: Any, weight: Any) -> Batch:
    ids = torch.zeros(np.shape(learnt), dtype=torch.long)
    mask, numbers = torch.tensor(learnt), [torch.tensor(x) for x in (label, weight)]
    return Batch(ids, mask, mask, *numbers)


LEARNT = [[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
LABEL, WEIGHT = [1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 0.5, 1.0]


def test_the_squared_error_weighs_a_prefix_by_its_length() -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 4))
    total = share = 0.0
    for row, (seen, y, w) in enumerate(zip(LEARNT, LABEL, WEIGHT, strict=True)):
        columns = [t for t in range(4) if seen[t]]
        whole = sum(range(1, len(columns) + 1))
        for length, t in enumerate(columns, 1):
            total += w * length / whole * (rewards[row, t] - y) ** 2
            share += w * length / whole
    found = squared_error(torch.tensor(rewards), batch(LEARNT, LABEL, WEIGHT))
    assert [float(x) for x in found] == pytest.approx([total, share], rel=1e-6)


def test_each_better_text_is_compared_with_each_other_where_both_reach() -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 4))
    total, pairs = 0.0, 0
    for good in (0, 3):
        for bad in (1, 2):
            for t in range(4):
                if LEARNT[good][t] and LEARNT[bad][t]:
                    total += np.log1p(np.exp(-(rewards[good, t] - rewards[bad, t])))
                    pairs += 1
    found = bradley_terry(torch.tensor(rewards), batch(LEARNT, LABEL, WEIGHT))
    assert [float(x) for x in found] == pytest.approx([total, pairs], rel=1e-6)


def test_a_batch_of_one_class_has_nothing_to_compare() -> None:
    rewards = torch.randn(2, 4, requires_grad=True)
    total, count = bradley_terry(rewards, batch(LEARNT[:2], [1.0, 1.0], WEIGHT[:2]))
    torch.autograd.backward(total)
    assert total.item() == 0 == count.item()
    assert rewards.grad is not None and not rewards.grad.any()


@pytest.mark.parametrize("method", FITS)
def test_it_learns_and_leaves_the_base_alone(
    method: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, out = tiny(), tmp_path / method
    before = copy.deepcopy(model.state_dict())
    controller = FITS[method](model, tokenizer, corpus(0), out, k=30, **OPTIONS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.grad is not None for p in model.parameters())
    assert [p.name for p in tmp_path.iterdir()] == [method]
    assert type(Controller.from_pretrained(str(out))) is {"rad": RAD, "args": ARGS}[method]
    classifier, _ = controller._loaded(model)
    unseen = corpus(1)
    rows = tokenizer(list(unseen.texts), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        rewards = classifier.score(classifier.base_model(rows)[0])[..., 0]
    labels = torch.tensor([float(label == "0") for label in unseen.labels])
    assert auc(rewards[:, -1], labels) > 0.9
    prompts = rows[:40, :2]
    steered = plugalign.wrap(model, tokenizer, controller)
    torch.manual_seed(0)
    texts = [each.generate(prompts, max_new_tokens=6, do_sample=True) for each in (model, steered)]
    rude = [((ids[:, 2:] >= 63) & (ids[:, 2:] < 73)).float().mean() for ids in texts]
    assert rude[1] < 0.5 * rude[0]


def test_rewards_of_rad_are_near_their_labels(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    controller = fit_rad(tiny(), tokenizer, corpus(0), tmp_path / "out", **OPTIONS)
    classifier, _ = controller._loaded(tiny())
    rows = tokenizer(list(corpus(1).texts), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        rewards = classifier.score(classifier.base_model(rows)[0])[:, -1, 0]
    labels = torch.tensor([float(label == "0") for label in corpus(1).labels])
    assert (rewards - labels).square().mean() < 0.08  # guessing the mean: 0.22


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_starts_with_the_base_and_ends_with_what_was_trained(
    architecture: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny(architecture)
    ids = torch.randint(3, 100, (3, 9))
    start = untrained(model, tokenizer).eval()
    with torch.no_grad():
        states = start.base_model(ids)[0]
    torch.testing.assert_close(states, head_inputs(model, ids, torch.ones_like(ids)))
    assert not start.score.weight.any()
    frame = frame_of(model, tokenizer, RADFitSettings(chat="off"))
    settings = RADFitSettings(**{**OPTIONS, "steps": 5})
    student = RewardStudent(model, tokenizer, squared_error, settings, frame)
    learnt, held = encoded(tokenizer, corpus(0).binary(), 12, 0, end=False)
    student.trained(learnt, held, tmp_path, Clock(None))
    texts = held.batch(range(20), model.device)
    with torch.no_grad():
        trained = student._rewards(texts)
        merged = student.merged()
        body = merged.base_model(input_ids=texts.ids, attention_mask=texts.mask)[0]
    seen = texts.mask.bool()
    torch.testing.assert_close(merged.score(body)[..., 0][seen], trained[seen])
    assert trained[seen].std() > 0.01
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny().to(dtype)
    fitted = fit_rad(model, tokenizer, corpus(0), tmp_path / "out", **{**OPTIONS, "steps": 3})
    classifier, _ = fitted._loaded(model)
    assert {p.dtype for p in classifier.parameters()} == {dtype}


def test_a_killed_fit_continues_to_the_same_rewards(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "steps": 70}
    fit_args(tiny(), tokenizer, corpus(0), tmp_path / "whole", **options)
    real, calls = broken_off, [60]

    def mortal(*args: Any) -> Any:
        calls[0] -= 1
        if calls[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr("plugalign.fitting.reward_student.broken_off", mortal)
    with pytest.raises(KeyboardInterrupt):
        fit_args(tiny(), tokenizer, corpus(0), tmp_path / "killed", **options)
    monkeypatch.undo()
    fit_args(tiny(), tokenizer, corpus(0), tmp_path / "killed", **options)
    files = [tmp_path / name / "reward/model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_in_a_chat_prefixes_are_those_of_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, seen = make_chat_tokenizer(), list[Batch]()

    def watched(rewards: Any, given: Batch) -> Any:
        seen.append(given)
        return squared_error(rewards, given)

    monkeypatch.setattr(reward, "squared_error", watched)
    options = {**OPTIONS, "steps": 2, "chat": "on"}
    out = tmp_path / "out"
    fit_rad(make_chat_model(), tokenizer, corpus(0), out, **options)
    assert seen
    for given in seen:
        first = given.learnt.argmax(1)
        assert (given.mask[:, 0] == 1).all() and (first > 3).all()
        assert (given.ids[torch.arange(len(first)), first - 1] == 3 + 80).all()  # w80 w82 opens it
    ends = {int(row[mask.sum() - 1]) for b in seen for row, mask in zip(b.ids, b.mask, strict=True)}
    assert CLOSE in ends


def test_what_cannot_be_fitted_is_named_before_any_work(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, out = tiny(), corpus(0), tmp_path / "out"
    with pytest.raises(ValueError, match=r"lr: .*greater than 0, got 0"):
        fit_rad(model, tokenizer, data, out, lr=0.0)
    with pytest.raises(ValueError, match=r"unknown setting 'weight'; known are .*beta"):
        fit_rad(model, tokenizer, data, out, weight=2)
    with pytest.raises(ValueError, match=r"max_length 500 exceeds the context"):
        fit_args(model, tokenizer, data, out, max_length=500)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"peft: pip install 'plugalign\[train\]'"):
            fit_args(model, tokenizer, data, out)

    def none(*_: Any, **__: Any) -> Any:
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", none)
    with pytest.raises(
        ValueError, match=r"no sequence classifier with the body of .* trained else"
    ):
        fit_rad(model, tokenizer, data, out)
    assert not list(tmp_path.iterdir())
