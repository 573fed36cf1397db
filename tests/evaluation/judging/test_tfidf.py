"""The judge that ``plugalign fit judge`` makes, against scikit-learn's own pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.evaluation.judging.load import load_judge
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.pocket.world import comments

SAMPLE = comments(200, 5)
TEXTS = [comment.text for comment in SAMPLE]
LABELS = [int(comment.label == "rude") for comment in SAMPLE]


def test_it_is_the_pipeline_that_it_says() -> None:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3)
    regression = LogisticRegression(C=4.0, solver="liblinear", random_state=0)
    pipeline = make_pipeline(make_union(words, letters), regression).fit(TEXTS, LABELS)
    fresh = [comment.text for comment in comments(50, 6)] + ["", "zzz", "ünïcödé 🙂"]
    expected = pipeline.predict_proba(fresh)[:, 1]
    np.testing.assert_allclose(TfidfJudge.fit(TEXTS, LABELS)(fresh), expected, atol=1e-12)


def test_it_survives_its_folder_bit_for_bit(tmp_path: Path) -> None:
    fitted = TfidfJudge.fit(TEXTS, LABELS)
    fitted.save(tmp_path / "mine")
    names = {"config.json", "model.safetensors", "vocabulary.json"}
    assert {path.name for path in (tmp_path / "mine").iterdir()} == names  # and no pickle
    loaded = load_judge(str(tmp_path / "mine"))
    assert loaded.name == "mine"
    np.testing.assert_array_equal(loaded(TEXTS), fitted(TEXTS))
    assert loaded([]).shape == (0,)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"both labels, 0 and 1; got \[1\]"):
        TfidfJudge.fit(["a b", "b c"], [1, 1])
    with pytest.raises(ValueError, match="2 texts came with 1 labels"):
        TfidfJudge.fit(["a", "b"], [1])
    with pytest.raises(ValueError, match="the 2 texts share too few words"):
        TfidfJudge.fit(["one", "two"], [0, 1])


CONFIGS = [
    "[]",
    "{",
    '{"judge": "new kind"}',
    '{"judge": 3}',
    '{"judge": "tfidf", "intercept": "x"}',
    '{"judge": "tfidf", "intercept": NaN}',
    '{"judge": "tfidf"}',
    '{"judge": "linear"}',
    '{"judge": "tfidf", "intercept": 1.0, "more": 2}',
]


@pytest.mark.parametrize("kind", [TfidfJudge, LinearJudge])
@pytest.mark.parametrize("content", CONFIGS)
def test_a_damaged_configuration_is_named(tmp_path: Path, kind: type, content: str) -> None:
    kind.fit(TEXTS, LABELS).save(tmp_path / "judge")
    (tmp_path / "judge" / "config.json").write_text(content)
    with pytest.raises(ValueError, match="judge"):
        load_judge(str(tmp_path / "judge"))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    for kind in (TfidfJudge, LinearJudge):
        folder = tmp_path / kind.KIND
        kind.fit(TEXTS, LABELS).save(folder)
        arrays = load_file(folder / "model.safetensors")
        others = [
            {},
            {**arrays, "more": arrays["weights"]},
            {**arrays, "weights": arrays["weights"][1:]},
            {**arrays, "weights": np.full_like(arrays["weights"], np.nan)},
            {**arrays, "weights": arrays["weights"].astype(np.int32)},
        ]
        for wrong in others:
            save_file(wrong, folder / "model.safetensors")
            with pytest.raises(ValueError, match=f"{kind.KIND}/model.safetensors"):
                load_judge(str(folder))
        for content in (b"corrupt", b"", b"\xff" * 100):
            (folder / "model.safetensors").write_bytes(content)
            with pytest.raises(ValueError, match=f"{kind.KIND}/model.safetensors"):
                load_judge(str(folder))
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=f"{kind.KIND}/model.safetensors"):
            load_judge(str(folder))


@pytest.mark.parametrize(
    "content", ["[]", '{"words": ["a"]}', '{"words": [1], "characters": ["b"]}', None, "twice"]
)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, content: str | None) -> None:
    TfidfJudge.fit(TEXTS, LABELS).save(tmp_path)
    path = tmp_path / "vocabulary.json"
    if content is None:
        path.unlink()
    elif content == "twice":
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"words": [found["words"][0]] * len(found["words"])}))
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json"):
        load_judge(str(tmp_path))
