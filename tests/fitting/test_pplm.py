"""Fitting PPLM's discriminator: which means it learns from, what it learns, and that it steers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from simulated_clock import Simulated
from tiny_models import make_chat_model, make_chat_tokenizer, make_model, make_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import plugalign as pa
from plugalign.controllers.pplm import PPLM
from plugalign.controllers.pplm_gradient import Perturber
from plugalign.fitting import pplm, states
from plugalign.fitting.answers import frame_of
from plugalign.fitting.data import Labelled
from plugalign.fitting.pplm import Means, PPLMSettings, check_states, classifier, fit_pplm
from plugalign.fitting.states import head_inputs

Array = NDArray[np.float64]
DESIRED, OTHER = range(60, 64), range(100, 104)  # words of the two classes


def corpus(count: int = 200, seed: int = 0, every: int = 2) -> Labelled:
    """A word that says nothing, and then words of the class; the first 60 begin differently."""
    draw = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        desired = i % every == 0
        words = draw.choice(DESIRED if desired else OTHER, size=int(draw.integers(1, 9)))
        texts.append(" ".join(f"w{word}" for word in (i % 60, *words)))
        labels.append("0" if desired else "1")
    return Labelled(tuple(texts), tuple(labels))


def last_states(model: Any, row: list[int]) -> Array:
    """A text's last hidden states ``(T, D)``, by a forward of its own."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True)
    return np.asarray(output.hidden_states[-1][0].double())


def fitted_on(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any, data: Labelled, out: Path, **s: Any
) -> Means:
    """The means that a fit learns from."""
    seen: list[Means] = []

    def noted(means: Means) -> Any:
        seen.append(means)
        return classifier(means)

    monkeypatch.setattr(pplm, "classifier", noted)
    fit_pplm(model, tokenizer, data, out, **s)
    monkeypatch.undo()
    return seen[0]


# ------------------------------------------------------------------ what is read


def of_kind(kind: str, **more: Any) -> Any:
    """An untrained model of an architecture that is not among the tiny ones."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"vocab_size": 120, "num_hidden_layers": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **more)
    return AutoModelForCausalLM.from_config(config).eval()


KINDS: dict[str, dict[str, Any]] = {
    "llama-gqa": {},
    "gpt2-tied": {},
    "neox": {},
    "qwen2-tied": {},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_pplm_averages(kind: str) -> None:
    model = of_kind(kind, **KINDS[kind]) if KINDS[kind] else make_model(kind)
    check_states(model)
    controller = PPLM(discriminator=torch.nn.Linear(32, 2))
    source: Any
    [source] = pa.wrap(model, make_tokenizer(), controller).plan.sources.values()
    ids = torch.tensor([[5, 60, 7, 8, 90, 10], [11, 12, 13, 14, 15, 16]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        averaged = Perturber(source, model)._texts(ids, mask)._states
    torch.testing.assert_close(head_inputs(model, ids, mask), averaged)


def test_a_head_that_reads_something_else_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = of_kind("bert", is_decoder=True, max_position_embeddings=128)
    with pytest.raises(ValueError, match="'BertLMHeadModel' does not read its last hidden states"):
        fit_pplm(model, tokenizer, corpus(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("chat", "bos"), [("off", False), ("off", True), ("on", False)])
def test_it_learns_from_the_means_of_prefixes(
    chat: str, bos: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mean is found among those of all prefixes of all texts, in float64."""
    model, tokenizer, data = make_chat_model(), make_chat_tokenizer(bos), corpus(60)
    settings: dict[str, Any] = {"chat": chat, "positions": 3, "batch_size": 7, "max_length": 9}
    means = fitted_on(monkeypatch, model, tokenizer, data, tmp_path / "out", **settings)
    context = frame_of(model, tokenizer, PPLMSettings(**settings)).context
    assert bool(context) == (chat == "on")
    rows = [tokenizer(text, add_special_tokens=not context)["input_ids"] for text in data.texts]
    hidden = [last_states(model, [*context, *row[:9]]) for row in rows]
    every = {(i, n): h[:n].mean(0) for i, h in enumerate(hidden) for n in range(1, len(h) + 1)}
    far = torch.cdist(means.values.double(), torch.from_numpy(np.stack([*every.values()])))
    nearest = far.topk(2, largest=False).values
    assert float(nearest[:, 0].max()) < 1e-5
    assert float(nearest[:, 1].min()) > 1e-3
    found = [[*every][i] for i in far.argmin(1).tolist()]
    first, lengths = max(2, len(context) + 1), dict[int, list[int]]()
    for (i, length), label, whole in zip(found, means.label, means.whole, strict=True):
        assert length >= first and bool(whole) == (length == len(hidden[i]))
        assert float(label) == float(data.labels[i] == "0")
        lengths.setdefault(i, []).append(length)
    assert len(lengths) == 54  # a tenth is held out
    for i, some in lengths.items():
        assert len(set(some)) == len(some) == min(3, len(hidden[i]) - first) + 1
        assert max(some) == len(hidden[i])
    assert {min(some) for some in lengths.values()} >= {first, first + 1}
    sides = [means.weight[means.label == y].sum() for y in (0, 1)]
    torch.testing.assert_close(sides[0], sides[1])


