"""Fitting DExperts: the two language models learn their class, and the base stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugalign import wrapping
from plugalign.controller import Controller
from plugalign.controllers.dexperts import DExperts
from plugalign.fitting import dexperts
from plugalign.fitting.data import Labelled
from plugalign.fitting.dexperts import fit_dexperts

OPTIONS: dict[str, Any] = {"steps": 30, "batch_size": 8, "lr": 3e-3, "max_length": 12, "seed": 2}


@pytest.fixture
def data() -> Labelled:
    """Desired texts count up through w10 .. w19, the others through w60 .. w69."""
    texts = [
        " ".join(f"w{first + (start + i) % 10}" for i in range(4 + start % 4))
        for first in (10, 60)
        for start in range(20)
    ]
    return Labelled(tuple(texts), ("0",) * 20 + ("1",) * 20)


def snapshot(model: Any) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def unchanged(model: Any, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())


def share_of_desired(model: Any, tokenizer: Any, controller: Controller) -> float:
    """How much of the next-token mass on w10 .. w19 and w60 .. w69 the former have."""
    ids = torch.tensor([[13 + 3, 14 + 3], [63 + 3, 64 + 3]])
    processor = wrapping.wrap(model, tokenizer, controller).processor(torch.ones_like(ids))
    p = processor(ids, torch.zeros(2, model.config.vocab_size)).exp()
    good, bad = p[:, 13:23].sum(), p[:, 63:73].sum()
    return float(good / (good + bad))


def test_whole_models(tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path) -> None:
    model = tiny()
    before, out = snapshot(model), tmp_path / "detox"
    controller = fit_dexperts(model, tokenizer, data, out, alpha=1.5, top_p=1.0, **OPTIONS)
    assert unchanged(model, before) and not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detox"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["antiexpert", "expert"]
    loaded = Controller.from_pretrained(str(out))
    assert isinstance(loaded, DExperts) and loaded.alpha == controller.alpha == 1.5
    assert share_of_desired(model, tokenizer, loaded) > 0.8
    other = DExperts(controller.antiexpert, controller.expert, alpha=1.5, top_p=1.0)
    assert share_of_desired(model, tokenizer, other) < 0.2


def test_adapters(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path, architecture: str
) -> None:
    model = tiny(architecture)
    before, names = snapshot(model), [name for name, _ in model.named_modules()]
    controller = fit_dexperts(
        model, tokenizer, data, tmp_path / "out", lora=True, top_p=1.0, **{**OPTIONS, "lr": 1e-2}
    )
    assert unchanged(model, before) and not model.training
    assert [name for name, _ in model.named_modules()] == names
    assert (tmp_path / "out" / "expert" / "adapter_config.json").is_file()
    assert share_of_desired(model, tokenizer, controller) > 0.8
    with pytest.raises(ValueError, match="fitted for the weights of"):
        controller.steer(tiny(architecture, seed=1), tokenizer)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("calls", [17, 45])
def test_a_killed_fit_continues_to_the_same_experts(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path, calls: int, lora: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, options = tiny("gpt2-tied"), {**OPTIONS, "lora": lora, "steps": 30}
    fit_dexperts(model, tokenizer, data, tmp_path / "whole", **options)
    real, left = dexperts.pad, [calls]

    def mortal(rows: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(rows)

    monkeypatch.setattr(dexperts, "pad", mortal)
    with pytest.raises(Killed):
        fit_dexperts(model, tokenizer, data, tmp_path / "killed", **options)
    monkeypatch.undo()
    assert not (tmp_path / "killed").exists()
    fit_dexperts(model, tokenizer, data, tmp_path / "killed", **options)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_a_half_precision_base_is_tuned_in_float32(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    model = tiny().to(torch.float16)
    fit_dexperts(model, tokenizer, data, tmp_path / "out", **{**OPTIONS, "steps": 2})
    assert model.dtype == torch.float16


def test_what_is_there_is_not_overwritten(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name another folder"):
        fit_dexperts(tiny(), tokenizer, data, tmp_path, **OPTIONS)


def test_bad_settings_are_named_before_any_work(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="steps must be a positive number, got -3"):
        fit_dexperts(tiny(), tokenizer, data, out, steps=-3)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        fit_dexperts(tiny(), tokenizer, data, out, alpha=float("nan"))
    with pytest.raises(ValueError, match=r"top-p must lie in \[0, 1\], got 1\.5"):
        fit_dexperts(tiny(), tokenizer, data, out, top_p=1.5)
    with pytest.raises(ValueError, match="max_length 129 exceeds the context of 'Llama"):
        fit_dexperts(tiny(), tokenizer, data, out, max_length=129)
    with pytest.raises(ValueError, match="no text has the desired label 'polite'"):
        fit_dexperts(tiny(), tokenizer, data, out, desired="polite")
    assert not list(tmp_path.iterdir())
