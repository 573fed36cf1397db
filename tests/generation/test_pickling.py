"""A wrapped model goes to another process, which wraps it again."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from operator import methodcaller

import pytest

import plugalign as pa


@pytest.fixture(params=["dexperts", "lora", "several", "head", "fudge", "prefix"])
def steered(request, tiny, tokenizer, make):
    model = tiny()
    return pa.wrap(model, tokenizer, make(request.param, model, tiny, "llama-gqa"))


def test_a_pickled_one_decides_alike(steered, prompts):
    want = steered.generate(**prompts(), max_new_tokens=5).tolist()
    again = pickle.loads(pickle.dumps(steered))
    assert type(again).__name__ == type(steered).__name__ == "LlamaForCausalLM"
    assert again.generate(**prompts(), max_new_tokens=5).tolist() == want
    for copied in (copy.copy(steered), copy.deepcopy(steered)):
        assert copied.generate(**prompts(), max_new_tokens=5).tolist() == want


def test_a_spawned_worker_decides_alike(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5 w6"]))
    call = methodcaller("generate", **prompts(), max_new_tokens=5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(call, (steered,)).tolist()
    assert got == call(steered).tolist()
