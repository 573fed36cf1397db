"""Teacher forcing under control: how probable given texts are for the steered model.

Where a shift's formula looks at one position at a time, all positions are known in advance: every
model reads the texts once, a block of columns at a time, and the step's kernels see each position
as a row of its own. Candidates of a predictor (FUDGE) differ from position to position, so then a
block is one column.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.engine.batching.batched_base import BaseOutput
from plugalign.engine.batching.contexts import context_layout, insertion
from plugalign.engine.context_length import context_length_of, readers
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import prefix_of
from plugalign.engine.readers.cache_spec import check_cache
from plugalign.engine.readers.heads import SplitModel, head_input
from plugalign.engine.readers.positions import packed
from plugalign.engine.readers.prefix_cache import PrefixCache
from plugalign.engine.run import Run
from plugalign.engine.step import Step
from plugalign.errors import Running
from plugalign.generation.prompts import reworded
from plugalign.kernels import steer
from plugalign.kernels.backend import FLOATS
from plugalign.kernels.head import Logits, full

ENTRIES = 2**25  # logits of one model at a time
Texts = Sequence[str] | tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts that end in the same column.

    Attributes:
        ids, mask: ``(R, T)``, left-padded. lengths: how many last tokens of each row are scored.
    """

    ids: Tensor
    mask: Tensor
    lengths: list[int]

    @property
    def start(self) -> int:
        """The first column behind which a token is scored."""
        return self.ids.shape[1] - 1 - max(self.lengths)

    @cached_property
    def wanted(self) -> Tensor:
        """Behind which columns a token is scored, bool ``(R, T - 1)``."""
        column = torch.arange(self.ids.shape[1] - 1, device=self.ids.device)
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return column >= self.ids.shape[1] - 1 - lengths[:, None]


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


class Passage:
    """A model that reads whole texts from left to right, a block of columns at a time.

    Args:
        ids, mask: ``(R, T)``. keys_values: a trained prefix in front, see `PrefixCache`.
        before: so many first columns are no columns of the texts.
    """

    def __init__(
        self,
        model: Any,
        split: SplitModel | None,
        ids: Tensor,
        mask: Tensor,
        *,
        keys_values: Tensor | None = None,
        before: int = 0,
    ):
        if keys_values is not None:
            keys_values = keys_values.to(model.device, model.dtype)
        self._prefix = PrefixCache(model, keys_values)
        self._model, self._split = model, split
        check_cache(model)
        if not self._prefix.spec.columns:
            ids, mask = packed(ids, mask)
        self._ids, self._mask = ids.to(model.device), mask.to(model.device)
        self._before, self._read = before, 0
        self.hidden: Tensor | None = None

    def logits(self, stop: int, row: Tensor, column: Tensor) -> Logits:
        """The logits ``(N, V)`` behind some places ``(N,)`` before column ``stop``, which is behind
        that of the last call. What the head reads there, ``(N, D)``, is kept in ``hidden``."""
        device, stop = row.device, stop + self._before
        back = column.to(self._model.device) + self._before - stop  # counted from the end
        row, first = row.to(self._model.device), self._read
        if first == 0 or not self._prefix.spec.columns:  # then all is read again
            first = self._prefix.align(self._ids[:, :stop], self._mask[:, :stop], spare=stop)
        self._read = stop
        inputs = self._prefix.inputs(self._ids[:, :stop], self._mask[:, :stop], first)
        if self._split is not None:
            states = self._split.states(inputs)
            head = self._split.head(states[row, back])
            self.hidden = head.hidden.to(device)
            return head if head.device == device else head.full().to(device)
        with head_input(self._model) as seen:
            whole = self._model(**inputs).logits
        self.hidden = seen[0][row, back].to(device)
        logits: Tensor = whole[row, back].to(device)
        return logits if logits.dtype in FLOATS else logits.float()


