"""What goes wrong while something is loaded is one error that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from plugalign import pocket
from plugalign.files.pretrained import loading


def test_a_tokenizer_whose_merges_name_no_token_is_refused_by_its_folder(tmp_path: Path) -> None:
    """tokenizers raises a bare Exception then."""
    folder = Path(shutil.copytree(pocket.PARTS / pocket.MODEL, tmp_path / "m"))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["merges"][0] = ["unheard", "of"]
    file.write_text(json.dumps(content), "utf-8")
    wanted = r"cannot load the model .*m': Exception: Token `unheard` out of"
    with pytest.raises(ValueError, match=wanted), loading("the model", folder):
        AutoTokenizer.from_pretrained(folder)


def test_other_errors_are_let_through() -> None:
    with pytest.raises(ZeroDivisionError), loading("the model", "m"):
        raise ZeroDivisionError
