"""A body under ``torch.compile`` in a captured step, on a GPU: slow, since it is compiled."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.engine.acceleration.cuda_graph import CudaGraph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

NEW = 6


def test_a_compiled_body_in_a_captured_step(tiny, tokenizer, prompts, monkeypatch):
    replays, replay = [], CudaGraph.replay
    monkeypatch.setattr(CudaGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    steered = pa.wrap(tiny().to("cuda"), tokenizer, 0 * pa.SelfDebias(["w5"]))
    inputs = {name: x.to("cuda") for name, x in prompts(rows=2).items()}

    def generate(**options):
        torch.manual_seed(1)
        length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
        return steered.generate(**inputs, **length, do_sample=True, top_p=0.9, **options)

    want = generate()
    assert torch.equal(generate(cache_implementation="static", capture=True), want)
    assert len(replays) == NEW - 2
