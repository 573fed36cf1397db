"""Bad command lines, specs and data files by the hundred: each is one line that names the value.

Seeded generators (`inputs`, `values`) draw what people get wrong. PLUGALIGN_CAMPAIGN says how many
are drawn (300 by default, thousands on demand), PLUGALIGN_CAMPAIGN_SEED which:

    PLUGALIGN_CAMPAIGN=5000 PLUGALIGN_CAMPAIGN_SEED=3 pytest tests/campaign

None may be a traceback, none may be accepted, none may begin the work.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import campaign_inputs as inputs
import campaign_values as values
import pytest

import plugalign as pa
from plugalign import cli
from plugalign.controllers.self_debias import SelfDebias
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.files.shown import UNSAFE
from plugalign.values.account.tracing import trace

COUNT = int(os.environ.get("PLUGALIGN_CAMPAIGN", "300"))
SEED = int(os.environ.get("PLUGALIGN_CAMPAIGN_SEED", "0"))


@pytest.fixture
def world(tiny: Any, tokenizer: Any, tmp_path: Path) -> Any:
    folder = tmp_path / "world"
    tiny().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    LinearJudge.fit(["kind", "fool"], [0, 1], n_features=64).save(folder / "judge")
    SelfDebias(["w5"]).save_pretrained(folder / "debias")
    table = pa.TokenTable.of_words(["w6"], tiny(), tokenizer)
    principles, preferences = [pa.Principle("rude", table)], pa.Preferences({"kind": table})
    pa.Equilibrium(None, principles, preferences, k=60).save_pretrained(folder / "equilibrium")
    given = {"prompt": "w1", "chosen": " w6", "rejected": " w5"}
    (folder / "pairs.jsonl").write_text(json.dumps(given) + "\n")
    task = {"question": "w1", "choices": ["w2", "w3"], "answer": 1}
    (folder / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    traced: dict[str, Any] = {"out": folder / "traced", "max_new_tokens": 1}
    trace({"debias": folder / "debias"}, model=folder / "model", prompts=["w1"], **traced)
    rows = [{"text": f"w{n} w{n + 1}", "label": n % 2, "score": n / 40} for n in range(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data.jsonl").write_text(lines)
    return inputs.World(folder)


def outcome(
    case: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str | None:
    """What is wrong with the answer to a case, None if nothing is."""
    monkeypatch.setattr(sys, "argv", ["plugalign", *case.arguments])
    try:
        cli.main()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    shown = capsys.readouterr()
    # What is being loaded is said before it can fail.
    lines = [line for line in shown.err.splitlines() if not line.startswith("loading ")]
    if code != 2:
        return f"accepted with code {code}: {shown.out[-300:]} {shown.err[-300:]}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not one line: {shown.err!r}"
    if UNSAFE.search(lines[0]) or len(lines[0]) > 2100:
        return f"not printable, or too long: {lines[0]!r}"
    if "[Errno" in lines[0] or "codec" in lines[0]:
        return f"raw: {lines[0]!r}"
    return None if case.says in lines[0] else f"does not say {case.says!r}: {lines[0]!r}"


def test_bad_inputs_are_one_line_that_names_the_value(
    world: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(SEED)
    tried: Counter[str] = Counter()
    wrong: set[str] = set()
    for _ in range(COUNT):
        case = rng.choice([*inputs.KINDS, *values.KINDS])(rng, world)
        tried[case.kind] += 1
        fault = outcome(case, monkeypatch, capsys)
        if (world.folder / "out").exists():
            fault = f"began the work; {fault}"
            shutil.move(world.folder / "out", world.folder / f"out-{len(wrong)}")
        if fault is not None:
            wrong.add(f"{case.kind}: {' '.join(map(ascii, case.arguments))[-200:]}\n    {fault}")
    assert not wrong, f"{len(wrong)} kinds among {COUNT}:\n" + "\n".join(sorted(wrong))
    assert len(tried) >= min(COUNT // 20, 15), tried
