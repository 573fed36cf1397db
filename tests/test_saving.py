"""Saved controllers: folders by the hub's conventions, dispatch by name."""

import json

import pytest

import plugalign as pa
from plugalign.saving import CONTROLLERS


def test_a_sum_saves_its_parts(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    for role, seed in (("good", 1), ("bad", 2)):
        tiny(seed=seed).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    whole = 0.5 * pa.DExperts(tmp_path / "good", tmp_path / "bad") + pa.SelfDebias(["w5"])
    whole.save_pretrained(tmp_path / "sum")
    loaded = pa.Controller.from_pretrained(str(tmp_path / "sum"))
    assert [w for w, _ in loaded.parts()] == [w for w, _ in whole.parts()]
    texts = [
        pa.wrap(model, tokenizer, c).generate(**batch, max_new_tokens=5) for c in (whole, loaded)
    ]
    assert texts[0].tolist() == texts[1].tolist()


def test_config_names_the_controller(tmp_path):
    pa.SelfDebias(["x"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"controller": "self_debias", "decay": 50.0, "floor": 0.01, "prefixes": ["x"]}


def test_every_known_name_is_the_class_that_carries_it():
    import importlib

    for name, (module, attribute) in CONTROLLERS.items():
        assert getattr(importlib.import_module(module), attribute).name == name


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no config.json"),
        ({"config.json": "{}"}, "names the controller None; known are args, composition"),
        ({"config.json": '{"controller": "magic"}'}, "names the controller 'magic'"),
    ],
)
def test_refuses_what_is_no_controller(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        pa.Controller.from_pretrained(str(tmp_path))


def test_loading_as_the_wrong_class_says_so(tmp_path):
    pa.SelfDebias(["x"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a SelfDebias, not a DExperts"):
        pa.DExperts.from_pretrained(str(tmp_path))
