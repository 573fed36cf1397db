"""Captured steps give what steps launched one by one give, with the fused kernels in both.

On a GPU they are CUDA graphs. In Triton's interpreter a tape stands in for one, which keeps the
kernels' launches among all other operations.
"""

from __future__ import annotations

import os

import pytest
import torch

import plugalign as pa
from plugalign.engine import capturing
from plugalign.kernels import steer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="runs in the interpreter or on a GPU",
    ),
    # The interpreter computes in NumPy, which warns where a GPU says NaN or infinity.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]

NEW = 6
CONTROLLERS = (
    "nothing", "dexperts", "lora", "self-debias", "low-rank", "adaptive", "head", "prefix",
    "prefix-contrast", "several",
)  # fmt: skip


@pytest.fixture
def graphs(monkeypatch, tape):
    """All graphs that were made."""
    made, make = [], capturing.graph_on
    if INTERPRETED:
        make = lambda device: tape()  # noqa: E731
        monkeypatch.setattr(steer, "use_triton", lambda backend, tensor: backend != "torch")
    monkeypatch.setattr(capturing, "graph_on", lambda device: made.append(make(device)) or made[-1])
    monkeypatch.setattr(capturing, "LEAST", 1)
    return made


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    inputs = {name: x.to(DEVICE) for name, x in inputs.items()}
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    return steered.generate(**inputs, **length, do_sample=True, top_p=0.9, **options)


@pytest.mark.parametrize("which", CONTROLLERS)
def test_kernels_in_a_captured_step(which, tiny, tokenizer, prompts, make, graphs):
    def on_device(*args, **options):
        return tiny(*args, **options).to(DEVICE)

    model = on_device()
    steered = pa.wrap(model, tokenizer, make(which, model, on_device, "llama-gqa"))
    static = {"cache_implementation": "static", "disable_compile": True}
    want = generate(steered, prompts(rows=2))
    assert not graphs
    assert torch.equal(generate(steered, prompts(rows=2), **static), want)
    assert len(graphs) == 1
    if INTERPRETED:
        assert graphs[0].replays == NEW - 2


@pytest.mark.skipif(INTERPRETED, reason="compiles for a GPU")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_a_compiled_body_in_a_captured_step(tiny, tokenizer, prompts, graphs):
    model = tiny().to(DEVICE)
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    want = generate(steered, prompts(rows=2))
    assert torch.equal(generate(steered, prompts(rows=2), cache_implementation="static"), want)
    assert len(graphs) == 1
