"""FUDGE against equation 2 of the paper, with uncached forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.generation import wrap as wrapping

WORDS = 120


def make_predictor(seed: int = 5, vocab: int = WORDS) -> Predictor:
    torch.manual_seed(seed)
    predictor = Predictor(vocab, width=16, layers=2, heads=2)
    with torch.no_grad():
        for parameter in predictor.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12.0)
    return predictor.eval()


@torch.no_grad()
def reference(
    model: Any, predictor: Predictor, ids: Tensor, mask: Tensor, k: int, weight: float
) -> np.ndarray:
    """p'(t) ~ p(t) P(a | x, t)^lambda on the k most probable tokens, row by row in float64."""
    rows = []
    for row, keep in zip(ids, mask.bool(), strict=True):
        prefix = row[keep][None]
        z = model(input_ids=prefix).logits[0, -1].double().numpy()
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        steered = np.zeros_like(p)
        best = np.argsort(-p, kind="stable")[:k].copy()
        longer = torch.cat([prefix.expand(k, -1), torch.tensor(best)[:, None]], dim=1)
        scores = predictor(longer, torch.ones_like(longer))[:, -1].double().numpy()
        steered[best] = p[best] * (1.0 / (1.0 + np.exp(-scores))) ** weight
        rows.append(steered / steered.sum())
    return np.stack(rows)


@pytest.mark.parametrize(("k", "weight"), [(1, 1.0), (7, 1.0), (40, 4.0), (WORDS, 0.5)])
def test_it_is_equation_2(
    tiny: Any, tokenizer: Any, prompts: Any, architecture: str, k: int, weight: float
) -> None:
    model, predictor = tiny(architecture), make_predictor()
    batch = prompts(rows=3, width=7)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    steered = wrapping.wrap(model, tokenizer, Fudge(predictor, k=k, weight=weight))
    processor = steered.processor(attention_mask=mask)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        want = reference(model, predictor, ids, mask, k, weight)
        with torch.no_grad():
            scores = (
                model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                )
                .logits[:, -1]
                .float()
            )
        got = processor(ids, scores).exp().numpy()
        np.testing.assert_allclose(got, want, atol=2e-5)
        token = torch.randint(3, WORDS, (3, 1), generator=generator)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones(3, 1).long()], 1)


def test_the_predictor_reads_prefixes_only(prompts: Any) -> None:
    predictor, batch = make_predictor(), prompts(rows=3, width=9)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole = predictor(ids, mask)
        for row, keep in enumerate(mask.bool()):
            alone = ids[row, keep][None]
            for length in range(1, alone.shape[1] + 1):
                part = predictor(alone[:, :length], torch.ones(1, length).long())[0, -1]
                assert torch.allclose(part, whole[row, keep][length - 1], atol=1e-5)


def test_weight_zero_is_plain_sampling(tiny: Any, tokenizer: Any, prompts: Any) -> None:
    model, batch = tiny(), prompts()
    controller = 0.0 * Fudge(make_predictor(), k=5)
    want = model.generate(**batch, max_new_tokens=5, do_sample=False)
    got = wrapping.wrap(model, tokenizer, controller).generate(
        **batch, max_new_tokens=5, do_sample=False
    )
    assert torch.equal(got, want)


def test_a_saved_controller_decides_alike(
    tiny: Any, tokenizer: Any, prompts: Any, tmp_path: Path
) -> None:
    model, batch = tiny(), prompts()
    fitted = identify(model, tokenizer)
    controller = Fudge(make_predictor(), k=9, weight=3.0, fitted_for=fitted)
    controller.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, Fudge)
    assert (loaded.support, loaded.weight, loaded.fitted_for) == (
        controller.support,
        3.0,
        fitted,
    )
    scores = torch.randn(3, WORDS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    got, want = (
        wrapping.wrap(model, tokenizer, c).processor(attention_mask=mask)(ids, scores)
        for c in (loaded, controller)
    )
    assert torch.equal(got, want)


def test_another_tokenizer_is_refused_and_other_weights_are_not(tiny: Any, tokenizer: Any) -> None:
    controller = Fudge(make_predictor(), fitted_for=identify(tiny(), tokenizer))
    controller.steer(tiny("gpt2-tied", seed=1), tokenizer)
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="the FUDGE predictor was fitted for the tokenizer of"):
        controller.steer(tiny(), tokenizer)


def test_a_predictor_of_fewer_tokens_is_refused(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"knows 100 tokens, but .* can choose 120"):
        Fudge(make_predictor(vocab=100)).steer(tiny(), tokenizer)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="width 20 must be a multiple of twice the 4 heads"):
        Predictor(WORDS, width=20, heads=4)
    with pytest.raises(ValueError, match="top-k must be at least 1, got 0"):
        Fudge(make_predictor(), k=0)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight must be finite, got inf"):
        Fudge(make_predictor(), weight=float("inf"))
