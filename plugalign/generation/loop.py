"""The decoding loop: greedy decoding and sampling with little around the forwards.

The models run, and one fused draw selects the tokens without sorting a vocabulary. See
`plugalign.generation.decoding_method` for how ``generate`` gets here.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.switch import WITHOUT, CaptureSwitch
from plugalign.engine.batching.batched_base import BatchedBase, is_growing
from plugalign.engine.prefix import Prefix, prefix_of
from plugalign.engine.readers.incremental import is_static
from plugalign.engine.run import Run
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.drafts import MOST_DRAFTED
from plugalign.engine.speculative.verification import Round, Speculator
from plugalign.engine.step import Step
from plugalign.engine.stopping import Stopping
from plugalign.errors import Running
from plugalign.kernels import steer

MASK_GROWTH = 64  # columns by which a mask grows


class DecodingLoop:
    """Decodes token by token: the forwards, the selection of tokens, stopping, streaming.

    Args:
        run: the call's state: its plan, its trace.
        base: reads the base model, with the sources that are batched with it.
        sources: reads all other models.
        selection: chooses tokens from a step's mixture.
        stopping: says which rows have ended.
        graph: what the steps after the second are captured in, if they are.
        switch: whether a capture was asked for.

    Attributes:
        scores, logits: per step the processed scores and the base's logits ``(R, V)``, or None
            where they are not wanted.
        speculator: finds several tokens at a time, if given.
    """

    def __init__(
        self,
        run: Run,
        base: BatchedBase,
        sources: SourceRunner,
        selection: Selection,
        stopping: Stopping,
        graph: captured_step.Graph | None = None,
        switch: CaptureSwitch | None = None,
    ):
        self._run, self._base, self._sources = run, base, sources
        self._selection, self._stopping, self._graph = selection, stopping, graph
        self._switch = switch or CaptureSwitch()
        self._forward_name = run.plan.forward_name(base.batched_keys)
        self.scores: tuple[Tensor, ...] | None = () if selection.want_scores else None
        self.logits: tuple[Tensor, ...] | None = None
        self.speculator: Speculator | None = None

    def __enter__(self) -> DecodingLoop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # the error's traceback would keep all caches
            self._base.forget()
            self._sources.forget()
            if self.speculator is not None:
                self.speculator.forget()

    def decode(self, ids: Tensor, mask: Tensor, streamer: Any = None) -> Tensor:
        """The prompts with their continuations.

        Args:
            ids, mask: the prompts ``(R, T)``.
            streamer: gets the tokens of each step as they come.

        Returns:
            Token ids ``(R, T')``.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
        """
        first, done = ids.shape[1], False
        while not done:
            mask = self._extended_mask(mask, ids.shape[1] + MOST_DRAFTED)
            for tokens in self._next_tokens(ids, mask).unbind(1):
                tokens = self._stopping.padded(tokens, ids.shape[1])
                ids = torch.cat([ids, tokens[:, None]], dim=1)
                if streamer is not None:
                    streamer.put(tokens.cpu())
                if self._run.trace is not None:
                    self._run.trace.chosen(ids)
                known = self.scores and self.scores[: ids.shape[1] - first]
                if done := self._stopping(ids, tokens, known):
                    break
            self._check_tokens(ids, mask, done)
            if self._graph is not None and not done:
                graph, self._graph = self._graph, None
                ids, done = self._replay(graph, ids, mask, streamer)
        if streamer is not None:
            streamer.end()
        surplus = self._stopping.surplus(ids)
        if self._run.trace is not None:
            self._run.trace.seed = self._selection.seed
            self._run.trace.forget(surplus)
        return self._crop(ids[:, : ids.shape[1] - surplus].contiguous(), first)

    def _replay(
        self, graph: captured_step.Graph, ids: Tensor, mask: Tensor, streamer: Any
    ) -> tuple[Tensor, bool]:
        """All further tokens by replays of one step, and whether these were all; they are not where
        no step could be captured."""
        remaining, done = self._stopping.remaining(ids), False
        steps = captured_step.CapturedSteps(
            graph,
            self._select,
            self._set_length,
            self._go_uncaptured,
            self._stopping,
            prefix_of(ids, mask),
            remaining,
        )
        for ids in steps.texts():
            done = self._stopping.is_over(ids)
            self._check_tokens(ids, mask, done)
            if streamer is not None:
                streamer.put(ids[:, -1].cpu())
            if done:
                break
        return ids, done

    def _select(self, prefix: Prefix) -> Tensor:
        """The tokens ``(R,)`` after a prefix, as `CapturedSteps` asks for them."""
        step = self._forward(prefix)
        return self._selection.tokens(prefix, step.mixture(), self._run.plan.truncation)[0]

    def _set_length(self, length: int) -> None:
        self._base.set_length(length)
        self._sources.set_length(length)

    def _go_uncaptured(self, why: str) -> None:
        """Goes on without a graph, now and in later calls, unless one was asked for."""
        self._run.split_models.why_uncapturable = f"a step could not be captured ({why})"
        self._switch.check(self._run.split_models.why_uncapturable)
        warnings.warn(
            "no CUDA graph of a step can be made, so each is launched by the host, now and in "
            f"later calls: {why}; {WITHOUT}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _check_tokens(self, ids: Tensor, mask: Tensor, done: bool) -> None:
        """Raises for a step that gave no token; `Stopping.failed` says how often the host looks."""
        if (column := self._stopping.failed(ids, done)) is not None:
            mask = self._extended_mask(mask, column)
            self._raise_for_earlier(prefix_of(ids[:, :column], mask))

    def _extended_mask(self, mask: Tensor, columns: int) -> Tensor:
        """The mask ``(R, T)`` with at least so many columns; generated tokens are no padding."""
        if (missing := columns - mask.shape[1]) <= 0:
            return mask
        return torch.cat([mask, mask.new_ones(len(mask), max(missing, MASK_GROWTH))], dim=1)

    def _next_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The tokens ``(R, n)`` that follow ``ids`` ``(R, T)``; -1 where none is possible. The mask
        is as wide as need be."""
        if self.speculator is not None:
            found = self.speculator.round(ids, mask)
            if found is not None:
                return self._keep_round(found)
        prefix = prefix_of(ids, mask)
        step = self._forward(prefix)
        tokens, scores = self._selection.tokens(prefix, step.mixture(), self._run.plan.truncation)
        if not self._stopping.deferred and bool((tokens < 0).any()):
            self._raise_for(step)
        if self.scores is not None and scores is not None:
            self.scores += (scores,)
        if self._run.trace is not None:
            truncation = self._run.plan.truncation
            steered = steer.scores(step.mixture(), before=truncation)
            self._run.record(step, steered, self._stopping.live.clone())
        return tokens[:, None]

    def _keep_round(self, found: Round) -> Tensor:
        """The tokens of a verified draft, once its scores and logits are kept where wanted."""
        if found.failed:
            self._raise_for(found.step)
        if self.scores is not None:
            self.scores += found.target.unbind(1)
        if self.logits is not None:
            self.logits += found.logits.float().unbind(1)
        return found.tokens

    def _forward(self, prefix: Prefix) -> Step:
        """The step after a prefix, of which the base reads what it has not read."""
        ids = prefix.ids
        with Running(f"{self._forward_name} at {self._sources.where(ids)}"):
            output = self._base.read(prefix)
        if self.logits is not None:
            self.logits += (output.base.float(),)
        if output.hidden is None:  # watched, and asked for before a processor runs the base too
            output = replace(output, hidden=self._base.base_rows(self._run.hidden(), len(ids)))
        base, change = self._selection.base_and_change(prefix, output.base)
        return Step(self._run.plan, self._sources, prefix, base, output, change=change)

    def _raise_for(self, step: Step) -> None:
        step.check()
        raise FloatingPointError(f"no token is possible at {self._sources.where(step.ids)}")

    def _raise_for_earlier(self, prefix: Prefix) -> None:
        """Repeats a step that failed some steps ago, to find out why."""
        self._base, self._sources = self._base.restarted(), self._run.incremental_sources()
        self._raise_for(self._forward(prefix))

    def _crop(self, ids: Tensor, first: int) -> Tensor:
        """Crops the recorded scores and logits and the cache to the texts ``ids`` ``(R, T)``, whose
        first columns are the prompts."""
        if is_growing(self._base.cache) or is_static(self._base.cache):  # others cannot forget
            self._base.rewind(self._base.length - (ids.shape[1] - 1))
        self.scores = self.scores and self.scores[: ids.shape[1] - first]
        self.logits = self.logits and self.logits[: ids.shape[1] - first]
        return ids
