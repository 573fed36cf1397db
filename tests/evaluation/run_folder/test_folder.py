"""The run's folder: other runs refused, one process at a time, a full disk named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.run_folder.folder import (
    full_disk_named,
    locked,
    open_run,
    read_json,
    write_json,
)

MANIFEST: dict[str, Any] = {
    "settings": {"samples": 3, "methods": {"base": None, "push": {"config": {"alpha": 1.0}}}},
    "versions": {"torch": "2.13.0"},
    "conditions": {"threads": 2},
}


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


@pytest.mark.parametrize(
    "content", ["[]", '{"settings": []}', "null"], ids=["list", "settings", "null"]
)
def test_a_manifest_of_another_form_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: damaged"):
        open_run(tmp_path, MANIFEST, resume=True)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"manifest\.json: damaged, it is no JSON"):
        read_json(tmp_path / "manifest.json")


# ----------------------------------------------------------------------------- the lock

HOLDER = """
import sys, time
from pathlib import Path
from plugalign.evaluation.run_folder.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_none(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        message = f"{tmp_path} is in use: process {holder.pid} on .* choose another --out"
        with pytest.raises(ValueError, match=message), locked(tmp_path):
            raise AssertionError("two at a time")
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):  # its file is still there, and nobody holds it
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_second_call_of_one_process_is_refused_and_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "new"):
        with pytest.raises(ValueError, match="is in use"), locked(tmp_path / "new"):
            raise AssertionError("two at a time")
        raise RuntimeError
    with locked(tmp_path / "new"):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out is a file"), locked(tmp_path / "out"):
        raise AssertionError("locked")
