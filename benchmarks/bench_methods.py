"""Every controller's generate beside plain generate, for pytest-benchmark.

    pytest benchmarks/bench_methods.py --benchmark-group-by=param:batch

``PLUGALIGN_BENCH_MODEL`` names a model (a hub id or a folder); by default the embedded one. For
ratios interleaved in one run, with their spread, use ``plugalign bench``.
"""

import os

import pytest
import torch

from plugalign.benchmarking.bench import generation, random_prompts
from plugalign.benchmarking.untrained import untrained
from plugalign.catalogue import UNTRAINED
from plugalign.loading import load_model
from plugalign.pocket import load as load_pocket


@pytest.fixture(scope="module")
def loaded():
    name = os.environ.get("PLUGALIGN_BENCH_MODEL")
    return load_pocket() if name is None else load_model(name)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("method", ["plain", *UNTRAINED])
def bench_generate(benchmark, loaded, method, batch):
    model, tokenizer = loaded
    controller = None if method == "plain" else untrained(method, model)
    call = generation(controller, model, tokenizer)
    prompts = random_prompts(model, batch, 16)

    def run():
        output = call(prompts, 32)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return output

    output = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    assert output.shape == (batch, 16 + 32)
