"""Reading prompts and laying them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.prompts import chunks, encode, left_padded, load_prompts

RTP = '{"prompt": {"text": "He said", "toxicity": 0.1}, "continuation": {"text": "no"}}\n'


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two", "other": 1}\n', ("one", "two")),
        ("a.jsonl", RTP, ("He said",)),
        ("a.csv", 'id,text\n1,"one, and"\n2,two\n', ("one, and", "two")),
        ("a.txt", "one\n\n two \r\nthree", ("one", " two ", "three")),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, texts: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    prompts = load_prompts(tmp_path / name)
    assert prompts.texts == texts
    assert prompts.path == str(tmp_path / name) and prompts.sha256 is not None
    assert load_prompts(tmp_path / name, limit=1).texts == texts[:1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": \n', "a.jsonl, line 2: malformed JSON"),
        ("a.jsonl", '{"text": "one"}\n{"text": "  "}\n', "line 2: 'text' is empty"),
        ("a.jsonl", '{"text": 3}\n', "line 1: 'text' must be text, got 3"),
        (
            "a.jsonl",
            '{"words": "x"}\n',
            "line 1: no field 'text' or 'prompt'; the fields are 'words'",
        ),
        ("a.jsonl", "", "holds no prompts"),
        ("a.txt", "\n\n", "holds no prompts"),
        ("a.csv", "text\none\n", None),
        ("a.xyz", "one", "must be a .jsonl or a .csv"),
        ("missing.txt", None, "there is no such file"),
        ("missing.jsonl", None, "there is no such file"),
    ],
)
def test_faults_name_the_file_and_the_line(
    tmp_path: Path, name: str, content: str | None, message: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    if message is None:
        assert load_prompts(tmp_path / name).texts == ("one",)
        return
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_prompts(tmp_path / "a.txt")


def test_the_fingerprint_tells_texts_apart() -> None:
    assert load_prompts(["ab", "c"]).fingerprint() != load_prompts(["a", "bc"]).fingerprint()


def test_batches_hold_every_row_once_and_like_lengths_together() -> None:
    encoded = [[1] * n for n in (5, 2, 9, 2)]
    batches = chunks(encoded, samples=3, batch_size=4)
    rows = [row for batch in batches for row in batch]
    assert [len(b) for b in batches] == [4, 4, 4]
    assert sorted(rows) == [(p, s) for p in range(4) for s in range(3)]
    lengths = [len(encoded[prompt]) for prompt, _ in rows]
    assert lengths == sorted(lengths)


def test_padding_stands_in_front() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_prompt_must_have_tokens_and_leave_room(tiny: Any, tokenizer: Any) -> None:
    model = tiny()
    assert encode(load_prompts(["w1 w2"]), model, tokenizer, 126) == [[4, 5]]
    with pytest.raises(ValueError, match=r"prompt 0 has 2 tokens; with 127 new ones .*\(128\)"):
        encode(load_prompts(["w1 w2"]), model, tokenizer, 127)
    blank = load_prompts(["w1"])
    with pytest.raises(ValueError, match=r"prompt 0 .* has no tokens"):
        encode(blank, model, lambda texts, verbose: {"input_ids": [[] for _ in texts]}, 5)
