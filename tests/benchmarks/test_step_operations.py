"""Which kind an operation is, and that the parts of a step add up."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step_operations")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "weights"),
        ("mkldnn::_linear_pointwise", "weights"),
        ("mkldnn::_reorder_linear_weight", "packing"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::as_strided", "views"),
        ("aten::sort", "draw"),
        ("aten::rsqrt", "norms, activations, rest"),
    ],
)
def test_an_operation_has_a_kind(name: str, kind: str, script: Any) -> None:
    assert script.kind_of(name) == kind


def test_the_parts_are_the_step(script: Any) -> None:
    x, calls = torch.randn(64, 64), list[int]()

    def call() -> None:
        calls.append(1)
        (x @ x).sort()

    found = script.operations(call, tokens=2)
    assert len(calls) == script.WARMING + 2
    assert found["weights"] > 0 < found["draw"]
    total = found.pop(script.TOTAL)
    assert sum(found.values()) == pytest.approx(total)
