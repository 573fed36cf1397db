"""Experts by folder and hub id: whole models and adapters, each mistake with one clear error."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import plugalign as pa


@pytest.fixture
def whole(tiny, tokenizer, tmp_path):
    """The folder of a whole model with its tokenizer."""
    tiny(seed=1).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """Puts a folder into the hub's cache under an id, as a snapshot of links."""

    def put(folder, name):
        repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repo / "snapshots" / "f00").mkdir(parents=True)
        (repo / "blobs").mkdir()
        for path in folder.iterdir():
            path.rename(repo / "blobs" / path.name)
            link = repo / "snapshots" / "f00" / path.name
            link.symlink_to(f"../../blobs/{path.name}")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("f00")
        return repo / "snapshots" / "f00"

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return put


def test_a_folder_is_the_model_in_it(whole, tiny, assert_is):
    assert_is(tiny(), whole, tiny(seed=1))


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied"])
def test_a_folder_without_a_tokenizer_is_checked_by_its_width(
    architecture, tiny, tokenizer, tmp_path, assert_is
):
    tiny(architecture, seed=1).save_pretrained(tmp_path / "alone")
    assert_is(tiny(), tmp_path / "alone", tiny(architecture, seed=1))
    tiny(architecture, seed=1, vocab=90).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="'narrow' scores 90 tokens but 'LlamaForCausalLM' has"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path / "narrow"))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_the_hub_is_held_as_an_adapter(
    on_hub, tiny, tokenizer, save_adapter, by_peft, assert_is
):
    snapshot = on_hub(save_adapter(tiny()), "someone/adapter")
    base = tiny()
    assert_is(base, "someone/adapter", by_peft(tiny(), snapshot))
    (source,) = pa.wrap(base, tokenizer, pa.DExperts("someone/adapter")).plan.experts.values()
    own = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in source.parameters()} == own


def test_the_parent_of_a_named_adapter_says_where_it_is(tiny, tokenizer, tmp_path):
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"]), adapter_name="polite")
    model.add_adapter("rude", LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"nor an adapter \(.*\); give the folder of one of its "
        "adapters: polite, rude",
    ):
        pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path))
    pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path / "polite"))


def test_a_folder_of_nothing_is_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"holds neither a model \(config.json\) nor an adapter"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path))


def test_what_is_not_there_is_refused(tiny, tokenizer):
    with pytest.raises(ValueError, match="the expert 'no/such-model' cannot be loaded: "):
        pa.wrap(tiny(), tokenizer, pa.DExperts("no/such-model"))
    with pytest.raises(ValueError, match=r"expert '/no/such/model' .*: there is no such folder, a"):
        pa.wrap(tiny(), tokenizer, pa.DExperts("/no/such/model"))


def write(name, content):
    def change(folder):
        (folder / name).write_bytes(content)

    return change


def setting(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def drop_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "damage",
    [
        write("config.json", b"[1, 2]"),
        write("config.json", b"{"),
        write("config.json", b""),
        write("config.json", b"\xff\xfe"),
        write("config.json", b"[" * 20_000),
        write("config.json", b"{}"),
        setting(model_type=3),
        setting(model_type="nothing-known"),
        setting(hidden_size="wide"),
        setting(num_hidden_layers=3),
        setting(hidden_size=64),
        setting(vocab_size=-1),
        write("model.safetensors", b""),
        write("model.safetensors", b"\x08\0\0\0\0\0\0\0{"),
        remove("model.safetensors"),
        drop_a_weight,
        write("tokenizer.json", b"{}"),
        write("tokenizer.json", b"x"),
        write("tokenizer_config.json", b"[]"),
        remove("tokenizer.json"),
    ],
)
def test_a_damaged_folder_gives_one_error_that_names_it(damage, whole, tiny, tokenizer):
    damage(whole)
    with pytest.raises(ValueError) as caught:
        pa.wrap(tiny(), tokenizer, pa.DExperts(whole))
    message = str(caught.value)
    assert str(whole) in message and "\n" not in message and len(message) < 800
    assert "save the model and its tokenizer there again" in message or "tokenizers" in message


def test_code_that_comes_with_a_model_does_not_run(whole, tiny, tokenizer, tmp_path):
    setting(
        model_type="own-kind",
        auto_map={"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Model"},
    )(whole)
    (whole / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(whole))
    assert not (tmp_path / "ran").exists()
