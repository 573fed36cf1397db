"""Launches every kernel as on a GPU, against a driver that only counts: ``run.py FOLDER``.

FOLDER holds the stub ``libcuda.so.1``, and the result is its ``launches.json``. Triton's own
binder, specialisation, assembler, launcher and argument parsing run; the tensors lie in memory of
the host, which nobody reads.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
from triton.runtime import driver

from plugalign.kernels.launch import Launch


class Stubbed(CudaDriver):
    """Triton's driver without the device, stream and capability that torch would name."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def tried(launch: Launch, library: ctypes.CDLL) -> str | None:
    """What went wrong with a launch."""
    before = library.launch_count()
    try:
        launch.run()
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"
    return None if library.launch_count() == before + 1 else "nothing was launched"


def unaligned(arguments: Any) -> int:
    """How many tensors do not start at 16 bytes, for which Triton compiles another variant."""
    if isinstance(arguments, torch.Tensor):
        return int(arguments.data_ptr() % 16 > 0)
    return sum(map(unaligned, arguments)) if isinstance(arguments, tuple | list) else 0


def main(folder: Path) -> None:
    driver.set_active(Stubbed())
    library = ctypes.CDLL(str(folder / "libcuda.so.1"))
    found = [
        {
            "plan": name,
            "kernel": f"{launch.kernel.fn.__module__}.{launch.kernel.fn.__name__}",
            "error": tried(launch, library),
            "unaligned": unaligned(list(launch.arguments.values())),
        }
        for name, plan in planned.launches()
        for launch in plan
    ]
    _, (first, *_) = next(planned.launches())
    wide = replace(first, grid=(1, 2**16))
    result = {"launches": found, "too wide a grid": tried(wide, library)}
    (folder / "launches.json").write_text(json.dumps(result))


main(Path(sys.argv[1]))
