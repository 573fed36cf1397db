"""Erasure: a concept that a linear probe found before cannot be found afterwards."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import plugalign as pa
from plugalign.controller import Controller
from plugalign.fitting import nullspace as fitting
from plugalign.fitting.data import Labelled
from plugalign.fitting.erasure import Split, inlp, leace, principal_direction
from plugalign.fitting.nullspace import fit_nullspace, hidden_states, word_direction


def clouds(classes, count=1500, width=12, seed=0, shift=1.5):
    """States whose mean depends on the label, with unequal, correlated spread."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.linspace(0.3, 2, width)
    labels = np.array([f"c{i}" for i in rng.integers(0, classes, count)])
    means = {f"c{i}": shift * rng.normal(size=width) for i in range(classes)}
    noise = rng.normal(size=(count, width)) @ mixing
    return noise + np.stack([means[y] for y in labels]) + 3.0, labels


def onehot(labels):
    return np.array([[float(y == c) for c in sorted(set(labels))] for y in labels])


def erase(states, removed, read=None, center=0.0):
    return states - (states - center) @ (removed if read is None else read) @ removed.T


# ------------------------------------------------------------------ LEACE


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_leace_leaves_nothing_to_a_linear_probe(classes):
    """Belrose et al. 2023, theorem 3.1: no affine predictor beats the constant one."""
    states, labels = clouds(classes)
    removed, read, center = leace(states, labels)
    erased, targets = erase(states, removed, read, center), onehot(labels)
    constant = ((targets - targets.mean(0)) ** 2).mean()
    for x, share in ((states, 0.9), (erased, 1.0)):
        best = ((Ridge(alpha=1e-9).fit(x, targets).predict(x) - targets) ** 2).mean()
        assert (best < share * constant) if x is states else best == pytest.approx(constant)
    before, after = (
        LogisticRegression(C=100, max_iter=2000).fit(x, labels).score(x, labels)
        for x in (states, erased)
    )
    majority = targets.mean(0).max()
    assert before > majority + 0.2
    assert after < majority + 0.01


@pytest.mark.parametrize("classes", [2, 3])
def test_leace_is_a_projection_of_the_least_rank(classes):
    states, labels = clouds(classes)
    removed, read, center = leace(states, labels)
    assert removed.shape == (12, classes - 1)
    np.testing.assert_allclose(read.T @ removed, np.eye(classes - 1), atol=1e-9)
    np.testing.assert_allclose(removed.T @ removed, np.eye(classes - 1), atol=1e-9)
    once = erase(states, removed, read, center)
    np.testing.assert_allclose(erase(once, removed, read, center), once, atol=1e-9)
    np.testing.assert_allclose(once.mean(0), states.mean(0), atol=1e-9)


def test_leace_without_shrinkage_is_the_closed_form(monkeypatch):
    """x - W^-1 U U^T W (x - mu) with W the inverse root of the covariance, from the paper."""
    from plugalign.fitting import erasure

    monkeypatch.setattr(erasure, "ledoit_wolf", lambda x, **_: (x.T @ x / len(x), 0.0))
    states, labels = clouds(3, count=400)
    mu, targets = states.mean(0), onehot(labels)
    covariance = np.cov(states.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(1 / np.sqrt(values)) @ vectors.T
    cross = np.mean(
        [np.outer(x - mu, z - targets.mean(0)) for x, z in zip(states, targets, strict=True)], 0
    )
    left, singular, _ = np.linalg.svd(root @ cross)
    left = left[:, : int((singular > 0.01).sum())]
    matrix = np.linalg.inv(root) @ left @ left.T @ root
    expected = np.stack([x - matrix @ (x - mu) for x in states])
    removed, read, center = leace(states, labels)
    np.testing.assert_allclose(erase(states, removed, read, center), expected, atol=1e-8)


# ------------------------------------------------------------------ INLP


@pytest.mark.parametrize("classes", [2, 3])
def test_inlp_ends_when_a_fresh_probe_only_guesses(classes, tmp_path):
    split = Split.of(*clouds(classes), seed=0)
    basis = inlp(split, 80, tmp_path / "basis.safetensors")
    rank = basis.shape[1]
    assert 0 < rank < 12
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-9)
    assert split.probe()[1] > split.chance + 0.1
    assert split.without(basis).probe()[1] <= split.chance
    assert split.without(basis[:, : classes - 1]).probe()[1] > split.chance  # one was not enough
    weights = LogisticRegression(max_iter=500).fit(split.train, split.train_labels).coef_
    assert np.abs(weights @ (np.eye(12) - basis @ basis.T)).max() < 0.2 * np.abs(weights).max()


