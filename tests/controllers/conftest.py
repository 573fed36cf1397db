"""Holds a controller against the formula of its paper: uncached, unpadded, row by row, float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

import plugalign as pa

STEPS = 4
# Modes in which rows grow by one token a step, so that scores belong to what was returned.
PLAIN = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 0},
    "several": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "static": {"cache_implementation": "static"},
}
MOVING = {
    "beam": {"num_beams": 3},
    "beam-sample": {"num_beams": 2, "do_sample": True, "top_k": 0},
    "assisted": {"assistant": True, "do_sample": False},
    "assisted-sample": {"assistant": True, "do_sample": True, "top_k": 0},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def log_p(model, ids):
    """The log-probabilities ``(V,)`` of what follows the tokens ``ids``, by an uncached forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return log_softmax(logits.double().numpy())


class Formula(LogitsProcessor):
    """``formula(ids, base)``: scores ``(V,)`` after the token ids of a prefix, where the base's
    log-probabilities are ``base``. (An assistant's drafts are processed too, with its own.)"""

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, input_ids, scores):
        pairs = zip(input_ids.tolist(), scores.double().numpy(), strict=True)
        rows = [log_softmax(self.formula(unpadded(ids), log_softmax(row))) for ids, row in pairs]
        return torch.tensor(np.array(rows), dtype=torch.float32)


def unpadded(ids):
    return ids[next(i for i, token in enumerate(ids) if token != 0) :]


def log_scores(model, formula, ids):
    """The log-probabilities ``(V,)`` that ``formula`` gives what follows ``ids``."""
    return log_softmax(formula(ids, log_p(model, ids)))


def run(generate, batch, mode, assistant, **more):
    options = dict(PLAIN.get(mode) or MOVING.get(mode) or {})
    if options.pop("assistant", False):
        options["assistant_model"] = assistant
    if mode.startswith(("assisted", "lookup")):
        batch = {k: v[:1] for k, v in batch.items()}
    torch.manual_seed(11)
    shown = {"return_dict_in_generate": True, "output_scores": True}
    return generate(**batch, max_new_tokens=STEPS, **shown, **options, **more)


def assert_close(got, want):
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite)
    torch.testing.assert_close(got[finite], want[finite], atol=2e-3, rtol=1e-3)


def follows(steered, formula, batch, mode, assistant=None):
    """Asserts that every step of ``generate`` scores by ``formula``."""
    got = run(steered.generate, batch, mode, assistant)
    if mode in PLAIN:
        for step, scores in enumerate(got.scores):
            texts = got.sequences[:, : batch["input_ids"].shape[1] + step].tolist()
            want = [log_scores(steered.model, formula, unpadded(ids)) for ids in texts]
            assert_close(scores, torch.tensor(np.array(want), dtype=torch.float32))
        return
    wanted = [Formula(formula)]
    expected = run(steered.model.generate, batch, mode, assistant, logits_processor=wanted)
    assert got.sequences.tolist() == expected.sequences.tolist()
    for mine, theirs in zip(got.scores, expected.scores, strict=True):
        assert_close(mine, theirs)


def scores_texts(steered, formula, batch):
    """Asserts that ``log_probs`` of texts is what ``formula`` says of each of their tokens."""
    found = steered.log_probs((batch["input_ids"], batch["attention_mask"]))
    for row, ids in zip(found, batch["input_ids"].tolist(), strict=True):
        text = unpadded(ids)
        places = range(1, len(text))
        want = [log_scores(steered.model, formula, text[:i])[text[i]] for i in places]
        assert_close(row, torch.tensor(want, dtype=torch.float32))


def scores_of(model, tokenizer, controller, batch):
    """The scores ``(steps, B, V)`` of greedy decoding."""
    output = run(pa.wrap(model, tokenizer, controller).generate, batch, "greedy", None)
    return torch.stack(output.scores)


def decides(model, tokenizer, controller, batch):
    """The token ids of greedy decoding."""
    return pa.wrap(model, tokenizer, controller).generate(**batch, max_new_tokens=6).tolist()


def alone(batch, row):
    """One row without its padding."""
    keep = batch["attention_mask"][row].bool()
    return {key: value[row][keep][None] for key, value in batch.items()}


@pytest.fixture
def paper():
    """The functions above."""
    functions = (log_softmax, log_p, follows, scores_texts, scores_of, decides, alone)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture(params=(*PLAIN, *MOVING))
def mode(request):
    """Every way to decode."""
    return request.param
