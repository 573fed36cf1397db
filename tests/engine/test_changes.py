"""What logits processors change in front of the controllers counts once, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import plugalign as pa
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm
from plugalign.engine.changes import changes_logits, taken_apart

PENALTY, BIAS, BANNED = 1.7, 2.5, 11
OPTIONS: dict[str, Any] = {
    "repetition_penalty": PENALTY,
    "sequence_bias": [[[7], BIAS]],
    "suppress_tokens": [BANNED],
    "return_dict_in_generate": True,
    "output_scores": True,
}


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Next-token logits ``(B, V)`` of left-padded prompts, in float64, row by row."""
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            rows.append(model(input_ids=ids[mask.bool()][None]).logits[0, -1].double().numpy())
    return np.stack(rows)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def change(scores: np.ndarray, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """What transformers' processors for `OPTIONS` add to scores ``(B, V)``, the ban left out."""
    found = np.zeros_like(scores)
    found[:, 7] += BIAS
    biased = scores + found
    for row, (ids, mask) in enumerate(zip(*batch.values(), strict=True)):
        said = sorted({int(i) for i in ids[mask.bool()]})
        before = biased[row, said]
        found[row, said] += np.where(before < 0, before * PENALTY, before / PENALTY) - before
    return found


def expected(
    base: np.ndarray, shift: np.ndarray, changes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, and which tokens are possible."""
    z = log_softmax(base) + shift + changes
    possible = np.ones(z.shape, bool)
    possible[:, BANNED] = False
    z[:, BANNED] = -np.inf
    return log_softmax(z), possible


# With the weight of the base in the log-probabilities, where the rest is the expert's.
CONTROLLERS: dict[str, tuple[Any, float]] = {
    "expert-alone": (lambda e: pa.DExperts(e, alpha=2.0, top_p=1.0), -1.0),
    "antiexpert-alone": (lambda e: pa.DExperts(antiexpert=e, alpha=2.0, top_p=1.0), 3.0),
    "expert-instead": (lambda e: LMArithmetic(lm(e)), 0.0),
    "dera": (lambda e: pa.DeRA(e, weight=3.0), -2.0),
}


@pytest.mark.parametrize("mode", ["loop", "beams", "processor path"])
@pytest.mark.parametrize("which", CONTROLLERS)
def test_a_penalty_counts_once_whatever_weight_the_base_has(
    which: str, mode: str, tiny: Any, tokenizer: Any, prompts: Any, monkeypatch: Any
) -> None:
    model, expert = tiny(), tiny(seed=1)
    make, weight = CONTROLLERS[which]
    steered, batch = pa.wrap(model, tokenizer, make(expert)), prompts()
    beams: dict[str, Any] = {"num_beams": 2} if mode == "beams" else {}
    if mode == "processor path":
        monkeypatch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
    output = steered.generate(**batch, max_new_tokens=1, **OPTIONS, **beams)
    got = output.scores[0].double().numpy()[:: beams.get("num_beams", 1)]
    base, other = logits_of(model, batch), logits_of(expert, batch)
    shift = (weight - 1) * (log_softmax(base) - log_softmax(other))
    changed = change(log_softmax(base) if beams else base, batch)
    want, possible = expected(base, shift, changed)
    assert np.isneginf(got[~possible]).all()
    np.testing.assert_allclose(got[possible], want[possible], atol=2e-4)


def test_a_penalty_of_what_the_prompt_lacks_counts_once_on_every_path(
    tiny: Any, tokenizer: Any, prompts: Any, monkeypatch: Any
) -> None:
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), alpha=2.0, top_p=1.0))
    options = {**prompts(), "encoder_repetition_penalty": 3.0, "max_new_tokens": 1}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    want = steered.generate(**options).scores[0]
    monkeypatch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
    torch.testing.assert_close(steered.generate(**options).scores[0], want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("guidance", [None, 1.5])
@pytest.mark.parametrize("mode", ["loop", "beams", "processor path"])
def test_removing_invalid_values_lets_nothing_pass_that_is_forbidden(
    mode: str, guidance: float | None, tiny: Any, tokenizer: Any, prompts: Any, monkeypatch: Any
) -> None:
    """transformers then puts the least finite number where a token is forbidden."""
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), alpha=2.0, top_p=1.0))
    if mode == "processor path":
        monkeypatch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
    forbidden = {"bad_words_ids": [[BANNED]], "min_new_tokens": 5, "guidance_scale": guidance}
    options = {**prompts(), **forbidden, "max_new_tokens": 5, "output_scores": True}
    options |= {"return_dict_in_generate": True, "num_beams": 2 if mode == "beams" else 1}
    want = steered.generate(**options)
    got = steered.generate(**options, remove_invalid_values=True)
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, other in zip(got.scores, want.scores, strict=True):
        assert torch.equal(mine, other) and mine[:, [BANNED, 1]].isneginf().all()


def test_probabilities_are_mixed_without_it(tiny: Any, tokenizer: Any, prompts: Any) -> None:
    model, expert, batch = tiny(), tiny(seed=1), prompts()
    safe = pa.SafeDecoding(expert, alpha=2.0, least_common=100)
    output = pa.wrap(model, tokenizer, safe).generate(**batch, max_new_tokens=1, **OPTIONS)
    base, other = logits_of(model, batch), logits_of(expert, batch)
    base[:, BANNED] = -np.inf  # of the base alone
    p, q = (np.exp(log_softmax(x)) for x in (base, other))
    mixed = p + 2.0 * (q - p)
    kept = np.isfinite(output.scores[0].numpy()) & (mixed > 1e-4)  # what is not at the floor
    z = np.log(np.where(kept, mixed, 1.0)) + change(logits_of(model, batch), batch)
    got = output.scores[0].double().numpy()
    for row in range(len(z)):
        mine, theirs = got[row][kept[row]], z[row][kept[row]]
        assert kept[row].sum() > 20
        np.testing.assert_allclose(mine - mine[0], theirs - theirs[0], atol=2e-3)


@pytest.mark.parametrize("speculative", [False, True])
def test_every_step_takes_it_into_account(
    speculative: bool, tiny: Any, tokenizer: Any, prompts: Any
) -> None:
    model, batch = tiny(), prompts()
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), alpha=2.0, top_p=1.0))
    more: dict[str, Any] = {"speculation": pa.Speculation("base", tokens=3)} if speculative else {}
    options: dict[str, Any] = {"max_new_tokens": 6, "repetition_penalty": 1e6, **more}
    ids = steered.generate(**batch, **options)
    for row, mask in zip(ids, batch["attention_mask"], strict=True):
        prompt, said = row[: len(mask)][mask.bool()].tolist(), row[len(mask) :].tolist()
        assert not {*said} & {*prompt} and len({*said}) == len(said)


def test_a_trace_counts_it_as_the_bases(tiny: Any, tokenizer: Any, prompts: Any) -> None:
    model, batch, trace = tiny(), prompts(), pa.Trace()
    idle = pa.DExperts(tiny(seed=1), alpha=0.0, top_p=1.0)
    pa.wrap(model, tokenizer, idle).generate(**batch, max_new_tokens=3, trace=trace, **OPTIONS)
    assert float(torch.stack([*trace.kl, *trace.joint]).abs().max()) < 1e-5
    assert not torch.stack(trace.changed).any()


def test_what_changes_logits_and_what_only_forbids() -> None:
    assert changes_logits(GenerationConfig(repetition_penalty=1.2))
    assert changes_logits(GenerationConfig(sequence_bias=[[[3], 1.0]]))
    assert changes_logits(GenerationConfig(encoder_repetition_penalty=1.2))
    for options in ({}, {"repetition_penalty": 1.0}, {"min_new_tokens": 3, "suppress_tokens": [4]}):
        assert not changes_logits(GenerationConfig(**options))
    assert not changes_logits(GenerationConfig(guidance_scale=1.5, repetition_penalty=1.2))


def test_logits_are_taken_apart() -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor([[1.0, 2.0, 3.0, -inf, nan, nan]])
    processed = torch.tensor([[0.5, 2.0, -inf, -inf, 0.0, nan]])
    own, added = taken_apart(logits, processed)
    assert torch.equal(own[0, :5], torch.tensor([1.0, 2.0, -inf, -inf, 0.0]))
    assert own[0, 5].isnan() and torch.equal(added, torch.tensor([[-0.5, 0, 0, 0, 0, 0]]))