class Sources:
    """The base and all models that the plan's shifts ask for, on one batch of texts."""

    def __init__(self, run: Run, model: Any, batch: Batch):
        plan, (ids, mask) = run.plan, (batch.ids, batch.mask)
        self._base = Passage(model, run.split_models.get(model), ids, mask)
        self._others: dict[Hashable, Passage] = {}
        for key, source in plan.sequence_logits.items():
            other = model if source.model is None else source.model
            context = source.context
            layout = context_layout([context], run.pad)
            if context.turn:
                _check_behind(insertion(context, ids, mask), batch)
            behind, shown = layout.rows(context, ids, mask)
            self._others[key] = Passage(
                other,
                run.split_models.get(other),
                behind,
                shown[:, layout.depth :],
                keys_values=context.keys_values,
                before=layout.width,
            )
        self._names = {key: plan.sources[key].name for key in self._others}

    def read(self, stop: int, row: Tensor, column: Tensor) -> BaseOutput:
        """What all models give at these places; see `Passage.logits`."""
        base = self._base.logits(stop, row, column)
        known: dict[Hashable, Logits] = {}
        for key, passage in self._others.items():
            with Running(f"the source '{self._names[key]}' on given texts"):
                known[key] = passage.logits(stop, row, column)
        return BaseOutput(full(base), self._base.hidden, known)


def _check_behind(start: Tensor, batch: Batch) -> None:
    """Refuses to score what stands in front of the place where a controller's text begins.

    Args:
        start: the column of each row before which that text stands, 0 in front of all, ``(R,)``.

    Raises:
        ValueError: naming the text.
    """
    for row, (column, length) in enumerate(zip(start.tolist(), batch.lengths, strict=True)):
        if column > batch.ids.shape[1] - length:
            raise ValueError(
                f"text {row} begins a chat, whose opening no controller that speaks inside it can "
                "score; give what stands in front of the answer as its prompt"
            )


@torch.no_grad()
def log_probs(run: Run, model: Any, batch: Batch) -> list[Tensor]:
    """For each row the log-probabilities of its last tokens, float32 on the CPU.

    Raises:
        FloatingPointError: if a model gives NaN or infinite logits; names it and the text.
    """
    sources, runner = Sources(run, model, batch), run.incremental_sources()
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
        number = stop - batch.ids.shape[1] + torch.tensor(batch.lengths, device=batch.ids.device)
        step = Step(run.plan, runner, prefix, known.base, known, number)
        token = batch.ids[row, column + start + 1]
        chosen = steer.scores(step.mixture(), before=run.plan.truncation).gather(1, token[:, None])
        found[row, column + start] = chosen[:, 0]
        bad = found[:, start:stop].isnan() & here
        if bool(bad.any()):
            with Running(f"text {int(bad.nonzero()[0, 0])}"):
                step.check()
                raise FloatingPointError(f"no token is possible behind {stop} columns")
    lengths = zip(found.cpu(), batch.lengths, strict=True)
    return [row[len(row) - length :] for row, length in lengths]


def without_supports(plan: Plan) -> Plan:
    """A plan whose shifts act on the whole vocabulary, so that every token stays possible."""
    bare = tuple((name, replace(steering, supports=())) for name, steering in plan.steerings)
    return replace(plan, steerings=tuple(each for each in bare if each[1].shifts))


def tokenized(texts: Texts, tokenizer: Any, **options: Any) -> list[list[int]]:
    """Token ids of strings, or of ``(ids, mask)`` ``(B, T)`` with padding on either side."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings or (ids, mask), got {texts!r}")
    if isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], Tensor):
        rows = zip(*texts, strict=True)
        return [row[keep.bool()].tolist() for row, keep in rows]
    if other := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"texts must be a list of strings or (ids, mask), got {other[0]!r} in it")
    return [list(tokenizer(text, **options)["input_ids"]) for text in texts]


def asked(
    parts: Sequence[Controller], tokenizer: Any, texts: Texts, prompts: Texts | None
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
    rewording = [part for part in parts if part.overrides("prompt")]
    if prompts is None:
        if rewording:
            raise ValueError(f"{type(rewording[0]).__name__} rewords prompts; give some")
        whole = tokenized(texts, tokenizer)
        _check_each("text", whole, least=2)
        return [text[:1] for text in whole], [text[1:] for text in whole]
    before = tokenized(prompts, tokenizer)
    scored = tokenized(texts, tokenizer, add_special_tokens=False)
    _check_each("text", scored)
    _check_each("prompt", before)
    if len(before) != len(scored):
        raise ValueError(f"{len(scored)} texts need as many prompts, got {len(before)}")
    if rewording:
        batch = left_padded(before, [[] for _ in before], 0, "cpu")
        before = tokenized(reworded(rewording, tokenizer, batch.ids, batch.mask), tokenizer)
    return before, scored


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