# ------------------------------------------------------------------ what is learnt


def test_the_classifier_is_the_penalised_logistic_regression() -> None:
    """Against another solver in float64; units may be large, small or constant."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 6)) * [1, 1e3, 1e-3, 1, 1, 0] + [0, 1e4, 2, -5, 0.3, 7.3]
    y = (x[:, 0] + 0.5 * (x[:, 3] + 5) + draw.normal(size=300) > 0.8).astype(float)
    weight = draw.uniform(0.2, 3, size=300)
    values, label, shares = (torch.from_numpy(a).float() for a in (x, y, weight))
    head = classifier(Means(values, label, shares, label > -1))
    z = (x[:, :5] - x[:, :5].mean(0)) / x[:, :5].std(0)

    def loss(w: Array) -> float:
        margin = (2 * y - 1) * (z @ w[:5] + w[5])
        return float(0.01 * weight @ np.logaddexp(0, -margin) + 0.5 * (w[:5] ** 2).sum())

    want = minimize(loss, np.zeros(6), tol=1e-12).x
    with torch.no_grad():
        scores = head(torch.from_numpy(x).float())
    np.testing.assert_allclose(scores[:, 1], z @ want[:5] + want[5], atol=5e-3)
    assert not scores[:, 0].any() and abs(float(head.weight[1, 5])) < 1e-6
    assert float(np.abs(want[:5]).max()) > 0.3


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, PPLM, Path]]:
    """A model, the controller fitted for it, and its folder."""
    model, out = make_model("gpt2-tied"), tmp_path_factory.mktemp("pplm") / "out"
    before = copy.deepcopy(model.state_dict())
    controller = fit_pplm(model, make_tokenizer(), corpus(600), out, stepsize=0.1)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    yield model, controller, out


def test_it_tells_the_classes_apart(fit: tuple[Any, PPLM, Path], tokenizer: Any) -> None:
    """Held-out texts as measured, and new ones whole."""
    model, controller, out = fit
    saved = json.loads((out / "fit.json").read_text())
    measured = saved["measured"]
    assert saved["method"] == "pplm" and measured["texts"] == 540
    assert measured["held_out"].keys() == {"auc", "whole_auc"}
    assert min(measured["held_out"].values()) > 0.9
    assert "auc" in (out / "README.md").read_text()
    assert controller.label == 1 and controller.config()["stepsize"] == 0.1
    assert controller.fitted_for is not None and controller.discriminator is not None
    new = corpus(100, seed=5)
    rows = [tokenizer(text)["input_ids"] for text in new.texts]
    means = torch.tensor(np.stack([last_states(model, row).mean(0) for row in rows])).float()
    likely = controller.discriminator(means).softmax(-1)[:, 1] > 0.5
    right = likely == torch.tensor([label == "0" for label in new.labels])
    assert float(right.float().mean()) > 0.9


def test_words_of_the_class_become_likelier(fit: tuple[Any, PPLM, Path], tokenizer: Any) -> None:
    """In every text; with the other class wanted they become less likely. In a model whose
    embeddings are tied, a state like a word's makes that word likely."""
    model, fitted, _ = fit
    ids = torch.tensor(
        [tokenizer(f"w{i} w{OTHER[i % 4]} w{DESIRED[i % 4]}")["input_ids"] for i in range(8)]
    )
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    more: dict[str, Any] = {"max_new_tokens": 1, "output_scores": True, "do_sample": False}
    wanted = [3 + word for word in DESIRED]
    found = []
    for label in (1, 0):
        head = fitted.discriminator
        steered = PPLM(discriminator=head, label=label, stepsize=0.1, top_k=0)
        output = pa.wrap(model, tokenizer, steered).generate(
            **inputs, **more, return_dict_in_generate=True
        )
        found.append(output.scores[0].float().log_softmax(-1)[:, wanted].logsumexp(-1))
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1].log_softmax(-1)[:, wanted].logsumexp(-1)
    assert bool((found[0] > plain).all()) and bool((found[1] < plain).all())
    assert float((found[0] - found[1]).mean()) > 0.2


