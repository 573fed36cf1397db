"""Saved controllers: folders by the hub's conventions, dispatch by name."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

import plugalign as pa
from plugalign import pocket
from plugalign.adapters.layers import LoraLinear, shared_copy
from plugalign.algebra.class_names import CONTROLLERS
from plugalign.algebra.data_sheet import Provenance
from plugalign.algebra.identity import identify
from plugalign.algebra.saving import AGAIN
from plugalign.controllers.args import ARGS
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.fudge import Predictor
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm, union
from plugalign.controllers.mixing import MOD, DeRA
from plugalign.controllers.pplm import PPLM
from plugalign.controllers.rad import RAD
from plugalign.controllers.safe_decoding import SafeDecoding
from plugalign.controllers.value_head import ValueHead


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
    assert config == {"controller": "self_debias", "decay": 10.0, "floor": 0.01, "prefixes": ["x"]}


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


# ------------------------------------------------------------------ damaged folders


def equilibrium(head):
    table = pa.TokenTable(torch.rand(120))
    principles = [pa.Principle("a", head), pa.Principle("b", table, 0.1, controller=head)]
    learned = pa.Preferences({"c": table, "d": head}, torch.ones(2), torch.eye(2))
    return pa.Equilibrium(head, principles[::-1], learned)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder of each saved controller, by name."""
    root, (model, tokenizer) = tmp_path_factory.mktemp("saved"), pocket.load()
    for role in ("expert", "antiexpert"):
        model.save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
    torch.manual_seed(0)
    fitted, basis = identify(model, tokenizer), torch.linalg.qr(torch.randn(96, 3)).Q
    head = (torch.randn(96, 3), torch.randn(96, 3), torch.randn(120), torch.randn(96), 0.5)
    prefix, contrast = torch.randn(2, 2, 2, 2, 3, 8)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 120}
    reward = LlamaForSequenceClassification(
        LlamaConfig(**sizes, num_attention_heads=1, num_labels=1)
    )
    expert = lm(root / "expert")
    made = {
        "args": ARGS(reward),
        "composition": 0.5 * pa.SelfDebias(["x"]) + pa.SelfCritique(),
        "contrastive": ContrastiveDecoding(root / "expert"),
        "dera": DeRA(root / "expert", weight=1.5),
        "dexperts": pa.DExperts(root / "expert", root / "antiexpert", fitted_for=fitted),
        "equilibrium": equilibrium(FudgeHead(*head, fitted_for=fitted)),
        "fudge": pa.Fudge(Predictor(120, width=16, layers=1, heads=2), fitted_for=fitted),
        "fudge_head": FudgeHead(*head, fitted_for=fitted),
        "gedi": GeDi("x", "y", model=root / "expert", fitted_for=fitted),
        "gated": pa.SelfDebias(["x"]).when(pa.FirstSteps(2)),
        "lm_arithmetic": LMArithmetic(lm() - 0.5 * union(expert, lm(prompt="x"))),
        "mod": MOD({None: 0.5, root / "expert": 0.25, root / "antiexpert": 0.25}),
        "nullspace": pa.Nullspace(basis, basis, basis[:, 0], basis[:, 1], fitted_for=fitted),
        "pplm": PPLM(["x"], discriminator=torch.nn.Linear(96, 2), fitted_for=fitted),
        "prefix": pa.PrefixTuning(prefix, contrast, fitted_for=fitted),
        "prefix_contrast": pa.PrefixTuning(prefix, contrast, fitted_for=fitted).against(),
        "rad": RAD(reward, tokenizer=tokenizer),
        "safe_decoding": SafeDecoding(root / "expert", fitted_for=fitted),
        "self_critique": pa.SelfCritique(max_new_tokens=5),
        "self_debias": pa.SelfDebias(["x"]),
        "value_guide": pa.ValueGuide(ValueHead("x", 1, torch.randn(96), 0.5, fitted)),
        "value_statement": pa.ValueStatement("x"),
    }
    assert made.keys() == CONTROLLERS.keys()
    for name, controller in made.items():
        controller.save_pretrained(root / "controllers" / name)
    return root / "controllers"


@pytest.fixture(params=sorted(CONTROLLERS))
def folder(request, saved, tmp_path):
    """A saved controller that may be damaged."""
    shutil.copytree(saved / request.param, tmp_path / "it")
    return tmp_path / "it"


