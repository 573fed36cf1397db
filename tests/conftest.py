"""Fixtures of all tests: tiny models (helpers/tiny_models.py) and a controller of each kind."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, make_model, make_prompts, make_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

import plugalign as pa
from plugalign.adapters.layers import LINEAR, LoraLinear, shared_copy
from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import Adaptive, HeadAttribute, LowRank
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import MinP
from plugalign.controllers.fudge import Fudge, Predictor

torch.set_num_threads(1)  # tiny models: threads cost more than they bring

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


class Declared(Controller):
    """A controller that is nothing but its declaration."""

    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


def prefix_of(model: Any, first: int) -> Any:
    """Keys and values of three tokens, as a trained prefix."""
    with torch.no_grad():
        ids = torch.tensor([[first, first + 1, first + 2]], device=model.device)
        cache = model(ids, use_cache=True).past_key_values
    return torch.stack([torch.stack([la.keys[0], la.values[0]]) for la in cache.layers])


def with_lora(model, seed):
    """The model under a LoRA adapter of its second layer; all other weights are shared."""
    draw = torch.Generator().manual_seed(seed)
    expert = shared_copy(model)
    for name, module in list(expert.named_modules()):
        if type(module) in LINEAR and ".1." in name:
            shape = module.weight.shape if type(module) is Conv1D else module.weight.shape[::-1]
            down, up = (torch.randn(n, 4, generator=draw) for n in shape)
            expert.set_submodule(name, LoraLinear(module, down, up.T))
    return expert


def make_controller(which, model, tiny, architecture):
    draw, device = torch.Generator().manual_seed(3), model.device
    random = lambda *shape: torch.randn(*shape, generator=draw).to(device)  # noqa: E731
    left, right = random(120, 3), random(32, 3)
    match which:
        case "nothing":
            return 0 * pa.SelfDebias(["w5"])
        case "dexperts":
            return pa.DExperts(tiny(architecture, seed=1), tiny(architecture, seed=2))
        case "anti-only":
            return pa.DExperts(antiexpert=tiny(architecture, seed=2), top_p=1.0)
        case "lora":
            return pa.DExperts(with_lora(model, 1), with_lora(model, 2))
        case "several":
            parts = ("self-debias", "head", "prefix-contrast")
            return sum(
                (make_controller(part, model, tiny, architecture) for part in parts),
                make_controller("dexperts", model, tiny, architecture),
            )
        case "self-debias":
            return pa.SelfDebias(["w5 w6 w7", "w8"])
        case "low-rank":
            shift = LowRank(left, right, random(32), alpha=0.3)
            return Declared(Steering((shift,), (MinP(0.01),)))
        case "adaptive":
            rule = Adaptive(random(120), low=0.0, high=0.05)
            return Declared(Steering((LowRank(left, right, alpha=rule),)))
        case "head":
            state, bias = right[:, 0], left[:, 0]
            return 4.0 * Declared(Steering((HeadAttribute(left, right, bias, state, 0.5),)))
        case "fudge":
            torch.manual_seed(5)
            return Fudge(Predictor(120, width=16, layers=1, heads=2), k=10, weight=3.0)
        case "prefix":
            return pa.PrefixTuning(prefix_of(model, 11))
        case "prefix-contrast":
            return pa.PrefixTuning(prefix_of(model, 11), prefix_of(model, 40)).against(top_p=0.95)
        case "sum":
            parts = ("dexperts", "self-debias", "low-rank", "prefix", "prefix-contrast")
            return sum(
                (make_controller(part, model, tiny, architecture) for part in parts[1:]),
                make_controller(parts[0], model, tiny, architecture),
            )


@pytest.fixture
def make() -> Any:
    """The factory of one controller of each kind: ``make(which, model, tiny, architecture)``."""
    return make_controller


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a chat template: w80 opens a turn, w81 is the user, w82 the assistant, and w83
    closes the turn."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}w80 {{ 'w81' if m['role'] == 'user' else 'w82' }} "
        "{{ m['content'] }} w83 {% endfor %}{% if add_generation_prompt %}w80 w82 {% endif %}"
    )
    return tokenizer


@pytest.fixture
def tiny() -> Any:
    """The factory of tiny models: ``tiny("gpt2-tied", seed=1)``."""
    return make_model


@pytest.fixture
def prompts() -> Any:
    """The factory of left-padded prompts: ``prompts(rows=3, width=7)``."""
    return make_prompts


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def shared() -> Path:
    """Real data and models; such tests are skipped where the folder is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' data folder at {SHARED}")
    return SHARED


@pytest.fixture
def smollm2() -> Path:
    """The folder of a real model; such tests are skipped where it is missing."""
    models = os.environ.get("PLUGALIGN_MODELS", "~/.cache/plugalign-models")
    folder = Path(models).expanduser() / "smollm2"
    if not folder.is_dir():
        pytest.skip(f"needs SmolLM2-135M-Instruct at {folder} (or PLUGALIGN_MODELS=FOLDER)")
    return folder
