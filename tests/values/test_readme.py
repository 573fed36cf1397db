"""The README's example of an equilibrium of values runs as it is written, on the pocket world."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import plugalign as pa
from plugalign import pocket
from plugalign.fitting.data import Labelled
from plugalign.fitting.value import FEWEST, fit_value
from plugalign.pocket import world
from plugalign.values.discriminator.readers import CausalReader
from plugalign.values.feedback_learning import teach

README = Path(__file__).resolve().parents[2] / "README.md"


def test_values_make_an_equilibrium_that_feedback_teaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.read_text(encoding="utf-8").split("\n## Values\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    model, tokenizer = pocket.load()
    sample = world.judge_sample(FEWEST + 32, world.GUIDE_SEED)
    texts, labels = zip(*((text, str(int(label == "rude"))) for text, label in sample), strict=True)
    monkeypatch.chdir(tmp_path)
    for name in ("respect", "warm"):
        reader = CausalReader(model, tokenizer, (1,))
        fit_value(reader, "pocket", Labelled(texts, labels), Path(name), statement=f"It is {name}.")
    names: dict[str, Any] = {}
    exec(compile(example, str(README), "exec"), names)
    pair = re.search(r"`pairs\.jsonl` is `(\{.*?\})`", section)
    assert pair is not None
    Path("pairs.jsonl").write_text(json.dumps(json.loads(pair[1])) + "\n")
    taught = teach("mine", "pairs.jsonl")
    assert taught.history[-1].outside < 1
    assert taught.history[-1].feedback.pairs == 1 and set(taught.history[-1].theta) == {"warm"}
    ids = tokenizer("The nurse was", return_tensors="pt")
    mine = pa.load("mine")
    for controller in (names["gated"], mine):
        found = pa.wrap(model, tokenizer, controller).generate(**ids, max_new_tokens=3)
        assert found.shape[1] > ids["input_ids"].shape[1]
