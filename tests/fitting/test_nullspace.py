"""Erasure: a concept that a linear probe found before cannot be found afterwards."""

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.fitting import nullspace, states
from plugalign.fitting.data import Labelled, load_data
from plugalign.fitting.erasure import (
    Split,
    held_out_texts,
    inlp,
    leace,
    principal_direction,
    split_by_text,
)
from plugalign.fitting.nullspace import fit_nullspace
from plugalign.fitting.states import head_inputs
from plugalign.fitting.word_pairs import word_direction


def split_of(states, labels, seed):
    """A fifth of each label is held out, each state a text of its own."""
    texts = np.arange(len(states))
    return split_by_text(states, labels, texts, held_out_texts(texts[:, None], labels, seed))


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


def test_leace_erases_the_label_at_each_place():
    """Where it shows in another direction at each of two places, a fit on all states together
    leaves it at both."""
    states, labels = clouds(2)
    places = np.random.default_rng(1).integers(0, 2, len(states))
    states[(labels == "c1") & (places == 0), 3] += 4.0
    states[(labels == "c1") & (places == 1), 7] -= 4.0
    for given, share in ((places, 1.0), (None, 0.9)):
        removed, read, center = leace(states, labels, given)
        assert removed.shape[1] == (1 if given is None else 2)
        erased = erase(states, removed, read, center)
        for place in (0, 1):
            x, y = erased[places == place], onehot(labels[places == place])
            left = ((Ridge(alpha=1e-9).fit(x, y).predict(x) - y) ** 2).mean()
            constant = ((y - y.mean(0)) ** 2).mean()
            assert left == pytest.approx(constant) if share == 1 else left < share * constant


def test_leace_of_few_different_states():
    """Their covariance is singular; all takes place in the subspace that they span."""
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(4, 12))
    labels = np.array(["a", "a", "b", "b"] * 100)
    states = np.tile(corners, (100, 1))
    removed, read, center = leace(states, labels)
    assert removed.shape == (12, 1)
    np.testing.assert_allclose(read.T @ removed, np.eye(1), atol=1e-9)
    erased = erase(states, removed, read, center)
    means = [erased[labels == y].mean(0) for y in ("a", "b")]
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)
    with pytest.raises(ValueError, match="nothing to remove"):
        leace(np.ones((400, 12)), labels)


# ------------------------------------------------------------------ INLP


@pytest.mark.parametrize("classes", [2, 3])
def test_inlp_ends_when_a_fresh_probe_only_guesses(classes, tmp_path):
    split = split_of(*clouds(classes), seed=0)
    basis = inlp([split], 80, tmp_path / "basis.safetensors")
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
    basis = inlp([split_of(states, labels, 0)], 80, tmp_path / "basis.safetensors")
    assert basis[2, 0] > 0.9
    with pytest.raises(ValueError, match="nothing to remove"):
        inlp([split_of(rng.normal(size=(600, 6)), labels, 0)], 80, tmp_path / "none.safetensors")


