"""Reading labelled text, and the message for every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugalign.fitting import data as data_module
from plugalign.fitting.data import Labelled, encode, load_data, pad

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_and_csv_read_alike(write: Write) -> None:
    rows = [{"text": 'good, "very" good', "label": 0}, {"text": "zwei\nZeilen ü", "label": 1}]
    table = 'label,text\n0,"good, ""very"" good"\n1,"zwei\nZeilen ü"\n'
    want = Labelled((rows[0]["text"], rows[1]["text"]), ("0", "1"))
    assert load_data(write("a.jsonl", lines(*rows) + "\n \n")) == want
    assert load_data(write("a.csv", table)) == want
    assert load_data(write("b.csv", "\ufeff" + table)) == want


def test_pairs_become_two_classes(write: Write) -> None:
    path = write(
        "pairs.jsonl",
        lines({"toxic": "a", "neutral": ["b", "c"]}, {"toxic": ["d"], "neutral": []}),
    )
    data = load_data(path, desired="neutral", undesired="toxic")
    assert data.binary() == (("b", "c"), ("a", "d"))


def test_pairs_and_labels_mix(write: Write) -> None:
    paths = [
        write("pairs.jsonl", lines({"toxic": "a", "neutral": "b"})),
        write("labels.csv", "text,label\nc,1\nd,0\n"),
    ]
    data = load_data(paths, desired="neutral", undesired="toxic")
    assert data.binary() == (("b", "d"), ("a", "c"))


def test_other_columns_and_number_labels(write: Write) -> None:
    rows = [{"body": "x", "y": True}, {"body": "y", "y": 0.0}, {"body": "z", "y": 1}]
    data = load_data(write("a.jsonl", lines(*rows)), text="body", label="y")
    assert data.labels == ("1", "0", "1")


def test_the_limit_keeps_both_classes_of_a_sorted_file(write: Write) -> None:
    rows = [{"text": str(i), "label": int(i >= 50)} for i in range(100)]
    data = load_data(write("a.jsonl", lines(*rows)), limit=10)
    assert [int(t) for t in data.texts] == list(range(0, 100, 10))
    assert set(data.labels) == {"0", "1"}


@pytest.mark.parametrize("limit", [20, 50, 60, 99, 100])
def test_the_limit_keeps_the_shares_of_what_alternates(write: Write, limit: int) -> None:
    rows = [{"good": f"g{i}", "bad": f"b{i}"} for i in range(100)]
    path = write("pairs.jsonl", lines(*rows))
    data = load_data(path, desired="good", undesired="bad", limit=limit)
    counts = [data.labels.count(label) for label in ("desired", "undesired")]
    assert sum(counts) == limit and abs(counts[0] - counts[1]) <= 1
    numbers = [int(text[1:]) for text in data.texts]
    assert numbers == sorted(numbers) and max(numbers) >= 50


def test_the_limit_keeps_one_text_of_a_rare_label(write: Write) -> None:
    rows = [{"text": str(i), "label": "rare" if i == 70 else "usual"} for i in range(100)]
    data = load_data(write("a.jsonl", lines(*rows)), limit=5)
    assert sorted(data.labels) == ["rare", *["usual"] * 4]


def test_the_desired_class() -> None:
    named = Labelled(("a", "b", "c"), ("polite", "rude", "odd"))
    assert named.binary("polite") == (("a",), ("b", "c"))
    assert Labelled(("a", "b"), ("0", "1")).binary("1") == (("b",), ("a",))
    with pytest.raises(ValueError, match="which of the labels 'odd', 'polite', 'rude'"):
        named.binary()
    with pytest.raises(ValueError, match="no text has the desired label 'kind'"):
        named.binary("kind")
    with pytest.raises(ValueError, match="2 are desired and 0 are not"):
        Labelled(("a", "b"), ("0", "0")).binary()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"', "line 2: malformed JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1: expected a JSON object"),
        ("a.jsonl", lines({"text": "a", "y": 0}), "no column 'label'; the columns are 'text', 'y'"),
        (
            "a.jsonl",
            lines({"text": "a", "label": 0}, {"text": "  ", "label": 1}),
            "line 2: .*empt",
        ),
        ("a.jsonl", lines({"text": 3, "label": 0}), "line 1: 'text' must be text, got 3"),
        ("a.jsonl", lines({"text": "a", "label": None}), "line 1: 'label' must be a word"),
        ("a.jsonl", lines({"text": "a", "label": 0.5}), "line 1: 'label' must be a word"),
        ("a.jsonl", lines({"text": "a", "label": 1}) * 3, "all 3 texts have the label '1'"),
        ("a.jsonl", "", "holds no data"),
        ("a.csv", "", "holds no data"),
        ("a.csv", "text,label\n", "holds no data"),
        ("a.csv", "text,label\na,0\nb,c,1\n", "line 3: not as many fields"),
        ("a.csv", "text,label\na\n", "line 2: not as many fields"),
        ("a.csv", 'text,label\na,0\n"b,1\n', "malformed CSV"),
        ("a.txt", "a\n", "must be a .jsonl or a .csv"),
    ],
)
def test_faults_are_named(write: Write, name: str, content: str, message: str) -> None:
    path = write(name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_data(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "label": 0}\n{"text": "\xff", "label": 1}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        load_data(path)


def test_a_missing_file_and_half_a_pair(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_data(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="both columns"):
        load_data(tmp_path / "none.jsonl", desired="neutral")
    path = write("a.jsonl", lines({"good": "a"}))
    with pytest.raises(ValueError, match="no column 'good' and 'bad'"):
        load_data(path, desired="good", undesired="bad")
    with pytest.raises(ValueError, match="limit must be at least 2"):
        load_data(path, limit=1)


def test_encoding_ends_cuts_and_drops(tokenizer: Any) -> None:
    rows = encode(tokenizer, ["w1 w2", "", "w1 w2 w3 w4"], max_length=4)
    assert rows == [[4, 5, 1], [4, 5, 6, 7]]
    assert encode(tokenizer, ["w1 w2"], max_length=4, end=False) == [[4, 5]]
    tokenizer.eos_token = None
    assert encode(tokenizer, ["w1"], max_length=9) == [[4]]


def test_padding_is_masked() -> None:
    ids, mask = pad([[4, 5, 6], [7]])
    assert ids.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tokenizing_says_how_far_it_is(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["w1 w2", "w3", "", "w4 w5 w6", "w7"]
    expected = tokenizer(texts)["input_ids"]
    monkeypatch.setattr(data_module, "CHUNK", 2)
    assert data_module.tokenized(tokenizer, texts) == expected
    assert "tokenizing texts: 5 of 5" in capsys.readouterr().err
