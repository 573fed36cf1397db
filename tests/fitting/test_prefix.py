"""Contrastive prefixes: the loss against its formula, the likelihood against real prompts."""

import json

import numpy as np
import pytest
import torch
from tiny_models import make_chat_tokenizer

import plugalign as pa
from plugalign.fitting import budget
from plugalign.fitting.data import Labelled
from plugalign.fitting.labelled import Examples
from plugalign.fitting.prefix import contrastive_loss, fit_prefix
from plugalign.fitting.prefix_student import Prefixes, _start

GOOD = tuple(f"w{5 + i % 7} w{20 + i % 5} w{22} w{21} w{20 + i % 3}" for i in range(24))
BAD = tuple(f"w{5 + i % 7} w{60 + i % 5} w{62} w{61} w{60 + i % 3}" for i in range(24))
DATA = Labelled(GOOD + BAD, ("desired",) * 24 + ("undesired",) * 24)


def test_loss_follows_the_paper():
    nll, label = torch.tensor([[3.0, 9.0, 4.0], [5.0, 2.0, 4.5]]), torch.tensor([0, 1, 1])
    got = contrastive_loss(nll, label, w_d=0.3, w_g=0.7)
    likelihood = np.exp(-nll.double().numpy())
    share = likelihood / likelihood.sum(0)
    picked = (label.numpy(), np.arange(3))
    want = 0.3 * -np.log(share[picked]).mean() + 0.7 * nll.double().numpy()[picked].mean()
    assert float(got) == pytest.approx(want, rel=1e-6)


def test_before_training_a_prefix_is_the_text_it_starts_from(tiny, tokenizer, architecture):
    """The likelihood behind an untrained prefix is that behind the same tokens as a prompt."""
    model = tiny(architecture)
    texts = ([[5, 6, 7]], [[30, 31, 32]])
    prefixes = Prefixes(model, tokenizer, texts, length=5, width=8, seed=0)
    ids = torch.tensor([[40, 41, 42, 43], [50, 51, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    got = prefixes.nll(ids, mask).detach()
    for c, front in enumerate(([5, 6, 7, 5, 6], [30, 31, 32, 30, 31])):
        for row, length in enumerate((4, 2)):
            whole = front + ids[row, :length].tolist()
            with torch.no_grad():
                log_p = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            want = -sum(log_p[i - 1, whole[i]] for i in range(6, len(whole)))
            assert float(got[c, row]) == pytest.approx(float(want), rel=1e-4)


def test_fits_steers_and_leaves_the_model(tiny, tokenizer, tmp_path):
    model = tiny("gpt2-tied")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"steps": 25, "batch_size": 8, "lr": 5e-3, "prefix_length": 4, "width": 16}
    fitted = fit_prefix(model, tokenizer, DATA, tmp_path / "a", **options)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    again = fit_prefix(model, tokenizer, DATA, tmp_path / "b", **options)
    assert torch.equal(fitted.keys_values, again.keys_values)

    loaded = pa.Controller.from_pretrained(str(tmp_path / "a"))
    assert torch.equal(loaded.keys_values, fitted.keys_values)
    batch = tokenizer(["w6", "w9"], return_tensors="pt")
    texts = [
        pa.wrap(model, tokenizer, c).generate(**batch, max_new_tokens=5).tolist()
        for c in (fitted, loaded)
    ]
    assert texts[0] == texts[1]
    untrained = Prefixes(model, tokenizer, ([[5]], [[6]]), length=4, width=16, seed=0)
    ids = torch.tensor([tokenizer(GOOD[0])["input_ids"], tokenizer(BAD[0])["input_ids"]])
    ones = torch.ones_like(ids)
    start = untrained.nll(ids, ones).detach()
    with torch.no_grad():
        pair = torch.stack([fitted.keys_values, fitted.contrast])
        untrained.start = pair
        learned = untrained.nll(ids, ones).detach()
    assert learned[0, 0] < start[0, 0] and learned[1, 1] < start[1, 1]
    assert learned[0, 0] < learned[1, 0] and learned[1, 1] < learned[0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: .*greater than or equal to 1, got 0"),
        ({"prefix_length": -1}, "prefix_length: .*greater than or equal to 1, got -1"),
        ({"w_d": float("nan")}, "w_d: .*finite number"),
        ({"desired": "polite"}, "no text has the desired label 'polite'"),
    ],
)
def test_refuses_bad_settings(options, message, tiny, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit_prefix(tiny(), tokenizer, DATA, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_what_a_prefix_starts_from_begins_once(tiny):
    tokenizer, model, read = make_chat_tokenizer(bos=True), tiny(), []
    rows = tokenizer(["w1 w2", "w3", "w4 w5"])["input_ids"]
    begin = tokenizer.bos_token_id
    assert all(row[0] == begin for row in rows)
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    _start(model, tokenizer, rows, 5)
    hook.remove()
    assert read == [[begin, *(token for row in rows for token in row[1:])][:5]]


def test_a_short_fit_looks_at_fewer_held_out_texts(tiny, tokenizer, tmp_path, monkeypatch):
    """A tenth of 240 texts is held out; the AUC is of all of them. 15 steps read 240 texts."""
    monkeypatch.setattr(budget, "FEWEST", 10)
    texts = (f"{text} w{70 + i}" for side in (GOOD, BAD) for i in range(5) for text in side)
    data = Labelled(tuple(texts), ("desired",) * 120 + ("undesired",) * 120)
    options, found = {"batch_size": 16, "prefix_length": 4}, []
    for minutes, steps in ((1e-6, 15), (10.0, 15), (10.0, 3)):
        out = tmp_path / f"{minutes}-{steps}"
        fit_prefix(tiny(), tokenizer, data, out, minutes=minutes, steps=steps, **options)
        found.append(json.loads((out / "fit.json").read_text())["measured"]["held_out"])
    assert [each["texts"] for each in found] == [10, 24, 10]
    assert all(each["loss"] > 0 and 0 <= each["auc"] <= 1 for each in found)


def test_the_first_texts_have_the_shares_of_all():
    some = Examples([[i] for i in range(12)], [[50 + i] for i in range(4)]).first(8)
    assert some.rows == [[i] for i in range(6)] + [[50], [51]]
    assert some.labels.tolist() == [1.0] * 6 + [0.0] * 2
    assert len(Examples([[1]] * 31, [[2]]).first(10)) == 11


def test_texts_in_turn_have_both_classes_from_the_first_on():
    some = Examples([[i] for i in range(9)], [[50 + i] for i in range(3)]).alternating()
    assert [row[0] for row in some.rows] == [0, 50, 1, 2, 3, 51, 4, 5, 6, 52, 7, 8]
    first = some.up_to(6)
    assert first.rows == some.rows[:6]
    assert first.labels.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert first.weights.tolist() == [0.75, 1.5, 0.75, 0.75, 0.75, 1.5]
    assert first.sides() == ([[0], [1], [2], [3]], [[50], [51]])
