"""Journals: cut anywhere they can be completed; what is not theirs is named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from plugalign.evaluation.run_folder.journal import Journal, read_journal
from plugalign.evaluation.run_folder.records import Generated, Key

RUN = "0123456789abcdef"
UNITS: list[list[Key]] = [
    [("base", 0, 0), ("base", 0, 1)],
    [("push", 0, 0), ("push", 0, 1)],
    [("base", 1, 0)],
    [("push", 1, 0)],
]


def record(
    key: Key, text: str = "a\u2028b\r\nc \N{GRINNING FACE}", seconds: float = 0.1
) -> Generated:
    method, prompt, sample = key
    return Generated(
        method=method,
        prompt=prompt,
        sample=sample,
        text=text,
        tokens=(5, prompt, 1),
        batch=prompt,
        seconds=seconds,
    )


def journal(path: Path, run: str = RUN) -> Journal[Generated]:
    return Journal(path, Generated, UNITS, run)


def written(path: Path, run: str = RUN) -> bytes:
    found = journal(path, run)
    for unit in UNITS:
        found.append([record(key) for key in unit])
    return path.read_bytes()


def complete(path: Path) -> bytes:
    """What the file holds after the missing units were written anew."""
    found = journal(path)
    for number in found.missing:
        found.append([record(key) for key in UNITS[number]])
    found.order()
    return path.read_bytes()


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    whole = written(tmp_path / "j")
    found = journal(tmp_path / "j")
    assert found.missing == []
    assert [found.unit(i) for i in range(4)] == [[record(k) for k in unit] for unit in UNITS]
    assert (tmp_path / "j").read_bytes() == whole
    assert read_journal(tmp_path / "j", Generated, RUN) == found.records


def test_cut_at_any_byte_a_journal_keeps_whole_units_and_can_be_completed(tmp_path: Path) -> None:
    whole, cut = written(tmp_path / "whole"), tmp_path / "cut"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        assert complete(cut) == whole


def test_lines_in_another_order_or_repeated_do_no_harm(tmp_path: Path) -> None:
    whole = written(tmp_path / "j")
    lines = whole.splitlines(keepends=True)
    shuffled = lines + lines[:3]
    random.Random(1).shuffle(shuffled)
    (tmp_path / "j").write_bytes(b"".join(shuffled))
    assert complete(tmp_path / "j") == whole


def test_a_line_that_is_gone_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    whole = written(tmp_path / "j")
    lines = whole.splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(lines[:2] + lines[3:]))
    found = journal(tmp_path / "j")
    assert found.missing == [1]
    assert complete(tmp_path / "j") == whole  # in the units' order again
    assert journal(tmp_path / "j").missing == []


def line_of(tmp_path: Path, run: str, key: Key, text: str = "x") -> bytes:
    """A line as another run would have written it."""
    (tmp_path / "other").unlink(missing_ok=True)
    Journal(tmp_path / "other", Generated, [[key]], run).append([record(key, text)])
    return (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda line: b'{"method": \n', "malformed JSON"),
        (lambda line: b"\x00" * 30 + b"\n", "malformed JSON"),
        (lambda line: b"[" * 20_000 + b"\n", "malformed JSON"),
        (lambda line: b"[]\n", "the line: "),
        (lambda line: line.replace(b'"text"', b'"test"'), "text: field required"),
        (lambda line: line.replace(b"0.1", b"-0.1"), "seconds: input should be greater"),
        (lambda line: line.replace(b"0.1", b"NaN"), "seconds: "),
        (lambda line: line.replace(b"0.1", b"0.2"), "'push', prompt 0, sample 0 was changed"),
        (lambda line: line.replace(b"a\xe2", b"b\xe2"), "'push', prompt 0, sample 0 was changed"),
    ],
)
def test_a_damaged_line_is_named_with_the_cure(tmp_path: Path, spoil, message: str) -> None:
    lines = written(tmp_path / "j").splitlines(keepends=True)
    changed = spoil(lines[2])
    assert changed != lines[2]
    (tmp_path / "j").write_bytes(b"".join([*lines[:2], changed, *lines[3:]]))
    with pytest.raises(ValueError, match=f"j, line 3: {message}.*remove the line.*--resume"):
        journal(tmp_path / "j")
    (tmp_path / "j").write_bytes(b"".join(lines[:2] + lines[3:]))  # the cure
    assert complete(tmp_path / "j") == b"".join(lines)


def test_a_line_of_another_run_is_named(tmp_path: Path) -> None:
    whole = written(tmp_path / "j")
    lines = whole.splitlines(keepends=True)
    foreign = line_of(tmp_path, "another run", UNITS[3][0])
    (tmp_path / "j").write_bytes(b"".join([*lines[:5], foreign]))
    with pytest.raises(ValueError, match=r"line 6: 'push', prompt 1, sample 0 .*another run"):
        journal(tmp_path / "j")
    (tmp_path / "j").write_bytes(whole + line_of(tmp_path, RUN, ("shout", 0, 0)))
    with pytest.raises(ValueError, match="line 7: 'shout', prompt 0, sample 0 does not belong"):
        journal(tmp_path / "j")
    (tmp_path / "j").write_bytes(whole + line_of(tmp_path, RUN, UNITS[0][0]))
    with pytest.raises(ValueError, match="line 7: 'base', prompt 0, sample 0 stands in line 1"):
        journal(tmp_path / "j")


def test_a_journal_of_an_older_version_has_no_checks_and_is_read(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path / "j").decode().split("\n")[:-1]]
    for values in lines:
        del values["check"]
    (tmp_path / "j").write_text("".join(json.dumps(v) + "\n" for v in lines))
    assert len(read_journal(tmp_path / "j", Generated, None)) == 6
    with pytest.raises(ValueError, match=r"line 1: .*was changed"):
        read_journal(tmp_path / "j", Generated, RUN)


def test_records_that_no_longer_hold_are_made_again(tmp_path: Path) -> None:
    written(tmp_path / "j")
    found = Journal(tmp_path / "j", Generated, UNITS, RUN, lambda r: r.key != ("push", 0, 1))
    assert found.missing == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to("/dev/full")
    full = journal(tmp_path / "other")
    full.path = tmp_path / "j"
    with pytest.raises(OSError, match="no space is left"):
        full.append([record(UNITS[2][0])])
    assert full.missing == [0, 1, 2, 3]
