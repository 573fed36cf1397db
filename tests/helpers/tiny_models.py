"""Tiny models, a tokenizer and prompts built in memory, so that no test needs a model hub."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

WORDS = 120
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama-gqa": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "gpt2-tied": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "qwen2-tied": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0),
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


# Turns of the chat tokenizer: an opening token, a role, the content, and a special token that
# closes; the token ids of a word w{n} are 3 + n.
OPEN, USER, ASSISTANT, SYSTEM, CLOSE = (3 + n for n in (80, 81, 82, 84, 83))
CHAT_TEMPLATE = (
    "{% for m in messages %}w80 "
    "{{ {'user': 'w81', 'assistant': 'w82', 'system': 'w84'}[m['role']] }}"
    " {{ m['content'] }} w83 {% endfor %}{% if add_generation_prompt %}w80 w82 {% endif %}"
)


def make_chat_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """The same with a chat template, whose tokens are special.

    Args:
        bos: texts begin with w85, which the template does not write.
    """
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["w80", "w81", "w82", "w83", "w84"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    if bos:
        tokenizer.add_special_tokens({"bos_token": "w85"})
        inner = tokenizer.backend_tokenizer
        inner.post_processor = processors.TemplateProcessing(
            single="w85 $A", special_tokens=[("w85", tokenizer.bos_token_id)]
        )
    return tokenizer


def make_chat_model(seed: int = 0) -> Any:
    """A random model that ends where the chat tokenizer's template closes a turn."""
    model = make_model(seed=seed)
    model.generation_config.eos_token_id = [1, CLOSE]
    return model


def make_model(architecture: str = "llama-gqa", seed: int = 0, vocab: int = WORDS) -> Any:
    """A random model whose distributions are far from uniform, so that mistakes show."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[architecture])
    config.vocab_size = vocab
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
