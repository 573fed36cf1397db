"""Every kernel goes through Triton's own launch path for an H100, with a stub in place of CUDA.

The compile gate compiles; this binds arguments, specialises, assembles, loads and launches, as on a
GPU but for the GPU. `dry_run/run.py` does so in a process of its own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent / "dry_run"
KERNELS = Path(__file__).parents[2] / "kernels"
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia"
NEEDED = {
    "gcc": shutil.which("gcc"),
    "Python's headers": (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    "Triton's ptxas": (NVIDIA / "bin" / "ptxas").is_file(),
    "Linux": sys.platform == "linux",
}
MISSING = [name for name, there in NEEDED.items() if not there]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """What `dry_run/run.py` found."""
    folder = tmp_path_factory.mktemp("dry_run")
    flags = ("-shared", "-fPIC", "-w", f"-I{NVIDIA / 'include'}", "-Wl,-soname,libcuda.so.1")
    stub = ("gcc", *flags, "-o", folder / "libcuda.so.1", HERE / "libcuda.c")
    subprocess.run(stub, check=True, timeout=120)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "LD_LIBRARY_PATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, HERE / "run.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "launches.json").read_text())


def kernels():
    """Names of the Triton functions that no other calls: those that the host launches. (Those of
    the terms are handed to kernels.)"""
    modules = [importlib.import_module(f"plugalign.kernels.{f.stem}") for f in jitted_files()]
    named = {value for module in modules for value in vars(module).values() if is_jitted(value)}
    called = set()
    for function in named:
        names = {n.id for n in ast.walk(ast.parse(source(function))) if isinstance(n, ast.Name)}
        called |= {v for k, v in function.fn.__globals__.items() if k in names and is_jitted(v)}
    return {f"{one.fn.__module__}.{one.fn.__name__}" for one in named - called}


def jitted_files():
    return sorted(KERNELS.glob("*_triton.py"))


def is_jitted(value):
    return hasattr(value, "fn") and hasattr(value, "arg_names")


def source(function):
    return inspect.getsource(function.fn)


def test_every_kernel_is_launched(dry_run):
    assert {launch["kernel"] for launch in dry_run["launches"]} == kernels()


def test_no_launch_fails(dry_run):
    failed = [launch for launch in dry_run["launches"] if launch["error"]]
    assert failed == []


def test_tensors_start_where_they_load_at_once(dry_run):
    """All that is not a slice of an odd row: another start is another variant to compile."""
    assert [launch for launch in dry_run["launches"] if launch["unaligned"]] == []


def test_the_stub_refuses_what_a_gpu_refuses(dry_run):
    assert "invalid argument" in dry_run["too wide a grid"]
