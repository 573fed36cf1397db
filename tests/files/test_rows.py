"""Rows of data files: one understanding of nesting, labels and lines, whatever the format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.files.rows import read_rows
from plugalign.fitting.data import load_data
from plugalign.loading import load_references

Write = Callable[[str, str | bytes], Path]
NAN = float("nan")
# Rows of RealToxicityPrompts; the second has no score.
NESTED = [
    {
        "prompt": {"text": "The weather", "toxicity": 0.05},
        "continuation": {"text": " is", "toxicity": 0.1},
    },
    {
        "prompt": {"text": 'It\'s "so"', "toxicity": None},
        "continuation": {"text": " far", "toxicity": 0.9},
    },
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def table(rows: list[dict[str, Any]]) -> str:
    """CSV as Python's csv module and pandas write it: nested values by ``str``."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def layouts() -> dict[str, tuple[str, str]]:
    """The same rows in every layout that exporters write."""
    as_python = [{k: str(v) for k, v in row.items()} for row in NESTED]
    with_nan = [{k: v.replace("None", "nan") for k, v in row.items()} for row in as_python]
    as_json = [{k: json.dumps(v) for k, v in row.items()} for row in NESTED]
    flat = [{f"{k}.{p}": x for k, v in row.items() for p, x in v.items()} for row in NESTED]
    return {
        "nested JSON lines": ("a.jsonl", lines(NESTED)),
        "CSV of str(dict)": ("a.csv", table(as_python)),
        "CSV of pandas, nan": ("a.csv", table(with_nan)),
        "CSV of JSON": ("a.csv", table(as_json)),
        "flattened CSV": ("a.csv", table(flat)),
        "flattened JSON lines": ("a.jsonl", lines(flat)),
        "JSON lines of str(dict)": ("a.jsonl", lines(as_python)),
    }


@pytest.mark.parametrize("layout", layouts())
def test_nested_rows_are_understood_alike_everywhere(write: Write, layout: str) -> None:
    path = write(*layouts()[layout])
    assert load_prompts(path).texts == ("The weather", 'It\'s "so"')
    assert load_references(path) == ([" is", " far"], [0.1, 0.9])
    row = next(read_rows(path))
    assert (row.text("prompt"), row.text("prompt.text")) == ("The weather",) * 2
    assert row.share("continuation.toxicity") == 0.1
    assert row.has("continuation") and not row.has("prompt.author") and not row.has("text")


