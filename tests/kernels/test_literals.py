"""No number in a Triton kernel is one that Triton takes for a float64.

A literal that is no normal float32 becomes a float64: some versions of Triton then refuse the
kernel, because a variable changes its type, and the others compute in float64, which is slow.
"""

from __future__ import annotations

import ast
import importlib
import math
from pathlib import Path
from typing import Any

import pytest

tl = pytest.importorskip("triton.language")

KERNELS = Path(__file__).parents[2] / "kernels"
IN_FLOAT64 = {"projection_triton.py"}  # compute in float64 throughout
FILES = sorted(path for path in KERNELS.rglob("*_triton.py") if path.name not in IN_FLOAT64)
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the normal float32 numbers
PARTS = (ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load)


class Floats(ast.NodeVisitor):
    """The numbers that a compiler folds: the largest expressions of constants.

    Args:
        known: the numbers that names of the module stand for.
    """

    def __init__(self, known: dict[str, Any]):
        self.known = known
        self.found: list[tuple[int, float]] = []

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr) and all(isinstance(part, PARTS) for part in ast.walk(node)):
            try:
                value = eval(compile(ast.Expression(node), "", "eval"), dict(self.known))
            except (NameError, TypeError):  # an argument, or text
                self.generic_visit(node)
                return
            if isinstance(value, float):
                self.found.append((node.lineno, value))
        else:
            self.generic_visit(node)


def widened(text: str, module: dict[str, Any]) -> list[tuple[int, float]]:
    """Lines and values of the floats that Triton would not take for a float32.

    Args:
        text: a module's source.
        module: its names, of which constants and those in `tl.constexpr` count.
    """
    values = {name: getattr(value, "value", value) for name, value in module.items()}
    known = {name: value for name, value in values.items() if type(value) in (int, float)}
    floats = Floats(known)
    floats.visit(ast.parse(text))
    named = [(0, value) for name, value in known.items() if isinstance(module[name], tl.constexpr)]
    return [
        (line, value)
        for line, value in floats.found + named
        if value and math.isfinite(value) and not SMALLEST <= abs(value) <= LARGEST
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_float_is_a_float32(file):
    name = ".".join(file.relative_to(KERNELS).with_suffix("").parts)
    module = importlib.import_module(f"plugalign.kernels.{name}")
    assert widened(file.read_text(), vars(module)) == []


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x = tl.maximum(t, 1e-38)", 1e-38),
        ("x = t + -1e-39", -1e-39),
        ("x = t * 2.0**-127", 2.0**-127),
        ("x = t * (TINY / 2)", 2.0**-127),
        ("x = t * (HALF * TINY * t)", 2.0**-127),
        ("LEAST = tl.constexpr(TINY / 4)", 2.0**-128),
        ("x = t * 1e39", 1e39),
    ],
)
def test_others_are_found(line, value):
    names = {"TINY": tl.constexpr(SMALLEST), "HALF": 0.5}
    assert value in [found for _, found in widened(f"y = 1.0\n{line}\n", names)]


def test_a_computed_constexpr_is_found():
    assert widened("LEAST = tl.constexpr(smallest())", {"LEAST": tl.constexpr(1e-40)}) == [
        (0, 1e-40)
    ]


@pytest.mark.parametrize("line", ["x = y + 0.0", "x = y * 2.0**-126", "x = 3e38", "x = 7", "x = z"])
def test_normal_numbers_pass(line):
    assert widened(line, {"z": float("inf"), "name": "text"}) == []
