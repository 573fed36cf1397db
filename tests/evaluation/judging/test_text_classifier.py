"""Classifiers as people have them: without pad tokens, without a stated length, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from plugalign.evaluation.judging.load import Judge, load_judge
from plugalign.evaluation.judging.text_classifier import positions

LABELS: dict[str, Any] = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
TEXTS = ["w1", "w2 w3 w4 w5 w6", "w7 w8", " ".join(["w9"] * 90), "w3"]
KINDS: dict[str, tuple[Any, Any]] = {
    "gpt2": (
        GPT2ForSequenceClassification,
        lambda **more: GPT2Config(
            vocab_size=120, n_embd=16, n_layer=2, n_head=2, n_positions=64, **more
        ),
    ),
    "bert": (
        BertForSequenceClassification,
        lambda **more: BertConfig(
            vocab_size=120,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            **more,
        ),
    ),
    "roberta": (
        RobertaForSequenceClassification,
        lambda **more: RobertaConfig(
            vocab_size=120,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=34,
            **(more | {"pad_token_id": 1}),
        ),
    ),
    "llama": (
        LlamaForSequenceClassification,
        lambda **more: LlamaConfig(
            vocab_size=120,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            **more,
        ),
    ),
}


def saved(folder: Path, kind: str, tokenizer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    make, configure = KINDS[kind]
    model = make(configure(**LABELS, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def one_by_one(model: Any, tokenizer: Any, limit: int) -> list[float]:
    """P(toxic) of each text alone: no padding, at most ``limit`` tokens."""
    with torch.no_grad():
        rows = [torch.tensor([tokenizer(text)["input_ids"][:limit]]) for text in TEXTS]
        return [float(model(input_ids=row).logits.double().softmax(-1)[0, 1]) for row in rows]


@pytest.mark.parametrize(
    ("kind", "limit"), [("gpt2", 64), ("bert", 32), ("roberta", 32), ("llama", 64)]
)
@pytest.mark.parametrize("pad", ["both", "tokenizer", "model", "nowhere", "below 0"])
def test_every_padding_scores_as_each_text_alone(
    tmp_path: Path, tokenizer: Any, kind: str, limit: int, pad: str
) -> None:
    known = {"both": 0, "model": 0, "below 0": -1}.get(pad)
    if kind == "roberta" and known is None:
        known = 1  # its positions begin behind it
    expected = one_by_one(saved(tmp_path, kind, tokenizer, pad_token_id=known), tokenizer, limit)
    if pad in ("model", "nowhere"):
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
    verdicts = load_judge(str(tmp_path), name="judge").verdicts(TEXTS)
    assert verdicts.errors == (None,) * len(TEXTS)
    torch.testing.assert_close(
        torch.tensor(verdicts.scores), torch.tensor(expected).double(), atol=1e-5, rtol=0
    )


def test_an_empty_text_is_scored_where_it_can_begin(tmp_path: Path, tokenizer: Any) -> None:
    saved(tmp_path, "gpt2", tokenizer, pad_token_id=None)
    judge = load_judge(tmp_path)
    assert judge([""]) == judge(["<eos>"])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    verdicts = load_judge(tmp_path).verdicts(["", "w1"])
    assert verdicts.errors == ("ValueError: a text has no tokens", None)


def test_positions_are_those_that_a_model_has() -> None:
    counts = {
        kind: positions(make(configure(**LABELS))) for kind, (make, configure) in KINDS.items()
    }
    assert counts == {"gpt2": 64, "bert": 32, "roberta": 32, "llama": 64}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[1, 2]"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "bert"}'),
        (
            "config.json",
            '{"model_type": "nothing", "architectures": ["XForSequenceClassification"]}',
        ),
        ("model.safetensors", "corrupt"),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_damaged_folder_is_one_error_that_names_it(
    tmp_path: Path, tokenizer: Any, file: str, content: str
) -> None:
    saved(tmp_path / "clf", "bert", tokenizer)
    assert isinstance(load_judge(tmp_path / "clf"), Judge)
    (tmp_path / "clf" / file).write_text(content)
    with pytest.raises(ValueError, match="clf") as caught:
        load_judge(str(tmp_path / "clf"))
    assert len(str(caught.value).splitlines()) == 1


def test_code_in_a_model_folder_is_never_run(tmp_path: Path, tokenizer: Any) -> None:
    saved(tmp_path / "clf", "bert", tokenizer)
    path = tmp_path / "clf" / "config.json"
    auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    config = json.loads(path.read_text()) | {"auto_map": auto, "model_type": "evil"}
    path.write_text(json.dumps(config))
    (tmp_path / "clf" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot load the judge"):
        load_judge(str(tmp_path / "clf"))
    assert not (tmp_path / "ran").exists()
