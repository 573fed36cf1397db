"""A static cache is compiled for as transformers would, one graph a model, and gives the same."""

from __future__ import annotations

import pytest
import torch
from tiny_models import SIZES, WORDS
from transformers import CompileConfig, MistralConfig, MistralForCausalLM

import plugalign as pa
from plugalign.engine.acceleration.compiled import Compiled

graphs: list[int] = []


def counting(module, _inputs):
    """A backend of torch.compile that runs what it is given and counts it."""
    graphs.append(len(module.graph.nodes))
    return module.forward


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    graphs.clear()
    yield
    torch.compiler.reset()


def compiled(steered, inputs, **options):
    config = CompileConfig(backend=counting, mode=None)
    config._compile_all_devices = True  # transformers compiles on GPUs alone, else
    options = {"cache_implementation": "static", "compile_config": config} | options
    return generate(steered, inputs, **options)


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    options = {"max_new_tokens": 9, "do_sample": True, "top_p": 0.9, "pad_token_id": 0} | options
    return steered.generate(**inputs, **options)


def windowed(seed):
    """A model that looks back at eight columns."""
    torch.manual_seed(seed)
    config = MistralConfig(**SIZES, vocab_size=WORDS, num_key_value_heads=2, sliding_window=8)
    return MistralForCausalLM(config).eval()


# Models of one shape share a graph; prompts and prefixes are rows or lengths of another.
GRAPHS = {"nothing": 1, "dexperts": 1, "self-debias": 2, "prefix-contrast": 2}


@pytest.mark.parametrize("which", GRAPHS)
def test_each_model_is_one_graph_and_texts_are_the_same(which, tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    want = generate(steered, prompts(rows=3))
    assert torch.equal(compiled(steered, prompts(rows=3)), want)
    assert len(graphs) == GRAPHS[which]
    assert torch.equal(compiled(steered, prompts(rows=3)), want)
    assert len(graphs) == GRAPHS[which], "a second call was compiled again"


@pytest.mark.parametrize(("windows", "width"), [(False, 9), (True, 3), (True, 9)])
def test_a_shorter_call_is_not_compiled_anew(windows, width, tiny, tokenizer, prompts):
    """Also where caches have sliding windows, which the texts fill or do not."""
    models = [windowed(seed) if windows else tiny("llama-gqa", seed=seed) for seed in (0, 1)]
    steered = pa.wrap(models[0], tokenizer, pa.DExperts(models[1], top_p=1.0))
    compiled(steered, prompts(rows=3, width=width), max_new_tokens=4)
    known = len(graphs)
    compiled(steered, prompts(rows=3, width=width), max_new_tokens=2)
    assert len(graphs) == known


def test_no_graph_is_used_for_another_shape_or_other_weights(tiny, tokenizer, prompts):
    model = tiny()
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))
    for rows, width in ((3, 7), (1, 7), (3, 5), (2, 9), (3, 7)):
        inputs = prompts(rows=rows, width=width)
        assert torch.equal(compiled(steered, inputs), generate(steered, inputs))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.neg_()
    assert torch.equal(compiled(steered, prompts()), generate(steered, prompts()))
    assert graphs


def test_wishes_are_heard(tiny, tokenizer, prompts, monkeypatch):
    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    monkeypatch.setattr(Compiled, "last", lambda *_: pytest.fail("it was compiled"))
    generate(steered, prompts(), cache_implementation="static")  # on a CPU
    compiled(steered, prompts(), disable_compile=True)
    compiled(steered, prompts(), cache_implementation=None)
    with pytest.raises(pytest.fail.Exception):
        compiled(steered, prompts())