def assert_refused(folder, file, *words):
    """One clear error that names the folder, the file and the cure."""
    with pytest.raises(ValueError) as caught:
        pa.Controller.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder) in message and (file in message or "is damaged" in message), message
    assert any(cure in message for cure in (AGAIN, "known are", "put the file itself")), message
    assert "\n" not in message and len(message) < 700, message
    assert all(str(word) in message for word in words), message


def test_an_undamaged_folder_loads(folder):
    loaded = pa.Controller.from_pretrained(folder)
    again = folder.parent / "again"
    loaded.save_pretrained(again)
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).exists() == (again / name).exists()
        assert (
            not (again / name).exists()
            or (folder / name).read_bytes() == (again / name).read_bytes()
        )


NO_OBJECTS = (
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b'"x"',
    b"{'controller': 1}",
    b"\xff\xfe{}",
    b"[" * 20_000,
    b'{"controller": "fudge", "k": NaN}',
    b'{"controller": "\\ud800"}',
    b"{}",
    b'{"controller": 3}',
    b'{"controller": "no\\u001bthing"}',
    b'{"controller": ["self_debias"]}',
)


@pytest.mark.parametrize("content", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_a_config_that_is_none_is_refused(content, folder):
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, "config.json")


def test_unknown_missing_and_wrong_settings_are_refused_by_name(folder):
    path = folder / "config.json"
    whole = json.loads(path.read_text())

    def write(config):
        path.write_text(json.dumps(config))

    write({**whole, "magic": 1})
    assert_refused(folder, "config.json", "magic")
    for key in whole.keys() - {"controller", "parts"}:
        write({k: v for k, v in whole.items() if k != key})
        assert_refused(folder, "config.json", key)
        wrong = ({"a": [1]}, [[2]], True, float("nan"), float("inf"), -(10**400), ["x", 3])
        for value in wrong:
            if value is True and isinstance(whole[key], bool):
                continue
            write({**whole, key: value})
            assert_refused(folder, "config.json", key)
    if fitted := whole.get("fitted_for"):
        for value in ({}, {**fitted, "more": 1}, {**fitted, "probe": "x"}, {**fitted, "name": 3}):
            write({**whole, "fitted_for": value})
            assert_refused(folder, "config.json", "fitted_for")


def test_a_config_that_is_missing_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"{folder} holds no config\.json, so it is not a saved"):
        pa.Controller.from_pretrained(folder)


def test_damaged_tensors_are_refused_by_name(folder):
    path = folder / "model.safetensors"
    if not path.exists():
        save_file({"left": torch.ones(2)}, path)
        return assert_refused(folder, "model.safetensors", "'left' is unknown")
    content, tensors = path.read_bytes(), load_file(path)
    for damaged in (b"", content[:50], content[:-1], b"\xff" * 100, content + b"\0"):
        path.write_bytes(damaged)
        assert_refused(folder, "model.safetensors")
    save_file({**tensors, "more": torch.ones(2)}, path)
    assert_refused(folder, "model.safetensors", "more")
    needed = tensors.keys() - {"read", "center", "guide", "covariance"}
    for name in [n for n in needed if (n, folder_of(folder)) != ("contrast", "prefix")]:
        save_file({n: x for n, x in tensors.items() if n != name}, path)
        assert_refused(folder, "model.safetensors", name)
    for name, x in tensors.items():
        for wrong in (x[None].clone(), torch.full_like(x, float("nan")), x.long()):
            save_file({**tensors, name: wrong}, path)
            assert_refused(folder, "model.safetensors", name)
    path.unlink()
    return assert_refused(folder, "model.safetensors", "missing")


def folder_of(folder):
    return json.loads((folder / "config.json").read_text())["controller"]


# ------------------------------------------------------------------ parts, and what is beside them


@pytest.mark.parametrize("name", ["composition", "dexperts"])
def test_a_part_that_is_missing_or_elsewhere_is_refused(name, saved, tmp_path):
    parts = {"composition": ["part_0", "part_1"], "dexperts": ["expert", "antiexpert"]}[name]
    for i, part in enumerate(parts):
        folder = tmp_path / f"{i}"
        shutil.copytree(saved / name, folder)
        (folder / part).rename(tmp_path / f"away{i}")
        assert_refused(folder, part, f"lacks its part '{part}'")
        (folder / part).write_text("a file")
        assert_refused(folder, part, f"lacks its part '{part}'")
        (folder / part).unlink()
        (folder / part).symlink_to(tmp_path / f"away{i}")
        assert_refused(folder, part, "leads to", tmp_path / f"away{i}")
        (folder / part).unlink()
        (tmp_path / f"away{i}").rename(folder / part)
        (folder / part / "more.json").symlink_to("/etc/hostname")
        assert_refused(folder, part, "more.json leads to /etc/hostname")


