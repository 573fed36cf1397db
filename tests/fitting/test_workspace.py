"""Where a fit works: whose checkpoints are there, and a result that is there as a whole or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from plugalign.fitting import workspace

FIT: dict[str, Any] = {
    "method": "dexperts",
    "model": {"name": "m"},
    "data": {"sha256": "d"},
    "settings": {"steps": 3, "lr": 0.1},
}


def writing(text: str = "weights") -> Callable[[Path, Path], Mapping[str, Any]]:
    def work(folder: Path, result: Path) -> Mapping[str, Any]:
        (folder / "run.checkpoint").write_text("half way")
        (result / "model").write_text(text)
        return {"loss": 1.5}

    return work


def killed(folder: Path, result: Path) -> Mapping[str, Any]:
    (folder / "run.checkpoint").write_text("half way")
    (result / "model").write_text("a part")
    raise KeyboardInterrupt


def test_the_result_appears_with_what_it_is(tmp_path: Path) -> None:
    workspace.make(tmp_path / "out", FIT, writing())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model").read_text() == "weights"
    saved = json.loads((tmp_path / "out" / workspace.RECORD).read_text())
    assert saved == {**FIT, "measured": {"loss": 1.5}}


def test_a_killed_fit_continues_and_leaves_no_part_of_a_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        workspace.make(out, FIT, killed)
    assert not out.exists()
    seen: list[str] = []

    def work(folder: Path, result: Path) -> Mapping[str, Any]:
        seen.append((folder / "run.checkpoint").read_text())
        assert not list(result.iterdir())
        return writing()(folder, result)

    workspace.make(out, FIT, work)
    assert seen == ["half way"] and (out / "model").read_text() == "weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dexperts_lora"}, "method was 'dexperts' and is 'dexperts_lora'"),
        ({"data": {"sha256": "e"}}, r"data\.sha256 was 'd' and is 'e'"),
        ({"settings": {"steps": 4, "lr": 0.1}}, r"settings\.steps was 3 and is 4"),
        ({"settings": {"steps": 3}}, r"settings\.lr was 0\.1 and is None"),
    ],
)
def test_another_fit_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        workspace.make(tmp_path / "out", FIT, killed)
    with pytest.raises(ValueError, match=message) as caught:
        workspace.make(tmp_path / "out", {**FIT, **change}, writing())
    assert f"{tmp_path / 'out.fitting'} holds the checkpoint of another fit" in str(caught.value)
    assert (tmp_path / "out.fitting" / "run.checkpoint").read_text() == "half way"
    workspace.make(tmp_path / "out", FIT, writing())


def killed_behind_the_last_rename(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace, "_remove", kill)
        workspace.make(out, FIT, writing())
    assert out.is_dir() and out.with_name(out.name + ".fitting").is_dir()


def test_a_fit_that_was_killed_behind_its_last_rename_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    killed_behind_the_last_rename(out, monkeypatch)
    with pytest.raises(ValueError, match=r"settings\.steps was 3 and is 4"):  # it is no other one
        workspace.make(out, {**FIT, "settings": {"steps": 4, "lr": 0.1}}, writing("other"))
    workspace.make(out, FIT, writing("never written"))
    assert (out / "model").read_text() == "weights" and not (tmp_path / "out.fitting").exists()


def test_a_result_that_is_gone_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    killed_behind_the_last_rename(out, monkeypatch)
    shutil.rmtree(out)
    workspace.make(out, {**FIT, "method": "fudge"}, writing("again"))
    assert (out / "model").read_text() == "again" and not (tmp_path / "out.fitting").exists()


def test_a_link_to_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    workspace.make(tmp_path / "link", FIT, writing())
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model").is_file()


def test_a_stale_working_folder_frees_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (tmp_path / "out.fitting").mkdir()
    with pytest.raises(ValueError, match="out is not empty; name another folder or remove it"):
        workspace.make(out, FIT, writing())
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (tmp_path / "out.fitting" / "expert.checkpoint").write_text("whose?")
    (out / "notes.txt").unlink()
    with pytest.raises(ValueError, match="does not say what is being fitted in it; remove it"):
        workspace.make(out, FIT, writing())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        workspace.make(tmp_path / "file", FIT, writing())


def test_a_fit_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        workspace.make(tmp_path / "out", FIT, lambda folder, result: {"loss": 1 / 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("last", range(1, 9))
def test_killed_at_any_write_it_ends_alike(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename, removal and unlink may be the last thing that a process did."""
    out, calls = tmp_path / "out", [0]

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found = real(*args, **options)
            calls[0] += 1
            if calls[0] == last:
                raise KeyboardInterrupt
            return found

        return call

    for owner, name in (
        (workspace.os, "replace"),
        (workspace.shutil, "rmtree"),
        (workspace.Path, "unlink"),
    ):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    try:
        workspace.make(out, FIT, writing())
    except KeyboardInterrupt:
        monkeypatch.undo()
        if (out / "model").is_file() and not (tmp_path / "out.fitting" / "fit.json").is_file():
            return  # it was done
        workspace.make(out, FIT, writing())
    assert (out / "model").read_text() == "weights"
    assert json.loads((out / "fit.json").read_text())["measured"] == {"loss": 1.5}
    assert not (tmp_path / "out.fitting").exists()


def test_a_fit_that_was_killed_before_its_record_was_there_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out.fitting"
    folder.mkdir()
    (folder / "fit.json.half").write_text('{"meth')
    workspace.make(tmp_path / "out", FIT, writing())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