def test_the_first_direction_points_to_the_last_label(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 300)
    states = rng.normal(size=(600, 6))
    states[labels == "b", 2] += 4.0
    basis = inlp(Split.of(states, labels, 0), 80, tmp_path / "basis.safetensors")
    assert basis[2, 0] > 0.9
    with pytest.raises(ValueError, match="nothing to remove"):
        inlp(Split.of(rng.normal(size=(600, 6)), labels, 0), 80, tmp_path / "none.safetensors")


def test_inlp_continues_where_it_was_killed(tmp_path, monkeypatch):
    split = Split.of(*clouds(3), seed=0)
    whole = inlp(split, 80, tmp_path / "whole.safetensors")
    path, probe, calls = tmp_path / "killed.safetensors", Split.probe, []

    def killed(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return probe(self)

    monkeypatch.setattr(Split, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        inlp(split, 80, path)
    np.testing.assert_array_equal(inlp(split, 80, path), whole)
    assert inlp(split, 1, tmp_path / "one.safetensors").shape[1] == 2


def test_the_principal_direction_follows_the_pairs():
    truth = np.array([0.6, -0.8, 0.0])
    spread = np.random.default_rng(0).normal(size=(40, 3)) * 0.05
    direction = principal_direction(np.linspace(0.5, 2, 40)[:, None] * truth + spread)
    np.testing.assert_allclose(direction, truth, atol=0.05)


# ------------------------------------------------------------------ the fit


def labelled(count=120, seed=0):
    """Texts of two labels that differ in the words they end with."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        length = int(rng.integers(2, 7))
        words = [f"w{rng.integers(0, 100)}" for _ in range(length)]
        words[-1] = f"w{rng.integers(0, 6) + (50 if i % 2 else 0)}"
        texts.append(" ".join(words))
        labels.append("b" if i % 2 else "a")
    return Labelled(tuple(texts), tuple(labels))


def test_the_states_are_those_that_the_head_reads(architecture, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK", 4)
    model = tiny(architecture)
    rows = [[5], [6, 7, 8], [9, 10], [3, 4, 5, 6], [11, 12], [13]]
    states = hidden_states(model, rows, 3, tmp_path)
    for row, state in zip(rows, states, strict=True):
        seen = []
        handle = model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        model(input_ids=torch.tensor([row]))
        handle.remove()
        np.testing.assert_allclose(state, seen[0][0, -1].detach().numpy(), rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "4.safetensors"]
    monkeypatch.setattr(fitting, "_batches", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(hidden_states(model, rows, 3, tmp_path), states)


@pytest.mark.parametrize("variant", ["leace", "inlp", "a-inlp", "direction"])
def test_fitted_saved_and_loaded(variant, tiny, tokenizer, prompts, tmp_path, capfd):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    pairs = [("w3", "w53"), ("w4", "w54"), ("unknown", "w1")] if variant == "direction" else ()
    fitted = fit_nullspace(
        model, tokenizer, labelled(), tmp_path / "out", variant=variant, pairs=pairs
    )
    assert "linear probe" in " ".join(capfd.readouterr().err.split())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    loaded = Controller.from_pretrained(tmp_path / "out")
    assert loaded.tensors().keys() == {
        "leace": {"removed", "read", "center"}, "a-inlp": {"removed", "guide"},
    }.get(variant, {"removed"})  # fmt: skip
    assert loaded.config() == fitted.config()
    torch.manual_seed(0)
    inputs = prompts()
    first, second = (
        pa.wrap(model, tokenizer, c).generate(**inputs, max_new_tokens=4, do_sample=False)
        for c in (fitted, loaded)
    )
    assert torch.equal(first, second)


def test_a_fitted_model_forgets_the_label(tiny, tokenizer, tmp_path):
    model, data = tiny(), labelled(400)
    controller = fit_nullspace(model, tokenizer, data, tmp_path / "out", seed=3)
    rows = tokenizer(list(data.texts))["input_ids"]
    states = hidden_states(model, rows, 32, tmp_path / "states")
    split = Split.of(states, np.array(data.labels), seed=3)
    parts = (controller.removed, controller.read, controller.center)
    erased = erase(split.train, *(x.double().numpy() for x in parts))
    scores = [
        LogisticRegression(max_iter=2000).fit(x, split.train_labels).score(x, split.train_labels)
        for x in (split.train, erased)
    ]
    assert scores[0] > 0.75
    assert scores[1] < 0.56


def test_a_killed_fit_ends_alike(tiny, tokenizer, tmp_path, monkeypatch):
    model, data = tiny(), labelled()
    options = {"variant": "inlp", "batch_size": 8}
    whole = fit_nullspace(model, tokenizer, data, tmp_path / "whole", **options)
    monkeypatch.setattr(fitting, "CHUNK", 32)
    batches, calls = fitting._batches, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batches(*args)

    monkeypatch.setattr(fitting, "_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_nullspace(model, tokenizer, data, tmp_path / "out", **options)
    again = fit_nullspace(model, tokenizer, data, tmp_path / "out", **options)
    assert len(calls) == 5  # four chunks, one of them twice
    torch.testing.assert_close(again.removed, whole.removed, rtol=0, atol=1e-5)


def test_word_pairs(tiny, tokenizer):
    model = tiny()
    direction = word_direction(model, tokenizer, [("w3", "w53")])
    rows = model.lm_head.weight.detach().double().numpy()
    difference = rows[tokenizer.convert_tokens_to_ids("w3")]
    difference = difference - rows[tokenizer.convert_tokens_to_ids("w53")]
    np.testing.assert_allclose(direction, difference / np.linalg.norm(difference), atol=1e-6)
    with pytest.raises(ValueError, match="two single tokens"):
        word_direction(model, tokenizer, [("w3", "w4 w5"), ("no", "yes")])


def test_bad_input_is_refused(tiny, tokenizer, tmp_path):
    model, out = tiny(), tmp_path / "out"
    cases = [
        ({"variant": "lace"}, "variant must be one of leace, inlp, a-inlp, direction"),
        ({"variant": "direction"}, "needs pairs"),
        ({"classifiers": 0}, "classifiers must be a positive number"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_nullspace(model, tokenizer, labelled(), out, **options)
    with pytest.raises(ValueError, match="'b': 3"):
        few = Labelled(("w1",) * 23, ("a",) * 20 + ("b",) * 3)
        fit_nullspace(model, tokenizer, few, out)
    assert not out.exists()


@pytest.mark.slow
def test_gender_is_erased_from_real_states(shared, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plugalign.fitting.data import load_data

    path = shared / "models" / "comments-3m"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    files = [shared / "data" / "bias" / f"sentences_{k}.jsonl" for k in ("male", "female")]
    data = load_data(files, limit=2000)
    rows = [row[:32] for row in tokenizer(list(data.texts))["input_ids"]]
    states = hidden_states(model, rows, 64, tmp_path)
    split = Split.of(states, np.array(data.labels), seed=0)
    parts = leace(split.train, split.train_labels)
    erased = SimpleNamespace(train=erase(split.train, *parts), held=erase(split.held, *parts))
    after = split._replace(train=erased.train, held=erased.held)
    assert split.probe()[1] > 0.75
    assert after.probe()[1] < split.chance + 0.03
