"""Work that watches the time: fewer pieces where they take longer than was planned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_clock import Simulated
from torch import Tensor

from plugalign.catalogue import FITTERS
from plugalign.fitting import budget, states, training
from plugalign.fitting import clock as clocks
from plugalign.fitting.clock import Clock, Pace
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import Labelled
from plugalign.fitting.dexperts import fit_dexperts
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.nullspace import fit_nullspace
from plugalign.fitting.student import Student
from plugalign.fitting.training import train

SCHEDULE = training._schedule


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    return Simulated(monkeypatch)


def test_parts_of_a_time(simulated: Simulated) -> None:
    clock = Clock(10)
    simulated.time = 200
    half, rest = clock.part(0.5), clock.part(but=30)
    assert (clock.left(), half.left(), rest.left(), half.minutes) == (400, 200, 370, 10)
    simulated.time = 500
    assert (clock.left(), half.left(), rest.left()) == (100, -100, 70)
    free = Clock(None).part(0.5, but=9)
    assert math.isinf(free.left()) and free.minutes is None


@pytest.mark.parametrize(
    ("minutes", "seconds", "done", "count"),
    [
        (None, 5, 3, 50),
        (1, 5, 3, 15),
        (1, 1, 3, 50),
        (1, 100, 3, 3),
        (0.001, 1, 3, 3),
        (1, 0, 3, 50),
    ],
)
def test_what_fits(
    minutes: float | None, seconds: float, done: int, count: int, simulated: Simulated
) -> None:
    assert Clock(minutes).fitting(seconds, done, most=50) == count


def test_looks_ahead_need_time_too(simulated: Simulated) -> None:
    pace = Pace(Clock(100 / 60), steps=80, done=0, look_every=20)
    simulated.time = 20
    assert pace.steps(20) == 80
    simulated.time += 10
    pace.looked(10)
    assert pace.steps(20) == 20 + 60 / 1.5  # one of 10 seconds in the end, and one each 20 steps
    simulated.time += 30
    pace.looked(30)
    assert pace.steps(20) == 20 + 20 / 2
    simulated.time = 500
    assert pace.steps(20) == 20


def timed(
    simulated: Simulated, seconds: Callable[[int], float], look: float = 0.0
) -> tuple[dict[str, Any], list[int], list[float]]:
    """Arguments of a training whose steps take so long; the steps it makes, and its rates."""
    weight, made, rates = torch.ones(2, requires_grad=True), list[int](), list[float]()

    def loss(step: int) -> Tensor:
        made.append(step)
        simulated.time += seconds(step)
        return (weight * weight).sum()

    def seen() -> float:
        simulated.time += look
        return -made[-1]  # always better, so that nothing but the time ends it

    schedule = lambda *given: rates.append(SCHEDULE(*given)) or rates[-1]  # noqa: E731
    options = {"loss": loss, "lr": 0.1, "title": "a fit", "parameters": {"w": weight}}
    return {**options, "held_out": HeldOut(seen), "schedule": schedule}, made, rates


def run(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], **more: Any) -> list[float]:
    options = dict(given)
    monkeypatch.setattr(training, "_schedule", options.pop("schedule"))
    return train(**options, **more)


@pytest.mark.parametrize(
    ("seconds", "look", "made"),
    [
        (lambda step: 1.0, 1.8, 100),  # as planned: a hundred steps and eleven looks
        (lambda step: 2.0, 0.0, 60),
        (lambda step: 1.0 if step < 60 else 4.0, 0.0, 75),
        (lambda step: 1.0 if step < 20 else 1000.0, 0.0, 21),
        (lambda step: 10.0 if step < 2 else 1.0, 2.0, 83),  # slow at first, as many are
        (lambda step: 1000.0, 0.0, 1),
    ],
)
def test_a_training_ends_in_time(
    seconds: Callable[[int], float],
    look: float,
    made: int,
    simulated: Simulated,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, steps, rates = timed(simulated, seconds, look)
    losses = run(monkeypatch, given, steps=100, clock=Clock(2.0))
    assert len(losses) == made and steps == list(range(made))
    longest = max(map(seconds, range(made)))
    assert simulated.time <= 120 + longest
    assert max(given["held_out"].losses) == made  # a last look at what was learnt
    assert given["held_out"].best["step"] == made
    said = f"a fit: the time ended it behind {made} steps of 100"
    assert (said in " ".join(capsys.readouterr().err.split())) == (made < 100)
    if longest < 10 and made > 20:
        assert max(rates) <= 1 and rates[-1] < 0.05  # as low as at the end of a whole training


def test_time_enough_changes_nothing(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for clock in (None, Clock(None), Clock(1000)):
        given, _, rates = timed(simulated, lambda step: 1.0, 1.0)
        losses = run(monkeypatch, given, steps=40, clock=clock)
        found.append((losses, rates, given["parameters"]["w"].tolist()))
    assert found[0] == found[1] == found[2]


def test_a_training_that_the_time_ended_is_over_when_it_continues(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And one that was killed goes on with the time of its new start."""
    path = tmp_path / "checkpoint"
    given, steps, _ = timed(simulated, lambda step: 2.0)
    run(monkeypatch, given, steps=100, clock=Clock(1.0), checkpoint=path)
    assert len(steps) == 30
    again, steps, _ = timed(simulated, lambda step: 2.0)
    losses = run(monkeypatch, again, steps=100, clock=Clock(1000.0), checkpoint=path)
    assert len(losses) == 30 and not steps
    assert torch.equal(again["parameters"]["w"], given["parameters"]["w"])

    def mortal(step: int) -> float:
        if step == 25:
            raise KeyboardInterrupt
        return 2.0

    path.unlink()
    given, _, _ = timed(simulated, mortal)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, given, steps=100, clock=Clock(1.0), checkpoint=path, every=10)
    again, steps, _ = timed(simulated, lambda step: 2.0)
    run(monkeypatch, again, steps=100, clock=Clock(1.0), checkpoint=path, every=10)
    assert steps == list(range(20, 50))


