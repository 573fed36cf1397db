"""A rebuild writes the same bytes, and nothing else changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.algebra.data_sheet import README
from plugalign.pocket.build import Sizes, build

TINY = Sizes(
    texts=120,
    vocabulary=300,
    width=16,
    steps=4,
    judge_texts=80,
    judge_features=2**8,
    guide_texts=120,
    guide_share=0.02,
)


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.md5(f.read_bytes()).hexdigest() for f in files}


def test_building_twice_gives_the_same_bytes_and_leaves_torch_alone(tmp_path):
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    build(tmp_path / "one", sizes=TINY)
    torch.manual_seed(99)
    after = torch.random.get_rng_state()
    build(tmp_path / "two", sizes=TINY)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.random.set_rng_state(state)
    one, two = _hashes(tmp_path / "one"), _hashes(tmp_path / "two")
    assert one == two
    assert {"pocket/model.safetensors", "pocket/tokenizer.json", "judge/config.json"} <= set(one)
    assert "controllers/dexperts_lora/expert/adapter_config.json" in one
    assert "controllers/dexperts_lora/README.md" in one


def test_the_embedded_parts_name_no_folder_of_the_computer_that_built_them():
    for path in pocket.parts().rglob("*.json"):
        assert str(pocket.PARTS.parent) not in path.read_text("utf-8")


def test_every_embedded_controller_has_its_data_sheet():
    folders = [path.parent for path in pocket.parts().glob("controllers/*/config.json")]
    assert len(folders) == 8
    for folder in folders:
        controller = Controller.from_pretrained(folder)
        written = (folder / README).read_text(encoding="utf-8")
        assert written == str(controller.generate_model_card())
        sheet = controller.data_sheet().to_json()
        assert sheet["license"] == "apache-2.0"
        fitted = (folder / "fit.json").is_file()
        assert (sheet["n"] == 4000) == fitted
        assert ("plugalign.pocket.world" in sheet["training_data"]) == fitted


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'bases'; there are base, judge"):
        build(tmp_path, ("bases",))
