"""Fitting FUDGE: the start, the loss against NumPy, and a predictor that tells the classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugalign.algebra.controller import Controller
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.fitting import fudge
from plugalign.fitting.data import Labelled, pad
from plugalign.fitting.fudge import broken_off, fit_fudge, prefix_loss, start_from
from plugalign.fitting.labelled import Examples

OPTIONS: dict[str, Any] = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "steps": 150,
    "batch_size": 16,
    "lr": 1e-2,
    "max_length": 12,
    "seed": 2,
}


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
    real, calls = fudge.prefix_loss, [20]

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
    with pytest.raises(ValueError, match=r"checkpoint of another fit: data\.sha256 was"):
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
    ids, mask, _, label, weight = Examples(good, bad).batch(range(40), torch.device("cpu"))
    assert weight[label == 1].sum() == weight[label == 0].sum() == 20
    assert (ids[label == 1, 0] == 3).all() and (ids[label == 0, 0] == 5).all()
    assert mask[label == 1].sum(1).unique().tolist() == [2]


def test_texts_are_broken_off_by_an_end_token() -> None:
    """Half of them may be, as likely behind each token, and nothing behind the end is seen."""
    rows = [[5 + i % 3] * (1 + i % 4) for i in range(8000)]
    batch = Examples(rows, []).batch(range(8000), torch.device("cpu"))
    torch.manual_seed(0)
    ids, mask, _, label, weight = broken_off(batch, [1, 2], 0.25)
    assert torch.equal(label, batch.label) and torch.equal(weight, batch.weight)
    ended = ((ids == 1) | (ids == 2)).any(1)
    assert 0.4 < (ids[ended] == 1).any(1).float().mean() < 0.6
    for row, now, seen, end in zip(rows, ids.tolist(), mask.tolist(), ended, strict=True):
        length = sum(seen)
        assert seen == [1] * length + [0] * (5 - length)
        assert now[: length - int(end)] == row[: length - int(end)]
        assert (now[length - 1] in (1, 2)) == bool(end) and length >= 1 + int(end)
    lengths, places = batch.mask.sum(1), mask.sum(1) - 1
    for length in (1, 2, 3, 4):  # however long the text, an end behind token n is as likely
        of_length = lengths == length
        for place in range(1, length + 1):
            share = (ended & (places == place))[of_length].float().mean()
            assert abs(float(share) - 0.5 * 0.25 * 0.75 ** (place - 1)) < 0.03
    assert broken_off(batch, [], 0.25) is batch


def test_an_end_token_says_nothing_of_the_class(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Desired texts are long and others short, which a predictor that reads where they end would
    learn: then ending here and now would be worth avoiding or seeking."""
    generator = np.random.default_rng(0)
    texts = [
        " ".join(f"w{w}" for w in generator.integers(10, 50, size=9 if i % 2 else 3))
        for i in range(400)
    ]
    data = Labelled(tuple(texts), ("1", "0") * 200)
    options = {**OPTIONS, "dropped": 0.0, "steps": 120}
    predictor = fit_fudge(tiny(), tokenizer, data, tmp_path / "out", **options).predictor
    ids = torch.tensor([[13 + i, 14 + i] for i in range(40)])
    ended = torch.cat([ids, torch.ones(40, 1, dtype=torch.long)], 1)
    with torch.no_grad():
        prefix = predictor(ids, torch.ones_like(ids))[:, -1]
        with_end = predictor(ended, torch.ones_like(ended))[:, -1]
    # The prefix itself is of either class; that it ends adds little to it.
    assert (with_end.sigmoid() - prefix.sigmoid()).abs().mean() < 0.15


def test_bad_settings_are_named_before_any_work(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data, out = tiny(), corpus(0), tmp_path / "out"
    with pytest.raises(ValueError, match=r"lr: .*greater than 0, got 0"):
        fit_fudge(model, tokenizer, data, out, lr=0.0)
    with pytest.raises(ValueError, match=r"dropped: .*less than 1, got 1"):
        fit_fudge(model, tokenizer, data, out, dropped=1.0)
    with pytest.raises(ValueError, match="width 20 must be a multiple of twice the 4 heads"):
        fit_fudge(model, tokenizer, data, out, width=20)
    with pytest.raises(ValueError, match=r"k: .*greater than or equal to 1, got 0"):
        fit_fudge(model, tokenizer, data, out, k=0)
    with pytest.raises(ValueError, match=r"weight: .*finite number, got inf"):
        fit_fudge(model, tokenizer, data, out, weight=float("inf"))
    assert not list(tmp_path.iterdir())
