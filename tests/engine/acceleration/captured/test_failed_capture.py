"""What a capture that fails leaves behind on a GPU: nothing. Alone in its process, since after one
that has failed nothing more is captured there, and the tests stand in this order."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.engine.acceleration import captured_step, cuda_graph
from plugalign.engine.acceleration.host_sync import HostSyncDetector

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU, whose captures fail in ways of its own"
)

NEW = 20
STATIC = {"cache_implementation": "static", "disable_compile": True}


class Act(torch.nn.Module):
    """An activation that does something else too."""

    def __init__(self, also):
        super().__init__()
        self._also = also

    def forward(self, x):
        self._also(x)
        return torch.nn.functional.silu(x)


@pytest.fixture
def steered(tiny, tokenizer):
    """The factory of a model that does something else in its second layer."""

    def make(also=lambda x: None):
        model = tiny().to("cuda")
        model.model.layers[1].mlp.act_fn = Act(also)
        return pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))

    return make


@pytest.fixture
def generate(prompts):
    inputs = {name: x.to("cuda") for name, x in prompts(rows=2).items()}

    def run(steered, **options):
        torch.manual_seed(1)
        length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
        return steered.generate(**inputs, **length, do_sample=True, top_p=0.9, **options)

    return run


def check_that_the_device_is_well():
    """Random numbers, memory that is given back, and a capture by torch itself."""
    assert 0 <= float(torch.rand(1, device="cuda")) < 1
    assert torch.randn(1000, device="cuda").isfinite().all()
    held = torch.ones(2**24, device="cuda")
    before = torch.cuda.memory_reserved()
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before
    x, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x += 1
    graph.replay()
    graph.replay()
    assert x.tolist() == [2, 2, 2]


def test_a_step_that_waits_is_refused(steered, generate):
    waiting = steered(lambda x: x.sum().item())
    want = generate(waiting)
    with pytest.warns(RuntimeWarning, match="_local_scalar_dense waits for the device"):
        assert torch.equal(generate(waiting, **STATIC), want)
    assert not cuda_graph.ABANDONED
    check_that_the_device_is_well()
    assert torch.equal(generate(steered(), **STATIC, capture=True), generate(steered()))


def test_an_exception_that_is_not_of_cuda_ends_a_capture(steered, generate):
    def interrupt(x):
        if torch.cuda.is_current_stream_capturing():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(steered(interrupt), **STATIC)
    assert not cuda_graph.ABANDONED
    check_that_the_device_is_well()
    assert torch.equal(generate(steered(), **STATIC, capture=True), generate(steered()))


class Blind(HostSyncDetector):
    """Sees nothing."""

    why = property(lambda self: None, lambda self, why: None)


def test_a_capture_that_fails_all_the_same(steered, generate, monkeypatch):
    waiting = steered(lambda x: x.sum().item())
    want = generate(waiting)
    monkeypatch.setattr(cuda_graph, "HostSyncDetector", Blind)
    with pytest.warns(RuntimeWarning, match="no CUDA graph of a step can be made"):
        assert torch.equal(generate(waiting, **STATIC), want)
    assert len(cuda_graph.ABANDONED) == 1
    check_that_the_device_is_well()
    assert captured_step.graph_on(torch.device("cuda")) is None
    assert torch.equal(generate(steered(), **STATIC), generate(steered()))
    with pytest.raises(ValueError, match="an earlier capture of this process has failed"):
        generate(steered(), **STATIC, capture=True)
