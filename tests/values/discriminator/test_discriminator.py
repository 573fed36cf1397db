"""The value discriminator on a tiny model: fitted, saved, loaded, a judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_clock import Simulated
from tiny_models import make_model, make_tokenizer
from transformers import BertConfig, BertModel

from plugalign.adapters.truncated import truncated
from plugalign.algebra.controller import Controller
from plugalign.controllers.value_guide import ValueGuide
from plugalign.evaluation.judging.load import load_judge
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.pooled_states import keep_pooled_states
from plugalign.fitting.value import (
    distinct,
    fewest_to_read,
    fit_value,
    fitted,
    most_to_use,
    reading_order,
    split,
)
from plugalign.fitting.workspace import fitted_on_chats
from plugalign.values.discriminator.contrast import ValueContrast, negated
from plugalign.values.discriminator.discriminator import ValueDiscriminator
from plugalign.values.discriminator.readers import CausalReader, EncoderReader

STATEMENT = "w50 w51"


def data(count: int = 400, seed: int = 0) -> Labelled:
    """Texts of five words, of which two in texts that break the value are w0."""
    draw = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        words = draw.integers(20, 110, size=5)
        if i % 2:
            words[draw.permutation(5)[:2]] = 0
        texts.append(" ".join(f"w{word}" for word in words))
        labels.append(str(i % 2))
    return Labelled(tuple(texts), tuple(labels))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a model, and one with a discriminator fitted on it."""
    folder = tmp_path_factory.mktemp("value")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    reader = CausalReader(make_model(), make_tokenizer(), (1, 2))
    (folder / "data.jsonl").write_text("{}\n")
    fit_value(
        reader,
        str(folder / "model"),
        data(),
        folder / "kind",
        statement=STATEMENT,
        files=[folder / "data.jsonl"],
        licence="CC0",
    )
    return folder


def test_states_are_means_over_the_text_behind_the_statement() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    texts = ["w1 w2 w3", "w4", "w9 w8 w7 w6 w5", ""]
    states = CausalReader(model, tokenizer, (1, 2)).states(texts, STATEMENT)
    front = tokenizer(f"Statement: {STATEMENT}\nText: ")["input_ids"]
    taken: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: taken.append(out))
        for layer in model.model.layers
    ]
    for text, found in zip(texts, states, strict=True):
        ids = front + tokenizer(text)["input_ids"]
        taken.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        begin = len(front) if text else 0
        for layer in (0, 1):
            torch.testing.assert_close(found[layer], taken[layer][0, begin:].mean(0))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied", "qwen2-tied", "neox"])
def test_a_truncated_body_is_the_model_up_to_a_layer(architecture: str) -> None:
    model = make_model(architecture)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        body = truncated(model, 1)
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, whole)
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in shared for p in body.parameters())
    assert model.config.num_hidden_layers == 2


def test_what_was_fitted_judges_texts_it_has_not_seen(saved: Path) -> None:
    judge = load_judge(str(saved / "kind"))
    fresh = data(300, seed=1)
    scores, breaks = judge(fresh.texts), np.array(fresh.labels) == "1"
    assert np.mean(scores[breaks][:, None] > scores[~breaks]) > 0.85
    found = ValueDiscriminator.load(saved / "kind")
    said = found.assess(fresh.texts)
    np.testing.assert_allclose(1 - said.probabilities, scores)
    wanted = np.where(breaks, "breaks", "conforms")
    verdicts = np.array(said.verdicts)
    assert np.mean((verdicts == wanted) | (verdicts == "undecided")) > 0.84


def test_the_data_sheet_says_what_it_is_worth(saved: Path) -> None:
    sheet = json.loads((saved / "kind" / "sheet.json").read_text())
    assert sheet["licence"] == "CC0" and sheet["files"][0]["name"] == "data.jsonl"
    assert (sheet["learned"], sheet["calibrated"], sheet["held_out"]["texts"]) == (200, 100, 100)
    assert set(sheet["layers"]) == {"1", "2"}
    record = json.loads((saved / "kind" / "fit.json").read_text())
    auc = sheet["held_out"]["auc"]["value"]
    assert record["measured"] == {"texts": 400, "held_out": {"auc": auc}}
    page = (saved / "kind" / "README.md").read_text()
    assert "held-out AUC" in page and "AUC of TF-IDF" in page and "better than chance" in page
    assert fitted_on_chats(saved / "kind" / "guide") is False  # what compare warns by, in chats
    controller = Controller.from_pretrained(saved / "kind" / "guide")
    card = (saved / "kind" / "guide" / "README.md").read_text()
    assert "license: CC0" in card and "training_data: data.jsonl" in card
    assert isinstance(controller, ValueGuide) and controller.head.statement == STATEMENT
    assert sorted(path.name for path in (saved / "kind").iterdir()) == [
        "README.md",
        "config.json",
        "fit.json",
        "guide",
        "model.safetensors",
        "sheet.json",
    ]


