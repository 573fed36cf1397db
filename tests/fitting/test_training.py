"""The training loop: what it minimises, how it restarts, how it fails."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugalign.fitting import training
from plugalign.fitting.training import batches, check_settings, train

SETTINGS: dict[str, Any] = {"steps": 40, "lr": 0.1, "title": "a fit", "every": 7, "seed": 3}


def problem(noise: float = 0.1) -> tuple[dict[str, Tensor], Callable[[int], Tensor]]:
    """A noisy quadratic with its minimum at 2: torch's random numbers are part of the loss."""
    weight = torch.zeros(5, requires_grad=True)

    def loss(step: int) -> Tensor:
        return ((weight - 2.0 + noise * torch.randn(5)) ** 2).mean()

    return {"weight": weight}, loss


def test_it_minimises_and_leaves_the_random_numbers_alone() -> None:
    parameters, loss = problem()
    before = torch.get_rng_state()
    losses = train(parameters=parameters, loss=loss, **SETTINGS)
    assert len(losses) == 40
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_adamw_with_warm_up_and_cosine() -> None:
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    train(
        parameters={"w": weight},
        loss=lambda step: (weight**2).sum(),
        steps=10,
        lr=0.05,
        title="t",
        warmup=0.2,
        weight_decay=0.1,
        clip=0.5,
    )
    w, m, v = [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for i in range(10):
        rate = 0.05 * ((i + 1) / 2 if i < 2 else 0.5 * (1 + math.cos(math.pi * (i - 2) / 8)))
        norm = math.hypot(2 * w[0], 2 * w[1])
        for j in range(2):
            g = 2 * w[j] * min(1.0, 0.5 / (norm + 1e-6))
            m[j] = 0.9 * m[j] + 0.1 * g
            v[j] = 0.999 * v[j] + 0.001 * g * g
            w[j] *= 1 - rate * 0.1
            w[j] -= (
                rate
                * (m[j] / (1 - 0.9 ** (i + 1)))
                / (math.sqrt(v[j] / (1 - 0.999 ** (i + 1))) + 1e-8)
            )
    assert weight.tolist() == pytest.approx(w, rel=1e-9)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", [0, 6, 7, 13, 25, 39])
def test_a_killed_run_ends_bit_for_bit_alike(tmp_path: Path, last: int) -> None:
    want, loss = problem()
    want_losses = train(parameters=want, loss=loss, **SETTINGS)
    path = tmp_path / "run" / "checkpoint"
    first, loss = problem()

    def mortal(step: int) -> Tensor:
        if step == last:
            raise Killed
        return loss(step)

    with pytest.raises(Killed):
        train(parameters=first, loss=mortal, checkpoint=path, **SETTINGS)
    torch.randn(17)
    again, loss = problem()
    losses = train(parameters=again, loss=loss, checkpoint=path, **SETTINGS)
    assert torch.equal(again["weight"], want["weight"])
    assert losses == want_losses


SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from plugalign.fitting.training import train
weight = torch.zeros(5, requires_grad=True)
def loss(step):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return ((weight - 2.0 + 0.1 * torch.randn(5)) ** 2).mean()
train(parameters={"weight": weight}, loss=loss, steps=40, lr=0.1, title="a fit", every=7, seed=3,
      checkpoint=Path(sys.argv[1]))
"""


def test_kill_9_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), "20"], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    want, loss = problem()
    train(parameters=want, loss=loss, **SETTINGS)
    again, loss = problem()
    seen: list[int] = []
    train(
        parameters=again,
        loss=lambda step: (seen.append(step), loss(step))[1],
        checkpoint=path,
        **SETTINGS,
    )
    assert seen[0] == 14
    assert torch.equal(again["weight"], want["weight"])


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    parameters, loss = problem()
    path = tmp_path / "c"
    train(parameters=parameters, loss=loss, checkpoint=path, **SETTINGS)
    again, _ = problem()

    def never(step: int) -> Tensor:
        raise AssertionError

    train(parameters=again, loss=never, checkpoint=path, **SETTINGS)
    assert torch.equal(again["weight"], parameters["weight"])


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"seed": 4}, {"run": "other data"}])
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    parameters, loss = problem()
    path = tmp_path / "c"
    train(parameters=parameters, loss=loss, checkpoint=path, **SETTINGS)
    with pytest.raises(ValueError, match="other settings or data; remove it"):
        train(parameters=parameters, loss=loss, checkpoint=path, **{**SETTINGS, **change})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(bad: float) -> None:
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match=r"a fit: the loss is (nan|inf) at step 2"):
        train(
            parameters={"w": weight},
            loss=lambda i: (weight + (bad if i == 2 else 0.0)).sum(),
            steps=4,
            lr=0.1,
            title="a fit",
        )


def test_half_precision_is_refused() -> None:
    weight = torch.zeros(1, dtype=torch.float16, requires_grad=True)
    with pytest.raises(ValueError, match=r"train in float32; w is torch\.float16"):
        train(parameters={"w": weight}, loss=lambda i: weight.sum(), steps=1, lr=1, title="t")


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, loss = problem()
    path = tmp_path / "c"
    real = torch.save

    def full(state: Any, file: Any) -> None:
        if len(state["losses"]) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(state, file)

    monkeypatch.setattr(training.torch, "save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(parameters=parameters, loss=loss, checkpoint=path, **SETTINGS)
    assert f"{path} could not be written" in caught.value.__notes__[0]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    monkeypatch.undo()
    again, loss = problem()
    losses = train(parameters=again, loss=loss, checkpoint=path, **SETTINGS)
    assert len(losses) == 40


def test_batches_cover_each_epoch_at_most_once() -> None:
    batch = batches(11, 4, seed=1)
    first, second = ([i for step in steps for i in batch(step)] for steps in ((0, 1), (2, 3)))
    assert len(set(first)) == len(set(second)) == 8
    assert first != second
    assert batch(1) == batches(11, 4, seed=1)(1) != batches(11, 4, seed=2)(1)
    assert {i for step in range(40) for i in batch(step)} == set(range(11))
    assert sorted(batches(3, 6, seed=0)(5)) == [0, 1, 2]


def test_batches_by_length_need_less_padding() -> None:
    lengths = [int(x) for x in torch.randint(1, 60, (2000,), generator=torch.Generator())]
    plain, sorted_ = batches(2000, 8, seed=0), batches(2000, 8, seed=0, lengths=lengths)

    def padding(batch: Callable[[int], list[int]]) -> int:
        rows = [[lengths[i] for i in batch(step)] for step in range(250)]
        return sum(8 * max(row) - sum(row) for row in rows)

    assert padding(sorted_) < 0.15 * padding(plain)
    assert sorted(i for step in range(250) for i in sorted_(step)) == list(range(2000))
    widths = [max(lengths[i] for i in sorted_(step)) for step in range(250)]
    assert widths[:125] != sorted(widths[:125])


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_settings_out_of_range_are_named(bad: float) -> None:
    check_settings(steps=1, lr=0.1)
    with pytest.raises(ValueError, match=r"lr must be a positive number, got (0|-1|nan|inf)"):
        check_settings(steps=1, lr=bad)
