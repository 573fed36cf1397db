"""Formulas that are no plain sum of logits, captured and replayed."""

from __future__ import annotations

import pytest
import torch

import plugalign as pa
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.lm_arithmetic import LMArithmetic, intersection, lm, union
from plugalign.controllers.mixing import MOD

NEW = 8
METHODS = {
    "union": lambda a, b: LMArithmetic(lm(a) + 2 * union(lm(), lm(b))),
    "prompts": lambda a, b: LMArithmetic(lm() - 0.5 * intersection(lm(prompt="w5 w6"), lm(a))),
    "contrastive": lambda a, b: ContrastiveDecoding(a, alpha=0.01),
    "mod": lambda a, b: MOD({None: 0.2, a: 0.5, b: 0.3}),
}


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_replays_give_the_same_texts(method, tiny, tokenizer, prompts, tapes, architecture):
    model, a, b = (tiny(architecture, seed=seed) for seed in range(3))
    steered = pa.wrap(model, tokenizer, METHODS[method](a, b))
    options = {**prompts(), "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": True}
    static = {"cache_implementation": "static", "disable_compile": True}

    def generate(**more):
        torch.manual_seed(1)
        return steered.generate(**options, top_p=0.9, **more)

    want = generate()
    assert not tapes
    assert torch.equal(generate(**static), want)
    assert [tape.replays for tape in tapes] == [NEW - 2]  # the first two set all up
