"""No call sees an earlier one: batches, caches, weights, dtypes and controllers change."""

from __future__ import annotations

import torch
from torch import nn

import plugalign as pa


@torch.no_grad()
def shrink(model):
    for parameter in model.parameters():
        parameter.mul_(0.9).add_(torch.linspace(-0.05, 0.05, parameter.shape[-1]))


CALLS = (
    (None, {"rows": 3, "width": 7}, {}),
    (None, {"rows": 1, "width": 7}, {}),
    (None, {"rows": 4, "width": 5}, {"padded": False}),
    (None, {"rows": 3, "width": 7}, {"cache_implementation": "static"}),
    (None, {"rows": 2, "width": 12}, {}),
    (None, {"rows": 2, "width": 6}, {"num_return_sequences": 2, "do_sample": True}),
    (shrink, {"rows": 3, "width": 7}, {}),
    (nn.Module.double, {"rows": 2, "width": 9}, {}),
    (nn.Module.float, {"rows": 3, "width": 7}, {}),
    (shrink, {"rows": 2, "width": 7}, {"num_beams": 2}),
)


def result(steered, prompts, shape, padded=True, **options):
    batch = prompts(**shape)
    if not padded:
        batch = {"input_ids": batch["input_ids"].clamp_min(5)}
    torch.manual_seed(0)
    return steered.generate(**batch, max_new_tokens=3, **options)


def test_no_call_sees_an_earlier_one(kind, path, wrapped, afresh, tiny, prompts):
    steered = wrapped(kind)
    beside = pa.DExperts(tiny(seed=5), top_p=1.0) + pa.SelfDebias(["w9"])
    other = pa.wrap(steered.model, steered.tokenizer, beside)
    for change, shape, options in CALLS:
        if change is not None:
            change(steered.model)
        got = result(steered, prompts, shape, **options)
        assert torch.equal(got, result(afresh(steered), prompts, shape, **options))
        result(other, prompts, shape, **options)
