"""The script that tells how much of a draft stays."""

import importlib
import json
from pathlib import Path

import pytest

import plugalign as pa

SUITE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module("bench_speculation")


def test_every_method_and_draft_is_measured(script, tiny, tokenizer, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out.json"
    tiny().save_pretrained(model)
    tokenizer.save_pretrained(model)
    pa.SelfDebias(["w5 w6"]).save_pretrained(tmp_path / "debias")
    lines = [json.dumps({"prompt": text}) for text in ("w3 w4 w3 w4", "w7 w8")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    script.main(
        str(model),
        tmp_path / "prompts.jsonl",
        [f"debias={tmp_path / 'debias'}"],
        out,
        tokens=3,
        limit=2,
        new_tokens=9,
    )
    rows = json.loads(out.read_text())["rows"]
    assert [(row["method"], row["draft"]) for row in rows] == [
        ("debias", "base"),
        ("debias", "prompt"),
    ]
    assert 0 <= rows[0]["kept"] < 1 and 1 <= rows[0]["emitted"] <= 4 and rows[0]["ratio"] > 0
    assert "tokens a round" in capsys.readouterr().out
