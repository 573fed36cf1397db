"""Fitting FUDGE: the start, the loss against NumPy, and a predictor that tells the classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugalign.controller import Controller
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.fitting import fudge
from plugalign.fitting.data import Labelled, pad
from plugalign.fitting.fudge import fit_fudge, labelled_batches, prefix_loss, start_from

OPTIONS: dict[str, Any] = {
    "width": 16, "layers": 1, "heads": 2, "steps": 150, "batch_size": 16, "lr": 1e-2,
    "max_length": 12, "seed": 2,
}  # fmt: skip


def corpus(seed: int, count: int = 60) -> Labelled:
    """Undesired texts hold one of w60 .. w69 somewhere; all others are w10 .. w49."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(count):
        words = list(generator.integers(10, 50, size=4 + row % 5))
        if row % 3 == 0:
            words[generator.integers(len(words) - 1)] = generator.integers(60, 70)
        texts.append(" ".join(f"w{w}" for w in words))
        labels.append("1" if row % 3 == 0 else "0")
    return Labelled(tuple(texts), tuple(labels))


def test_it_learns_and_leaves_the_base_alone(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, out = tiny("gpt2-tied"), tmp_path / "fudge"
    before = copy.deepcopy(model.state_dict())
    options = {**OPTIONS, "width": 32, "steps": 250, "dropped": 0.0}
    controller = fit_fudge(model, tokenizer, corpus(0, 600), out, k=30, weight=2.0, **options)
    assert all(torch.equal(model.state_dict()[name], v) for name, v in before.items())
    assert [p.name for p in tmp_path.iterdir()] == ["fudge"]
    unseen = corpus(1)
    ids, mask = pad(tokenizer(list(unseen.texts))["input_ids"])
    with torch.no_grad():
        last = controller.predictor(ids, mask).gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
    right = (last > 0) == torch.tensor([y == "0" for y in unseen.labels])
    assert right.float().mean() > 0.9
    loaded = Controller.from_pretrained(str(out))
    assert isinstance(loaded, Fudge)
    assert (loaded.support.k, loaded.weight) == (30, 2.0)
    with torch.no_grad():
        again = loaded.predictor(ids, mask)
        assert torch.equal(again, controller.predictor(ids, mask))


def test_a_killed_fit_continues_to_the_same_predictor(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = tiny(), {**OPTIONS, "steps": 70}
    fit_fudge(model, tokenizer, corpus(0), tmp_path / "whole", **options)
    real, calls = fudge.prefix_loss, [60]

    def mortal(*args: Any) -> Any:
        calls[0] -= 1
        if calls[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fudge, "prefix_loss", mortal)
    with pytest.raises(KeyboardInterrupt):
        fit_fudge(model, tokenizer, corpus(0), tmp_path / "killed", **options)
    monkeypatch.undo()
    fit_fudge(model, tokenizer, corpus(0), tmp_path / "killed", **options)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_other_data_does_not_continue_it(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fudge.Fudge, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_fudge(tiny(), tokenizer, corpus(0), tmp_path / "out", **{**OPTIONS, "steps": 3})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other settings or data"):
        fit_fudge(tiny(), tokenizer, corpus(1), tmp_path / "out", **{**OPTIONS, "steps": 3})


@pytest.mark.parametrize(("width", "base"), [(8, 32), (32, 32), (48, 32)])
def test_the_start_is_the_best_projection_of_the_embeddings(width: int, base: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.1, base)
    embedding = torch.randn(120, base, generator=generator) * scales + 1.0
    predictor = Predictor(120, width=width, layers=1, heads=2)
    start_from(predictor, embedding)
    rows = embedding.double().numpy()
    rows = rows - rows.mean(0)
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    best = (u[:, :width] * s[:width]) @ vt[:width]
    kept = min(width, base)
    got = predictor.backbone.embed_tokens.weight[:, :kept].detach().double().numpy()
    assert got.std() == pytest.approx(1.0, rel=0.02)
    np.testing.assert_allclose(
        got @ got.T, (best @ best.T) / ((u[:, :kept] * s[:kept]).std(ddof=1) ** 2), atol=1e-3
    )


def test_the_loss_is_the_mean_over_all_prefixes() -> None:
    generator = np.random.default_rng(0)
    z, mask = generator.normal(size=(4, 5)), generator.integers(0, 2, size=(4, 5))
    label, weight = np.array([1.0, 0.0, 1.0, 0.0]), np.array([2.0, 0.5, 1.0, 1.0])
    p = 1 / (1 + np.exp(-z))
    total = share = 0.0
    for i in range(4):
        for j in range(5):
            loss = -np.log(p[i, j] if label[i] else 1 - p[i, j])
            total += weight[i] * mask[i, j] * loss
            share += weight[i] * mask[i, j]
    got = prefix_loss(*(torch.tensor(x) for x in (z, label, mask, weight)))
    assert float(got) == pytest.approx(total / share, rel=1e-9)


def test_both_classes_weigh_the_same() -> None:
    good, bad = [[3, 4]] * 30, [[5, 6, 7]] * 10
    batch = labelled_batches(good, bad, 40, 0, torch.device("cpu"))
    ids, mask, label, weight = batch(0)
    assert weight[label == 1].sum() == weight[label == 0].sum() == 20
    assert (ids[label == 1, 0] == 3).all() and (ids[label == 0, 0] == 5).all()
    assert mask[label == 1].sum(1).unique().tolist() == [2]


def test_bad_settings_are_named_before_any_work(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data, out = tiny(), corpus(0), tmp_path / "out"
    with pytest.raises(ValueError, match="lr must be a positive number, got 0"):
        fit_fudge(model, tokenizer, data, out, lr=0.0)
    with pytest.raises(ValueError, match="dropped must be a share below 1, got 1"):
        fit_fudge(model, tokenizer, data, out, dropped=1.0)
    with pytest.raises(ValueError, match="width 20 must be a multiple of twice the 4 heads"):
        fit_fudge(model, tokenizer, data, out, width=20)
    with pytest.raises(ValueError, match="top-k must be at least 1, got 0"):
        fit_fudge(model, tokenizer, data, out, k=0)
    with pytest.raises(ValueError, match="weight must be finite, got inf"):
        fit_fudge(model, tokenizer, data, out, weight=float("inf"))
    assert not list(tmp_path.iterdir())
