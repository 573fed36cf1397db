"""The compile gate: every kernel, compiled ahead of time for GPUs that need not be there.

``python -m plugalign.kernels.compile_gate [--target sm_80 sm_90 sm_100 gfx942]`` compiles each
kernel for each dtype and class of vocabulary with Triton's own compiler, reads the machine code,
prints a table, and exits with 1 where a kernel is over its budget. It needs no GPU, driver or CUDA
toolkit: Triton brings its assembler and disassembler. What it reads is static: it finds spills,
narrow loads and loops that grew, and measures no time.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import torch

from plugalign.kernels.compile_budgets import Budget
from plugalign.kernels.compile_cases import DTYPES, Case, cases
from plugalign.kernels.launch import Launch
from plugalign.kernels.machine_code import Code, read_code
from plugalign.kernels.occupancy import PROGRAMS, resident

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Figures:
    """What a kernel's machine code shows; without a main loop, None of its loads.

    Attributes:
        disassembled: whether the machine code was read; where it was not, None means nothing.
    """

    registers: int
    shared: int
    spills: int
    load: int | None = None
    instructions: float | None = None
    disassembled: bool = True

    def faults(self, budget: Budget) -> list[str]:
        """What is over ``budget``, in words."""
        found = [f"{self.spills} spills"] if self.spills else []
        if self.registers > budget.registers:
            found.append(f"more than {budget.registers} registers")
        if self.shared > budget.shared:
            found.append(f"more than {budget.shared} bytes shared")
        if not self.disassembled:
            return found
        if budget.load > (self.load or 0):
            found.append(f"loads below {budget.load} bytes")
        if budget.instructions < (self.instructions or math.inf):
            found.append(f"more than {budget.instructions:g} instructions an entry")
        return found


class Pretended:
    """A driver for a GPU that is not there: all that Triton asks of one before a launch."""

    def __init__(self, target: str):
        vendor, number = re.fullmatch(r"(sm_|gfx)(\d+)", target).groups()  # type: ignore[union-attr]
        self.target = ("cuda", int(number), 32) if vendor == "sm_" else ("hip", target, 64)
        self.number = int(number)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self.target)

    def get_current_device(self) -> int:
        # Compiled kernels are kept by device; one device for each target keeps targets apart.
        return self.number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def compile_for(target: str, launch: Launch) -> Any:
    """``launch`` compiled for ``target``, specialised as Triton would specialise the launch."""
    from triton.runtime import driver

    driver.set_active(Pretended(target))
    return launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


def figures(compiled: Any, entry: int, code: Code | None) -> Figures:
    """Those of a compiled kernel whose main loop loads ``entry`` bytes for each entry; its
    ``code`` is None where it was compiled for AMD."""
    shared = compiled.metadata.shared
    if code is None:
        # A scalar register spills to a lane of a vector register; only those spill to memory.
        found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count): *(\d+)", compiled.asm["amdgcn"]))
        spills = int(found["vgpr_spill_count"])
        return Figures(int(found["vgpr_count"]), shared, spills, disassembled=False)
    spills = code.stack + sum(op.startswith(("LDL", "STL")) for op in code.instructions)
    loads = [_load_bytes(op) for op in code.loop if op.startswith(("LDG.", "LDGSTS"))]
    if not loads:
        return Figures(code.registers, shared, spills)
    entries = sum(loads) / entry
    return Figures(code.registers, shared, spills, min(loads), len(code.loop) / entries)


def _load_bytes(instruction: str) -> int:
    parts = instruction.split()[0].split(".")
    return next((WIDTHS[part] for part in parts if part in WIDTHS), 4)


def compile_all(target: str, dtypes: tuple[torch.dtype, ...]) -> list[tuple[str, bool]]:
    """The table's rows for one target, and whether the kernel is over its budget."""
    nvidia = target.startswith("sm_")
    chosen = list(cases(nvidia, dtypes))
    compiled = [compile_for(target, case.launch) for case in chosen]
    codes: list[Code] | list[None] = [None] * len(chosen)
    if nvidia:
        codes = read_code([one.asm["cubin"] for one in compiled], Pretended(target).number)
    rows = []
    for case, one, code in zip(chosen, compiled, codes, strict=True):
        found = figures(one, case.entry, code)
        faults = found.faults(case.budget) + stale(case, target, found)
        rows.append((line(case, target, found, faults), bool(faults)))
    return rows


def stale(case: Case, target: str, found: Figures) -> list[str]:
    """What `occupancy.PROGRAMS` says wrongly of a kernel, in words: more programs than can
    be resident, or less than half of them."""
    table = PROGRAMS[target]
    entry = table.get(case.kernel) or table.get(case.kernel.split()[0])
    most = resident(target, found.registers, found.shared, case.launch.warps)
    if entry is None or not case.listed or most / 2 <= entry <= most:
        return []
    return [f"room for {most} programs where the table has {entry}"]


def line(case: Case, target: str, found: Figures, faults: list[str]) -> str:
    """One row of the table, with what is over the budget or "ok"."""
    count = "-" if found.instructions is None else f"{found.instructions:.1f}"
    return (
        f"{case.name:36} {target:6} {found.registers:4} {found.shared:6} {found.spills:6} "
        f"{found.load or '-':>4} {count:>6}  {', '.join(faults) or 'ok'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if a kernel is over its budget."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    parser = argparse.ArgumentParser(description="Compiles every kernel and checks its budget.")
    parser.add_argument("--target", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--dtype", nargs="+", default=list(names), choices=list(names))
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 puts the interpreter in the compiler's place; unset it")
    dtypes = tuple(names[name] for name in chosen.dtype)
    print(f"Triton {version('triton')}")
    print(f"{'kernel':36} target regs shared spills load instructions/entry")
    over = 0
    for rows in _tables(chosen.target, dtypes):
        for text, fault in rows:
            over += fault
            print(text, flush=True)
    print(f"{over} over budget" if over else "all within budget")
    return min(over, 1)


def _tables(
    targets: list[str], dtypes: tuple[torch.dtype, ...]
) -> Iterator[list[tuple[str, bool]]]:
    """The tables of all targets, two at a time; the pretended GPU is one of a whole process."""
    tasks = [(target, (dtype,)) for target, dtype in product(targets, dtypes)]
    if len(tasks) == 1:
        yield compile_all(*tasks[0])
        return
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield from pool.starmap(compile_all, tasks, 1)


if __name__ == "__main__":
    sys.exit(main())
