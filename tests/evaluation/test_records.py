"""The run's folder: whole units only, other runs refused, a full disk named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.records import (
    Journal,
    full_disk_named,
    open_run,
    read_json,
    read_whole,
    write_json,
)

UNITS = [[{"n": 0}, {"n": 1}], [{"n": 2}], [{"n": 3}, {"n": 4}, {"n": 5, "text": "a\u2028b\r\nc"}]]
SIZES = [len(unit) for unit in UNITS]
MANIFEST: dict[str, Any] = {
    "settings": {"samples": 3, "methods": {"base": None, "push": {"config": {"alpha": 1.0}}}},
    "versions": {"torch": "2.13.0"},
    "conditions": {"threads": 2},
}


def written(path: Path) -> bytes:
    journal = Journal(path, SIZES)
    for unit in UNITS:
        journal.append(unit)
    return path.read_bytes()


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    written(tmp_path / "j")
    flat = [record for unit in UNITS for record in unit]
    assert read_whole(tmp_path / "j") == flat
    assert Journal(tmp_path / "j", SIZES).records == flat
    assert Journal(tmp_path / "j", SIZES).done == 3


def test_cut_at_any_byte_a_journal_keeps_whole_units_and_can_be_completed(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    ends = [0]
    for unit in UNITS:
        lines = whole[ends[-1] :].splitlines(keepends=True)
        ends.append(ends[-1] + sum(len(line) for line in lines[: len(unit)]))
    cut = tmp_path / "cut"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        journal = Journal(cut, SIZES)
        assert journal.done == sum(end <= length for end in ends[1:])
        assert cut.stat().st_size == ends[journal.done]
        for unit in UNITS[journal.done :]:
            journal.append(unit)
        assert cut.read_bytes() == whole


def test_a_malformed_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"n": 0}\n{"n": \n{"n": 2}\n')
    with pytest.raises(ValueError, match="j, line 2: malformed JSON"):
        Journal(tmp_path / "j", [1, 1, 1])


def test_a_new_folder_is_made_and_the_same_run_resumes(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    assert open_run(out, MANIFEST, resume=False) is False
    assert read_json(out / "manifest.json") == MANIFEST
    elsewhere = {**MANIFEST, "conditions": {"threads": 64}}
    assert open_run(out, elsewhere, resume=True) is True
    assert read_json(out / "manifest.json") == MANIFEST
    with pytest.raises(ValueError, match="already holds this run; continue it with --resume"):
        open_run(out, MANIFEST, resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {**MANIFEST["settings"], "samples": 5}}, "samples was 3 and is now 5"),
        ({"versions": {"torch": "2.14.0"}}, "torch was '2.13.0' and is now '2.14.0'"),
        (
            {"settings": {"samples": 3, "methods": {"base": None}}},
            r"methods\.push was there and is missing now",
        ),
        ({"settings": {**MANIFEST["settings"], "seed": 1}}, "seed was not there and is now"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_refused_by_the_difference(
    tmp_path: Path, change: dict[str, Any], message: str, resume: bool
) -> None:
    open_run(tmp_path, MANIFEST, resume=False)
    with pytest.raises(ValueError, match=f"holds another run: .*{message}"):
        open_run(tmp_path, {**MANIFEST, **change}, resume=resume)


def test_a_method_that_is_there_or_not_is_a_difference_even_without_settings(
    tmp_path: Path,
) -> None:
    plain = {**MANIFEST, "settings": {"methods": {"base": None}}}
    open_run(tmp_path, plain, resume=False)
    with pytest.raises(ValueError, match=r"methods\.other was not there and is now"):
        open_run(
            tmp_path, {**plain, "settings": {"methods": {"base": None, "other": None}}}, resume=True
        )


def test_a_folder_with_such_files_but_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generations.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds generations\.jsonl but no manifest\.json"):
        open_run(tmp_path, MANIFEST, resume=True)


def test_a_malformed_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"settings":\n')
    with pytest.raises(ValueError, match=r"manifest\.json, line 2: malformed JSON"):
        open_run(tmp_path, MANIFEST, resume=True)


def test_json_files_are_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "s.json", {"a": 1})

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "s.json", {"a": 2})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder_and_the_way_on(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(OSError, match=f"no space is left for {tmp_path}.*--resume"),
        full_disk_named(tmp_path),
    ):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to("/dev/full")
    journal = Journal(tmp_path / "other", [1])
    journal.path = tmp_path / "j"
    with pytest.raises(OSError, match="no space is left"):
        journal.append([{"n": 1}])
    assert journal.done == 0