@pytest.mark.parametrize(
    ("most", "minutes", "made"), [(None, 2.0, 40), (100, 2.0, 100), (100, 1.0, 60), (100, 0.5, 30)]
)
def test_a_plan_made_beside_other_work_binds_nothing(
    most: int | None,
    minutes: float,
    made: int,
    simulated: Simulated,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Forty steps were planned; of those that there are time for, none is left out."""
    path = tmp_path / "checkpoint"
    options = {"steps": 40, "most": most, "clock": Clock(minutes)}
    given, steps, rates = timed(simulated, lambda step: 1.0)
    losses = run(monkeypatch, given, **options, checkpoint=path)
    assert len(losses) == made and steps == list(range(made)) and rates[-1] < 0.05
    again, steps, _ = timed(simulated, lambda step: 1.0)
    assert len(run(monkeypatch, again, **options, checkpoint=path)) == made and not steps
    assert torch.equal(again["parameters"]["w"], given["parameters"]["w"])


def test_a_training_killed_behind_what_was_planned_goes_on(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mortal(step: int) -> float:
        if step == 35:
            raise KeyboardInterrupt
        return 1.0

    path, options = tmp_path / "checkpoint", {"steps": 20, "most": 100, "every": 10}
    given, _, _ = timed(simulated, mortal)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, given, **options, clock=Clock(1.0), checkpoint=path)
    again, steps, _ = timed(simulated, lambda step: 1.0)
    run(monkeypatch, again, **options, clock=Clock(1.0), checkpoint=path)
    assert steps == list(range(30, 90))


def test_experts_share_their_time(
    simulated: Simulated,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """A step of the anti-expert takes three times what one of the expert takes."""
    seconds = {"expert": 1.0, "antiexpert": 3.0}
    roles, loss_of = iter(seconds), Student.loss_of

    def slow(self: Student, *given: Any) -> Callable[[int], Tensor]:
        loss = loss_of(self, *given)
        role = self.__dict__.setdefault("role", None) or next(roles)
        self.__dict__["role"] = role

        def timed(step: int) -> Tensor:
            simulated.time += seconds[role]
            return loss(step)

        return timed

    monkeypatch.setattr(Student, "loss_of", slow)
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(20, 60)]
    data = Labelled(tuple(texts), tuple("01" * 20))
    options = {"steps": 500, "batch_size": 8, "max_length": 8, "seed": 0}
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", minutes=10.0, **options)
    assert 500 <= simulated.time <= 600
    measured = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    made = [measured[role]["steps"] for role in seconds]
    assert made[0] > 250 and 80 <= made[1] < 110


def test_the_clock_is_not_the_one_that_people_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks.time, "time", lambda: -1e9)
    first = clocks.now()
    assert 0 <= first <= clocks.now()


@pytest.mark.parametrize("minutes", [0, -1, math.nan])
def test_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match=f"minutes must be a positive number, got {minutes}"):
        Clock(minutes)


@pytest.mark.parametrize("method", list(FITTERS))
def test_every_fit_ends_in_time_on_a_machine_that_slows_down(
    method: str,
    simulated: Simulated,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """Steps take half a second and then three; a text that is read takes a tenth and then four."""
    steps, read = training.descend, states._states

    def step(*given: Any) -> float:
        simulated.time += 0.5 if simulated.time < 60 else 3
        return steps(*given)

    def forward(model: Any, rows: Any, *rest: Any) -> Tensor:
        simulated.time += len(rows) * (0.1 if simulated.time < 30 else 0.4)
        return read(model, rows, *rest)

    for module in (training, budget):
        monkeypatch.setattr(module, "descend", step)
    monkeypatch.setattr(states, "_states", forward)
    texts = [f"w{20 + i % 50} w{i % 90} w{70 + i % 20 + 20 * (i % 2)}" for i in range(2000)]
    data = Labelled(tuple(texts), tuple("01" * 1000))
    run_fit(method, tiny(), tokenizer, data, tmp_path / "out", minutes=5.0)
    assert 100 < simulated.time <= 300


def test_a_rare_label_is_read_often_enough_whatever_the_time(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    texts = [f"w{20 + i % 50} w{i % 90} w{70 if i % 20 else 100}" for i in range(1000)]
    labels = tuple("1" if i % 20 == 0 else "0" for i in range(1000))
    data = Labelled(tuple(texts), labels)
    fit_nullspace(tiny(), tokenizer, data, tmp_path / "out", minutes=1e-9)
    measured = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    assert 64 < measured["texts"] < 500
