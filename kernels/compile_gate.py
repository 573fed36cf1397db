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
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.kernels.launch import Launch

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Vocabulary and row stride: Llama 3, GPT-2 in padded rows, GPT-2 as it comes.
VOCABULARIES = {"even": (128256, 128256), "padded": (50257, 50304), "odd": (50257, 50257)}
ROWS = 8
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Budget:
    """What a kernel may use.

    Args:
        registers: of a thread.
        shared: bytes of shared memory.
        load: bytes that the narrowest load in the main loop takes at least.
        instructions: in the main loop for one vocabulary entry.
    """

    registers: int
    shared: int = 48 * 1024
    load: int = 0
    instructions: float = math.inf


@dataclass(frozen=True)
class Case:
    """One kernel as one kind of input would launch it; an entry has ``itemsize`` bytes."""

    name: str
    launch: Launch
    itemsize: int
    budget: Budget


@dataclass(frozen=True)
class Figures:
    """What a kernel's machine code shows. None: without a main loop, or not read on this target."""

    registers: int
    shared: int
    spills: int
    load: int | None = None
    instructions: float | None = None

    def faults(self, budget: Budget) -> list[str]:
        """What is over ``budget``, in words."""
        found = [f"{self.spills} spills"] if self.spills else []
        if self.registers > budget.registers:
            found.append(f"more than {budget.registers} registers")
        if self.shared > budget.shared:
            found.append(f"more than {budget.shared} bytes shared")
        if self.load is not None and self.load < budget.load:
            found.append(f"loads below {budget.load} bytes")
        if self.instructions is not None and self.instructions > budget.instructions:
            found.append(f"more than {budget.instructions:g} instructions an entry")
        return found


def cases(nvidia: bool = True) -> Iterator[Case]:
    """Every kernel of the package."""
    yield from gumbel_cases(nvidia)
    yield from row_lse_cases()


def gumbel_cases(nvidia: bool) -> Iterator[Case]:
    """Sampling from one source."""
    from plugalign.kernels.gumbel_triton import plan

    # Like all budgets here, about a tenth above what the kernel took when it was written.
    budgets = {
        "even": Budget(registers=64, load=16, instructions=40),
        "padded": Budget(registers=64, load=16, instructions=42),
        "odd": Budget(registers=72, instructions=48),
    }
    number, heat = _unreal(ROWS, torch.int64), _unreal(ROWS, torch.float32)
    for kind, logits in _inputs():
        launches = plan(logits, 5, number, number, number, heat, number, fast=nvidia)
        yield _case("gumbel.sweep", kind, logits, launches[0], budgets[kind])
    yield Case("gumbel.merge", launches[1], 4, Budget(registers=32))


def row_lse_cases() -> Iterator[Case]:
    """The normaliser of one source."""
    from plugalign.kernels.row_lse_triton import plan

    budgets = {
        "even": Budget(registers=48, load=16, instructions=10),
        "padded": Budget(registers=48, load=16, instructions=14),
        "odd": Budget(registers=64, instructions=33),
    }
    for kind, logits in _inputs():
        launches = plan((logits,), _unreal(ROWS, torch.float32).view(1, ROWS))
        yield _case("row_lse.sweep", kind, logits, launches[0], budgets[kind])
    yield Case("row_lse.merge", launches[1], 4, Budget(registers=32))


def _inputs() -> Iterator[tuple[str, Tensor]]:
    """Logits ``(B, V)`` of every dtype and class of vocabulary, without memory behind them."""
    for dtype in DTYPES:
        for kind, (vocab, stride) in VOCABULARIES.items():
            yield kind, _unreal(ROWS * stride, dtype).view(ROWS, stride)[:, :vocab]


def _unreal(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _case(kernel: str, kind: str, logits: Tensor, launch: Launch, budget: Budget) -> Case:
    name = f"{kernel} {str(logits.dtype).removeprefix('torch.')} {kind}"
    return Case(name, launch, logits.element_size(), budget)


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


def read(compiled: Any, itemsize: int) -> Figures:
    """The figures of a compiled kernel whose main loop loads entries of ``itemsize`` bytes."""
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        found = dict(
            re.findall(r"\.(vgpr_count|[vs]gpr_spill_count): *(\d+)", compiled.asm["amdgcn"])
        )
        spills = int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])
        return Figures(int(found["vgpr_count"]), shared, spills)
    usage, listing = _disassemble(compiled.asm["cubin"])
    instructions, loop = _parse(listing)
    spills = int(usage["STACK"]) + sum(op.startswith(("LDL", "STL")) for op in instructions)
    loads = [_load_bytes(op) for op in loop if op.startswith("LDG")]
    if not loads:
        return Figures(int(usage["REG"]), shared, spills)
    entries = sum(loads) / itemsize
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
            for name, *flags in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
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


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if a kernel is over its budget."""
    parser = argparse.ArgumentParser(description="Compiles every kernel and checks its budget.")
    parser.add_argument("--target", nargs="+", default=TARGETS, choices=TARGETS)
    targets = parser.parse_args(arguments).target
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 puts the interpreter in the compiler's place; unset it")
    print(f"{'kernel':30} target regs shared spills load instructions/entry")
    over = 0
    for target in targets:
        for case in cases(nvidia=target.startswith("sm_")):
            found = read(compile_for(target, case.launch), case.itemsize)
            faults = found.faults(case.budget)
            over += bool(faults)
            load, instructions = found.load or "-", found.instructions
            print(
                f"{case.name:30} {target:6} {found.registers:4} {found.shared:6} {found.spills:6} "
                f"{load:>4} {'-' if instructions is None else f'{instructions:.1f}':>6}  "
                f"{', '.join(faults) or 'ok'}"
            )
    print(f"{over} over budget" if over else "all within budget")
    return min(over, 1)


if __name__ == "__main__":
    sys.exit(main())