def test_a_dexperts_folder_that_does_not_say_its_parts_has_those_that_are_there(saved, tmp_path):
    """As they were saved before config.json recorded them."""
    folder = tmp_path / "old"
    shutil.copytree(saved / "dexperts", folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("parts") == ["expert", "antiexpert"]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(folder / "expert")
    loaded = pa.Controller.from_pretrained(folder)
    assert loaded.expert is None and loaded.antiexpert == folder / "antiexpert"
    shutil.rmtree(folder / "antiexpert")
    assert_refused(folder, "is damaged", "an expert, an anti-expert, or both")


def test_what_lies_beside_is_not_looked_at(folder):
    for name in (".cache", ".git", ".ipynb_checkpoints", "notes", "part_9", "config"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{")
    (folder / "away").symlink_to("/")
    assert isinstance(pa.Controller.from_pretrained(folder), pa.Controller)


@pytest.mark.parametrize("part", ["/", "..", "../x", "~", "a/b/c", "", "C:\\x", "x" * 300])
def test_a_part_outside_the_folder_is_refused_by_name(part, saved, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(saved / "dexperts", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "expert": part, "parts": []}))
    for allowed in (False, True):
        with pytest.raises(ValueError, match=r"config\.json names '.*as its expert; a part lies"):
            pa.Controller.from_pretrained(folder, allow_hub_parts=allowed)


def test_a_model_on_the_hub_must_be_allowed_and_is_no_folder_here(tmp_path, monkeypatch):
    pa.DExperts("someone/expert", alpha=1.5).save_pretrained(tmp_path / "it")
    (tmp_path / "it" / "nested").mkdir()
    with pytest.raises(ValueError, match=r"names the model 'someone/expert' on the hub .*allow_h"):
        pa.Controller.from_pretrained(tmp_path / "it")
    loaded = pa.Controller.from_pretrained(tmp_path / "it", allow_hub_parts=True)
    assert loaded.expert == "someone/expert" and loaded.trust_remote_code is False
    trusting = pa.Controller.from_pretrained(
        tmp_path / "it", allow_hub_parts=True, trust_remote_code=True
    )
    assert trusting.trust_remote_code is True
    (tmp_path / "someone" / "expert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="names 'someone/expert' as its expert; a part lies in"):
        pa.Controller.from_pretrained(tmp_path / "it", allow_hub_parts=True)


@pytest.mark.parametrize("named", [{"expert": "some/one"}, {"parts": ["expert", "expert"]}])
def test_a_part_that_is_named_twice_is_refused(named, saved, tmp_path):
    shutil.copytree(saved / "dexperts", tmp_path / "it")
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    (tmp_path / "it" / "config.json").write_text(json.dumps({**config, **named}))
    with pytest.raises(ValueError, match=r"config\.json names its part 'expert' twice; save or"):
        pa.Controller.from_pretrained(tmp_path / "it", allow_hub_parts=True)


def test_a_folder_cannot_trust_itself(saved, tmp_path):
    shutil.copytree(saved / "dexperts", tmp_path / "it")
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    (tmp_path / "it" / "config.json").write_text(json.dumps({**config, "trust_remote_code": True}))
    assert_refused(tmp_path / "it", "config.json", "trust_remote_code")


def test_only_a_models_files_are_copied(saved, tmp_path):
    expert = tmp_path / "expert"
    shutil.copytree(saved / "dexperts" / "expert", expert)
    wanted = {path.name for path in expert.iterdir()}
    for name in (".git", "checkpoint-3"):
        (expert / name).mkdir()
        (expert / name / "config.json").write_text("{}")
    for name in ("training_args.bin", "id_rsa", ".env", "optimizer.pt"):
        (expert / name).write_text("secret")
    pa.DExperts(expert).save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved" / "expert").iterdir()} == wanted
    (expert / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"more\.json leads to /etc/hostname, outside of"):
        pa.DExperts(expert).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "expert" / "more.json").exists()
    with pytest.raises(ValueError, match=r"'.*nowhere' is no folder"):
        pa.DExperts(tmp_path / "nowhere").save_pretrained(tmp_path / "none")


def test_saving_over_itself_changes_nothing(saved, tmp_path):
    shutil.copytree(saved / "dexperts", tmp_path / "it")
    before = {p: p.read_bytes() for p in (tmp_path / "it").rglob("*.*") if p.is_file()}
    pa.Controller.from_pretrained(tmp_path / "it").save_pretrained(tmp_path / "it")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_saving_over_another_controller_leaves_nothing_of_it(tmp_path):
    basis = torch.linalg.qr(torch.randn(32, 3)).Q
    learned = pa.Nullspace(basis)
    learned.provenance = Provenance({"method": "nullspace", "data": {"texts": {"rude": 9}}})
    for number, folder in enumerate(("alone", "sum")):
        first, second = (c + number * pa.SelfDebias(["y"]) for c in (learned, pa.SelfDebias(["x"])))
        first.save_pretrained(tmp_path / folder)
        second.save_pretrained(tmp_path / folder)
        loaded = pa.Controller.from_pretrained(tmp_path / folder)
        for _, part in loaded.parts():
            assert isinstance(part, pa.SelfDebias) and part.provenance.fit is None


@pytest.mark.parametrize("given", ["a folder", "an object"])
def test_saving_over_an_adapter_leaves_nothing_of_it(given, tiny, tokenizer, tmp_path):
    base, expert = tiny(), tiny(seed=5)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny(), config).save_pretrained(tmp_path / "adapter")
    expert.save_pretrained(tmp_path / "whole")
    pa.DExperts(tmp_path / "adapter").save_pretrained(tmp_path / "it")
    (tmp_path / "it" / "expert" / "notes.txt").write_text("mine")
    whole = pa.DExperts(tmp_path / "whole" if given == "a folder" else expert)
    whole.save_pretrained(tmp_path / "it")
    loaded = pa.Controller.from_pretrained(tmp_path / "it")
    scores = [pa.wrap(base, tokenizer, c).log_probs(["w1 w2 w3"])[0] for c in (whole, loaded)]
    torch.testing.assert_close(*scores)
    assert (tmp_path / "it" / "expert" / "notes.txt").read_text() == "mine"
    pa.DExperts(tmp_path / "adapter").save_pretrained(tmp_path / "it")
    assert not (tmp_path / "it" / "expert" / "model.safetensors").exists()


def test_a_snapshot_of_the_hubs_cache_is_read_and_copied(saved, tmp_path):
    """Its files are links to blobs beside it."""
    repo = tmp_path / "models--someone--it"
    shutil.copytree(saved / "dexperts", repo / "snapshots" / "f00")
    (repo / "blobs").mkdir()
    for i, path in enumerate(p for p in (repo / "snapshots").rglob("*") if p.is_file()):
        path.rename(repo / "blobs" / f"{i}")
        path.symlink_to(repo / "blobs" / f"{i}")
    loaded = pa.Controller.from_pretrained(repo / "snapshots" / "f00")
    loaded.save_pretrained(tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    pa.Controller.from_pretrained(tmp_path / "copy")


def test_what_is_neither_a_folder_nor_an_id_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing here is no folder, and no id of the hub"):
        pa.Controller.from_pretrained(str(tmp_path / "nothing here"))


def test_an_adapter_without_its_folder_is_not_saved(tiny, tmp_path):
    expert = shared_copy(tiny())
    layer = LoraLinear(expert.model.layers[0].mlp.up_proj, torch.ones(32, 2), torch.ones(2, 48))
    expert.model.layers[0].mlp.up_proj = layer
    with pytest.raises(ValueError, match="the expert is a LoRA adapter around the base's weights"):
        pa.DExperts(expert).save_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore")  # the hub's own folder is not closed where saving fails
def test_what_is_pushed_is_what_is_saved(saved, tmp_path, monkeypatch):
    """Nothing else of an expert's folder, and nothing that a link there leads to."""
    pushed = []

    class Hub:
        def __init__(self, token=None): ...

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            found = Path(folder_path).rglob("*")
            pushed.extend(str(p.relative_to(folder_path)) for p in found if p.is_file())

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    expert = tmp_path / "expert"
    shutil.copytree(saved / "dexperts" / "expert", expert)
    (expert / "notes.md").write_text("mine")
    pa.DExperts(expert).push_to_hub("someone/it")
    of_expert = {f"expert/{path.name}" for path in (saved / "dexperts" / "expert").iterdir()}
    assert set(pushed) == {"README.md", "config.json", *of_expert}
    pushed.clear()
    (expert / "tokens.txt").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"tokens\.txt leads to /etc/hostname"):
        pa.DExperts(expert).push_to_hub("someone/it")
    assert not pushed
