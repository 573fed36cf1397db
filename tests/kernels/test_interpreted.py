"""Runs the tests of all Triton kernels in Triton's interpreter, which needs no GPU.

A process of its own: Triton decides at import whether kernels are compiled or interpreted, and
transformers has imported it here long before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs interpreted already")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    files = sorted(map(str, FOLDER.glob("test_*_triton.py")))
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
