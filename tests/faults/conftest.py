"""One wrapped tiny model for each kind of controller, and both paths of ``generate``."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

import plugalign as pa
from plugalign.controllers.fudge_head import FudgeHead

KINDS = (
    "nothing",
    "dexperts",
    "lora",
    "self-debias",
    "prefix",
    "prefix-contrast",
    "nullspace",
    "fudge",
    "fudge-head",
    "critique",
    "sum",
)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def wrapped(tiny, tokenizer, make, tmp_path):
    """Wraps a tiny model in a controller of each kind."""

    def adapter(seed):
        model = tiny()
        torch.manual_seed(seed)
        settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(tmp_path / str(seed))
        return tmp_path / str(seed)

    def controller(kind, model):
        right = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(3)))[0]
        match kind:
            case "lora":
                return pa.DExperts(adapter(1), adapter(2), top_p=1.0)
            case "nullspace":
                return pa.Nullspace(right)
            case "fudge-head":
                return FudgeHead(right.flip(0), right, torch.zeros(120), right[:, 0], 0.5, weight=9)
            case "critique":
                verdicts = {"fault": " w7", "fine": " w8", "threshold": 0.0}
                return pa.SelfCritique(critique="w5", refine="w6", **verdicts)
        return make(kind, model, tiny, "llama-gqa")

    def go(kind):
        model = tiny()
        return pa.wrap(model, tokenizer, controller(kind, model))

    return go


@pytest.fixture(params=["loop", "processor"])
def path(request, monkeypatch):
    """Both paths."""
    if request.param == "processor":
        monkeypatch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
    return request.param


@pytest.fixture
def afresh():
    """Wraps the same model in the same controller again."""
    return lambda steered: pa.wrap(steered.model, steered.tokenizer, steered.controller)
