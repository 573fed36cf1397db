"""Hash-chained files: a line that is removed, moved or changed is found and named."""

from __future__ import annotations

import hashlib
import json

import pytest

from plugalign.values.account.chain import START, Chain, read_chain

CONTENTS = [{"n": n, "text": f"é line {n}"} for n in range(5)]


@pytest.fixture
def path(tmp_path):
    Chain(tmp_path / "chain.jsonl").append(CONTENTS[:3])
    Chain(tmp_path / "chain.jsonl").append(CONTENTS[3:])
    return tmp_path / "chain.jsonl"


def test_every_line_has_the_hash_of_the_one_before(path):
    links, previous = list(read_chain(path)), START
    assert [link.content for link in links] == CONTENTS
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        content = {k: v for k, v in found.items() if k not in ("previous", "hash")}
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert found["previous"] == previous
        previous = hashlib.sha256((previous + text).encode()).hexdigest()
        assert found["hash"] == previous


def edited(lines, edit):
    match edit:
        case "deleted":
            del lines[1]
        case "deleted first":
            del lines[0]
        case "moved":
            lines[1], lines[2] = lines[2], lines[1]
        case "repeated":
            lines.insert(2, lines[1])
        case "changed":
            lines[2] = lines[2].replace(b'"n":2', b'"n":7')
        case "changed last":
            lines[-1] = lines[-1].replace(b"line 4", b"line 5")
        case "another hash":
            lines[2] = lines[2].replace(b'"hash":"', b'"hash":"0')
        case "no JSON":
            lines[3] = b"{\n"
        case "no hash":
            lines[3] = b"{}\n"
    return lines


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        ("deleted", 2, "lines were removed, added or moved"),
        ("deleted first", 1, "lines were removed, added or moved"),
        ("moved", 2, "lines were removed, added or moved"),
        ("repeated", 3, "lines were removed, added or moved"),
        ("changed", 3, "the line was changed after it was written"),
        ("changed last", 5, "the line was changed after it was written"),
        ("another hash", 3, "the line was changed after it was written"),
        ("no JSON", 4, "malformed JSON"),
        ("no hash", 4, "the line was changed after it was written"),
    ],
)
def test_what_was_done_to_a_line_is_named(path, edit, line, message):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(edited(lines, edit)))
    with pytest.raises(ValueError, match=rf"chain.jsonl, line {line}: .*{message}"):
        list(read_chain(path))


def test_every_single_byte_counts(path):
    raw = path.read_bytes()
    for place in range(0, len(raw) - 1, 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(ValueError, match=r"chain\.jsonl"):
            list(read_chain(path))


def test_half_a_line_that_a_kill_left_is_removed_when_the_file_grows(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="line 5: half a line"):
        list(read_chain(path))
    chain = Chain(path)
    assert len(chain.links) == 4
    chain.append(CONTENTS[4:])
    assert path.read_bytes() == whole


def test_numbers_that_json_has_not_are_refused(path):
    with pytest.raises(ValueError, match="JSON"):
        Chain(path).append([{"x": float("nan")}])
