"""The layout that keeps `kernels/` from shadowing Hugging Face's package of that name."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_kernels_is_no_top_level_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_transformers_imports_from_the_root_of_the_checkout():
    code = (
        "import plugalign.kernels.reweighting, plugalign.controllers.dexperts\n"
        "from transformers import LlamaForCausalLM, LlamaConfig\n"
        "LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        " num_attention_heads=1, vocab_size=8))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_plugalign_is_light():
    code = (
        "import sys, plugalign\n"
        "heavy = {'torch', 'transformers', 'triton', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_package_is_declared():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"plugalign", "plugalign.kernels", "plugalign.controllers"}
    for child in (ROOT / "plugalign").iterdir():
        if child.is_dir() and not child.is_symlink() and list(child.glob("*.py")):
            found.add(f"plugalign.{child.name}")
    assert set(config["packages"]) == found


@pytest.mark.parametrize("name", ["kernels", "controllers"])
def test_the_symlinks_lead_to_the_real_folders(name):
    link = ROOT / "plugalign" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


def test_public_names_resolve():
    import plugalign

    for name in plugalign.__all__:
        assert getattr(plugalign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Dexperts'"):
        _ = plugalign.Dexperts
