"""Estimates and budgets, held-out texts and early stopping."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugalign.fitting import budget
from plugalign.fitting.budget import (
    Affordable,
    Looking,
    affordable_look,
    affordable_steps,
    remember,
    time_of,
)
from plugalign.fitting.clock import Clock
from plugalign.fitting.held_out import FEWEST, MOST, HeldOut, set_apart
from plugalign.fitting.progress import duration
from plugalign.fitting.training import train


class Stopped(Clock):
    """A clock that has a share of its minutes left, whatever is done."""

    def __init__(self, minutes: float | None, share: float = 1.0):
        super().__init__(minutes)
        self._left = math.inf if minutes is None else 60 * minutes * share

    def left(self) -> float:
        return self._left


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes ten seconds, and every look twenty (`looking`)."""
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(budget, "_now", lambda devices: next(clock))


def look() -> None:
    """Ten seconds, and it takes ten to ask the clock behind it."""
    budget._now(set())


@pytest.mark.parametrize(
    ("minutes", "runs", "steps", "said"),
    [
        (None, 1, 300, "a fit: 300 steps take about 50 min"),
        (10.0, 1, 60, "a fit: 300 steps take about 50 min; 60 fit into --minutes 10"),
        (10.0, 2, 30, "300 steps for each of 2 take about 1.7 h; 30 fit into --minutes 10"),
        (0.01, 1, 1, "1 fit into --minutes 0.01"),
        (600.0, 1, 300, "300 steps take about 50 min"),
    ],
)
def test_the_estimate_is_said_and_decides(
    minutes: float | None,
    runs: int,
    steps: int,
    said: str,
    second: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weight = torch.zeros(3, requires_grad=True)
    state, calls = torch.get_rng_state(), list[int]()

    def loss(step: int) -> Tensor:
        calls.append(step)
        return (weight * torch.rand(3)).sum()

    def asked() -> int:
        note = tmp_path / "steps.json"
        clock, share = Stopped(minutes, 1 / runs), 1 / runs
        options = {"title": "a fit", "note": note, "runs": runs, "share": share}
        return affordable_steps(loss, {"w": weight}, 300, clock, **options).steps

    assert asked() == steps
    assert said in " ".join(capsys.readouterr().err.split())
    assert weight.grad is None and torch.equal(torch.get_rng_state(), state)
    timed = 20 if minutes == 600 else 2  # the long one has time to time more of them
    assert calls == list(range(timed + 1))
    assert asked() == steps and len(calls) == timed + 1  # a fit that continues asks nothing again


def test_looks_at_held_out_texts_are_in_the_estimate(
    second: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each takes 20 seconds: six of them a fifth of the 600, one at the end among them."""
    weight = torch.zeros(3, requires_grad=True)
    asked = affordable_steps(
        lambda step: weight.sum(),
        {"w": weight},
        300,
        Stopped(10.0),
        title="a fit",
        looking=time_of(look, {}),
    )
    assert asked == Affordable(steps=(600 - 120) // 10, looks=5)
    assert "300 steps take about 54 min; 48 fit" in " ".join(capsys.readouterr().err.split())


def test_a_training_of_shorter_texts_than_the_other_takes_its_share(
    second: None, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = torch.zeros(3, requires_grad=True)
    asked = affordable_steps(
        lambda step: weight.sum(),
        {"w": weight},
        300,
        Stopped(10.0, 0.25),
        title="a fit",
        runs=2,
        share=0.25,
    )
    assert asked.steps == 15
    said = "300 steps for each of 2 take about 3.3 h; 15 fit into --minutes 10"
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("minutes", "steps", "looks"),
    [(100.0, 300, 10), (60.0, 300, 10), (1.0, 1, 2), (5.0, 24, 2)],
)
def test_short_fits_look_seldom(second: None, minutes: float, steps: int, looks: int) -> None:
    """300 steps of 10 seconds and eleven looks of 20 take 54 minutes."""
    weight = torch.zeros(3, requires_grad=True)
    asked = affordable_steps(
        lambda step: weight.sum(),
        {"w": weight},
        300,
        Stopped(minutes),
        title="a fit",
        looking=time_of(look, {}),
    )
    assert asked == Affordable(steps, looks)


def test_a_look_is_timed_once(second: None) -> None:
    looks = list[int]()
    looking = time_of(lambda: looks.append(1), {})
    assert looking is not None and not looks
    assert looking() == looking() == 10 and len(looks) == 2  # one warms up
    assert time_of(None, {}) is None


@pytest.mark.parametrize(
    ("texts", "minutes", "share", "read", "seen"),
    [
        (512, None, 1.0, 9600, 512),
        (512, 100.0, 1.0, 9600, 512),  # 32 texts take 10 s, so a fifth holds four looks at 960
        (512, 40.0, 1.0, 9600, 384),
        (512, 40.0, 0.5, 9600, 192),
        (512, 1.0, 1.0, 9600, 64),
        (512, None, 1.0, 3000, 300),
        (512, 40.0, 1.0, 3000, 300),
        (512, None, 1.0, 320, 64),
        (20, 1.0, 1.0, 9600, 20),
        (20, None, 1.0, 320, 20),
        (0, 1.0, 1.0, 9600, 0),
    ],
)
def test_short_fits_look_at_fewer_texts(
    texts: int,
    minutes: float | None,
    share: float,
    read: int,
    seen: int,
    second: None,
    tmp_path: Path,
) -> None:
    """No more in ten looks than the training reads, and no more than it has time for."""
    tried = list[int]()

    def asked() -> Looking:
        clock = Stopped(minutes, share)
        note = tmp_path / "look.json"
        return affordable_look(tried.append, texts, {}, clock, read=read, note=note)

    found = asked()
    remember(tmp_path / "look.json", found._asdict())
    each = 10 / min(32, texts) if texts else 0.0
    assert found == Looking(seen, pytest.approx(each * seen))
    assert tried == 2 * [min(32, texts)] * bool(texts)
    assert asked() == found and len(tried) <= 2  # a fit that continues looks at as many


def test_where_the_memory_is_short_activations_are_spared(tmp_path: Path) -> None:
    weight, spared = torch.zeros(3, requires_grad=True), [0]

    def loss(step: int) -> Tensor:
        if not spared[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return weight.sum()

    def spare() -> None:
        spared[0] += 1

    def asked(spare: Callable[[], None] | None) -> int:
        note = tmp_path / "steps.json"
        given, clock = {"w": weight}, Clock(None)
        return affordable_steps(loss, given, 5, clock, title="a", note=note, spare=spare).steps

    with pytest.raises(torch.OutOfMemoryError):
        asked(None)
    assert asked(spare) == 5 and spared == [1]
    assert json.loads((tmp_path / "steps.json").read_text())["spared"]
    assert asked(spare) == 5 and spared == [2]  # a fit that continues does so again


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1, FEWEST, 95, 10_000])
def test_a_tenth_of_each_class_is_held_out(count: int) -> None:
    sides = [[[side, i] for i in range(count)] for side in (0, 1)]
    learnt, held = set_apart(sides, seed=3)
    for side, rest, apart in zip(sides, learnt, held, strict=True):
        assert sorted(rest + apart) == side
        assert len(apart) == (0 if count < FEWEST else min(MOST, round(count / 10)))
    assert set_apart(sides, seed=3) == (learnt, held)
    assert count < 95 or set_apart(sides, seed=4) != (learnt, held)
    few = [sides[0], sides[1][: FEWEST - 1]]
    assert set_apart(few, seed=3) == (few, [[], []])  # one class has none to spare


def test_what_is_held_out_is_learnt_from_in_no_class() -> None:
    draw = torch.Generator().manual_seed(0)
    sides = torch.randint(60, (2, 300, 1), generator=draw).tolist()
    learnt, held = set_apart(sides, seed=3)
    apart = {token for side in held for (token,) in side}
    for side, rest, own in zip(sides, learnt, held, strict=True):
        assert len(own) == len({token for (token,) in own}) == 6
        assert sorted(rest) == sorted(row for row in side if row[0] not in apart)
    same = [[[1]] * 50, [[1]] * 50]
    assert set_apart(same, seed=3) == (same, [[], []])


def overfit(
    steps: int, losses: list[float], checkpoint: Path | None = None, epoch: int | None = None
) -> tuple[float, int]:
    """The weight after a training whose held-out losses are given, and the steps it took."""
    weight = torch.zeros((), requires_grad=True)
    values = iter(losses)
    held_out = HeldOut(lambda: next(values), looks=10, patience=3, epoch=epoch)
    taken = train(
        parameters={"w": weight},
        loss=lambda step: -weight,
        steps=steps,
        lr=0.1,
        title="t",
        held_out=held_out,
        checkpoint=checkpoint,
        every=4,
    )
    assert held_out.best["loss"] == min(filter(math.isfinite, held_out.losses.values()))
    return weight.item(), len(taken)


def test_training_ends_early_and_keeps_the_best() -> None:
    best, taken = overfit(100, [3.0, 2.0, 1.0, 1.5, 1.6, 1.7, math.nan])
    assert taken == 60  # looks behind every tenth step; the last three were no better
    alike, _ = overfit(100, [3.0, 2.0, 1.0, 1.1, 1.1, 1.1])
    assert best == alike and best > overfit(100, [3.0, 4.0, 5.0, 6.0])[0]
    assert overfit(100, [float(-i) for i in range(10)])[1] == 100


@pytest.mark.parametrize(
    ("epoch", "due"),
    [
        (None, [10, 20, 30]),
        (1, [1, 2, 4, 8, 10, 20, 30]),
        (3, [3, 6, 10, 20, 30]),
        (10, [10, 20, 30]),
        (40, [10, 20, 30]),
    ],
)
def test_few_texts_are_watched_from_their_first_epoch_on(epoch: int | None, due: list[int]) -> None:
    held_out = HeldOut(lambda: 1.0, looks=10, epoch=epoch)
    assert [step for step in range(1, 31) if held_out.is_due(step, 100)] == due


def test_a_training_on_few_texts_keeps_the_best_of_its_first_epochs() -> None:
    best, taken = overfit(100, [2.0, 1.0, 1.5, 1.6, 1.7], epoch=1)
    assert taken == 10  # looks behind 1, 2, 4, 8 and 10 steps, of which the second was best
    assert best < overfit(100, [3.0, 4.0, 5.0, 6.0])[0]  # the best of which is behind ten


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    nan = math.nan
    best, taken = overfit(100, [nan, 2.0, 1.0, nan, nan, nan])
    assert taken == 60 and best == overfit(100, [3.0, 2.0, 1.0, 1.5, 1.6, 1.7])[0]
    assert overfit(100, [3.0, nan, nan, nan])[1] == 40
    with pytest.raises(FloatingPointError, match=r"never finite .nan at step 10, .*a smaller lr"):
        overfit(100, [nan, nan, math.inf, nan])


def test_a_killed_training_remembers_its_looks(tmp_path: Path) -> None:
    """Killed at the fourth look, behind step 8: the checkpoint of step 4 has seen two."""
    losses = [3.0, 1.0, 2.0, 0.5, 0.6, 0.7, 0.8]
    whole, path = overfit(20, losses), tmp_path / "checkpoint"
    with pytest.raises(StopIteration):
        overfit(20, losses[:3], path)
    assert overfit(20, losses[2:], path) == whole


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
