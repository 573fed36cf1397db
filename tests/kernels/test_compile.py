"""The compile gate passes for the kernels as they are, and fails when one gets worse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plugalign.kernels.compile_budgets import BUDGETS, BY_TRITON, budget_of
from plugalign.kernels.compile_cases import VOCABULARIES

pytest.importorskip("triton")

WORSE = {
    "exact logarithms in place of the GPU's": (
        "plan = functools.partial(gumbel_triton.plan)\n"
        "gumbel_triton.plan = lambda *a, **k: plan(*a, **(k | {'fast': False}))",
        "instructions an entry",
    ),
    "tiles that do not fit the registers": (
        "gumbel_triton.plan = functools.partial(gumbel_triton.plan, tile=16384)",
        "spills",
    ),
    "loads that stop at an odd vocabulary": (
        "launch.load_bound = lambda x: x.shape[1]",
        "loads below 16 bytes",
    ),
    "more programs in the table than there is room for": (
        "occupancy.PROGRAMS['sm_90']['gumbel.sweep'] = 9",
        "room for 6 programs where the table has 9",
    ),
    "less than half of them": (
        "occupancy.PROGRAMS['sm_90']['gumbel.sweep'] = 2",
        "room for 6 programs where the table has 2",
    ),
}


def run_python(*arguments):
    """Python with the compiler, not the interpreter, behind Triton, and with no GPU in sight."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("version", ["3.9.0", "3.6.0"])
@pytest.mark.parametrize(("kernel", "most"), [("sweep K=3 top-p", 60), ("sweep K=3 greedy", 30)])
def test_what_sampling_may_cost_at_most(kernel, most, version):
    assert all(budget_of(kernel, kind, version).instructions <= most for kind in VOCABULARIES)


def test_budgets_are_those_of_the_compiler():
    assert all(rows.keys() <= BUDGETS.keys() for rows in BY_TRITON.values())
    for version in ("3.6.0", "3.6.1+git"):
        assert budget_of("topk.narrow", "odd", version) == BY_TRITON["3.6"]["topk.narrow", "any"]
        assert budget_of("topk.sweep", "odd", version) == BUDGETS["topk.sweep", "odd"]
    assert budget_of("topk.narrow", "odd", "3.10.0") == BUDGETS["topk.narrow", "any"]


def test_kernels_are_within_their_budgets():
    """For one GPU and dtype; `python -m plugalign.kernels.compile_gate` compiles for all."""
    chosen = ("--target", "sm_90", "--dtype", "bfloat16")
    done = run_python("-m", "plugalign.kernels.compile_gate", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok\n") == done.stdout.count(" sm_90 ") > 50


@pytest.mark.parametrize("change", WORSE)
def test_the_gate_fails_for_a_worse_kernel(change):
    code, fault = WORSE[change]
    script = (
        "import functools, sys\n"
        "from plugalign.kernels import compile_cases, compile_gate\n"
        "from plugalign.kernels import gumbel_triton, launch, occupancy\n"
        f"{code}\n"
        "compile_cases.GROUPS = (compile_cases.gumbel,)\n"
        "sys.exit(compile_gate.main(['--target', 'sm_90', '--dtype', 'bfloat16']))\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 1, done.stdout + done.stderr
    assert fault in done.stdout


def test_the_gate_refuses_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "plugalign.kernels.compile_gate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "TRITON_INTERPRET" in done.stderr
