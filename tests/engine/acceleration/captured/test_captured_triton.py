"""Captured steps give what steps launched one by one give, with the fused kernels in both.

On a GPU they are CUDA graphs. In Triton's interpreter a tape stands in for one, which keeps the
kernels' launches among all other operations.
"""

from __future__ import annotations

import os

import pytest
import torch

import plugalign as pa
from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.cuda_graph import CudaGraph
from plugalign.kernels import steer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # The interpreter computes in NumPy, which warns where a GPU says NaN or infinity.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]

# In the interpreter, which is slow, two replays: the second reads what the first has written.
NEW = 4 if INTERPRETED else 6
CONTROLLERS = (
    "nothing",
    "dexperts",
    "anti-only",
    "lora",
    "self-debias",
    "low-rank",
    "adaptive",
    "head",
    "prefix",
    "prefix-contrast",
    "several",
)
# The interpreter is slow: one of those that launch the same kernels will do there.
KERNELS = ("nothing", "dexperts", "self-debias", "low-rank", "head")
CASES = [(which, "llama-gqa") for which in (KERNELS if INTERPRETED else CONTROLLERS)]
CASES += [(which, "gpt2-tied") for which in (("several",) if INTERPRETED else CONTROLLERS)]


class Counted:
    """A graph, and how often it was replayed."""

    def __init__(self, graph):
        self.graph, self.replays = graph, 0

    def warm(self, step):
        return self.graph.warm(step)

    def capture(self, step):
        self.graph.capture(step)

    def replay(self):
        self.replays += 1
        self.graph.replay()


@pytest.fixture
def graphs(monkeypatch, tape):
    """All graphs that were made."""
    made = []
    make = (lambda device: tape()) if INTERPRETED else captured_step.graph_on
    if INTERPRETED:
        monkeypatch.setattr(steer, "use_triton", lambda backend, tensor: backend != "torch")

    def graph_on(device):
        graph = make(device)
        made.append(None if graph is None else Counted(graph))
        return made[-1]

    monkeypatch.setattr(captured_step, "graph_on", graph_on)
    return made


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    inputs = {name: x.to(DEVICE) for name, x in inputs.items()}
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    return steered.generate(**inputs, **length, do_sample=True, top_p=0.9, **options)


@pytest.mark.parametrize(("which", "architecture"), CASES)
def test_kernels_in_a_captured_step(
    which, architecture, tiny, tokenizer, prompts, make, graphs, tape
):
    def on_device(*args, **options):
        return tiny(*args, **options).to(DEVICE)

    model = on_device(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, on_device, architecture))
    static = {"cache_implementation": "static", "disable_compile": True, "capture": True}
    want = generate(steered, prompts(rows=2))
    assert not graphs
    assert torch.equal(generate(steered, prompts(rows=2), **static), want)
    assert [graph.replays for graph in graphs if graph.replays] == [NEW - 2]
    kind = tape if INTERPRETED else CudaGraph
    assert all(isinstance(graph.graph, kind) for graph in graphs)