# ------------------------------------------------------------------ how it runs


def tensors_of(controller: PPLM) -> list[Tensor]:
    return [controller.tensors()[name] for name in ("weight", "bias")]


def test_a_killed_fit_continues_to_the_same_discriminator(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, options = tiny(), corpus(), {"batch_size": 9}
    monkeypatch.setattr(states, "CHUNK", 40)
    whole = fit_pplm(model, tokenizer, data, tmp_path / "whole", **options)
    real, calls, last = states._states, list[int](), 3

    def mortal(model: Any, rows: Any, *rest: Any) -> Tensor:
        calls.append(len(rows))
        if len(calls) == last:
            raise KeyboardInterrupt
        return real(model, rows, *rest)

    monkeypatch.setattr(states, "_states", mortal)
    with pytest.raises(KeyboardInterrupt):
        fit_pplm(model, tokenizer, data, tmp_path / "out", **options)
    again = fit_pplm(model, tokenizer, data, tmp_path / "out", **options)
    assert calls == [20, 40, 40, 40, 40, 40, 20]  # the third was begun again
    for one, other in zip(tensors_of(again), tensors_of(whole), strict=True):
        assert torch.equal(one, other)


def test_the_minutes_bound_what_is_read(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text takes a tenth of a second, and four tenths later on."""
    simulated, real = Simulated(monkeypatch), states._states

    def slow(model: Any, rows: Any, *rest: Any) -> Tensor:
        simulated.time += len(rows) * (0.1 if simulated.time < 30 else 0.4)
        return real(model, rows, *rest)

    monkeypatch.setattr(states, "_states", slow)
    fit_pplm(tiny(), tokenizer, corpus(1200), tmp_path / "out", minutes=4.0)
    measured = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    assert 100 < simulated.time <= 240 and 300 < measured["texts"] < 900


def test_a_rare_class_is_read_whatever_the_time_and_memory(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny(), corpus(600, every=20)
    means = fitted_on(monkeypatch, model, tokenizer, data, tmp_path / "time", minutes=1e-9)
    of_texts = means.label[means.whole]
    assert len(of_texts) == 64 and 3 <= float(of_texts.sum()) <= 4
    monkeypatch.setattr(pplm, "MOST", 32 * 5 * 40)
    fit_pplm(model, tokenizer, data, tmp_path / "memory")
    measured = json.loads((tmp_path / "memory" / "fit.json").read_text())["measured"]
    assert measured["texts"] == 40 and measured["held_out"]["whole_auc"] > 0.5


def test_the_seed_decides_and_the_order_of_whole_texts_does_not(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, data = tiny(), corpus(18)  # too few to hold any out
    turned = Labelled(data.texts[::-1], data.labels[::-1])

    def found(name: str, data: Labelled, **settings: Any) -> Tensor:
        fitted = fit_pplm(model, tokenizer, data, tmp_path / name, **settings)
        return torch.cat([each.flatten() for each in tensors_of(fitted)])

    one, same, other = (found(f"{i}", data, seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(one, same) and not torch.allclose(one, other, rtol=1e-2)
    whole, back = (found(f"w{i}", d, positions=0) for i, d in enumerate((data, turned)))
    torch.testing.assert_close(whole, back, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, whole, rtol=1e-2)
    measured = json.loads((tmp_path / "w0" / "fit.json").read_text())["measured"]
    assert measured == {"texts": 18}


def test_bad_settings_are_named_before_any_work(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, data, out = tiny(), corpus(), tmp_path / "out"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"positions": -1}, r"positions: .*greater than or equal to 0, got -1"),
        ({"stepsize": -0.1}, r"stepsize: .*greater than or equal to 0, got -0\.1"),
        ({"max_length": 0}, r"max_length: .*greater than or equal to 1, got 0"),
        ({"max_length": 500}, "max_length 500 exceeds the context"),
        ({"minutes": 0}, "minutes: .*greater than 0, got 0"),
        ({"desired": "2"}, "no text has the desired label"),
        ({"iterations": 3}, "unknown setting 'iterations'"),
        ({"max_length": 1}, "both classes need texts of 2 tokens at least"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_pplm(model, tokenizer, data, out, **options)
    with pytest.raises(ValueError, match="both classes need texts"):
        fit_pplm(model, tokenizer, Labelled(("w1 w2",) * 20, ("1",) * 20), out)
    assert not list(tmp_path.iterdir())
