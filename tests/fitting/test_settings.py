"""Typed settings: what every fitter takes, and one clear error for what it does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from plugalign.fitting.command import FITTERS, fitter, parse_settings
from plugalign.fitting.data import Labelled
from plugalign.fitting.settings import settings_of, validated


@pytest.mark.parametrize(
    ("method", "pair", "message"),
    [
        ("fudge", "lr=nan", r"lr: .*finite number.*got 'nan'; its default is 0\.001"),
        ("fudge", "lr=inf", "lr: .*got 'inf'"),
        ("fudge", "lr=0", "lr: .*greater than 0, got '0'"),
        ("fudge", "steps=1.5", r"steps: .*valid integer.*got '1\.5'; its default is 800"),
        ("fudge", "steps=null", "steps: .*valid integer, got None; its default is 800"),
        ("fudge", "steps=", "steps: .*valid integer.*got ''"),
        ("fudge", "steps=-3", "steps: .*greater than or equal to 1, got '-3'"),
        ("fudge_head", "rank=1e9", "rank: .*valid integer.*got '1e9'; its default is 32"),
        ("fudge_head", "rank=1000000000", "rank: .*less than or equal to 4096"),
        ("dexperts", "top_p=abc", "top_p: .*valid number.*got 'abc'"),
        ("dexperts_lora", "lora=false", "with a setting of dexperts_lora"),
        ("nullspace", "variant=lace", "variant: .*'leace', 'inlp', 'a-inlp' or 'direction'"),
        ("nullspace", "pairs=[[she, he], [her]]", "pairs: "),
        ("nullspace", "pairs=[[", "pairs: "),
        ("prefix", "width=[1, 2]", "width: .*valid integer"),
        ("prefix", "steps", "--set takes NAME=VALUE"),
        ("prefix", "=3", "--set takes NAME=VALUE"),
        ("prefix", "minutes=3", "with a setting of prefix"),
        ("prefix", "seed=" + "9" * 400, "seed: "),
    ],
)
def test_what_a_setting_cannot_be_is_named(method: str, pair: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_settings(method, [pair])
    assert len(str(caught.value)) < 500


def test_values_become_what_the_setting_is() -> None:
    given = ["steps=30", "lr=5e-4", "alpha=1", "seed=0", "top_p=1"]
    found = parse_settings("dexperts_lora", given)
    assert found == {"steps": 30, "lr": 5e-4, "alpha": 1.0, "seed": 0, "top_p": 1.0}
    assert [type(value) for value in found.values()] == [int, float, float, int, float]
    assert parse_settings("dexperts", ["lr=null"]) == {"lr": None}
    pairs = parse_settings("nullspace", ["pairs=[[she, he], [her, his]]"])["pairs"]
    assert [tuple(pair) for pair in pairs] == [("she", "he"), ("her", "his")]


def test_an_unknown_setting_lists_those_there_are() -> None:
    function, _ = fitter("fudge")
    with pytest.raises(ValueError, match=r"unknown setting 'widht'; known are .*desired, width"):
        validated(function, {"widht": 3})
    with pytest.raises(ValueError, match="those that learn are args, dexperts"):
        fitter("dexpert")
    with pytest.raises(ValueError, match="nothing to fit"):
        fitter("self_debias")


@pytest.mark.parametrize("method", FITTERS)
def test_a_model_in_training_mode_is_refused(
    method: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    data = Labelled(tuple(f"w{i} w{i}" for i in range(60)), tuple("01"[i % 2] for i in range(60)))
    function, fixed = fitter(method)
    with pytest.raises(ValueError, match=r"is in training mode; call model\.eval\(\) first"):
        function(tiny().train(), tokenizer, data, tmp_path / "out", **fixed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", FITTERS)
def test_the_defaults_of_every_fitter_pass_its_own_check(method: str) -> None:
    function, fixed = fitter(method)
    defaults: dict[str, Any] = {**settings_of(function), **fixed}
    assert validated(function, defaults) == defaults
    for name, default in defaults.items():
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            with pytest.raises(ValueError, match=f"{name}: "):
                validated(function, {name: math.nan})
            with pytest.raises(ValueError, match=f"{name}: "):
                validated(function, {name: 10**30})
