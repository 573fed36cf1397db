"""How many programs of a kernel a multiprocessor holds at once: into so many parts rows are cut.

Nothing is tuned while a model runs. `PROGRAMS` is a table by architecture: its entries are what
the registers, shared memory and warps of the compiled kernels leave room for, with aligned rows of
bfloat16, and the compile gate holds them against the kernels as each version of Triton that it runs
on compiles them; 3.6 and 3.9 leave room for the same. A measurement may halve an entry:
``benchmarks/bench_kernels.py --tune`` makes one on the GPU that it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCHEDULERS, REGISTERS = 4, 512  # of a multiprocessor, and for each lane of a scheduler's warps
MOST_PROGRAMS = 32


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has.

    Args:
        warps: that each of its schedulers holds.
        shared: bytes of shared memory.
        reserved: bytes of it that a program takes beside its own.
    """

    warps: int
    shared: int
    reserved: int


LIMITS = {
    "sm_80": Limits(16, 164 * 1024, 1024),
    "sm_90": Limits(16, 228 * 1024, 1024),
    "sm_100": Limits(16, 228 * 1024, 1024),
    "gfx942": Limits(8, 64 * 1024, 0),
}

KERNELS = (
    "gumbel.sweep",
    "row_lse.sweep",
    "sweep",
    "sweep debias",
    "threshold.ladder",
    "scores.write",
    "topk.sweep",
    "spec.weigh",
    "spec.draw",
)
PROGRAMS = {
    architecture: dict(zip(KERNELS, entries, strict=True))
    for architecture, entries in (
        ("sm_80", (5, 8, 4, 2, 4, 8, 8, 8, 5)),
        ("sm_90", (6, 8, 4, 2, 3, 8, 8, 8, 5)),
        ("sm_100", (5, 8, 4, 2, 4, 6, 8, 8, 4)),
        ("gfx942", (4, 4, 4, 4, 4, 4, 4, 4, 4)),
    )
}
ELSEWHERE = 4  # on devices that the table lacks


def programs_on(device: torch.device, kernel: str) -> int:
    """Programs of a kernel that ``device`` holds at once."""
    architecture, multiprocessors = architecture_of(device)
    return PROGRAMS.get(architecture, {}).get(kernel, ELSEWHERE) * multiprocessors


def architecture_of(device: torch.device) -> tuple[str, int]:
    """The name of a GPU's architecture, and its multiprocessors; an H200's where there is none."""
    if device.type != "cuda":
        return "sm_90", 132
    found = torch.cuda.get_device_properties(device)
    name = f"sm_{found.major}{found.minor}"
    if torch.version.hip is not None:
        name = found.gcnArchName.split(":")[0]
    return name, found.multi_processor_count


def resident(architecture: str, registers: int, shared: int, warps: int) -> int:
    """Programs that one multiprocessor holds, from what each of them takes.

    Args:
        registers: of a thread, which are given out by eights.
        shared: bytes.
    """
    limits = LIMITS[architecture]
    held = min(limits.warps, REGISTERS // (-(-registers // 8) * 8)) * SCHEDULERS
    by_shared = limits.shared // max(shared + limits.reserved, 1)
    return min(held // warps, by_shared, MOST_PROGRAMS)
