"""The layout that keeps `kernels/` from shadowing Hugging Face's package of that name."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
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
    found = {"plugalign.kernels", "plugalign.kernels.terms", "plugalign.controllers"}
    for path in (ROOT / "plugalign").rglob("*.py"):
        inside = path.parent.relative_to(ROOT / "plugalign").parts
        if inside[:1] not in (("kernels",), ("controllers",)):  # the links of a checkout
            found.add(".".join(("plugalign", *inside)))
    assert set(config["packages"]) == found


def imported(root):
    """The top-level packages that a folder's modules import, anywhere in them."""

    def modules(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    yield from (name.name for name in names)
                case ast.ImportFrom(module=str(module), level=0):
                    yield module
                case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(name)]):
                    yield name

    found = {name.split(".")[0] for path in root.rglob("*.py") for name in modules(path)}
    return found - set(sys.stdlib_module_names) - {"plugalign"}


def declared(*extras):
    """The names in pyproject's requirements, as import names: PyYAML is yaml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    names = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    return names - {"plugalign"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    distributions = {
        module: {plain(name) for name in names}
        for module, names in packages_distributions().items()
    }
    found = set()
    for folder in ("plugalign", "controllers", "kernels"):
        for module in imported(ROOT / folder):
            found |= distributions[module]
    assert "pyyaml" in found and "torch" in found
    assert found == declared("train", "report")


def test_lower_bounds_are_pinned_versions_or_older():
    """Every dependency has a lower bound, and constraints.txt a version that fits it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {plain(name): version for name, version in pinned.items()}
    for requirement in [*project["dependencies"], *extras["train"], *extras["report"]]:
        name, bound = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        newest, lowest = ([int(n) for n in v.split(".")] for v in (pinned[plain(name)], bound))
        assert newest >= lowest, requirement


@pytest.mark.parametrize("name", ["kernels", "controllers"])
def test_the_symlinks_lead_to_the_real_folders(name):
    link = ROOT / "plugalign" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


def test_public_names_resolve():
    import plugalign

    assert len(set(plugalign.__all__)) == len(plugalign.__all__)
    for name in plugalign.__all__:
        assert getattr(plugalign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Dexperts'"):
        _ = plugalign.Dexperts


def test_no_module_hides_a_public_name():
    """An import of ``plugalign.fit`` would put a module in the place of the function."""
    import plugalign

    inside = {path.stem for path in (ROOT / "plugalign").iterdir()}
    assert not inside & set(plugalign.__all__)


def typed_names():
    """What type checkers see in the package: its names, with the modules that they come from."""
    tree = ast.parse((ROOT / "plugalign" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    return {alias.name: node.module for node in imports for alias in node.names}


def test_type_checkers_see_the_names_that_the_catalogue_exports():
    import plugalign
    from plugalign.catalogue import EXPORTS, GATED_BY, METHODS

    assert typed_names().keys() == set(plugalign.__all__) - {"__version__"}
    assert EXPORTS.items() <= typed_names().items()
    assert {each.kind for each in (*METHODS, *GATED_BY)} <= EXPORTS.keys()
    for name, module in typed_names().items():
        assert getattr(plugalign, name) is getattr(importlib.import_module(module), name)


def test_the_readme_has_every_method_of_the_catalogue():
    from plugalign.catalogue import METHODS

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Methods\n")[1]
    rows = [line for line in section.strip().split("\n\n")[0].splitlines() if line.startswith("|")]
    assert rows[0].startswith("| method | name |")
    named = re.findall(r"`(\w+)`", "\n".join(rows))
    assert sorted(named) == sorted(method.name for method in METHODS)


def test_no_code_is_kept_from_the_formatter():
    folders = ("plugalign", "controllers", "kernels", "benchmarks", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    kept = re.compile(r"#\s*(fmt|yapf):")
    assert [file for file in files if kept.search(file.read_text(encoding="utf-8"))] == []