def test_the_wrong_model_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match="fitted on the weights and the vocabulary of 'Llama"):
        ValueDiscriminator.load(saved / "kind", make_model(seed=1), make_tokenizer())
    with pytest.raises(ValueError, match="holds no value discriminator"):
        ValueDiscriminator.load(saved / "model")


def test_noise_is_not_better_than_chance() -> None:
    """Each AUC's interval is wide; their mean over shuffles is near .5."""
    reader, found = CausalReader(make_model(), make_tokenizer(), (1,)), []
    texts, _ = distinct(data(), None)
    states = reader.states(texts, STATEMENT).double().numpy()
    for seed in range(5):
        labels = np.random.default_rng(seed).permutation(np.arange(len(texts)) % 2 == 0)
        parts = split(texts, labels)
        found.append(fitted(reader, states, texts, labels, parts, STATEMENT).sheet)
    values = [sheet.held_out.auc.value for sheet in found]
    assert 0.42 < np.mean(values) < 0.58
    assert any("not better than chance" in sheet.finding for sheet in found)


def test_another_statement_is_unvalidated_and_gets_no_verdict(saved: Path) -> None:
    other = ValueDiscriminator.load(saved / "kind").about("w60 w61")
    assert not other.validated
    assert set(other.assess(["w1 w2", "w30 w31"]).verdicts) == {"undecided"}
    with pytest.raises(ValueError, match="it was fitted for"):
        other.save(saved / "other")


def test_a_fit_that_was_killed_reads_no_text_twice(tmp_path: Path, monkeypatch) -> None:
    class Killed(Exception):
        pass

    read: list[str] = []
    states = CausalReader.states

    def counted(self, texts, statement):
        if len(read) == 128:
            raise Killed
        read.extend(texts)
        return states(self, texts, statement)

    reader = CausalReader(make_model(), make_tokenizer(), (1,))
    monkeypatch.setattr(CausalReader, "states", counted)
    with pytest.raises(Killed):
        fit_value(reader, "nowhere", data(200), tmp_path / "v", statement=STATEMENT)
    assert not (tmp_path / "v").exists()
    deeper = CausalReader(make_model(), make_tokenizer(), (2,), max_tokens=9)
    with pytest.raises(ValueError, match=r"model\.layers was \[1\] and is \[2\]; model\.max_tok"):
        fit_value(deeper, "nowhere", data(200), tmp_path / "v", statement=STATEMENT)
    read.append("the second run")
    fit_value(reader, "nowhere", data(200), tmp_path / "v", statement=STATEMENT)
    assert len(read) == len(set(read)) == 201


def test_short_time_reads_fewer_texts_of_both_classes(tmp_path: Path) -> None:
    """As few as a discriminator can do with, the same ones each time."""
    found = []
    for name, minutes in (("a", 1e-9), ("b", 1e-9), ("all", None)):
        reader = CausalReader(make_model(), make_tokenizer(), (1,))
        out = tmp_path / name
        fit_value(reader, "x", data(2000), out, statement=STATEMENT, minutes=minutes)
        found.append((json.loads((out / "sheet.json").read_text()), out / "fit.json"))
    (first, fit), (second, _), (whole, _) = found
    assert first == second and json.loads(fit.read_text())["measured"]["texts"] == 128
    assert first["conforming"] == first["breaking"] == 64
    assert (first["learned"], first["calibrated"]) == (32, 64)
    assert whole["conforming"] == 1000 and whole["held_out"]["auc"]["value"] > 0.9


def test_a_rare_class_needs_more_texts_whatever_the_time() -> None:
    conforms = np.arange(4000) % 16 > 0
    texts = [f"w{i}" for i in range(4000)]
    order = reading_order(texts, conforms, seed=0)
    assert sorted(order.tolist()) == list(range(4000))
    assert not np.array_equal(order, reading_order(texts, conforms, seed=1))
    for count in (16, 160, 1000, 4000):
        assert abs((~conforms[order[:count]]).sum() - count / 16) <= 1
    labels = conforms[order]
    fewest = fewest_to_read(labels, 0.9)
    assert fewest == 1024
    split([texts[i] for i in order[:fewest]], labels[:fewest])
    assert fewest_to_read(labels[:300], 0.9) == 300


