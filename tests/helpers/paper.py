"""Holds a controller against the formula of its paper: uncached, unpadded, row by row, float64.

A formula is a function of a row's token ids and the base's log-probabilities ``(V,)`` behind them;
it returns scores ``(V,)``, whose softmax is what the controller should decode from. One that hangs
on the step gets its number as a third argument, where ``start``, the prompts' width, is given.
"""

from __future__ import annotations

import copy

import numpy as np
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
MODES = PLAIN | MOVING


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def nucleus(log_p, top_p):
    """The tokens ``(V,)`` that top-p keeps."""
    order = np.argsort(-log_p, kind="stable")
    before = np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order])
    keep = np.zeros(len(log_p), bool)
    keep[order[before < top_p]] = True
    return keep


def in_double(model):
    return copy.deepcopy(model).double()


def log_p(model, ids):
    """The log-probabilities ``(V,)`` of what follows the tokens ``ids``, by an uncached forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return log_softmax(logits.double().numpy())


def unpadded(ids):
    """A row without its left padding; an end token is followed by padding that counts as text."""
    return ids[next(i for i, token in enumerate(ids) if token != 0) :]


def shifted(delta):
    """The formula of ``delta(ids, log_p, …) -> (shift, keep)``."""

    def formula(ids, log_p, *step):
        shift, keep = delta(ids, log_p, *step)
        return np.where(keep, log_p + shift, -np.inf)

    return formula


class Formula(LogitsProcessor):
    """A formula behind a model of transformers. (An assistant's drafts are processed too, with the
    assistant's own log-probabilities.)"""

    def __init__(self, formula, start=None):
        self.formula, self.start = formula, start

    def __call__(self, input_ids, scores):
        step = () if self.start is None else (input_ids.shape[1] - self.start,)
        pairs = zip(input_ids.tolist(), scores.double().numpy(), strict=True)
        rows = [self.formula(unpadded(ids), log_softmax(row), *step) for ids, row in pairs]
        return torch.tensor(np.array([log_softmax(row) for row in rows]), dtype=torch.float32)


def log_scores(model, formula, ids, *step):
    """The log-probabilities ``(V,)`` that ``formula`` gives what follows ``ids``."""
    return log_softmax(formula(ids, log_p(model, ids), *step))


def run(generate, batch, mode, assistant=None, **more):
    """What ``generate`` returns in a mode, scores included."""
    options = dict(MODES[mode])
    if options.pop("assistant", False):
        options["assistant_model"] = assistant
    if mode.startswith(("assisted", "lookup")):
        batch = {k: v[:1] for k, v in batch.items()}
    torch.manual_seed(11)
    shown = {"return_dict_in_generate": True, "output_scores": True}
    return generate(**batch, max_new_tokens=STEPS, **shown, **options, **more)


def assert_close(got, want, atol=2e-3):
    """Equal where neither is infinite, and infinite at the same places."""
    want = torch.as_tensor(want, dtype=torch.float32)
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite)
    torch.testing.assert_close(got[finite], want[finite], atol=atol, rtol=1e-3)


def follows(steered, formula, batch, mode, assistant=None, start=None, atol=2e-3):
    """Asserts that every step of ``generate`` scores by ``formula``; returns what it gave."""
    got = run(steered.generate, batch, mode, assistant)
    if mode in PLAIN:
        for step, scores in enumerate(got.scores):
            texts = got.sequences[:, : batch["input_ids"].shape[1] + step].tolist()
            number = () if start is None else (step,)
            want = [log_scores(steered.model, formula, unpadded(ids), *number) for ids in texts]
            assert_close(scores, np.array(want), atol)
        return got
    wanted = [Formula(formula, start)]
    expected = run(steered.model.generate, batch, mode, assistant, logits_processor=wanted)
    assert got.sequences.tolist() == expected.sequences.tolist()
    for mine, theirs in zip(got.scores, expected.scores, strict=True):
        assert_close(mine, theirs, atol)
    return got


def scores_texts(steered, formula, batch):
    """Asserts that ``log_probs`` of texts is what ``formula`` says of each of their tokens."""
    found = steered.log_probs((batch["input_ids"], batch["attention_mask"]))
    for row, ids in zip(found, batch["input_ids"].tolist(), strict=True):
        text = unpadded(ids)
        places = range(1, len(text))
        want = [log_scores(steered.model, formula, text[:i])[text[i]] for i in places]
        assert_close(row, np.array(want))


def scores_answers(steered, formula, tokenizer, numbered=False):
    """The same of answers behind prompts of other lengths; ``numbered``: by the step too."""
    texts, prompts = ["w20 w21 w22 w23", "w30"], ["w9", "w10 w11 w12 w13"]
    for found, text, prompt in zip(steered.log_probs(texts, prompts), texts, prompts, strict=True):
        ids, want = tokenizer(prompt)["input_ids"], []
        for step, token in enumerate(tokenizer(text)["input_ids"]):
            number = (step,) if numbered else ()
            want.append(log_scores(steered.model, formula, ids, *number)[token])
            ids = [*ids, token]
        assert_close(found, np.array(want))


def scores_of(model, tokenizer, controller, batch):
    """The scores ``(steps, B, V)`` of greedy decoding."""
    return torch.stack(run(pa.wrap(model, tokenizer, controller).generate, batch, "greedy").scores)


def decides(model, tokenizer, controller, batch):
    """The token ids of greedy decoding."""
    return pa.wrap(model, tokenizer, controller).generate(**batch, max_new_tokens=6).tolist()


def alone(batch, row):
    """One row without its padding."""
    keep = batch["attention_mask"][row].bool()
    return {key: value[row][keep][None] for key, value in batch.items()}


def batches_as_rows(steered, batch):
    """Asserts that a batch gets the answers that each of its rows gets alone."""
    width = batch["input_ids"].shape[1]
    together = steered.generate(**batch, max_new_tokens=5)[:, width:].tolist()
    for row, answer in enumerate(together):
        own = alone(batch, row)
        [ids] = steered.generate(**own, max_new_tokens=5).tolist()
        answered = ids[own["input_ids"].shape[1] :]
        assert answered == answer[: len(answered)]
