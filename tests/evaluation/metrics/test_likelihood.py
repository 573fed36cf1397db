"""Perplexity against one-token-at-a-time references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from plugalign.evaluation.metrics.likelihood import (
    Likelihood,
    nll,
    perplexity,
    pooled_perplexity,
)


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


def samples_of(prompts: list[list[int]], each: int) -> tuple[list[list[int]], list[list[int]]]:
    """So many continuations of each prompt, in no order."""
    rng = np.random.default_rng(1)
    rows = [(p, rng.integers(3, 120, rng.integers(1, 9)).tolist()) for p in prompts * each]
    rng.shuffle(rows)  # type: ignore[arg-type]
    return [p for p, _ in rows], [c for _, c in rows]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_samples_of_a_prompt_have_the_nll_of_each_alone(
    tiny: Any, architecture: str, batch_size: int
) -> None:
    model = tiny(architecture)
    shapes, _ = random_texts(4)
    prompts, tails = samples_of([[5], *shapes], 6)  # one prompt has nothing before its last token
    found = nll(model, prompts, tails, batch_size=batch_size)
    expected = [slow_nll(model, p, t) for p, t in zip(prompts, tails, strict=True)]
    np.testing.assert_allclose(found.nll, expected, rtol=2e-5)


def tokens_read(model: Any, prompts: list[list[int]], tails: list[list[int]]) -> int:
    """The tokens of all forwards, padding too."""
    read = []
    watch = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    nll(model, prompts, tails, batch_size=8)
    watch.remove()
    return sum(read)


def test_a_prompt_is_read_once_for_its_samples(tiny: Any) -> None:
    long, tail = list(range(3, 43)), [7, 8, 9]
    assert tokens_read(tiny(), [long] * 8, [tail] * 8) == 39 + 8 * 3
    other = [50, *long]
    pairs = [p for _ in range(4) for p in (long, other)]
    assert tokens_read(tiny(), pairs, [tail] * 8) == 2 * 40 + 8 * 3


def test_like_lengths_go_together_where_prompts_differ_or_are_short(tiny: Any) -> None:
    tails = [[7] * n for n in (1, 40) * 8]
    assert tokens_read(tiny(), [[n] for n in range(3, 19)], tails) == 8 * 1 + 8 * 40
    assert tokens_read(tiny(), [[3, 4], [5, 6]] * 8, tails) == 1 + 8 * 1 + 1 + 8 * 40


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
    pooled = pooled_perplexity(found.sums(samples=2))
    np.testing.assert_allclose(pooled[:2], np.exp([6 / 4, 3.0]))
    assert math.isnan(pooled[2])
    with pytest.raises(ValueError, match="6 texts are not 4 samples per prompt"):
        found.sums(4)


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
