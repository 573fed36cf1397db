"""Judges of every kind, judges that fail, and their agreement with a reference."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from plugalign.evaluation.judging.agreement import agreement
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.evaluation.judging.load import (
    Judge,
    Trusted,
    check_judges,
    is_code,
    load_judge,
    load_judges,
)
from plugalign.evaluation.judging.text_classifier import positive_index

TEXTS = [
    "you are kind",
    "you are a fool",
    "what a lovely day",
    "what a fool",
    "kind words",
    "fools",
]
LABELS = [0, 1, 0, 1, 0, 1]


def by_length(texts: Sequence[str]) -> list[float]:
    return [min(len(text) / 100, 1.0) for text in texts]


# --------------------------------------------------------------------------- the guarded call


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_do_not_change_scores(batch_size: int) -> None:
    verdicts = Judge("length", by_length, batch_size).verdicts(TEXTS)
    np.testing.assert_array_equal(verdicts.scores, by_length(TEXTS))
    assert (verdicts.failed, verdicts.first_error) == (0, None)
    assert Judge("length", by_length)([]).shape == (0,)


def test_a_text_that_fails_costs_one_score() -> None:
    def moody(texts: Sequence[str]) -> list[float]:
        if bad := [t for t in texts if "fool" in t]:
            raise RuntimeError(f"I will not read {bad[-1]!r}")
        return by_length(texts)

    verdicts = Judge("moody", moody, batch_size=3).verdicts(TEXTS)
    assert np.isnan(verdicts.scores).tolist() == [False, True, False, True, False, True]
    assert verdicts.failed == 3
    assert verdicts.first_error == "RuntimeError: I will not read 'you are a fool'"


def test_a_batch_that_fails_only_as_a_batch_loses_nothing() -> None:
    def one_at_a_time(texts: Sequence[str]) -> list[float]:
        if len(texts) > 1:
            raise MemoryError
        return by_length(texts)

    verdicts = Judge("narrow", one_at_a_time).verdicts(TEXTS)
    np.testing.assert_array_equal(verdicts.scores, by_length(TEXTS))
    assert verdicts.first_error is None


def test_nan_is_a_failure_and_never_zero() -> None:
    verdicts = Judge("silent", lambda texts: [math.nan] * len(texts)).verdicts(["a", "b"])
    assert np.isnan(verdicts.scores).all() and verdicts.failed == 2
    assert verdicts.first_error == "the judge returned NaN"


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(texts: Sequence[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Judge("judge", interrupted)(["a"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.1], r"'odd' returned an array of shape \(1,\) for 2 texts"),
        (0.3, r"'odd' returned an array of shape \(\) for 2 texts"),
        ([0.1, 1.5], r"'odd' returned 1.5, which is no probability"),
        ([-0.1, 0.5], r"'odd' returned -0.1"),
        ([{"label": "toxic"}, {"label": "fine"}], "'odd' must return numbers"),
    ],
)
def test_an_answer_that_is_no_probability_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Judge("odd", lambda texts: answer)(["a", "b"])


# --------------------------------------------------------------------------- kinds of judges


def test_a_scikit_learn_pipeline_and_its_file(tmp_path: Path) -> None:
    for labels in (LABELS, ["rude" if y else "a polite one" for y in LABELS]):
        pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, labels)
        expected = pipeline.predict_proba(TEXTS)[:, list(pipeline.classes_).index(labels[1])]
        joblib.dump(pipeline, tmp_path / "words.joblib")
        file = Trusted(tmp_path / "words.joblib")
        for judge in (load_judge(pipeline, name="words"), load_judge(file)):
            assert judge.name == "words"
            np.testing.assert_allclose(judge(TEXTS), expected)


def test_a_linear_judge_survives_its_folder(tmp_path: Path) -> None:
    fitted = LinearJudge.fit(TEXTS, LABELS, n_features=2**10)
    fitted.save(tmp_path / "mine")
    loaded = load_judge(tmp_path / "mine")
    assert loaded.name == "mine"
    np.testing.assert_array_equal(loaded(TEXTS), fitted(TEXTS))
    again = LinearJudge.fit(TEXTS, LABELS, n_features=2**10)
    np.testing.assert_array_equal(again.weights, fitted.weights)
    assert (fitted(TEXTS) > 0.5).tolist() == [bool(y) for y in LABELS]


def test_a_linear_judge_is_what_it_says() -> None:
    judge = LinearJudge.fit(TEXTS, LABELS, n_features=2**10)
    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**10, binary=True)
    letters = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), n_features=2**10, binary=True
    )
    for text in ["you fool", "", "a b c"]:
        row = np.concatenate([v.transform([text]).toarray()[0] for v in (words, letters)])
        assert abs(np.linalg.norm(row) ** 2 - round(np.linalg.norm(row) ** 2)) < 1e-9
        score = sum(w * x for w, x in zip(judge.weights.tolist(), row, strict=True))
        assert judge([text])[0] == pytest.approx(1 / (1 + math.exp(-score - judge.intercept)))


def test_bad_input_of_a_linear_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"both labels, 0 and 1; got \[1\]"):
        LinearJudge.fit(["a", "b"], [1, 1])
    with pytest.raises(ValueError, match="2 texts came with 1 labels"):
        LinearJudge.fit(["a", "b"], [1])
    with pytest.raises(ValueError, match="holds no linear judge"):
        LinearJudge.load(tmp_path)


def save_classifier(folder: Path, tokenizer: Any, labels: list[str], **options: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **options,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("labels", "options", "wanted", "column"),
    [
        (["neutral", "Toxic"], {}, None, 1),
        (["toxicity", "fine", "hate"], {}, None, 0),
        (["insult", "toxic"], {"problem_type": "multi_label_classification"}, None, 1),
        (["a", "b", "c"], {}, "C", 2),
        (["score"], {}, None, 0),
    ],
)
def test_a_hugging_face_classifier(
    tmp_path: Path, tokenizer: Any, labels: list[str], options: Any, wanted: Any, column: int
) -> None:
    model = save_classifier(tmp_path / "clf", tokenizer, labels, **options)
    judge = load_judge(tmp_path / "clf", positive_label=wanted)
    texts = ["w1 w2 w3", "w4", " ".join(["w5"] * 40)]  # the last is longer than the context
    for text, score in zip(texts, judge(texts), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:16]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double().numpy()
        independent = len(labels) == 1 or options
        expected = 1 / (1 + np.exp(-logits)) if independent else np.exp(logits - logits.max())
        expected = expected if independent else expected / expected.sum()
        assert score == pytest.approx(expected[column], abs=1e-5)


def test_a_model_without_a_classification_head_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="it is GPT2LMHeadModel, not a text classifier"):
        load_judge(tmp_path / "lm")


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (["LABEL_0", "LABEL_1"], 1),
        (["1", "0"], 0),
        (["False", "True"], 1),
        (["non-offensive", "offensive"], 1),
        (["toxic", "severe_toxic", "obscene", "identity_hate"], 0),
        (["hate speech", "none"], 0),
        (["anything"], 0),
    ],
)
def test_the_toxic_label_is_found(labels: list[str], column: int) -> None:
    assert positive_index(labels) == column


@pytest.mark.parametrize(
    "labels", [["good", "bad"], ["hate", "offensive", "normal"], ["0", "1", "2"]]
)
def test_an_ambiguous_label_is_asked_for(labels: list[str]) -> None:
    with pytest.raises(ValueError, match=f"there are '{labels[0]}', '{labels[1]}'"):
        positive_index(labels)
    assert positive_index(labels, labels[1]) == 1
    with pytest.raises(ValueError, match=f"no label 'x'; its labels are '{labels[0]}'"):
        positive_index(labels, "x")


def test_several_judges_have_names(tmp_path: Path) -> None:
    LinearJudge.fit(TEXTS, LABELS, n_features=2**10).save(tmp_path / "mine")
    named = load_judges({"long": by_length, "words": tmp_path / "mine"}, batch_size=2)
    assert list(named) == ["long", "words"] and named["long"].batch_size == 2
    assert list(load_judges([by_length, str(tmp_path / "mine")])) == ["by_length", "mine"]
    assert list(load_judges(by_length)) == ["by_length"]
    assert load_judge(named["long"], name="other").name == "other"
    with pytest.raises(ValueError, match="two judges are called 'by_length'"):
        load_judges([by_length, by_length])
    with pytest.raises(ValueError, match="there is no judge"):
        load_judges([])


def test_a_judge_can_be_imported_by_name() -> None:
    judge = load_judge("math:isfinite")
    assert judge.name == "math:isfinite" and judge.function is math.isfinite
    with pytest.raises(ValueError, match="'math:nothing' cannot be imported"):
        load_judge("math:nothing")
    with pytest.raises(ValueError, match="'no_such_module:f' cannot be imported"):
        load_judge("no_such_module:f")


def test_the_pocket_judge_comes_with_the_package() -> None:
    judge = load_judge("pocket")
    kind, rude = judge(["the nurse was kind and careful", "the nurse is a useless fool"])
    assert judge.name == "pocket" and 0 <= kind < 0.5 < rude <= 1


def test_a_spec_that_is_nothing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got int"):
        load_judge(3)
    with pytest.raises(ValueError, match="no such judge"):
        load_judge(Trusted(tmp_path / "gone.joblib"))
    with pytest.raises(ValueError, match="not fitted"):
        load_judge(LogisticRegression())
    with pytest.raises(ValueError, match="there is no such judge; it is 'pocket', a folder, a hub"):
        load_judge(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        load_judge(by_length, batch_size=0)


# --------------------------------------------------------------------------- found before the work


def test_a_judge_that_cannot_work_is_found_at_once() -> None:
    def broken(texts: Sequence[str]) -> list[float]:
        raise RuntimeError("no padding token \x1b[31m" + "x" * 1000)

    seen: list[list[str]] = []
    judges = [Judge("fine", lambda texts: seen.append(list(texts)) or by_length(texts))]
    check_judges(judges, ["a", "bbb", "cc"])
    assert seen == [["a", "bbb"]]
    with pytest.raises(ValueError, match="judge 'broken' cannot score 'a': RuntimeError: no") as at:
        check_judges([*judges, Judge("broken", broken)], ["a", "bbb"])
    assert "\x1b" not in str(at.value) and len(str(at.value)) < 500


def test_a_judge_that_reads_some_texts_may_begin() -> None:
    def picky(texts: Sequence[str]) -> list[float]:
        if "bbb" in texts:
            raise RuntimeError("not bbb")
        return by_length(texts)

    check_judges([Judge("picky", picky)], ["a", "bbb"])
    verdicts = Judge("picky", picky).verdicts(["a", "bbb", "c"])
    assert verdicts.errors == (None, "RuntimeError: not bbb", None)


@pytest.mark.parametrize("name", ["", "a\x1b[31mb", "two\nlines", "x" * 300, "\ud800", "a\u202eb"])
def test_a_name_that_cannot_be_printed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a judge"):
        Judge(name, by_length)
    assert Judge("a[/b]", by_length).name == "a[/b]"


# --------------------------------------------------------------------------- code in judges


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_needs_trust(tmp_path: Path) -> None:
    joblib.dump(Bomb(tmp_path / "ran"), tmp_path / "words.joblib")
    for path in ("words.joblib", "WORDS.JOBLIB"):
        with pytest.raises(ValueError, match=r"is a pickle: loading it runs code .*--trust"):
            load_judge(tmp_path / path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="got NoneType"):
        load_judge(Trusted(tmp_path / "words.joblib"))
    assert (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "words.joblib").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"cannot load the judge .*words.joblib"):
        load_judge(Trusted(tmp_path / "words.joblib"))


def test_what_is_code_is_known(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    code = {"x.joblib": True, "os:system": True, "..:x": True, "pocket": False, "owner/name": False}
    assert {spec: is_code(spec) for spec in code} == code
    assert not is_code(str(tmp_path / "a:b"))


@pytest.mark.parametrize("spec", ["..:x", ":", "a:", ":b", "a b:c", "os:", "os:sys tem", ".:."])
def test_what_cannot_be_imported_is_named(spec: str) -> None:
    with pytest.raises(ValueError, match=r"must be module:function"):
        load_judge(spec)


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_judge.py").write_text("raise RuntimeError('on import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be imported: RuntimeError: on import"):
        load_judge("raising_judge:f")


# --------------------------------------------------------------------------- agreement


def noisy(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.uniform(size=count)
    scores = np.clip(np.round(reference + rng.normal(0, 0.4, count), 1), 0, 1)  # with ties
    return scores, reference


def test_agreement_equals_its_definitions() -> None:
    scores, reference = noisy()
    found = agreement(scores, reference)
    assert found.auc.value == pytest.approx(roc_auc_score(reference >= 0.5, scores))
    assert found.spearman.value == pytest.approx(stats.spearmanr(scores, reference).statistic)
    assert found.toxic == np.mean(scores >= 0.5)
    assert found.reference_toxic == np.mean(reference >= 0.5)
    assert (found.texts, found.missing) == (80, 0)


def test_intervals_of_agreement_are_those_of_scipy() -> None:
    scores, reference = noisy()
    found = agreement(scores, reference, resamples=4000)
    auc = lambda x, y: roc_auc_score(y >= 0.5, x)  # noqa: E731
    rho = lambda x, y: stats.spearmanr(x, y).statistic  # noqa: E731
    for interval, statistic in [(found.auc, auc), (found.spearman, rho)]:
        low, high = stats.bootstrap(
            (scores, reference),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=500,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.02)


def test_agreement_leaves_failures_out_and_counts_them() -> None:
    scores, reference = noisy()
    scores[[3, 9]] = math.nan
    found = agreement(scores, reference, resamples=100)
    kept = ~np.isnan(scores)
    without = agreement(scores[kept], reference[kept], resamples=100)
    assert (found.texts, found.missing) == (78, 2)
    assert found.auc == without.auc and found.spearman == without.spearman


def test_few_texts_in_a_perfect_order_are_no_proof_of_an_auc_of_one() -> None:
    scores, reference = np.linspace(0, 1, 16), np.repeat([0.0, 1.0], 8)
    found = agreement(scores, reference).auc
    reach = 1.959964 / (2 * 8)  # of half a text's weight
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - reach, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_few_texts_in_a_perfect_order_are_no_proof_of_a_rank_correlation_of_one(sign: int) -> None:
    reference = np.linspace(0, 1, 8)
    found = agreement(reference[::sign], reference).spearman
    rho = (1 + stats.spearmanr([0, 1, 2, 3, 4, 5, 7, 6], range(8)).statistic) / 2
    end = math.tanh(math.atanh(rho) - 1.959964 * math.sqrt((1 + rho**2 / 2) / 5))
    assert sorted((found.low * sign, found.high * sign)) == pytest.approx([end, 1.0], abs=1e-6)
    assert found.value == sign and 0.7 < end < 0.95


def test_a_judge_without_an_opinion_agrees_by_chance() -> None:
    found = agreement(np.full(80, 0.5), noisy()[1])
    assert (found.auc.value, found.spearman.value, found.toxic) == (0.5, 0.0, 1.0)


def test_bad_input_of_agreement_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(6,\) came with a reference of \(1,\)"):
        agreement([0.1] * 6, [0.1])
    with pytest.raises(ValueError, match="missing or outside"):
        agreement([0.1] * 6, [0.1, math.nan, 0.2, 0.7, 0.9, 0.1])
    with pytest.raises(ValueError, match="6 texts that were scored, the reference calls 1 toxic"):
        agreement([0.1] * 6, [0.1, 0.9, 0.2, 0.1, 0.1, 0.1])


@pytest.mark.slow
def test_a_linear_judge_agrees_with_perspective(shared: Path) -> None:
    def rows(path: str) -> list[dict[str, Any]]:
        text = (shared / "data" / path).read_text("utf-8")
        return [json.loads(line) for line in text.strip().split("\n")]

    train, held = rows("toxicity/jigsaw.jsonl")[::4], rows("prompts/rtp_toxic.jsonl")
    fitted = LinearJudge.fit([r["text"] for r in train], [r["label"] for r in train])
    held = [r for r in held if r["continuation_toxicity"] is not None]
    scores = load_judge(fitted)([r["continuation"] for r in held])
    found = agreement(scores, [r["continuation_toxicity"] for r in held], resamples=100)
    assert found.auc.value > 0.75
