"""Runs the tests of all Triton kernels in Triton's interpreter, which needs no GPU.

In processes of their own: Triton decides at import whether kernels are compiled or interpreted, and
transformers has imported it here long before. ``-k NAME`` runs a file; quick ones share a process.
Two processes go at a time, because they take minutes; under xdist each worker has its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What a GPU runs first, test_on_device.py, the rehearsal of benchmarks/on_gpu.sh interprets.
FILES = sorted(HERE.parent.rglob("test_*_triton.py"))
QUICK = ("candidate_sample", "group_lora", "projection", "row_lse")  # quicker than a process starts
TOGETHER = tuple(HERE / f"test_{name}_triton.py" for name in QUICK)
RUNS = [TOGETHER, *((file,) for file in FILES if file not in TOGETHER)]


@pytest.fixture(scope="module")
def runs(request):
    """The process that runs some files, started or waiting, for those that are selected."""
    with ThreadPoolExecutor(2) as pool:
        started = {}
        if "PYTEST_XDIST_WORKER" not in os.environ:
            mine = [item for item in request.session.items if item.path == request.path]
            chosen = [item.callspec.params["files"] for item in mine]
            started = {files: pool.submit(run, files) for files in chosen}
        yield lambda files: (started.get(files) or pool.submit(run, files)).result()


def run(files: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """``files`` under pytest and the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs interpreted already")
@pytest.mark.parametrize("files", RUNS, ids=lambda files: "+".join(file.stem for file in files))
def test_kernels_in_the_interpreter(files, runs):
    pytest.importorskip("triton")
    done = runs(files)
    assert done.returncode == 0, done.stdout + done.stderr