def test_what_was_read_is_enough_whatever_rounding_does() -> None:
    """Of 128 texts 19 break the value, and ten of them calibrate; of 129 too, but nine."""
    conforms = np.arange(2000) >= 294
    order = reading_order([f"w{i}" for i in range(2000)], conforms, seed=0)
    labels = conforms[order]
    assert fewest_to_read(labels, 0.9) == 128
    used = [most_to_use(labels[:count], 0.9) for count in range(128, 400)]
    assert used[:2] == [128, 128] and used[-1] == 399
    for count in set(used):
        split([f"w{i}" for i in order[:count]], labels[:count])


def test_a_slow_machine_reads_as_many_texts_as_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text takes a second, later three; what was learnt from does not grow afterwards."""
    clock, states, read = Simulated(monkeypatch), CausalReader.states, list[str]()

    def slow(self, texts, statement):
        clock.time += sum(1 if len(read) + i < 256 else 3 for i in range(len(texts)))
        read.extend(texts)
        return states(self, texts, statement)

    monkeypatch.setattr(CausalReader, "states", slow)
    reader, texts = CausalReader(make_model(), make_tokenizer(), (1,)), data(2000).texts
    path, time = tmp_path / "read", Clock(10)
    first = keep_pooled_states(reader, texts, STATEMENT, path, time, least=32)
    assert 570 <= clock.time <= 605 and len(first) == len(read) == 256 + (clock.time - 256) / 3
    again = keep_pooled_states(reader, texts, STATEMENT, path, Clock(1000), least=32)
    assert np.array_equal(first, again) and len(read) == len(first)


def test_too_few_texts_are_refused_before_work(tmp_path: Path) -> None:
    reader = CausalReader(make_model(), make_tokenizer(), (1,))
    with pytest.raises(ValueError, match="needs 128 different labelled texts"):
        fit_value(reader, "x", data(100), tmp_path / "v", statement=STATEMENT)
    with pytest.raises(ValueError, match=r"99 in the part that calibrates it at level 0\.99"):
        fit_value(reader, "x", data(200), tmp_path / "v", statement=STATEMENT, level=0.99)
    assert list(tmp_path.iterdir()) == []


def test_without_labels_it_is_unvalidated(saved: Path) -> None:
    reader = CausalReader(make_model(), make_tokenizer(), (1,))
    contrast = ValueContrast(STATEMENT, negated(STATEMENT), reader, str(saved / "model"))
    contrast.save(saved / "contrast")
    texts = ["w1 w2 w3", "w4"]
    judge = load_judge(str(saved / "contrast"))
    np.testing.assert_allclose(judge(texts), contrast(texts))
    assert "unvalidated" in (saved / "contrast" / "README.md").read_text()
    assert contrast.assess(texts).verdicts == ["undecided"] * 2


def test_the_contrast_is_that_of_the_likelihoods() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    found = ValueContrast("w5 w6", "w7", CausalReader(model, tokenizer, (1,)))

    def likelihood(text: str, end: str) -> float:
        front = tokenizer(f"Text: {text}\nStatement:")["input_ids"]
        ids = torch.tensor([front + tokenizer(end)["input_ids"]])
        with torch.no_grad():
            rows = model(input_ids=ids).logits.double().log_softmax(-1)[0, len(front) - 1 : -1]
        return float(rows.gather(1, ids[0, len(front) :, None]).sum())

    def contrast(text: str) -> float:
        return likelihood(text, "w5 w6") - likelihood(text, "w7")

    nothing = np.mean([contrast(text) for text in ("", "N/A", "[MASK]")])
    wanted = [contrast(text) - nothing for text in ("w1 w2 w3", "w4")]
    np.testing.assert_allclose(found.contrasts(["w1 w2 w3", "w4"]), wanted, atol=1e-4)


def test_an_encoder_reads_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=120, num_hidden_layers=2, num_attention_heads=2, **sizes)
    reader = EncoderReader(BertModel(config).eval(), make_tokenizer(), max_tokens=64)
    assert reader.states(["w1", "w2 w3 w4"], STATEMENT).shape == (2, 1, 16)
    texts, conforms = distinct(data(), None)
    states = reader.states(texts, STATEMENT).double().numpy()
    found = fitted(reader, states, texts, conforms, split(texts, conforms), STATEMENT)
    assert found.sheet.held_out.auc.low > 0.5
    near = ValueContrast("w1", "w2", reader).contrasts(["w1", "w2"])
    assert near[0] > 0 > near[1]
