"""transformers' own generation tests, with every ``generate`` under a controller.

They are in no release of transformers, and not in this repository: PLUGALIGN_TRANSFORMERS_TESTS
names a checkout of the installed version.

    PLUGALIGN_TRANSFORMERS_TESTS=DIR pytest tests/contract
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import GenerationMixin, testing_utils

VARIABLE = "PLUGALIGN_TRANSFORMERS_TESTS"
CLASSES = {
    "llama": "LlamaModelTest",
    "gpt2": "GPT2ModelTest",
    "gpt_neox": "GPTNeoXModelTest",
    "qwen3": "Qwen3ModelTest",
    "gemma3": "Gemma3TextModelTest",
    "mistral": "MistralModelTest",
    "opt": "OPTModelTest",
    "mamba": "MambaModelTest",
    "jamba": "JambaModelTest",
    "bamba": "BambaModelTest",
}
CONTROLLERS = ("zero", "inactive", "acting")


def pytest_configure(config: Any) -> None:
    """Declares the markers of their tests, which are as strict here as ours."""
    if VARIABLE not in os.environ:
        return
    files = [Path(testing_utils.__file__), *Path(os.environ[VARIABLE], "tests").rglob("*.py")]
    used = {mark for file in files for mark in re.findall(r"mark\.(\w+)", file.read_text("utf-8"))}
    for mark in used:
        config.addinivalue_line("markers", f"{mark}: of transformers' tests")


def pytest_generate_tests(metafunc: Any) -> None:
    """One test for each architecture, kind of controller and test of the mixin."""
    if "borrowed" not in metafunc.fixturenames:
        return
    if VARIABLE not in os.environ:
        why = f"needs {VARIABLE}, the folder of a checkout of transformers"
        absent = pytest.param(None, None, marks=pytest.mark.skip(reason=why), id="no checkout")
        metafunc.parametrize(("kind", "borrowed"), [absent])
        return
    cases = [
        pytest.param(kind, case, id=f"{name}-{kind}-{case._testMethodName}")
        for name in CLASSES
        for case in borrowed_from(Path(os.environ[VARIABLE]), name)
        for kind in CONTROLLERS
    ]
    metafunc.parametrize(("kind", "borrowed"), cases)


def borrowed_from(checkout: Path, name: str) -> list[Any]:
    """A model's generation tests in a checkout, as ``unittest`` cases."""
    _make_importable(checkout)
    module = importlib.import_module(f"tests.models.{name}.test_modeling_{name}")
    kind = getattr(module, CLASSES[name])
    marked = [
        method
        for method in sorted(dir(kind))
        if any(mark.name == "generate" for mark in getattr(getattr(kind, method), "pytestmark", ()))
    ]
    return [kind(method) for method in marked if method.startswith("test_")]


def _make_importable(checkout: Path) -> None:
    """Their tests are a package ``tests``, and pytest may have made one of this folder's parent."""
    folder = str(checkout / "tests")
    package = sys.modules.setdefault("tests", ModuleType("tests"))
    places = list(getattr(package, "__path__", ()))
    if folder not in places:
        package.__path__ = [*places, folder]
        sys.path.append(str(checkout))


@pytest.fixture
def steering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``steering(call)``: ``generate`` of any model is ``call(plain, model, args, options)``,
    where ``plain`` is its own; undone after the test."""
    plain = GenerationMixin.generate

    def go(call: Any) -> None:
        inside: list[bool] = []

        def generate(model: Any, *args: Any, **options: Any) -> Any:
            if inside:  # of a call from inside of a call, as by an assistant
                return plain(model, *args, **options)
            inside.append(True)
            try:
                return call(plain, model, args, options)
            finally:
                inside.clear()

        monkeypatch.setattr(GenerationMixin, "generate", generate)

    return go
