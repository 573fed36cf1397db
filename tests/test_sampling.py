"""Coupled sampling against the softmax it must follow, and against itself in other batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList

import plugalign as pa
from plugalign.kernels.gumbel import gumbel_noise
from plugalign.sampling import CoupledSampler

VOCAB = 11
LOGITS = np.array([2.0, 1.6, 1.1, 0.9, 0.4, 0.0, -0.3, -0.9, -1.5, -2.5, -4.0])


def draw(rows: int, **settings: float) -> np.ndarray:
    """The first token of `rows` samples of one prompt."""
    sampler = CoupledSampler(7, [3] * rows, range(rows), prompt_length=2, **settings)
    scores = torch.tensor(LOGITS, dtype=torch.float32).expand(rows, -1)
    return sampler(torch.zeros(rows, 2, dtype=torch.long), scores).argmax(-1).numpy()


def expected(temperature: float = 1.0, top_p: float = 1.0, top_k: int = VOCAB) -> np.ndarray:
    """The distribution in float64; LOGITS are in descending order."""
    p = np.exp(LOGITS / temperature)
    p /= p.sum()
    kept = (np.cumsum(p) - p < top_p) & (np.arange(VOCAB) < top_k)
    return np.where(kept, p, 0) / p[kept].sum()


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"top_p": 0.8}, {"top_k": 4}, {"top_p": 0.7, "temperature": 2.0}],
)
def test_the_drawn_tokens_follow_the_filtered_softmax(settings: dict[str, float]) -> None:
    rows = 40_000
    p = expected(**settings)
    counts = np.bincount(draw(rows, **settings), minlength=VOCAB)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], rows * p[p > 0]).pvalue > 1e-3


def test_the_token_is_the_argmax_of_the_logits_and_the_noise_of_its_address() -> None:
    tokens = torch.arange(VOCAB)
    for step in range(5):
        sampler = CoupledSampler(7, [3], [4], prompt_length=2, temperature=0.8)
        noise = gumbel_noise(tokens, step, 3, 4, 7)
        chosen = sampler(
            torch.zeros(1, 2 + step, dtype=torch.long), torch.tensor(LOGITS)[None].float()
        )
        assert chosen.argmax() == (torch.tensor(LOGITS).float() / 0.8 + noise).argmax()


def test_a_generated_sample_does_not_depend_on_its_batch(tiny, prompts, tokenizer) -> None:
    model, batch = tiny(), prompts(rows=4, width=9)
    addresses = [(5, 0), (5, 1), (2, 0), (9, 3)]

    def generate(rows: list[int]) -> list[list[int]]:
        sampler = CoupledSampler(
            1, [addresses[r][0] for r in rows], [addresses[r][1] for r in rows], top_p=0.95
        )
        out = model.generate(
            input_ids=batch["input_ids"][rows],
            attention_mask=batch["attention_mask"][rows],
            logits_processor=LogitsProcessorList([sampler]),
            max_new_tokens=12,
            do_sample=False,
        )
        return out[:, 9:].tolist()

    together = generate([0, 1, 2, 3])
    assert generate([3, 1, 0, 2]) == [together[i] for i in (3, 1, 0, 2)]
    for row in range(4):
        (alone,) = generate([row])
        width = min(len(alone), len(together[row]))
        assert alone[:width] == together[row][:width]


def test_samples_of_one_prompt_differ_and_the_seed_matters(tiny, prompts) -> None:
    scores = torch.zeros(64, 200)
    ids = torch.zeros(64, 3, dtype=torch.long)
    first = CoupledSampler(0, [0] * 64, range(64))(ids, scores).argmax(-1)
    other = CoupledSampler(1, [0] * 64, range(64))(ids, scores).argmax(-1)
    assert len(set(first.tolist())) > 30
    assert (first != other).float().mean() > 0.9


def test_rows_written_anew_get_fresh_noise_that_no_neighbour_changes() -> None:
    scores = torch.zeros(3, 500)
    ids = torch.zeros(3, 4, dtype=torch.long)
    sampler = CoupledSampler(0, [0, 1, 2], [0, 0, 0])
    first = sampler(ids, scores).argmax(-1)
    again = sampler.restarted(torch.tensor([1, 2]))(torch.zeros(2, 9, dtype=torch.long), scores[:2])
    fresh = CoupledSampler(0, [0, 1, 2], [0, 0, 0])
    alone = fresh.restarted(torch.tensor([2]))(torch.zeros(1, 30, dtype=torch.long), scores[:1])
    assert not (again.argmax(-1) == first[1:]).any()
    assert again.argmax(-1)[1] == alone.argmax(-1)[0]
    third = sampler.restarted(torch.tensor([1]))(torch.zeros(1, 9, dtype=torch.long), scores[:1])
    assert third.argmax(-1)[0] != again.argmax(-1)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p must lie above 0"),
        ({"top_p": 1.5}, "got 1.5"),
        ({"top_k": -1}, "top-k must be 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoupledSampler(0, [0], [0], **settings)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        CoupledSampler(0, [0, 1], [0])
    sampler = CoupledSampler(0, [0], [0])
    with pytest.raises(ValueError, match="made for 1 rows and got 2"):
        sampler(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 5))


def test_a_text_shorter_than_the_prompts_is_refused_before_any_token(tiny, prompts, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    for options in ({}, {"speculation": pa.Speculation("prompt")}, {"num_beams": 2}):
        rows = 3 * options.get("num_beams", 1)
        sampler = CoupledSampler(0, [0] * rows, range(rows), prompt_length=9)
        assert "the owned loop" in steered.explain(logits_processor=[sampler], max_new_tokens=5)
        with pytest.raises(ValueError, match=r"column 9 .* has 7 columns; make a sampler for each"):
            steered.generate(
                **prompts(),
                logits_processor=[sampler],
                max_new_tokens=5,
                do_sample=False,
                **options,
            )


def test_broken_logits_name_the_prompt_and_the_step() -> None:
    sampler = CoupledSampler(0, [4, 7], [0, 0], prompt_length=3)
    scores = torch.zeros(2, 5)
    scores[1] = float("nan")
    with pytest.raises(FloatingPointError, match="prompt 7 at step 2"):
        sampler(torch.zeros(2, 5, dtype=torch.long), scores)
