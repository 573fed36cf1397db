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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from plugalign.kernels.compile_budgets import Budget
from plugalign.kernels.compile_cases import DTYPES, Case, cases
from plugalign.kernels.launch import Launch
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


def read(compiled: Any, entry: int) -> Figures:
    """The figures of a compiled kernel whose main loop loads ``entry`` bytes for each entry."""
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        # A scalar register spills to a lane of a vector register; only those spill to memory.
        found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count): *(\d+)", compiled.asm["amdgcn"]))
        spills = int(found["vgpr_spill_count"])
        return Figures(int(found["vgpr_count"]), shared, spills, disassembled=False)
    usage, listing = _disassemble(compiled.asm["cubin"])
    instructions, loop = _parse(listing)
    spills = int(usage["STACK"]) + sum(op.startswith(("LDL", "STL")) for op in instructions)
    loads = [_load_bytes(op) for op in loop if op.startswith(("LDG.", "LDGSTS"))]
    if not loads:
        return Figures(int(usage["REG"]), shared, spills)
    entries = sum(loads) / entry
    return Figures(int(usage["REG"]), shared, spills, min(loads), len(loop) / entries)


def _disassemble(cubin: bytes) -> tuple[dict[str, str], str]:
    """Resource usage by name, and the listing."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, listing = (
            subprocess.run([tools / name, *flags, file.name], capture_output=True, check=True)
            for name, *flags in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c", "-ndf"))
        )
    return dict(re.findall(r"(REG|STACK):(\d+)", usage.stdout.decode())), listing.stdout.decode()


def _parse(listing: str) -> tuple[list[str], list[str]]:
    """All instructions without their predicates, and those of the longest loop."""
    instructions: list[str] = []
    loop: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(code[1])
            target = re.match(r"BRA.*(\.L_x_\d+)", code[1])
            if target and target[1] in labels:
                loop = max(loop, instructions[labels[target[1]] :], key=len)
    return instructions, loop


def _load_bytes(instruction: str) -> int:
    parts = instruction.split()[0].split(".")
    return next((WIDTHS[part] for part in parts if part in WIDTHS), 4)


def compile_all(target: str, dtypes: tuple[torch.dtype, ...]) -> list[tuple[str, bool]]:
    """The table's rows for one target, and whether the kernel is over its budget."""
    rows = []
    for case in cases(target.startswith("sm_"), dtypes):
        found = read(compile_for(target, case.launch), case.entry)
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
    if len(targets) == 1:
        yield compile_all(targets[0], dtypes)
        return
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield from pool.starmap(compile_all, [(target, dtypes) for target in targets], 1)


if __name__ == "__main__":
    sys.exit(main())
