"""Every operation against its torch reference on the same device: what a GPU runs first.

``pytest -n 12 -m gpu tests/kernels/test_on_device.py`` names each operation, dtype and size that
fails. Without a GPU, TRITON_INTERPRET=1 rehearses it with tiny sizes in Triton's interpreter;
test_interpreted.py does so.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

# --import-mode=importlib puts no folder of tests on the path.
PATH = Path(__file__).parent / "on_device" / "operations.py"
SPEC = importlib.util.spec_from_file_location("on_device_operations", PATH)
operations = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(operations)
At, OPERATIONS, INTERPRETED = operations.At, operations.OPERATIONS, operations.INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip(
        "runs on a GPU, or rehearsed in the interpreter with TRITON_INTERPRET=1",
        allow_module_level=True,
    )
pytestmark = [
    pytest.mark.gpu,
    # The interpreter computes in NumPy, which warns where a GPU says NaN or infinity.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]

BATCHES, VOCABULARIES, _ = operations.sizes()
CELLS = [
    pytest.param(name, At(dtype, rows, vocab), id=f"{name}-{label}-B{rows}-V{vocab}")
    for name, (label, dtype), vocab, rows in itertools.product(
        OPERATIONS, (("bf16", torch.bfloat16), ("fp32", torch.float32)), VOCABULARIES, BATCHES
    )
]


def poison() -> None:
    """Leaves NaNs where torch will allocate next: in a large block, and in several small ones."""
    for size in (2**23, *[2**17] * 8):
        torch.full((size,), float("nan"), device=operations.DEVICE)


@pytest.mark.parametrize(("name", "at"), CELLS)
def test_an_operation_agrees_with_torch(name, at):
    operation = OPERATIONS[name](at)
    expected = operation.run("torch")
    if operation.exact is not None:
        operation.exactly(operation.exact(), expected)
    poison()
    operation.same(operation.run("triton"), expected)


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_a_cuda_graph(name):
    operation = OPERATIONS[name](At(torch.bfloat16, 8, VOCABULARIES[1]))
    expected = operation.run("triton")  # compiled, so that nothing is when capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operation.run("triton")
    for _ in range(2):
        for x in found if isinstance(found, tuple) else (found,):
            x.zero_()
        graph.replay()
        operation.same(found, expected)


@pytest.mark.parametrize("name", ["gumbel.sample", "steer.kept", "topk_select", "spec_verify"])
def test_a_wrong_answer_is_found(name):
    at = At(torch.float32, BATCHES[-1], VOCABULARIES[0])
    operation = OPERATIONS[name](at)
    right = operation.run("torch")
    wrong = right.roll(1, -1) if torch.is_tensor(right) else tuple(x.roll(1, -1) for x in right)
    operation.same(right, right)
    with pytest.raises(AssertionError):
        operation.same(wrong, right)
