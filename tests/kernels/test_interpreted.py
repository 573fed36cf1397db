"""Runs the tests of all Triton kernels in Triton's interpreter, which needs no GPU.

In processes of their own: Triton decides at import whether kernels are compiled or interpreted, and
transformers has imported it here long before. ``-k NAME`` runs one file. Two go at a time, because
they take minutes together; under xdist each worker runs its own.
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


@pytest.fixture(scope="module")
def runs(request):
    """The process that runs a file, started or waiting, for the files that are selected."""
    with ThreadPoolExecutor(2) as pool:
        started = {}
        if "PYTEST_XDIST_WORKER" not in os.environ:
            mine = [item for item in request.session.items if item.path == request.path]
            files = [item.callspec.params["file"] for item in mine]
            started = {file: pool.submit(run, file) for file in files}
        yield lambda file: (started.get(file) or pool.submit(run, file)).result()


def run(file: Path) -> subprocess.CompletedProcess[str]:
    """``file`` under pytest and the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs interpreted already")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(file, runs):
    pytest.importorskip("triton")
    done = runs(file)
    assert done.returncode == 0, done.stdout + done.stderr
