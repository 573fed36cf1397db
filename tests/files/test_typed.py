"""YAML and JSON files as typed options, and values that messages show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from plugalign.files.folders import check_file, check_folder
from plugalign.files.saved import writing_tensors
from plugalign.files.shown import listed, one_line, printable, shown, shown_path
from plugalign.files.typed import read_config, read_yaml, validated


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    count: int = 1
    name: str | None = None


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "line 2: malformed YAML .*repeats a whole list"),
        ("a: &a [*a]\n", "malformed YAML"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: 1\nb: x\x07y\n", r"line 2: YAML has no character '\\x07'"),
        ("a: 1\na: 2\n", "line 2: malformed YAML .*'a' stands there twice"),
        ("a: !!python/object:os.system {}\n", "line 1: malformed YAML"),
        ("a: 2026-99-99\n", "malformed YAML"),
        ("a: " + "9" * 5000, "malformed YAML .*digits"),
        ("- a\n- b\n", "expected options such as 'samples: 25'"),
        ("just words", "expected options"),
        ("? [a, b]\n: 1\n", "malformed YAML"),
        ("a: 1\n  b: 2\n", "line 2: malformed YAML"),
    ],
)
def test_faulty_yaml_is_one_bounded_message(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(tmp_path / "s.yaml")
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "s.yaml")) and len(text) < 400
    assert printable(text) == text


def test_yaml_that_is_fine(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("model: &m gpt2\nscorer: *m\n", encoding="utf-8")
    assert read_yaml(tmp_path / "s.yaml") == {"model": "gpt2", "scorer": "gpt2"}
    (tmp_path / "s.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_yaml(tmp_path / "s.yaml") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a JSON object"),
        ('{"count": 1.5}', "count: input should be a valid integer.*, got 1.5"),
        ('{"counts": 1}', "unknown option 'counts'.*known are count, name"),
        ('{"name": ["a"]}', r"name: input should be a valid string, got \['a'\]"),
        ("{", "malformed JSON"),
        ('{"name": "\\ud800"}', r"name .*half of a surrogate pair, '\\ud800'"),
    ],
)
def test_a_faulty_configuration_names_file_and_field(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_config(tmp_path / "config.json", Options)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_options_are_validated_with_or_without_a_place() -> None:
    assert validated(Options, {"count": 3}, None) == Options(count=3)
    with pytest.raises(ValueError, match=r"^count: .* valid integer, got 'x' \(in f\)$"):
        validated(Options, {"count": "x"}, "f")


def test_values_are_shown_bounded() -> None:
    bomb: list[object] = []
    for _ in range(60):
        bomb = [bomb] * 9
    assert len(shown(bomb)) < 200
    assert shown("x" * 10**6) == "'" + "x" * 27 + "..." + "x" * 28 + "'"
    assert shown({"a": [1, 2], "b": None}) == "{'a': [1, 2], 'b': None}"
    assert listed(["b", "a"]) == "'a', 'b'"
    assert listed(map(str, range(30))).endswith("… (30 in all)")


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert printable("a\x1b[31mb\x07\x9b\u202e\ud800") == r"a\x1b[31mb\x07\x9b\u202e\ud800"
    assert printable("naïve 日本 🙂 [b]") == "naïve 日本 🙂 [b]"
    assert one_line("two\nlines\t\x1b") == r"two lines \x1b"
    assert len(one_line("x" * 10**6)) < 3000


def test_where_results_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert check_file(tmp_path / "new" / "a.json") == tmp_path / "new" / "a.json"
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"out: .*file is a file, and a folder is needed"):
            check_folder(path)
    with pytest.raises(ValueError, match=r"is no file; name one"):
        check_file(tmp_path)
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(ValueError, match="is no path"):
            check_folder(path)
    with pytest.raises(ValueError, match="names no folder"):
        check_folder("")


def test_tensors_that_cannot_be_written_name_the_file(tmp_path: Path) -> None:
    """As on a full disk: safetensors has an error of its own, which is none of the system's."""
    path = tmp_path / "model.safetensors"
    path.mkdir()
    message = r"model\.safetensors cannot be written .*free some space"
    with pytest.raises(OSError, match=message), writing_tensors(path):
        save_file({"a": torch.zeros(1)}, path)


def test_a_path_is_shown_whole() -> None:
    path = Path("/a/path/that/is/longer/than/values/are/shown/in/messages/of/the/command/line")
    assert shown_path(path) == f"'{path}'" and shown(str(path)) != f"'{path}'"
