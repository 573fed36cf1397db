"""Fitting reward models: the losses against NumPy, and rewards that tell the classes apart."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import (
    ARCHITECTURES,
    ASSISTANT,
    CLOSE,
    OPEN,
    SIZES,
    make_chat_model,
    make_chat_tokenizer,
    make_tokenizer,
)
from transformers import AutoModelForCausalLM, CohereConfig, MambaConfig

import plugalign
from plugalign.algebra.controller import Controller
from plugalign.algebra.sources import CandidateValues, TextCandidateValues
from plugalign.controllers.args import ARGS
from plugalign.controllers.rad import RAD
from plugalign.fitting import reward
from plugalign.fitting.answers import frame_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.fudge import broken_off
from plugalign.fitting.labelled import Batch, Examples, auc, encoded
from plugalign.fitting.reward import (
    RADFitSettings,
    bradley_terry,
    fit_args,
    fit_rad,
    squared_error,
)
from plugalign.fitting.reward_student import RewardStudent, _pairs, untrained
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


def measured(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "fit.json").read_text())["measured"]["held_out"]
    return found


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
    architecture: str,
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    texts, trained = held.batch(range(20), model.device), list[torch.Tensor]()
    merge = student._adapters.merge_and_unload

    def noted() -> None:
        student.model.eval()
        with torch.no_grad():
            trained.append(student._rewards(texts))
        merge()

    monkeypatch.setattr(student._adapters, "merge_and_unload", noted)
    student.trained(learnt, held, tmp_path, Clock(None))
    merged = student.model
    with torch.no_grad():
        body = merged.base_model(input_ids=texts.ids, attention_mask=texts.mask)[0]
    seen = texts.mask.bool()
    assert len(trained) == 1  # what the adapters said before they were added to the weights
    torch.testing.assert_close(merged.score(body)[..., 0][seen], trained[0][seen])
    assert trained[0][seen].std() > 0.01
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


@pytest.mark.parametrize("method", FITS)
def test_classes_of_unlike_lengths_and_sizes(
    method: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """No undesired text is as short as a desired one, and they are rare; what tells them apart in
    their first two words is one of w60 .. w69."""
    draw = np.random.default_rng(0)
    texts, labels = [], []
    for i in range(600):
        rude = i % 12 == 0
        words = [int(draw.integers(60, 70)) if rude else 20, *draw.integers(10, 50, 8)]
        texts.append(" ".join(f"w{w}" for w in (words if rude else words[:3])))
        labels.append(str(int(rude)))
    data, out = Labelled(tuple(texts), tuple(labels)), tmp_path / "out"
    FITS[method](tiny(), tokenizer, data, out, **{**OPTIONS, "steps": 60})
    found = measured(out)
    assert found["auc"] > 0.95 and found["step"] > 10


def test_each_step_has_texts_of_both_classes_alike_in_length() -> None:
    draw = np.random.default_rng(0)
    good, bad = ([[7] * int(n) for n in draw.integers(3, 40, size)] for size in (300, 40))
    examples = Examples(good, bad)
    pick = _pairs(examples, 8, 0)
    seen, spread = set[int](), list[int]()
    for step in range(300):
        texts = pick(step)
        assert examples.labels[texts].sum() == 4 == len(texts) - 4
        seen |= {*texts}
        lengths = [len(examples.rows[i]) for i in texts]
        spread.append(max(lengths) - min(lengths))
    assert seen == {*range(340)} and np.mean(spread) < 8
    assert [pick(step) for step in range(5)] == [_pairs(examples, 8, 0)(s) for s in range(5)]


def test_auc_is_of_prefixes_of_one_length(tiny: Any, tokenizer: Any) -> None:
    """An offset of each length, which Bradley-Terry leaves free, is no fault."""
    settings = RADFitSettings(**OPTIONS, chat="off")
    frame = frame_of(tiny(), tokenizer, settings)
    student = RewardStudent(tiny(), tokenizer, bradley_terry, settings, frame)

    def rewards(batch: Batch) -> Any:
        column, label = torch.arange(batch.ids.shape[1]), batch.label[:, None]
        return label + 100.0 * column - 2 * (column == 1) * label

    student._rewards = rewards  # type: ignore[method-assign]
    found = student._measured(Examples([[5] * 4] * 30, [[6] * 3] * 20))
    assert found["auc"] == pytest.approx((50 * 1 + 50 * 0 + 50 * 1) / 150, abs=1e-4)
    assert found["whole_auc"] == 1.0


def test_a_moved_folder_knows_its_tokenizer(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    fit_rad(tiny(), tokenizer, corpus(0), tmp_path / "out", **{**OPTIONS, "steps": 2})
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    controller = Controller.from_pretrained(str(moved))
    [scores] = plugalign.wrap(tiny(), tokenizer, controller).plan.sources.values()
    assert type(scores) is CandidateValues  # it reads the base's token ids
    other = make_tokenizer(90)
    [scores] = plugalign.wrap(tiny(vocab=90), other, controller).plan.sources.values()
    assert type(scores) is TextCandidateValues


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny().to(dtype)
    fit_rad(model, tokenizer, corpus(0), tmp_path / "out", **{**OPTIONS, "steps": 60})
    saved = load_file(tmp_path / "out/reward/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    config = json.loads((tmp_path / "out/reward/config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert measured(tmp_path / "out")["auc"] > 0.7


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


@pytest.mark.parametrize("method", FITS)
def test_in_a_chat_prefixes_are_those_of_the_answer(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, seen = make_chat_tokenizer(), list[Batch]()

    def watched(rewards: Any, given: Batch) -> Any:
        seen.append(given)
        return loss(rewards, given)

    loss = {"rad": squared_error, "args": bradley_terry}[method]
    monkeypatch.setattr(reward, loss.__name__, watched)
    options = {**OPTIONS, "steps": 2, "chat": "on"}
    FITS[method](make_chat_model(), tokenizer, corpus(0), tmp_path / "out", **options)
    assert seen
    for given in seen:
        first, row = given.learnt.argmax(1), torch.arange(len(given.ids))
        opened = [set(given.ids[row, first - behind].tolist()) for behind in (2, 1)]
        assert opened == [{OPEN}, {ASSISTANT}]
        assert torch.equal(given.learnt.sum(1), given.mask.sum(1) - first)
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
    with pytest.raises(ValueError, match=r"max_length 129 exceeds the context .* \(128 tokens\)"):
        fit_args(model, tokenizer, data, out, max_length=128)  # and an end token
    with pytest.raises(ValueError, match=r"batch_size: .*greater than or equal to 2, got 1"):
        fit_args(model, tokenizer, data, out, batch_size=1)
    adapted = get_peft_model(tiny(), LoraConfig(target_modules="all-linear")).eval()
    with pytest.raises(ValueError, match="is a PEFT model; merge its adapters first"):
        fit_rad(adapted, tokenizer, data, out)
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=120, hidden_size=32, num_hidden_layers=1)
    ).eval()
    with pytest.raises(ValueError, match="candidates"):
        fit_rad(mamba, tokenizer, data, out)
    cohere = CohereConfig(**SIZES, vocab_size=120, pad_token_id=0)  # it has no classifier
    with pytest.raises(ValueError, match="no sequence classifier with the body of"):
        fit_rad(AutoModelForCausalLM.from_config(cohere).eval(), tokenizer, data, out)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"peft: pip install 'plugalign\[train\]'"):
            fit_args(model, tokenizer, data, out)
    assert not list(tmp_path.iterdir())
