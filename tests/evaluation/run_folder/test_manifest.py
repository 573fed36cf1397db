"""The manifest as a typed record: runs of older versions are read, damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plugalign as pa
from plugalign.evaluation.judging.agreement import Agreement
from plugalign.evaluation.run_folder.describe import describe_controller
from plugalign.evaluation.run_folder.manifest import AgreementSet, read_manifest
from plugalign.evaluation.statistics.paired import Interval

OLDER = Path(__file__).with_name("older")
WHERE = {"device": "cpu", "processor": "x", "threads": 1, "python": "3", "platform": "p"}


def content() -> dict[str, Any]:
    settings = {
        "methods": {"base": None, "mine": {"class": "Mine", "config": {"k": 3}, "learned": "f"}},
        "references": {"base": None, "base (top-k 20)": {"top_k": 20}},
        "judges": ["one"],
        "scorer": {"name": "tiny", "is_base": True},
        "samples": 2,
        "temperature": 1,
        "seed": 0,
    }
    return {"settings": settings, "versions": {"torch": "2"}, "conditions": WHERE}


def write(out: Path, values: Any) -> Path:
    (out / "manifest.json").write_text(json.dumps(values))
    return out


def test_what_is_read_is_written_again_to_the_letter(tmp_path: Path) -> None:
    found = read_manifest(write(tmp_path, content()))
    assert json.dumps(found.to_json(), sort_keys=True) == json.dumps(content(), sort_keys=True)
    assert found.settings.rows() == ["base", "base (top-k 20)", "mine"]
    assert found.named().run == read_manifest(write(tmp_path, found.to_json())).named().run
    other = content() | {"conditions": WHERE | {"threads": 2}, "pocket": True}
    assert read_manifest(write(tmp_path, other)).named().run == found.named().run  # times only
    other["settings"]["temperature"] = 1.5
    assert read_manifest(write(tmp_path, other)).named().run != found.named().run


def test_a_run_of_an_older_version_is_read() -> None:
    found = read_manifest(OLDER)
    assert found.to_json() == json.loads((OLDER / "manifest.json").read_text())
    assert found.run is None and found.settings.cut_alike == {}
    (agreement,) = found.every_agreement
    assert agreement.judges["minilm"].auc.value == pytest.approx(0.960, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": "two"}, r"manifest\.json is damaged: 'settings\.samples'"),
        ({"judges": None}, r"'settings\.judges'"),
        ({"shout": 1}, r"'settings\.shout': Extra inputs are not permitted"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = content()
    values["settings"] |= change
    with pytest.raises(ValueError, match=message):
        read_manifest(write(tmp_path, values))


def test_agreement_with_a_file_is_renewed_and_others_stay(tmp_path: Path) -> None:
    interval = Interval(0.8, 0.7, 0.9)

    def one(source: str, sha256: str, texts: int) -> AgreementSet:
        found = Agreement(interval, interval, 0.5, 0.5, texts, 0)
        return AgreementSet(source=source, sha256=sha256, judges={"one": found})

    found = read_manifest(write(tmp_path, content()))
    found = found.with_agreements([one("a", "1", 9), one("b", "2", 9)])
    found = found.with_agreements([one("c", "1", 10)])
    assert [each.source for each in found.every_agreement] == ["b", "c"]
    assert found.agreement == found.agreements[0]
    again = read_manifest(write(tmp_path, found.to_json()))
    assert again.every_agreement == found.every_agreement


def test_a_sum_is_described_part_by_part(tiny: Any) -> None:
    pair = pa.DExperts(tiny(seed=1), tiny(seed=2), alpha=1.5)
    found = describe_controller(pair + 0.5 * pa.SelfDebias(["w5"]))
    assert [(part.kind, part.weight) for part in found.parts] == [
        ("DExperts", 1.0),
        ("SelfDebias", 0.5),
    ]
    assert found.parts[0].config["alpha"] == 1.5
    assert describe_controller(pair).parts == ()
