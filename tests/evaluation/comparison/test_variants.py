"""Settings of the caller's: one changes a method, several make rows; errors name value and cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plugalign as pa
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.comparison.variants import MOST, named_settings, varied
from plugalign.evaluation.run_folder.folder import read_json


@pytest.fixture
def controllers() -> dict[str, Any]:
    return {"debias": pa.SelfDebias(["w5"]), "other.one": pa.SelfDebias(["w6"], decay=3.0)}


def test_one_value_changes_a_method_and_several_make_rows(controllers: Any) -> None:
    found = varied(controllers, {"other.one.floor": "0.5", "debias.decay": [0, "1", 2.5]})
    assert list(found) == ["debias[decay=0]", "debias[decay=1]", "debias[decay=2.5]", "other.one"]
    assert [c.decay for c in found.values()] == [0.0, 1.0, 2.5, 3.0]
    assert found["other.one"].floor == 0.5 and controllers["other.one"].floor == 0.01
    assert [c.prefixes for c in found.values()] == [("w5",)] * 3 + [("w6",)]


def test_rows_are_named_by_what_differs(controllers: Any) -> None:
    several = {"debias.decay": [1, 2], "debias.floor": [0.1, 1], "other.one.decay": [7]}
    assert list(varied(controllers, several)) == [
        "debias[decay=1,floor=0.1]",
        "debias[decay=1,floor=1]",
        "debias[decay=2,floor=0.1]",
        "debias[decay=2,floor=1]",
        "other.one",
    ]
    alone = varied(controllers, {"debias.decay": [1, 2], "debias.floor": 0.1})
    assert list(alone)[:2] == ["debias[decay=1]", "debias[decay=2]"]
    assert {c.floor for c in list(alone.values())[:2]} == {0.1}


def test_without_settings_nothing_is_made_anew(controllers: Any) -> None:
    found = varied(controllers, {})
    assert all(found[name] is controllers[name] for name in controllers)


def test_texts_are_read_as_what_the_setting_is() -> None:
    critique = {"critique": pa.SelfCritique()}
    settings = {"critique.rounds": "2", "critique.refine": "3", "critique.max_new_tokens": "null"}
    found = varied(critique, settings)["critique"]
    assert (found.rounds, found.refine, found.max_new_tokens) == (2, "3", None)


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"shout.alpha": 1}, "of the method 'shout', which is not compared; compared are debias, oth"),
    ({"decay": 1}, "a setting is named METHOD.SETTING, as in dexperts.alpha, got 'decay'"),
    ({"debias.": 1}, "a setting is named METHOD.SETTING"),
    ({"debias.decai": 1}, "debias cannot have decai=1: SelfDebias has no setting 'decai'; known "),
    ({"debias.decay": "x"}, "debias.decay: input should be a valid number.*, got 'x'"),
    ({"debias.decay": ["1", "x"]}, "debias.decay: input should be a valid number.*, got 'x'"),
    ({"debias.decay": "nan"}, "cannot have decay=nan: decay: input should be a finite number"),
    ({"debias.decay": {"a": 1}}, "debias cannot have decay={'a': 1}: decay: input should be a "),
    ({"debias.floor": [0.5, 3]}, r"cannot have floor=3: the floor must lie in \(0, 1\], got 3"),
    ({"debias.decay": []}, "debias.decay has no value; give at least one"),
    ({"debias.decay": [1, "1.0"]}, r"debias\[decay=1\] stands there twice; give each value once"),
    ({"debias.decay": list(range(MOST + 1))}, "make 101 rows, more than 100; give fewer"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_refuses_what_cannot_be(controllers: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        varied(controllers, settings)


def test_a_row_cannot_take_the_name_of_another_controller(controllers: Any) -> None:
    clash = controllers | {"debias[decay=1]": pa.SelfDebias(["w7"])}
    with pytest.raises(ValueError, match="two rows are called"):
        varied(clash, {"debias.decay": [1, 2]})


def test_methods_may_bring_their_settings() -> None:
    methods = {"debias": {"decay": [0, 1]}, "base": {}}
    found = named_settings(methods, {"debias.floor": 1})
    assert found == (["debias", "base"], {"debias.floor": 1, "debias.decay": [0, 1]})
    assert named_settings(None, None) == (None, {})
    with pytest.raises(ValueError, match=r"debias\.decay is set twice; keep one"):
        named_settings(methods, {"debias.decay": 1})


def test_a_sweep_is_rows_of_a_comparison(
    tiny: Any, tokenizer: Any, controllers: Any, tmp_path: Path
) -> None:
    summary = compare(
        tiny(),
        tokenizer,
        methods={"debias": {"decay": [0, 50]}},
        controllers=controllers,
        prompts=["w1 w2", "w3"],
        judges=[lambda texts: [len(t) / 100 for t in texts]],
        samples=2,
        max_new_tokens=4,
        threads=1,
        out=tmp_path,
    ).summary
    assert list(summary["methods"]) == ["base", "debias[decay=0]", "debias[decay=50]"]
    manifest = read_json(tmp_path / "manifest.json")
    methods = manifest["settings"]["methods"]
    assert [methods[f"debias[decay={n}]"]["config"]["decay"] for n in (0, 50)] == [0, 50]
    assert manifest["conditions"]["threads"] == 1
    assert manifest["settings"]["model"]["dtype"] == "float32"
    tokens: dict[str, list[Any]] = {}
    for line in (tmp_path / "generations.jsonl").read_text().splitlines():
        record = json.loads(line)
        tokens.setdefault(record["method"], []).append(record["tokens"])
    assert tokens["debias[decay=0]"] == tokens["base"] != tokens["debias[decay=50]"]


def test_a_wrong_setting_is_found_before_any_work(
    tiny: Any, tokenizer: Any, controllers: Any, tmp_path: Path
) -> None:
    world: dict[str, Any] = {"controllers": controllers, "prompts": ["w1"], "judges": [len]}
    with pytest.raises(ValueError, match="has no setting 'alpha'"):
        compare(tiny(), tokenizer, **world, settings={"debias.alpha": 1}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
