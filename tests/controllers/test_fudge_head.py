"""The FUDGE head against its formula, written out in NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.generation import wrap as wrapping

WORDS, WIDTH, RANK = 120, 32, 4


def make_head(seed: int = 3, **options: Any) -> FudgeHead:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(WIDTH, RANK, generator=generator) / 4 for _ in range(2))
    bias = torch.randn(WORDS, generator=generator)
    state = torch.randn(WIDTH, generator=generator) / 4
    return FudgeHead(left, right, bias, state, 0.3, **options)


def reference(
    head: FudgeHead, hidden: np.ndarray, embedding: np.ndarray, z: np.ndarray, k: int, weight: float
) -> np.ndarray:
    """One row: p'(t) ~ p(t) sigmoid(e_t L R^T h + c_t + w h + b)^lambda on the top k tokens."""
    left, right, bias, state = (
        x.double().numpy() for x in (head.left, head.right, head.token_bias, head.state)
    )
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    steered = np.zeros_like(p)
    for t in np.argsort(-p, kind="stable")[:k]:
        inner = float((embedding[t] @ left) @ (right.T @ hidden))
        score = inner + bias[t] + float(state @ hidden) + head.offset
        steered[t] = p[t] * (1.0 / (1.0 + np.exp(-score))) ** weight
    return steered / steered.sum()


@pytest.mark.parametrize(("k", "weight"), [(1, 1.0), (9, 1.0), (50, 5.0), (WORDS, 0.5)])
def test_it_is_its_formula(
    tiny: Any, tokenizer: Any, prompts: Any, architecture: str, k: int, weight: float
) -> None:
    model, head = tiny(architecture), make_head(k=k, weight=weight)
    batch = prompts(rows=3, width=7)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embedding = model.get_output_embeddings().weight.detach().double().numpy()
    rows, scores = [], []
    for row, keep in zip(ids, mask.bool(), strict=True):
        with torch.no_grad():
            out = model(input_ids=row[keep][None], output_hidden_states=True)
        hidden = out.hidden_states[-1][0, -1].double().numpy()
        z = out.logits[0, -1].double().numpy()
        rows.append(reference(head, hidden, embedding, z, k, weight))
        scores.append(out.logits[0, -1])
    processor = wrapping.wrap(model, tokenizer, head).processor(attention_mask=mask)
    got = processor(ids, torch.stack(scores)).exp().numpy()
    np.testing.assert_allclose(got, np.stack(rows), atol=2e-5)


def test_it_lowers_what_it_dislikes(tiny: Any, tokenizer: Any, prompts: Any) -> None:
    model, batch = tiny(), prompts()
    zero = torch.zeros(WIDTH, RANK)
    bias = torch.full((WORDS,), 8.0)
    bias[10:60] = -8.0
    head = FudgeHead(zero, zero, bias, torch.zeros(WIDTH), 0.0, k=WORDS, weight=5.0)
    out = wrapping.wrap(model, tokenizer, head).generate(
        **batch, max_new_tokens=12, do_sample=True, num_return_sequences=4
    )
    chosen = out[:, batch["input_ids"].shape[1] :]
    assert not ((chosen >= 10) & (chosen < 60)).any()


def test_a_saved_controller_decides_alike(
    tiny: Any, tokenizer: Any, prompts: Any, tmp_path: Path
) -> None:
    model, batch = tiny(), prompts()
    fitted = identify(model, tokenizer)
    controller = make_head(k=9, weight=3.0, fitted_for=fitted)
    controller.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, FudgeHead)
    assert (loaded.support, loaded.weight, loaded.offset, loaded.fitted_for) == (
        controller.support,
        3.0,
        0.3,
        fitted,
    )
    scores = torch.randn(3, WORDS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    got, want = (
        wrapping.wrap(model, tokenizer, c).processor(attention_mask=mask)(ids, scores)
        for c in (loaded, controller)
    )
    assert torch.equal(got, want)


def test_another_model_is_refused(tiny: Any, tokenizer: Any) -> None:
    controller = make_head(fitted_for=identify(tiny(), tokenizer))
    controller.steer(tiny(), tokenizer)
    with pytest.raises(ValueError, match="the FUDGE head was fitted for the weights of"):
        controller.steer(tiny(seed=1), tokenizer)
    with pytest.raises(ValueError, match=r"fitted for \(120, 32\) tokens .* has \(90, 32\)"):
        make_head().steer(tiny(vocab=90), tokenizer)


@pytest.mark.parametrize("setting", ["weight", "offset"])
def test_numbers_that_are_not_finite_are_refused(setting: str) -> None:
    parts = [torch.ones(s) for s in ((4, 2), (4, 2), (9,), (4,))]
    with pytest.raises(ValueError, match=f"the {setting} must be finite, got nan"):
        FudgeHead(*parts, **{"offset": 0.0, setting: math.nan})


def test_parts_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(D, r\), \(D, r\) and \(D,\)"):
        FudgeHead(torch.zeros(8, 2), torch.zeros(8, 3), torch.zeros(9), torch.zeros(8), 0.0)
