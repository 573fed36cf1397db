"""``plugalign.load``, ``fit`` and ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plugalign as pa
from plugalign.fitting.data import Labelled
from plugalign.loading import random_model, resolve_model

SHORT: dict[str, Any] = {"steps": 2, "rank": 2}
ROWS = '{{"words": "w1 w2 w{0}", "rude": 0}}\n{{"words": "w5 w6 w{0}", "rude": 1}}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(ROWS.format(n) for n in range(40)))
    return path


@pytest.fixture
def folder(tiny: Any, tokenizer: Any, tmp_path: Path) -> str:
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_what_is_fitted_can_be_loaded(
    tiny: Any, tokenizer: Any, data: Path, tmp_path: Path
) -> None:
    columns = {"text": "words", "label": "rude"}
    fitted = pa.fit(
        "fudge_head", tiny(), tokenizer, data, tmp_path / "out", columns=columns, **SHORT
    )
    loaded = pa.load(tmp_path / "out")
    assert isinstance(loaded, pa.FudgeHead) and loaded.config() == fitted.config()


def test_labelled_texts_are_data_and_a_model_may_be_a_name(folder: str, tmp_path: Path) -> None:
    texts = tuple(f"w{1 + 4 * (n % 2)} w{n}" for n in range(40))
    data = Labelled(texts, tuple("kind" if n % 2 else "rude" for n in range(40)))
    out = tmp_path / "out"
    pa.fit("fudge_head", folder, None, data, out, desired="kind", dtype="float32", **SHORT)
    assert isinstance(pa.load(out), pa.FudgeHead)
    with pytest.raises(ValueError, match="columns and limit are of files"):
        pa.fit("fudge_head", folder, None, data, tmp_path / "no", limit=3)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("self_debias", {}, "self_debias has nothing to fit"),
        ("shout", {}, "unknown method 'shout'; those that learn are args"),
        ("fudge_head", {"stps": 3}, "unknown setting 'stps'; known are"),
        ("fudge_head", {"steps": 0}, "steps: input should be greater than or equal to 1"),
    ],
)
def test_fit_refuses_by_name(
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    data = Labelled(("w1", "w2"), ("0", "1"))
    with pytest.raises(ValueError, match=message):
        pa.fit(method, tiny(), tokenizer, data, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_bench_gives_a_row_for_each_method(folder: str) -> None:
    short = {"batches": (1,), "new_tokens": 2, "prompt_tokens": 3, "rounds": 1}
    rows = pa.bench(folder, methods=["none", "nullspace"], dtype="bfloat16", **short)
    assert [(row.method, row.dtype) for row in rows] == [
        ("none", "bfloat16"),
        ("nullspace", "bfloat16"),
    ]


def test_precision_is_of_models_that_are_loaded_here(
    folder: str, tiny: Any, tokenizer: Any
) -> None:
    assert resolve_model(folder, None, "float16")[0].dtype is torch.float16
    assert resolve_model(None, None)[0].dtype is torch.float32
    assert resolve_model(None, None, "bfloat16")[0].dtype is torch.bfloat16
    assert random_model(folder, torch.bfloat16)[0].dtype is torch.bfloat16
    model = tiny()
    assert resolve_model(model, tokenizer) == (model, tokenizer)
    assert resolve_model(folder, tokenizer)[1] is tokenizer
    with pytest.raises(ValueError, match=r"this one is loaded in float32: use model\.to"):
        resolve_model(model, tokenizer, "bfloat16")
    with pytest.raises(ValueError, match=r"dtype must be one of auto, bfloat16.* got 'int8'"):
        resolve_model(folder, None, "int8")
    with pytest.raises(ValueError, match="a model needs its tokenizer"):
        resolve_model(model, None)
