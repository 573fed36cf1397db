"""Metrics against one-at-a-time references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.evaluation.metrics.texts import Likelihood, distinct_n, mean_length, nll, perplexity


def slow_nll(model: Any, prompt: list[int], continuation: list[int]) -> float:
    """One text, one forward per token, float64, softmax by hand."""
    model, total = model.double(), 0.0
    for place in range(len(continuation)):
        ids = torch.tensor([prompt + continuation[:place]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].numpy()
        weights = np.exp(logits - logits.max())
        total -= math.log(weights[continuation[place]] / weights.sum())
    model.float()
    return total


def random_texts(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 120, rng.integers(1, 12)).tolist() for _ in range(count)]
    tails = [rng.integers(3, 120, rng.integers(0, 9)).tolist() for _ in range(count)]
    return prompts, [*tails[:-1], []]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_nll_equals_one_token_at_a_time(tiny: Any, architecture: str, batch_size: int) -> None:
    model = tiny(architecture)
    prompts, tails = random_texts(13)
    result = nll(model, prompts, tails, batch_size=batch_size)
    pairs = zip(prompts, tails, strict=True)
    expected = [slow_nll(model, p, t) if t else math.nan for p, t in pairs]
    np.testing.assert_allclose(result.nll, expected, rtol=2e-5)
    assert result.tokens.tolist() == [len(t) for t in tails]


def test_nll_works_where_the_model_cannot_keep_some_logits(tiny: Any) -> None:
    model = tiny("gpt2-tied")
    prompts, tails = random_texts(5)
    expected = nll(model, prompts, tails).nll
    forward = model.forward
    model.forward = lambda input_ids, attention_mask, use_cache: forward(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
    )
    np.testing.assert_allclose(nll(model, prompts, tails).nll, expected, rtol=1e-6)


def test_perplexities_are_pooled_per_prompt() -> None:
    found = Likelihood(
        np.array([2.0, 4.0, math.nan, 3.0, math.nan, math.nan]), np.array([1, 3, 0, 1, 0, 0])
    )
    pooled = found.per_prompt(samples=2)
    np.testing.assert_allclose(pooled[:2], np.exp([6 / 4, 3.0]))
    assert math.isnan(pooled[2])
    with pytest.raises(ValueError, match="6 texts are not 4 samples per prompt"):
        found.per_prompt(4)


def test_texts_give_what_their_ids_give(tiny: Any, tokenizer: Any) -> None:
    model = tiny()
    texts = perplexity(model, tokenizer, ["w1 w2", "w3", ""], [" w4 w5", "", "w6 w7"])
    ids = tokenizer(["w1 w2", "w3", "w4 w5", "w6 w7"])["input_ids"]
    # <eos> stands in front of a prompt without tokens: the tokenizer has no begin token.
    expected = nll(model, [ids[0], ids[1], [1]], [ids[2], [], ids[3]])
    np.testing.assert_allclose(texts.nll, expected.nll, rtol=1e-6)
    assert texts.tokens.tolist() == [2, 0, 2]


def test_bad_input_is_named(tiny: Any) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        nll(model, [[3], []], [[4], [5]])
    with pytest.raises(ValueError, match=r"text 0 has 130 tokens.*context \(128\)"):
        nll(model, [[3] * 100], [[4] * 30])
    with pytest.raises(ValueError, match="text 0 has the id 120"):
        nll(model, [[3]], [[120]])
    with pytest.raises(ValueError, match="training mode"):
        nll(tiny().train(), [[3]], [[4]])
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    with pytest.raises(ValueError, match="not finite for text 0"):
        nll(model, [[3]], [[4]])


def test_distinct_n_of_worked_examples() -> None:
    samples = [["a b a b", "a b c"], ["x"], ["", " "]]
    one, two = distinct_n(samples, 1), distinct_n(samples, 2)
    np.testing.assert_allclose(one[:2], [3 / 7, 1.0])
    np.testing.assert_allclose(two[:2], [3 / 7, 0.0])  # ab, ba, bc; none across samples
    assert math.isnan(one[2]) and math.isnan(two[2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        distinct_n(samples, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), min_size=1, max_size=4), st.integers(1, 4))
def test_distinct_n_equals_a_plain_loop(samples: list[str], n: int) -> None:
    grams, words = [], 0
    for text in samples:
        tokens = [t for t in text.split(" ") if t]
        words += len(tokens)
        for i in range(len(tokens)):
            if i + n <= len(tokens) and tokens[i : i + n] not in grams:
                grams.append(tokens[i : i + n])
    (found,) = distinct_n([samples], n)
    assert found == len(grams) / words if words else math.isnan(found)


def test_mean_length_counts_empty_answers() -> None:
    found = mean_length([[[5, 6], []], [[7]], []])
    np.testing.assert_array_equal(found, [1.0, 1.0, math.nan])
