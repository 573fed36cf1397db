"""Hidden states that are computed once and kept: what they are, and what a kill leaves of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_clock import Simulated

from plugalign.fitting import states
from plugalign.fitting.clock import Clock
from plugalign.fitting.states import head_inputs, keep_states

ROWS = [[5], [6, 7, 8], [9, 10], [3, 4, 5, 6], [11, 12], [13], [14, 15, 16]]


def read(model: Any, row: list[int]) -> torch.Tensor:
    """What the head reads of one text, ``(T, D)``."""
    ids = torch.tensor([row])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[-1][0]
    return states


def test_they_are_those_that_the_head_reads(
    architecture: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHUNK", 4)
    model = tiny(architecture)
    kept = keep_states(model, ROWS, tmp_path / "states", 3)
    assert len(kept) == len(ROWS)
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(kept[i], read(model, row), rtol=1e-4, atol=1e-4)
    padded = kept.padded([3, 0])
    assert padded.shape == (2, 4, 32) and not padded[1, 1:].any()
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_some_columns_alone(tiny: Any, tmp_path: Path) -> None:
    columns = [[0], [0, 2], [1], [1], [0, 1], [0], [2]]
    model = tiny().bfloat16()
    kept = keep_states(model, ROWS, tmp_path / "states", 3, columns=columns)
    assert kept.values.dtype == torch.bfloat16
    for i, (row, chosen) in enumerate(zip(ROWS, columns, strict=True)):
        torch.testing.assert_close(kept[i], read(model, row)[chosen], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("torn", [0, 1, 100])
def test_a_killed_run_continues_behind_the_last_whole_text(
    torn: int, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHUNK", 2)
    model, path = tiny(), tmp_path / "states"
    whole = keep_states(model, ROWS, tmp_path / "whole", 2).values
    calls = [0]

    def mortal(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1 + 3:  # one finds out the width, and each chunk is one batch
            raise KeyboardInterrupt
        return head_inputs(*args)

    monkeypatch.setattr(states, "head_inputs", mortal)
    with pytest.raises(KeyboardInterrupt):
        keep_states(model, ROWS, path, 2)
    with path.open("ab") as file:
        file.write(b"x" * torn)  # a text of which a part was written
    assert torch.equal(keep_states(model, ROWS, path, 2).values, whole)
    assert calls[0] == (1 + 3) + (1 + 2)  # of four chunks the third is read again


def test_short_time_reads_fewer_texts_and_remembers_how_many(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(states, "CHUNK", 2)
    kept = keep_states(tiny(), ROWS, tmp_path / "states", 2, clock=Clock(1e-9), least=3)
    assert len(kept) == 3 and len(kept.values) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "hidden states of 7 texts: about" in said and "3 fit into the time" in said
    again = keep_states(tiny(), ROWS, tmp_path / "states", 2)
    assert torch.equal(again.values, kept.values)


def test_a_machine_that_slows_down_reads_fewer_than_its_first_texts_promised(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a second a text there is time for twelve; from the fifth on one takes four. A kill before
    the end leaves nothing that would bind the next start."""
    monkeypatch.setattr(states, "CHUNK", 2)
    clock, read = Simulated(monkeypatch), states._states

    def slow(model: Any, rows: Any, *rest: Any) -> torch.Tensor:
        clock.time += sum(1 if row[0] < 5 else 4 for row in rows)
        return read(model, rows, *rest)

    monkeypatch.setattr(states, "_states", slow)
    rows = [[i + 1, 7] for i in range(20)]
    kept = keep_states(tiny(), rows, tmp_path / "states", 2, clock=Clock(12 / 60), least=2)
    assert len(kept) == 6 and clock.time == 12
    again = keep_states(tiny(), rows, tmp_path / "states", 2, clock=Clock(9.0), least=2)
    assert len(again) == 6 and clock.time == 12  # what was learnt from does not grow
    (tmp_path / "states.json").unlink()  # as if it had been killed before
    more = keep_states(tiny(), rows, tmp_path / "states", 2, clock=Clock(9.0), least=2)
    assert len(more) == 20


def test_the_clock_is_looked_at_more_often_as_the_time_runs_out(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, read, sizes = Simulated(monkeypatch), states._states, list[int]()

    def slow(model: Any, rows: Any, *rest: Any) -> torch.Tensor:
        sizes.append(len(rows))
        clock.time += len(rows)
        return read(model, rows, *rest)

    monkeypatch.setattr(states, "_states", slow)
    rows = [[i % 60 + 1, 7] for i in range(900)]
    kept = keep_states(tiny(), rows, tmp_path / "states", 4, clock=Clock(500 / 60))
    assert len(kept) == clock.time == 500
    assert sizes[0] == 64 and sizes[1] == 43 and sizes[-2] == 4 and sum(sizes) == 500


def test_the_hook_goes_when_the_forward_fails(tiny: Any) -> None:
    model = tiny()
    with pytest.raises(IndexError):
        head_inputs(model, torch.full((1, 3), 10**6), torch.ones(1, 3).long())
    assert not model.get_output_embeddings()._forward_pre_hooks
