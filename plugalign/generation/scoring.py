"""Teacher forcing under control: how probable given texts are for the steered model.

Where a shift's formula looks at one position at a time, all positions are known in advance: every
model reads the texts once, a block of columns at a time, and the step's kernels see each position
as a row of its own. Candidates of a predictor (FUDGE) differ from position to position, so then a
block is one column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.engine.context_length import context_length_of, readers
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import prefix_of
from plugalign.engine.run import Run
from plugalign.engine.step import Step
from plugalign.errors import Running
from plugalign.generation.arguments import checked_mask, vocabulary_of
from plugalign.generation.chat import encode
from plugalign.generation.passages import Batch, Sources
from plugalign.generation.prompt_memory import PromptMemory
from plugalign.generation.prompts import reworded
from plugalign.generation.tokens import token_ids
from plugalign.kernels import steer

ENTRIES = 2**25  # logits of one model at a time
Texts = Sequence[str] | tuple[Tensor, Tensor]


def left_padded(
    prompts: Sequence[list[int]], texts: Sequence[list[int]], pad: int, device: Any
) -> Batch:
    """A batch of texts to score, each behind its prompt.

    Args:
        prompts, texts: token ids, one list for each row.
        pad: the token id that fills shorter rows.
    """
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    lengths = [len(text) for text in texts]
    return Batch(torch.tensor(ids, device=device), torch.tensor(mask, device=device), lengths)


def behind_one_prompt(
    prompts: Sequence[list[int]], texts: Sequence[list[int]], fill: int, device: Any
) -> Batch:
    """A batch of texts behind the same prompt, whose columns are then alike in every row.

    A shorter text is filled on the right, where no scored token sees it.

    Raises:
        ValueError: the prompts differ.
    """
    prompt = prompts[0]
    if any(other != prompt for other in prompts):
        raise ValueError(
            "with a memory the texts of one call stand behind one prompt, and these prompts "
            "differ; make a call for each"
        )
    width = max(map(len, texts))
    rows = [[*prompt, *text, *[fill] * (width - len(text))] for text in texts]
    ids = torch.tensor(rows, device=device)
    return Batch(ids, torch.ones_like(ids), [len(text) for text in texts], column=len(prompt))


def batches(
    prompted: Sequence[list[int]],
    scored: Sequence[list[int]],
    size: int,
    pad: int,
    device: Any,
    *,
    together: bool,
) -> Iterator[Batch]:
    """Texts and the prompts in front of them in batches of at most ``size``.

    Args:
        together: whether the texts of a batch stand behind one prompt, see `behind_one_prompt`;
            else they are `left_padded`.
    """
    batched = behind_one_prompt if together else left_padded
    for i in range(0, len(scored), size):
        yield batched(prompted[i : i + size], scored[i : i + size], pad, device)


@torch.no_grad()
def log_probs(
    run: Run, model: Any, batch: Batch, memory: PromptMemory | None = None
) -> list[Tensor]:
    """For each row the log-probabilities of its scored tokens, float32 on the CPU.

    Args:
        memory: of earlier batches, see `plugalign.generation.passages.Sources`.

    Raises:
        FloatingPointError: if a model gives NaN or infinite logits; names it and the text.
    """
    sources, runner = Sources(run, model, batch, memory), run.incremental_sources()
    stepwise = run.plan.why_stepwise is not None
    vocab = model.get_output_embeddings().weight.shape[0]
    width = 1 if stepwise else max(1, ENTRIES // (len(batch.ids) * vocab))
    last = batch.ids.shape[1] - 1
    found = torch.zeros(batch.wanted.shape, device=batch.ids.device)
    for start in range(batch.start, last, width):
        stop = min(start + width, last)
        here = batch.wanted[:, start:stop]
        row, column = (torch.ones_like(here) if stepwise else here).nonzero(as_tuple=True)
        known = sources.read(stop, row, column + start)
        prefix = prefix_of(batch.ids[:, :stop], batch.mask)
        step = Step(run.plan, runner, prefix, known.base, known, stop - batch.first)
        token = batch.ids[row, column + start + 1]
        chosen = steer.scores(step.mixture(), before=run.plan.truncation).gather(1, token[:, None])
        found[row, column + start] = chosen[:, 0]
        bad = found[:, start:stop].isnan() & here
        if bool(bad.any()):
            with Running(f"text {int(bad.nonzero()[0, 0])}"):
                step.check()
                raise FloatingPointError(f"no token is possible behind {stop} columns")
    return batch.chosen(found.cpu())


def without_supports(plan: Plan) -> Plan:
    """A plan whose shifts act on the whole vocabulary, so that every token stays possible."""
    bare = tuple((name, replace(steering, supports=())) for name, steering in plan.steerings)
    return replace(plan, steerings=tuple(each for each in bare if each[1].shifts))


def tokenized(
    texts: Texts,
    tokenizer: Any,
    special_tokens: bool = True,
    *,
    what: str = "text",
    vocabulary: int | None = None,
) -> list[list[int]]:
    """Token ids of strings, or of ``(ids, mask)`` ``(B, T)`` with padding on either side.

    Args:
        special_tokens: whether the tokenizer frames strings. One that carries its begin token
            already gets no second one.
        what: they are, for messages.
        vocabulary: how many tokens the model knows, where that is known.

    Raises:
        TypeError, ValueError: for what is neither, or an id that the model does not know.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings or (ids, mask), got {texts!r}")
    if isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], Tensor):
        return _unpadded(*texts, what, vocabulary)
    if other := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"texts must be a list of strings or (ids, mask), got {other[0]!r} in it")
    if not special_tokens:
        return [encode(tokenizer, text) for text in texts]
    return token_ids(tokenizer, list(texts)) if texts else []


