"""The launch table: how many programs fit, that rows are cut by it, and that it cannot go stale."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from plugalign.kernels import occupancy
from plugalign.kernels.launch import split
from plugalign.kernels.occupancy import KERNELS, LIMITS, PROGRAMS, resident

CPU = torch.device("cpu")
SUITE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "warps", "programs"),
    [
        ("sm_90", 32, 0, 8, 8),  # 64 warps
        ("sm_90", 64, 64, 8, 4),  # 65536 registers: 64 * 256 of them for each
        ("sm_90", 65, 64, 8, 3),  # 72 are given out
        ("sm_90", 128, 0, 8, 2),
        ("sm_90", 255, 0, 8, 1),
        ("sm_90", 255, 0, 16, 0),
        ("sm_90", 24, 0, 1, 32),
        ("sm_80", 24, 40 * 1024, 4, 4),  # 41 KiB each of 164
        ("sm_90", 24, 40 * 1024, 4, 5),
        ("gfx942", 64, 0, 8, 4),  # 32 wavefronts
        ("gfx942", 128, 0, 8, 2),
        ("gfx942", 64, 20000, 4, 3),
    ],
)
def test_programs_that_fit(architecture, registers, shared, warps, programs):
    assert resident(architecture, registers, shared, warps) == programs


def test_the_table_is_whole():
    assert set(PROGRAMS) == set(LIMITS)
    assert all(tuple(row) == KERNELS and min(row.values()) >= 1 for row in PROGRAMS.values())


def test_rows_are_cut_by_the_table():
    with patch.dict(PROGRAMS["sm_90"], {"sweep": 3}):
        assert split("sweep", 1000, 12, CPU) == (33, 31)  # 3 * 132 programs for 12 rows
        assert split("sweep", 63, 1, CPU) == (63, 1)  # one row: as much as there is
        assert split("sweep", 63, 10**6, CPU) == (1, 63)
        assert split("sweep", 63, 0, CPU) == (63, 1)
        assert split("sweep", 63, 12, CPU, parts=9) == (9, 7)


@pytest.mark.parametrize(("architecture", "programs"), [("sm_100", 6), ("sm_89", 4)])
def test_devices_differ(monkeypatch, architecture, programs):
    monkeypatch.setattr(occupancy, "architecture_of", lambda device: (architecture, 10))
    with patch.dict(PROGRAMS["sm_100"], {"sweep": 6}):
        assert split("sweep", 10**4, 5, CPU)[0] == 2 * programs


def test_tuning_takes_the_fastest(monkeypatch, tmp_path, capsys):
    """Operations that tell what they are planned by, and a clock that likes three programs."""
    monkeypatch.syspath_prepend(str(SUITE))
    tuning, cases, timing = map(
        importlib.import_module, ("kernel_tuning", "kernel_cases", "kernel_timing")
    )
    planned = []

    def ours(backend):
        return {kernel: split(kernel, 10**4, 132, CPU)[0] for kernel in KERNELS}

    def interleaved(runners, watch, rounds):
        planned.append(runners)
        return {name: [abs(int(name) - 3.0)] for name in runners}, 1.0

    operations = [
        SimpleNamespace(
            name=name, traffic=lambda _: 2**30, build=lambda _: SimpleNamespace(ours=ours)
        )
        for name in tuning.TIMED_BY.values()
    ]
    monkeypatch.setattr(tuning, "OPERATIONS", operations)
    monkeypatch.setattr(tuning, "runner", lambda calls, watch: calls[0]())
    monkeypatch.setattr(tuning, "interleaved", interleaved)
    case = partial(cases.Case, 2, 300, torch.float32, CPU, 1.3)
    before = dict(PROGRAMS["sm_90"])
    tune = partial(tuning.tuned, case, timing.Stopwatch(CPU, 1), 1, range(1, 7))
    assert tuning.save_tuned(tune, {"load": 0}, tmp_path / "row.json")
    assert capsys.readouterr().out == '("sm_90", (3, 3, 3, 3, 3, 3, 3, 3, 3)),\n'
    assert json.loads((tmp_path / "row.json").read_text())["programs"] == dict.fromkeys(KERNELS, 3)
    for i, (kernel, runners) in enumerate(zip(tuning.TIMED_BY, planned, strict=True)):
        tuned = dict.fromkeys(list(tuning.TIMED_BY)[:i], 3)
        for name, programs in runners.items():
            assert programs == before | tuned | {kernel: int(name)}
    assert PROGRAMS["sm_90"] == before


def test_tuning_needs_a_gpu():
    command = [sys.executable, str(SUITE / "bench_kernels.py"), "--device", "cpu", "--tune"]
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--out", "never.json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "--tune needs a GPU" in done.stderr
