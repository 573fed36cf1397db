"""The script that measures what two LoRA experts take."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module("adapter_memory")


def test_what_is_added_is_the_adapters_own(script, tiny, tokenizer):
    base = tiny()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found = script.measured(base, tokenizer, rank=2)
    layers = [m for m in base.base_model.modules() if type(m).__name__ == "Linear"]
    own = sum(4 * 2 * (layer.in_features + layer.out_features) for layer in layers)
    assert 2 * own <= found["added"] < 2 * own + 20_000  # and buffers of the call
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())


@pytest.mark.slow
def test_two_experts_of_a_real_model_take_little_more_than_the_model(script, smollm2, tmp_path):
    out = tmp_path / "memory.json"
    script.main(str(smollm2), out=out)  # typer.Exit above 1.15
    assert 1 < json.loads(out.read_text())["ratio"] <= 1.15