@pytest.mark.parametrize(
    "cell",
    [
        "{'text': 'The weather', 'toxicity': np.float64(0.05)}",  # cannot be read
        "{'text': array(['a'], dtype=object)}",
        "{'text': 'cut off",
        '{"text": "cut off", "tox',
        "{'toxicity': 0.05}",  # a record without a text
        "['one', 'two']",
        "['one' 'two']",  # a NumPy array: Python would read one string
        "[{'text': 'a'}]",
        "{}",
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_serialised_record_is_never_a_text(write: Write, cell: str, name: str) -> None:
    contents = {
        "a.csv": table([{"prompt": cell}]),
        "a.jsonl": lines([{"prompt": cell}]),
        "a.txt": cell,
    }
    with pytest.raises(ValueError, match=f"{name}, line [12]: .*(record|must be text)"):
        load_prompts(write(name, contents[name]))
    with pytest.raises(ValueError, match=r"prompt 0: .*(record|must be text)"):
        load_prompts([cell])


@pytest.mark.parametrize(
    "text",
    [
        "{so it goes} he said",
        "[sic] he said",
        "['tis the season] to be",
        "a {'text': 'b'}",
        "[1, 2]x",
        '["quoted" or so]',
        "{x for x in y}",
        "[edit]",
        "{{citation needed}}",
    ],
)
def test_a_text_with_brackets_stays_a_text(write: Write, text: str) -> None:
    assert load_prompts(write("a.csv", table([{"text": text}]))).texts == (text,)
    assert load_prompts([text]).texts == (text,)


def test_lists_in_the_columns_of_pairs(write: Write) -> None:
    rows = [{"bad": "a", "good": ["b", "it's"]}, {"bad": "c", "good": ["d"]}]
    for path in (write("p.jsonl", lines(rows)), write("p.csv", table(rows))):
        data = load_data(path, desired="good", undesired="bad")
        assert data.binary() == (("b", "it's", "d"), ("a", "c"))


def test_one_value_is_one_label_whatever_the_format(write: Write) -> None:
    zeros: list[Any] = [0, 0.0, False, "0", "0.0", " false ", "False", "-0", "0e5"]
    ones: list[Any] = [1, 1.0, True, "1", "1.0", "true", "TRUE", "01", "1."]
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(zeros + ones)]
    expected = ("0",) * len(zeros) + ("1",) * len(ones)
    for path in (write("a.jsonl", lines(rows)), write("a.csv", table(rows))):
        data = load_data(path)
        assert data.labels == expected
        for desired in (None, "0", "0.0", "false"):
            assert len(data.binary(desired)[0]) == len(zeros)
    both = load_data([write("a.jsonl", lines(rows[:9])), write("b.csv", table(rows[9:]))])
    assert len(both.binary()[0]) == len(zeros)


@pytest.mark.parametrize("label", [0.5, "0.5", NAN, "nan", "", "  ", None, "inf", {"a": 1}])
def test_what_is_no_label_is_refused_in_every_format(write: Write, label: Any) -> None:
    rows = [{"text": "a", "label": label}]
    for path in (write("a.jsonl", lines(rows)), write("a.csv", table(rows))):
        with pytest.raises(ValueError, match="must be a word or a whole number"):
            load_data(path)


def test_a_field_that_is_not_there_is_named_with_those_that_are(write: Write) -> None:
    [row] = read_rows(write("a.jsonl", lines([{"text": "a"}])))
    readers = (row.text, row.texts, row.label, row.share, row.conversation)
    for read in readers:
        with pytest.raises(ValueError, match=r"a\.jsonl, line 1: no field 'b'; the fields are"):
            read("b")


def test_lines_are_those_that_an_editor_shows(write: Write) -> None:
    content = 'text,label\n"two\nlines",0\n\n"three\r\nmore\nlines",1\nlast,0.5\n'
    with pytest.raises(ValueError, match="line 8: 'label' must be a word"):
        load_data(write("a.csv", content))
    assert [r.place.rpartition(" ")[2] for r in read_rows(write("b.csv", content))] == [
        "2",
        "5",
        "8",
    ]
    with pytest.raises(
        ValueError, match=r"c.csv, line 3: malformed CSV \(unexpected end of data\)"
    ):
        load_data(write("c.csv", 'text,label\na,0\n"never\nclosed,1\n'))
    with pytest.raises(ValueError, match="line 4: malformed JSON"):
        load_data(write("a.jsonl", '{"text": "a", "label": 0}\n\n\n{"text\n'))


def test_a_csv_field_may_be_long(write: Write) -> None:
    before, long = csv.field_size_limit(), "word " * 100_000
    assert load_prompts(write("a.csv", f"text\n{long}\n")).texts == (long,)
    assert csv.field_size_limit() == before


SURROGATE = '{"text": "so funny \\ud83d", "label": 1}\n'
DEEP = '{"text": ' + "[" * 20_000 + "]" * 20_000 + "}\n"
FAULTS: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", '{"text": "a", "label": 0}\n' + SURROGATE, r"line 2: 'text' has half .*'\\ud83d'"),
    ("a.jsonl", DEEP, "line 1: JSON nested too deeply"),
    ("a.jsonl", "[" * 20_000 + "\n", "line 1: JSON nested too deeply"),
    ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1: .*digits"),
    ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: 'text' stands there twice"),
    ("a.jsonl", '{"text": null, "label": 0}\n', "line 1: 'text' is null"),
    ("a.jsonl", '{"text": {"text": null}, "label": 0}\n', "line 1: 'text.text' is null"),
    ("a.jsonl", '[{"text": "a"}]\n', "line 1: expected a JSON object, got"),
    ("a.jsonl", b'{"text": "a\x00"}\n', "line 1: a NUL character"),
    ("a.jsonl", '{"text": "a\\u0000", "label": 1}\n', r"line 1: 'text' has a NUL .*'a\\x00'"),
    ("a.csv", b"text,label\na,0\nb\x00,1\n", "line 3: a NUL character"),
    ("a.csv", b"text,label\ncaf\xe9,0\n", r"line 2: not UTF-8 \(byte 0xe9\)"),
    ("a.csv", "text,text\na,b\n", "line 1: two columns are called 'text'"),
    ("a.txt", b"\xff\xfea\x00", r"line 1: not UTF-8 \(byte 0xff\)"),
    ("a.txt", b"one\ntw\x00o\n", "line 2: a NUL character"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_faults_name_file_line_value_and_cure(
    write: Write, name: str, content: str | bytes, message: str
) -> None:
    path = write(name, content)
    readers = (load_prompts,) if name.endswith(".txt") else (load_prompts, load_data)
    for reader in readers:
        with pytest.raises(ValueError, match=message) as caught:
            reader(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["a\0b.txt", "\ud800.txt", "x" * 999 + ".txt"])
def test_what_is_no_path_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read"):
        load_prompts(name)


@pytest.mark.parametrize("name", ["folder.jsonl", "folder.csv", "folder.txt"])
def test_a_folder_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: this is a folder"):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "score": None}, "'score' is null; leave out the texts without a score"),
        ({"text": "a", "score": NAN}, r"'score' must be a number in \[0, 1\], got nan"),
        ({"text": "a", "score": 1.5}, "'score' must be .*, got 1.5"),
        ({"text": "a", "score": True}, "'score' must be .*, got True"),
        ({"text": "a", "score": "high"}, "'score' must be .*, got 'high'"),
        ({"text": None, "score": 0.5}, "'text' is null"),
        ({"continuation": {"text": "a", "toxicity": None}}, "'continuation.toxicity' is null"),
        ({"continuation": {"text": None, "toxicity": 0.5}}, "'continuation.text' is null"),
        ({"continuation": {"text": "a"}}, "no field 'score' or .*; the fields are 'continuation'"),
        ({"words": "a", "score": 0.5}, "no field 'text' or 'continuation'; the fields are 'score'"),
    ],
)
def test_faults_of_references(write: Write, row: dict[str, Any], message: str) -> None:
    good = {"text": "b", "score": 0.5}
    with pytest.raises(ValueError, match=f"line 2: {message}"):
        load_references(write("a.jsonl", lines([good, row])))
