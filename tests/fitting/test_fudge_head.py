"""Fitting the FUDGE head: what it reads, what it learns, and that its scales are folded in."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugalign.algebra.controller import Controller
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting import fudge_head
from plugalign.fitting.data import Labelled, pad
from plugalign.fitting.fudge_head import fit_fudge_head
from plugalign.fitting.states import head_inputs

OPTIONS: dict[str, Any] = {
    "rank": 4,
    "steps": 200,
    "batch_size": 16,
    "lr": 1e-2,
    "max_length": 12,
    "seed": 2,
}


def corpus(seed: int, count: int = 300) -> Labelled:
    """In undesired texts every second word is of w60 .. w69, else all are w10 .. w49."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(count):
        words = generator.integers(10, 50, size=6)
        if row % 3 == 0:
            words[1::2] = generator.integers(60, 70, size=3)
        texts.append(" ".join(f"w{w}" for w in words))
        labels.append("1" if row % 3 == 0 else "0")
    return Labelled(tuple(texts), tuple(labels))


def test_it_reads_what_the_head_reads(tiny: Any, prompts: Any, architecture: str) -> None:
    model, batch = tiny(architecture), prompts()
    ids, mask = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    got = head_inputs(model, ids, mask)
    keep = mask.bool()
    assert torch.allclose(got[keep], want.hidden_states[-1][keep], atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


def scores(model: Any, head: FudgeHead, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The score of each next token, ``(B, T - 1)``, from the saved form of the head."""
    hidden = head_inputs(model, ids, mask)[:, :-1].double().numpy()
    embedding = model.get_output_embeddings().weight.detach().double().numpy()[ids[:, 1:].numpy()]
    left, right, bias, state = (
        x.double().numpy() for x in (head.left, head.right, head.token_bias, head.state)
    )
    inner = ((embedding @ left) * (hidden @ right)).sum(-1)
    return np.asarray(inner + bias[ids[:, 1:].numpy()] + hidden @ state + head.offset)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_it_learns_at_any_scale_of_the_hidden_states(
    tiny: Any, tokenizer: Any, tmp_path: Path, size: float
) -> None:
    model, out = tiny(), tmp_path / "head"
    with torch.no_grad():
        model.model.norm.weight.mul_(size)
    before = copy.deepcopy(model.state_dict())
    controller = fit_fudge_head(model, tokenizer, corpus(0), out, k=30, weight=2.0, **OPTIONS)
    assert all(torch.equal(model.state_dict()[name], v) for name, v in before.items())
    unseen = corpus(1, 90)
    ids, mask = pad(tokenizer(list(unseen.texts))["input_ids"])
    desired = np.array([[y == "0"] for y in unseen.labels])
    right = (scores(model, controller, ids, mask) > 0) == desired
    assert right[:, 0::2].mean() > 0.85  # pairs whose next token tells the class
    loaded = Controller.from_pretrained(str(out))
    assert isinstance(loaded, FudgeHead)
    assert (loaded.support.k, loaded.weight) == (30, 2.0)
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_a_killed_fit_continues_to_the_same_head(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = tiny(), {**OPTIONS, "steps": 70}
    fit_fudge_head(model, tokenizer, corpus(0), tmp_path / "whole", **options)
    real, calls = fudge_head.prefix_loss, [60]

    def mortal(*args: Any) -> Any:
        calls[0] -= 1
        if calls[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fudge_head, "prefix_loss", mortal)
    with pytest.raises(KeyboardInterrupt):
        fit_fudge_head(model, tokenizer, corpus(0), tmp_path / "killed", **options)
    monkeypatch.undo()
    fit_fudge_head(model, tokenizer, corpus(0), tmp_path / "killed", **options)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_end_token_is_scored_as_the_prefix_alone(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Desired texts are long and others short: what a text's end tells must not be learnt."""
    generator = np.random.default_rng(0)
    texts = [
        " ".join(f"w{w}" for w in generator.integers(10, 50, size=9 if i % 2 else 3))
        for i in range(400)
    ]
    data, model = Labelled(tuple(texts), ("1", "0") * 200), tiny()
    head = fit_fudge_head(model, tokenizer, data, tmp_path / "out", **OPTIONS)
    ids = torch.tensor(
        [
            [13 + i % 40, 13 + (7 * i) % 40, token]
            for i in range(40)
            for token in (1, *range(13, 53))
        ]
    )
    found = scores(model, head, ids, torch.ones_like(ids))[:, 1].reshape(40, 41)
    assert np.abs(found[:, 0] - found[:, 1:].mean(1)).mean() < 0.5
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    assert saved["held_out"]["auc"] > 0.5 and saved["held_out"]["loss"] > 0
    assert saved["texts"] == 360


def test_bad_settings_are_named_before_any_work(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data, out = tiny(), corpus(0), tmp_path / "out"
    with pytest.raises(ValueError, match=r"rank: .*greater than or equal to 1, got 0"):
        fit_fudge_head(model, tokenizer, data, out, rank=0)
    with pytest.raises(ValueError, match=r"k: .*greater than or equal to 1, got -1"):
        fit_fudge_head(model, tokenizer, data, out, k=-1)
    assert not list(tmp_path.iterdir())
