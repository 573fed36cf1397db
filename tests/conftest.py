"""Tiny models and a tokenizer built in memory, so that no test needs a model hub."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
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
WORDS = 120
SHARED = ROOT.parent / "shared"

CONFIGS = {
    "llama-gqa": lambda v: LlamaConfig(
        vocab_size=v,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    ),
    "gpt2-tied": lambda v: GPT2Config(
        vocab_size=v,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "qwen2-tied": lambda v: Qwen2Config(
        vocab_size=v,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    ),
    "neox": lambda v: GPTNeoXConfig(
        vocab_size=v,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
}
ARCHITECTURES = tuple(CONFIGS)


def make_tokenizer(words: int = WORDS) -> PreTrainedTokenizerFast:
    """Words w0 .. w{n}, Yes and No; <pad> is 0, <eos> is 1, <unk> is 2."""
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocab |= {f"w{i}": 3 + i for i in range(words - 5)} | {"Yes": words - 2, "No": words - 1}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def make_model(architecture: str = "llama-gqa", seed: int = 0, vocab: int = WORDS) -> Any:
    """A random model whose distributions are far from uniform, so that mistakes show."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture](vocab)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


def make_prompts(rows: int = 3, width: int = 7, vocab: int = WORDS, seed: int = 0) -> Any:
    """Left-padded prompts of different lengths: {"input_ids", "attention_mask"}, (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, width), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        pad = min(row * 2, width - 2)
        ids[row, :pad], mask[row, :pad] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


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