def _unpadded(ids: Tensor, mask: Any, what: str, vocabulary: int | None) -> list[list[int]]:
    """The token ids ``(B, T)`` that are no padding, row by row."""
    if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{what}s as (input_ids, attention_mask) are whole numbers (B, T), got "
            f"{tuple(ids.shape)} of {ids.dtype}"
        )
    mask = checked_mask(mask, ids, vocabulary, what)
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def asked(
    parts: Sequence[Controller], model: Any, tokenizer: Any, texts: Texts, prompts: Texts | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts, reworded by controllers, and of what is scored behind them; a text
    without a prompt gives its first token.

    Raises:
        ValueError: without texts, with another number of prompts, for an empty one (names it), or
            a controller for which there is nothing to score.
    """
    for part in parts:
        if part.overrides("revise"):
            name = type(part).__name__
            raise ValueError(f"{name} revises finished answers, so a text has no probability")
    vocabulary = vocabulary_of(model)
    rewording = [part for part in parts if part.overrides("prompt")]
    if prompts is None:
        if rewording:
            raise ValueError(f"{type(rewording[0]).__name__} rewords prompts; give some")
        whole = tokenized(texts, tokenizer, vocabulary=vocabulary)
        _check_each("text", whole, least=2)
        return [text[:1] for text in whole], [text[1:] for text in whole]
    front = tokenized(prompts, tokenizer, what="prompt", vocabulary=vocabulary)
    scored = tokenized(texts, tokenizer, special_tokens=False, vocabulary=vocabulary)
    _check_each("text", scored)
    _check_each("prompt", front)
    if len(front) != len(scored):
        raise ValueError(f"{len(scored)} texts need as many prompts, got {len(front)}")
    if rewording:
        batch = left_padded(front, [[] for _ in front], 0, "cpu")
        front = tokenized(reworded(rewording, tokenizer, batch.ids, batch.mask), tokenizer)
    return front, scored


def _check_each(kind: str, texts: list[list[int]], least: int = 1) -> None:
    if not texts:
        raise ValueError(f"log_probs needs at least one {kind}, got none")
    for i, text in enumerate(texts):
        if len(text) < least:
            why = "; the first has no prefix, so it needs two, or a prompt" if least > 1 else ""
            raise ValueError(f"{kind} {i} has {len(text)} tokens{why}")


def check_fits(plan: Plan, model: Any, lengths: Sequence[int], extra: int) -> None:
    """Refuses texts that are longer than the context of a model which must read them.

    Args:
        lengths: tokens of each text with its prompt.
        extra: cache positions that attachments put in front of them.

    Raises:
        ValueError: naming the text and the model.
    """
    for each, more, _ in readers(plan, model, extra):
        context, longest = context_length_of(each), max(lengths)
        if context is not None and longest + more > context:
            beside = f" and {more} that controllers put in front" if more else ""
            raise ValueError(
                f"text {lengths.index(longest)} has {longest} tokens{beside}, more than the "
                f"context of '{model_name(each)}' ({context} tokens)"
            )
