"""What a judge is: equal for the same judge in another place or process, else another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tiny_models import make_model, make_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from plugalign.evaluation.judging.identity import describe_judge
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.evaluation.judging.load import Judge, Trusted, load_judge
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.readers import CausalReader

TEXTS, LABELS = ["good day", "kind word", "bad day", "rude word"], [0, 0, 1, 1]


def identity(spec: Any) -> str | None:
    found: str | None = describe_judge(load_judge(spec), spec).sha256
    return found


def constant(value: float) -> Callable[[Sequence[str]], list[float]]:
    return lambda texts: [value] * len(texts)


def linear(folder: Path, strength: float) -> str:
    LinearJudge.fit(TEXTS, LABELS, n_features=64, strength=strength).save(folder)
    return str(folder)


def classifier(strength: float) -> Any:
    return make_pipeline(CountVectorizer(), LogisticRegression(C=strength)).fit(TEXTS, LABELS)


def encoder(folder: Path, seed: int, tokenizer: Any) -> str:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=120,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        id2label={0: "fine", 1: "toxic"},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_folders_are_known_by_their_files_wherever_they_lie(tmp_path: Path, tokenizer: Any) -> None:
    for make in (
        lambda name, kind: linear(tmp_path / f"linear-{name}", 1.0 + kind),
        lambda name, kind: encoder(tmp_path / f"encoder-{name}", kind, tokenizer),
    ):
        first, moved, other = (identity(make(n, k)) for n, k in (("a", 0), ("b", 0), ("c", 1)))
        assert first is not None and first == moved != other
    hidden = tmp_path / "linear-a" / ".cache"
    hidden.mkdir()
    (hidden / "lock").write_text("x")  # what tools leave behind is no part of a judge
    assert identity(str(tmp_path / "linear-a")) == identity(str(tmp_path / "linear-b"))


def test_files_modules_and_the_pocket_judge_are_known_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib.dump(classifier(1.0), tmp_path / "one.joblib")
    (tmp_path / "copy.joblib").write_bytes((tmp_path / "one.joblib").read_bytes())
    joblib.dump(classifier(9.0), tmp_path / "other.joblib")
    one, copy, other = (
        identity(Trusted(tmp_path / f"{n}.joblib")) for n in ("one", "copy", "other")
    )
    assert one is not None and one == copy != other
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_judge_module.py").write_text("def half(texts):\n    return [0.5] * len(texts)\n")
    first = identity("a_judge_module:half")
    (tmp_path / "a_judge_module.py").write_text("def half(texts):\n    return [0.6] * len(texts)\n")
    assert first is not None and first != identity("a_judge_module:half")
    assert identity("pocket") is not None


def test_objects_are_known_by_what_they_have_learned(tmp_path: Path, tokenizer: Any) -> None:
    judges = [LinearJudge.load(linear(tmp_path / f"{s}", s)) for s in (1.0, 1.0, 2.0)]
    one, same, other = map(identity, judges)
    assert one is not None and one == same != other
    one, same, other = (identity(classifier(s)) for s in (1.0, 1.0, 9.0))
    assert one is not None and one == same != other
    loaded = [
        load_judge(encoder(tmp_path / f"e{i}", seed, tokenizer)) for i, seed in enumerate((0, 0, 1))
    ]
    one, same, other = (identity(judge.function) for judge in loaded)
    assert one is not None and one == same != other
    assert describe_judge(loaded[0], None).label == 1


def test_functions_are_known_by_their_source_and_the_values_in_it() -> None:
    one, same, other = (identity(constant(value)) for value in (0.1, 0.1, 0.2))
    assert one is not None and one == same != other
    named = Judge("mine", constant(0.1))
    assert describe_judge(named, named).sha256 == one


def test_values_are_known_by_what_is_asked_and_the_model_that_reads() -> None:
    def contrast(statement: str, seed: int = 0) -> ValueContrast:
        reader = CausalReader(make_model(seed=seed), make_tokenizer(), (1,))
        return ValueContrast(statement, "w7", reader)

    used = contrast("w5")
    used(["w1 w2"])
    used.reader.states(["w1 w2"], "w5")  # makes the reader's own part of the model
    one = identity(used)
    assert one is not None and one == identity(contrast("w5"))
    assert len({one, identity(contrast("w6")), identity(contrast("w5", seed=3))}) == 3


class Unknowable:
    """A judge that cannot be serialised."""

    def __call__(self, texts: Sequence[str]) -> Any:
        return np.zeros(len(texts))

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def test_what_nothing_is_known_of_has_no_hash() -> None:
    found = describe_judge(load_judge(Unknowable()), None)
    assert (found.kind, found.sha256) == ("Unknowable", None)


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    saved = tmp_path / "judges.joblib"
    joblib.dump([classifier(1.0), TfidfJudge.fit(TEXTS * 3, LABELS * 3)], saved)
    code = (
        "import joblib\n"
        "from plugalign.evaluation.judging.identity import describe_judge\n"
        "from plugalign.evaluation.judging.load import load_judge\n"
        f"for spec in joblib.load({str(saved)!r}):\n"
        "    print(describe_judge(load_judge(spec), spec).sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [identity(spec) for spec in joblib.load(saved)]
    assert done.stdout.split() == here and all(len(found or "") > 20 for found in here)
