"""Files take the place of others when the disk has them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from plugalign.benchmarking import costs
from plugalign.files import replacing
from plugalign.fitting import budget, workspace


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, by the names of the files."""
    found: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        found.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        found.append(f"rename {Path(source).name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return found


def test_whoever_renames_has_synced(tmp_path: Path, events: list[str]) -> None:
    replacing.replace_text(tmp_path / "a", "text\n")
    budget.remember(tmp_path / "b", {"steps": 3})
    costs.write([], tmp_path / "c")
    assert events == [f"{what} {name}.half" for name in "abc" for what in ("sync", "rename")]
    assert (tmp_path / "a").read_bytes() == b"text\n"
    events.clear()

    def work(folder: Path, result: Path) -> dict[str, float]:
        (result / "weights").write_text("1")
        return {}

    workspace.make(tmp_path / "out", {"method": "m"}, work)
    last = events.index("rename result")
    assert {"sync weights", "sync fit.json"} <= set(events[:last]) and last == len(events) - 1


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing.replacing(path) as half:
        half.write_text("ne")
        raise OSError(errno.ENOSPC, "full")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]