def test_inlp_continues_where_it_was_killed(tmp_path, monkeypatch):
    split = split_of(*clouds(3), seed=0)
    whole = inlp([split], 80, tmp_path / "whole.safetensors")
    path, probe, calls = tmp_path / "killed.safetensors", Split.probe, []

    def killed(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return probe(self)

    monkeypatch.setattr(Split, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        inlp([split], 80, path)
    np.testing.assert_array_equal(inlp([split], 80, path), whole)
    assert inlp([split], 1, tmp_path / "one.safetensors").shape[1] == 2


def test_the_principal_direction_follows_the_pairs():
    truth = np.array([0.6, -0.8, 0.0])
    spread = np.random.default_rng(0).normal(size=(40, 3)) * 0.05
    direction = principal_direction(np.linspace(0.5, 2, 40)[:, None] * truth + spread)
    np.testing.assert_allclose(direction, truth, atol=0.05)


# ------------------------------------------------------------------ the fit


def spread(count=400, seed=0):
    """Texts of two labels whose words differ throughout; the last is of words of its own."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        first = 50 if i % 2 else 30
        words = [f"w{first + rng.integers(0, 20)}" for _ in range(int(rng.integers(4, 9)))]
        words[-1] = f"w{rng.integers(0, 10) + (10 if i % 2 else 0)}"
        texts.append(" ".join(words))
        labels.append("b" if i % 2 else "a")
    return Labelled(tuple(texts), tuple(labels))


@pytest.mark.parametrize("variant", ["leace", "inlp", "a-inlp", "direction"])
def test_fitted_saved_and_loaded(variant, tiny, tokenizer, prompts, tmp_path, capfd):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    pairs = [("w3", "w53"), ("w4", "w54"), ("unknown", "w1")] if variant == "direction" else ()
    fitted = fit_nullspace(
        model, tokenizer, spread(), tmp_path / "out", variant=variant, pairs=pairs
    )
    said = " ".join(capfd.readouterr().err.split())
    assert "at random positions inside of texts a linear probe finds the label" in said
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    loaded = Controller.from_pretrained(tmp_path / "out")
    assert loaded.tensors().keys() == {
        "leace": {"removed", "read", "center"},
        "a-inlp": {"removed", "guide"},
    }.get(variant, {"removed"})
    assert loaded.config() == fitted.config()
    torch.manual_seed(0)
    inputs = prompts()
    first, second = (
        pa.wrap(model, tokenizer, c).generate(**inputs, max_new_tokens=4, do_sample=False)
        for c in (fitted, loaded)
    )
    assert torch.equal(first, second)


def inside(model, tokenizer, data, seed):
    """The state at one random position of each text that is not its last, ``(N, D)``."""
    rng, found = np.random.default_rng(seed), []
    for text in data.texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        states = head_inputs(model, ids, torch.ones_like(ids))[0].double().numpy()
        found.append(states[rng.integers(1, len(states) - 1)])
    return np.stack(found)


def test_what_is_erased_cannot_be_found_inside_of_texts(tiny, tokenizer, tmp_path):
    """Fresh probes on texts that the fit has not seen: before, after, and as it would be if only
    the last positions had been looked at."""
    model, unseen = tiny(), spread(600, seed=1)
    states, labels = inside(model, tokenizer, unseen, 5), np.array(unseen.labels)
    accuracy = {}
    for positions in (4, 0):
        out = tmp_path / str(positions)
        fitted = fit_nullspace(model, tokenizer, spread(1500), out, positions=positions)
        parts = (fitted.removed, fitted.read, fitted.center)
        erased = erase(states, *(x.double().numpy() for x in parts))
        split = split_of(erased, labels, seed=0)
        accuracy[positions] = split.probe()[1]
    before = split_of(states, labels, seed=0)
    assert before.probe()[1] > 0.75
    assert accuracy[4] <= before.chance
    assert accuracy[0] > before.chance + 0.1


def test_the_probe_is_saved_with_the_controller(tiny, tokenizer, tmp_path):
    fit_nullspace(tiny(), tokenizer, spread(), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert saved["method"] == "nullspace" and saved["settings"]["variant"] == "leace"
    assert saved["data"]["texts"] == {"a": 200, "b": 200}
    probe = saved["measured"]["probe"]
    assert probe.keys() == {"inside", "last"}
    for place in probe.values():
        assert place["before"] > 0.8 and place["guessing"] == 0.5
        assert abs(place["after"] - 0.5) < 0.12
    (tmp_path / "last").mkdir()
    fit_nullspace(tiny(), tokenizer, spread(), tmp_path / "last", positions=0)
    saved = json.loads((tmp_path / "last" / "fit.json").read_text())
    assert saved["measured"]["probe"].keys() == {"last"}


def test_a_place_that_one_label_alone_has_is_none(tiny, tokenizer, tmp_path):
    texts = [f"w{i % 40}" if i % 2 else f"w{40 + i % 40} w{i % 13} w{i % 39}" for i in range(160)]
    data = Labelled(tuple(texts), tuple("ab"[i % 2] for i in range(160)))
    fit_nullspace(tiny(), tokenizer, data, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert saved["measured"]["probe"].keys() == {"last"}


def test_no_more_texts_are_read_than_there_is_memory_for(tiny, tokenizer, tmp_path, monkeypatch):
    for most, count in ((32 * 5 * 100, 100), (1, 64), (2**26, 400)):
        out = tmp_path / str(most)
        monkeypatch.setattr(nullspace, "MOST", most)
        fit_nullspace(tiny(), tokenizer, spread(), out)
        assert json.loads((out / "fit.json").read_text())["measured"]["texts"] == count


def test_all_states_of_a_held_out_text_are_held_out():
    texts = np.repeat(np.arange(40), 3)
    labels = np.array(["a", "b"] * 20)
    held = held_out_texts(np.arange(40)[:, None], labels, seed=1)
    split = split_by_text(texts[:, None].astype(float), labels[texts], texts, held)
    assert split.held_texts == 8 and len(split.held) == 24 and len(split.train) == 96
    assert not set(split.train[:, 0]) & set(split.held[:, 0])
    assert split.chance > 0.5 + 1.6 * 0.5 / 8**0.5  # eight texts, not twenty-four


def test_equal_texts_are_held_out_together():
    rows = [[i % 40, 7] for i in range(160)]
    labels = np.array(["a", "b"] * 80)
    held = held_out_texts(rows, labels, seed=1)
    assert len(held) == 32 and {i % 40 for i in held} == {i % 40 for i in held if i < 40}
    alone = held_out_texts(rows[:40], labels[:40], seed=1)
    assert {i for i in held if i < 40} == {*alone}


def test_texts_that_are_longer_than_the_context_are_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="max_length 99999 exceeds the context"):
        fit_nullspace(tiny("gpt2-tied"), tokenizer, spread(60), tmp_path / "n", max_length=99999)


def test_a_killed_fit_ends_alike(tiny, tokenizer, tmp_path, monkeypatch):
    model, data = tiny(), spread(160)
    options = {"variant": "inlp", "batch_size": 8}
    monkeypatch.setattr(states, "CHUNK", 40)
    whole = fit_nullspace(model, tokenizer, data, tmp_path / "whole", **options)
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 1 + 2 * 5 + 1:  # one finds out the width, and each chunk is five batches
            raise KeyboardInterrupt
        return head_inputs(*args)

    monkeypatch.setattr(states, "head_inputs", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_nullspace(model, tokenizer, data, tmp_path / "out", **options)
    again = fit_nullspace(model, tokenizer, data, tmp_path / "out", **options)
    assert len(calls) == (1 + 2 * 5 + 1) + (1 + 2 * 5)  # of four chunks the third is begun again
    assert torch.equal(again.removed, whole.removed)


def test_word_pairs(tiny, tokenizer):
    model = tiny()
    direction = word_direction(model, tokenizer, [("w3", "w53")])
    rows = model.lm_head.weight.detach().double().numpy()
    difference = rows[tokenizer.convert_tokens_to_ids("w3")]
    difference = difference - rows[tokenizer.convert_tokens_to_ids("w53")]
    np.testing.assert_allclose(direction, difference / np.linalg.norm(difference), atol=1e-6)
    with pytest.raises(ValueError, match="two single tokens"):
        word_direction(model, tokenizer, [("w3", "w4 w5"), ("no", "yes")])
    with pytest.raises(ValueError, match=r"words of the pair \('w1', 'w1'\) are the same"):
        word_direction(model, tokenizer, [("w3", "w53"), ("w1", "w1")])


def test_bad_input_is_refused(tiny, tokenizer, tmp_path):
    model, out = tiny(), tmp_path / "out"
    cases = [
        ({"variant": "lace"}, "variant: .*'leace', 'inlp', 'a-inlp' or 'direction', got 'lace'"),
        ({"variant": "direction"}, "needs pairs"),
        ({"classifiers": 0}, "classifiers: .*greater than or equal to 1, got 0"),
        ({"max_length": 500}, "max_length 500 exceeds the context"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_nullspace(model, tokenizer, spread(40), out, **options)
    with pytest.raises(ValueError, match="'b': 3"):
        few = Labelled(("w1",) * 23, ("a",) * 20 + ("b",) * 3)
        fit_nullspace(model, tokenizer, few, out)
    assert not out.exists()


@pytest.mark.slow
def test_toxicity_is_erased_from_real_states_inside_of_texts(shared, tmp_path):
    path = shared / "models" / "comments-3m"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    file = shared / "data" / "toxicity" / "paradetox.jsonl"
    data = load_data(file, desired="neutral", undesired="toxic", limit=1500)
    fit_nullspace(model, tokenizer, data, tmp_path / "out")
    probe = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]["probe"]["inside"]
    assert probe["before"] > 0.65
    assert probe["after"] < probe["guessing"] + 0.06
