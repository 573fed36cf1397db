"""The pocket model: a byte-level BPE tokenizer and a two-layer GPT-2, trained on pocket text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from plugalign.fitting.data import encode, pad
from plugalign.fitting.training import train
from plugalign.pocket.world import CRITIQUE

PAD, END = "<pad>", "<end>"
_Row = tuple[list[int], int]


def make_tokenizer(
    texts: Sequence[str], vocabulary: int = 1280, context: int = 128
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, so that every text can be encoded and decoded exactly."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, width: int = 96, layers: int = 2, heads: int = 4
) -> GPT2LMHeadModel:
    """An untrained GPT-2 for the tokenizer, with its context, from torch's global seed."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=tokenizer.model_max_length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def train_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    steps: int,
    title: str,
    batch_size: int = 64,
    lr: float = 6e-3,
    seed: int = 0,
) -> list[float]:
    """Trains all parameters in place by maximum likelihood; returns the loss of each step.

    What stands before a critique's verdict is given and not learnt: it may be cut anywhere, and
    the model should neither break off like that nor criticise unasked.
    """
    rows = encode(tokenizer, texts, tokenizer.model_max_length)
    given = [len(ids) for ids in tokenizer([_given(text) for text in texts])["input_ids"]]
    plan = _batches(list(zip(rows, given, strict=True)), batch_size, seed)

    def loss(step: int) -> Tensor:
        batch = plan[step % len(plan)]
        ids, mask = pad([row for row, _ in batch])
        learnt = mask.bool()
        for row, (_, skip) in enumerate(batch):
            learnt[row, :skip] = False
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        return cross_entropy(logits[learnt[:, 1:]], ids[:, 1:][learnt[:, 1:]])

    model.train()
    losses = train(
        parameters=dict(model.named_parameters()),
        loss=loss,
        steps=steps,
        lr=lr,
        title=title,
        weight_decay=0.01,
        seed=seed,
    )
    model.eval()
    return losses


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    """Per token over whole texts, the first token of each left out."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in encode(tokenizer, texts, tokenizer.model_max_length):
            ids = torch.tensor(row)
            logits = model(input_ids=ids[None]).logits[0, :-1]
            total += cross_entropy(logits, ids[1:], reduction="sum").item()
            count += len(row) - 1
    return math.exp(total / count)


def _given(text: str) -> str:
    before, question, _ = text.partition(CRITIQUE)
    return before + question if question else ""


def _batches(rows: list[_Row], batch_size: int, seed: int) -> list[list[_Row]]:
    """Batches of rows of like length, in random order: little of them is padding."""
    rng = Random(seed)
    rows = rng.sample(rows, len(rows))
    pool = 16 * batch_size
    plan = []
    for start in range(0, len(rows), pool):
        alike = sorted(rows[start : start + pool], key=lambda row: len(row[0]))
        plan += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(plan)
    return plan
