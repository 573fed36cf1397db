"""``plugalign fit judge``: a judge, and an honest figure of how good it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, BertModel

from plugalign import cli
from plugalign.evaluation.judging.load import load_judge
from plugalign.fitting.data import Labelled
from plugalign.fitting.judge import fit_judge
from plugalign.fitting.judge_encoder import tune_encoder
from plugalign.pocket.world import comments


def data(count: int = 300, seed: int = 7) -> Labelled:
    sample = comments(count, seed)
    labels = ["1" if comment.label == "rude" else "0" for comment in sample]
    return Labelled(tuple(comment.text for comment in sample), tuple(labels))


def test_the_figure_is_of_texts_that_the_judge_has_not_seen(tmp_path: Path) -> None:
    labelled = data()
    fitted = fit_judge(labelled, tmp_path / "mine")
    report = json.loads((tmp_path / "mine" / "held_out.json").read_text())
    assert report["held_out"]["auc"]["value"] == fitted.held_out.auc.value > 0.9
    different = len(set(labelled.texts))
    assert 0.05 * different < fitted.held_out.texts < 0.2 * len(labelled.texts)
    assert report["trained_on"] + fitted.held_out.texts == len(labelled.texts)
    fresh = data(300, 8)
    scores = load_judge(str(tmp_path / "mine"))(fresh.texts)
    auc = roc_auc_score([y == "1" for y in fresh.labels], scores)
    assert auc == pytest.approx(fitted.held_out.auc.value, abs=0.1)
    assert f"AUC {fitted.held_out.auc.value:.3f}" in fitted.describe()


def test_noise_gets_no_credit_though_texts_repeat(tmp_path: Path) -> None:
    """Labels at random, each text four times: a split that parts equal texts would find .9."""
    draw = torch.Generator().manual_seed(0)
    texts = [f"{a} {b} {c}" for a, b, c in torch.randint(99, (400, 3), generator=draw).tolist()]
    labels = ["01"[y] for y in torch.randint(2, (400,), generator=draw).tolist()]
    fitted = fit_judge(Labelled(tuple(texts * 4), tuple(labels * 4)), tmp_path / "noise")
    assert fitted.held_out.texts >= 160
    assert 0.25 < fitted.held_out.auc.value < 0.75


def test_equal_seeds_give_equal_judges(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit_judge(data(120), tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_what_cannot_be_fitted_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 different texts of each class; 1 are undesired"):
        texts = (*(f"t{i}" for i in range(30)), "x")
        fit_judge(Labelled(texts, ("0",) * 30 + ("1",)), tmp_path / "few")
    with pytest.raises(ValueError, match="no text has the desired label 'polite'"):
        fit_judge(data(), tmp_path / "few", desired="polite")
    with pytest.raises(ValueError, match="cannot load the encoder '/nowhere'"):
        fit_judge(data(), tmp_path / "few", encoder="/nowhere")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="full is not empty"):
        fit_judge(data(), tmp_path / "full")


def test_a_fit_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    half = tmp_path / ".mine.unfinished"
    half.mkdir()
    (half / "config.json").write_text("half")
    fit_judge(data(120), tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_an_encoder_is_tuned(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    texts = [f"w{i % 50} w{(7 * i) % 47} w{60 + i % 2}" for i in range(1600)]
    labels, encoder = [i % 2 for i in range(1600)], str(tmp_path / "encoder")
    tuned = tune_encoder(texts, labels, encoder, tmp_path / "tuned", lr=1e-2, epochs=2)
    assert roc_auc_score(labels, tuned(texts)) > 0.95
    torch.testing.assert_close(load_judge(str(tmp_path / "tuned"))(texts), tuned(texts))
    labelled = Labelled(tuple(texts), tuple(map(str, labels)))
    fitted = fit_judge(labelled, tmp_path / "short", encoder=encoder)
    held = json.loads((tmp_path / "short" / "held_out.json").read_text())["held_out"]
    assert held["auc"]["value"] == fitted.held_out.auc.value
    assert len(load_judge(str(tmp_path / "short"))(texts[:5])) == 5


def test_the_command_makes_a_judge_that_compare_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = data()
    rows = zip(labelled.texts, labelled.labels, strict=True)
    lines = [json.dumps({"text": text, "label": int(label)}) + "\n" for text, label in rows]
    (tmp_path / "data.jsonl").write_text("".join(lines))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    file, out = str(tmp_path / "data.jsonl"), str(tmp_path / "mine")
    assert run("fit", "judge", "--data", file, "--out", out, "--set", "steps=3") == 2
    assert "a judge has no settings, got --set steps=3" in capsys.readouterr().err
    assert run("fit", "judge", "--data", file, "--out", out) == 0
    assert "held-out texts: AUC" in capsys.readouterr().out
    comparing = ["--methods", "base", "--limit", "2", "--samples", "1", "--max-new-tokens", "3"]
    where = str(tmp_path / "run")
    assert run("compare", "--judge", f"my[/b]={out}", *comparing, "--out", where) == 0
    assert "my[/b]" in capsys.readouterr().out
    scores = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert all(0 <= json.loads(line)["scores"]["my[/b]"] <= 1 for line in scores)
    assert run("fit", "dexperts", "--data", file, "--out", str(tmp_path / "x")) == 2
    assert "fit dexperts needs --model" in capsys.readouterr().err
