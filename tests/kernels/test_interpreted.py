"""Runs the tests of all Triton kernels in Triton's interpreter, which needs no GPU.

In processes of their own: Triton decides at import whether kernels are compiled or interpreted, and
transformers has imported it here long before. Two at a time, because they take minutes together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parents[1].rglob("test_*_triton.py"))


@pytest.fixture(scope="module")
def runs():
    """By file, the process that runs it, started or waiting."""
    with ThreadPoolExecutor(2) as pool:
        yield {file: pool.submit(run, file) for file in FILES}


def run(file: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs interpreted already")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(
    file: Path, runs: dict[Path, Future[subprocess.CompletedProcess[str]]]
):
    pytest.importorskip("triton")
    done = runs[file].result()
    assert done.returncode == 0, done.stdout + done.stderr
