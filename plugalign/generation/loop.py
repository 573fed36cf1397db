"""The owned decoding loop: greedy decoding and sampling with little around the forwards.

transformers prepares a call as always (configuration, cache, processors, stopping criteria) and
hands it over through its ``custom_generate`` hook; here the models run, one fused draw chooses the
tokens without sorting a vocabulary. What the loop does not do takes the processor path
(`plugalign.generation.routing` decides), which follows the same plan.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.compiled import static_decoding
from plugalign.engine.acceleration.switch import WITHOUT, CaptureSwitch
from plugalign.engine.batching.batched_base import BatchedBase, is_growing
from plugalign.engine.call import Call, prepared_call
from plugalign.engine.readers.incremental import is_static
from plugalign.engine.run import Run
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.drafts import BASE, MOST_DRAFTED, Speculation, make_drafter
from plugalign.engine.speculative.verification import Round, Speculator, check_verifiable
from plugalign.engine.step import Step
from plugalign.engine.stopping import Stopping
from plugalign.errors import Running
from plugalign.kernels import steer

ROOM = 64  # columns by which a mask grows


class Loop:
    """One ``generate`` call; an argument for ``custom_generate``.

    Args:
        run: the call's state.
        streamer: gets the tokens as they come; transformers has given it the prompts.
        speculation: what drafts tokens, if anything.
        switch: whether its steps are to be captured.
    """

    def __init__(
        self,
        run: Run,
        streamer: Any = None,
        speculation: Speculation | None = None,
        switch: CaptureSwitch | None = None,
    ):
        self._run, self._streamer, self._speculation = run, streamer, speculation
        self._switch = switch or CaptureSwitch()

    def __call__(self, model: Any, input_ids: Tensor, **inputs: Any) -> Any:
        """What ``generate`` returns, from arguments as transformers prepares them.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
            ValueError: if a draft is wanted and cannot be verified, or a capture and none is made.
        """
        call = prepared_call(model, input_ids, **inputs)
        base, decoder = self._prepared(call)
        mask = inputs.get("attention_mask")
        with self._run.watching(base.split is None), decoder:
            ids = decoder.decode(
                input_ids, torch.ones_like(input_ids) if mask is None else mask, self._streamer
            )
        if not call.returns_dict:
            return ids
        base.keep_base_cache(len(ids))
        return GenerateDecoderOnlyOutput(
            sequences=ids, scores=decoder.scores, logits=decoder.logits, past_key_values=call.cache
        )

    def _prepared(self, call: Call) -> tuple[BatchedBase, Decoder]:
        run, speculation = self._run, self._speculation
        graph = self._graph(call)
        stopping = Stopping(
            call.criteria,
            call.ids,
            call.config._pad_token_tensor,
            every_step=self._streamer is not None or speculation is not None,
            captured=graph is not None,
            most=call.cache.get_max_length() + 1 if is_static(call.cache) else None,
        )
        room = stopping.remaining(call.ids) - 1
        if is_static(call.cache):  # of the longest call so far: no shorter one is compiled anew
            room = call.cache.get_max_length() - call.ids.shape[1]
        static = static_decoding(
            call.model, call.cache, call.config, room, captured=graph is not None
        )
        split = run.split_models.get(call.model, static)
        if speculation is not None:
            check_verifiable(
                run.plan, speculation, split is not None, call.cache, call.selection, stopping
            )
        # A base that drafts runs ahead, and nothing rides with it.
        alone = speculation is not None and speculation.draft == BASE
        batched = ({}, None) if alone else run.batched_with_base(call.cache, graph is not None)
        base = BatchedBase(
            call.model,
            *batched,
            cache=call.cache,
            split=split,
            copies=call.copies,
            pad_token_id=run.pad,
            every=speculation is not None,
            linear=run.plan.linear,
            exact=call.returns_logits or call.selection.want_scores,
        )
        sources = run.incremental_sources(call.copies, speculation is not None, static)
        decoder = Decoder(run, base, sources, call.selection, stopping, graph, self._switch)
        decoder.logits = () if call.returns_logits else None
        if speculation is not None:
            parts = (base, sources, call.selection, stopping)
            decoder.speculator = self._speculator(speculation, *parts)
        return base, decoder

    def _graph(self, call: Call) -> captured_step.Graph | None:
        """What the steps of a call are captured in, if they are."""
        run, why = (
            self._run,
            captured_step.argument_obstacle(self._speculation is not None, self._run.trace),
        )
        return captured_step.graph_for(
            call, run.plan, run.split_models, run.extra_positions, self._switch, why
        )

    def _speculator(
        self,
        speculation: Speculation,
        base: BatchedBase,
        sources: SourceRunner,
        selection: Selection,
        stopping: Stopping,
    ) -> Speculator:
        plan, run = self._run.plan, self._run
        draft = make_drafter(
            speculation, base, selection, plan.truncation, run.incremental_model, sources.check
        )
        return Speculator(plan, speculation, draft, base, sources, selection, stopping)


class Decoder:
    """The loop itself, and what it keeps between two steps.

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
        self._who = run.plan.forward_name(base.batched_keys)
        self.scores: tuple[Tensor, ...] | None = () if selection.want_scores else None
        self.logits: tuple[Tensor, ...] | None = None
        self.speculator: Speculator | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # the error's traceback would keep all caches
            self._base.forget()
            self._sources.forget()
            if self.speculator is not None:
                self.speculator.forget()

    def decode(self, ids: Tensor, mask: Tensor, streamer: Any = None) -> Tensor:
        """The prompts ``(R, T)`` with what follows them ``(R, T')``; ``mask`` ``(R, T)``."""
        first, done = ids.shape[1], False
        while not done:
            mask = self._wide(mask, ids.shape[1] + MOST_DRAFTED)
            for tokens in self._next(ids, mask).unbind(1):
                tokens = self._stopping.padded(tokens, ids.shape[1])
                ids = torch.cat([ids, tokens[:, None]], dim=1)
                if streamer is not None:
                    streamer.put(tokens.cpu())
                if self._run.trace is not None:
                    self._run.trace.chosen(ids)
                known = self.scores and self.scores[: ids.shape[1] - first]
                if done := self._stopping(ids, tokens, known):
                    break
            self._look(ids, mask, done)
            if self._graph is not None and not done:
                graph, self._graph = self._graph, None
                ids, done = self._replayed(graph, ids, mask, streamer)
        if streamer is not None:
            streamer.end()
        ids = ids[:, : ids.shape[1] - self._stopping.surplus(ids)].contiguous()
        return self._cut(ids, first)

    def _replayed(
        self, graph: captured_step.Graph, ids: Tensor, mask: Tensor, streamer: Any
    ) -> tuple[Tensor, bool]:
        """All further tokens by replays of one step, and whether these were all; they are not where
        no step could be captured."""
        room, done = self._stopping.remaining(ids), False
        steps = captured_step.CapturedSteps(
            graph, self._drawn, self._at, self._refused, self._stopping, ids, room
        )
        for ids in steps.texts():
            done = self._stopping.is_over(ids)
            self._look(ids, mask, done)
            if streamer is not None:
                streamer.put(ids[:, -1].cpu())
            if done:
                break
        return ids, done

    def _drawn(self, ids: Tensor, column: Tensor) -> Tensor:
        """The tokens ``(R,)`` after texts, as `CapturedSteps` asks for them."""
        step = self._read(ids, ids, column)  # every model has begun, so none asks for the mask
        return self._selection.tokens(ids, step.mixture(), self._run.plan.truncation, column)[0]

    def _at(self, length: int) -> None:
        self._base.set_length(length)
        self._sources.set_length(length)

    def _refused(self, why: str) -> None:
        """Goes on without a graph, now and in later calls, unless one was asked for."""
        self._run.split_models.why_uncapturable = f"a step could not be captured ({why})"
        self._switch.check(self._run.split_models.why_uncapturable)
        warnings.warn(
            "no CUDA graph of a step can be made, so each is launched by the host, now and in "
            f"later calls: {why}; {WITHOUT}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _look(self, ids: Tensor, mask: Tensor, done: bool) -> None:
        """Looks now and then for a column that has no token."""
        if (column := self._stopping.failed(ids, done)) is not None:
            self._blame(ids[:, :column], self._wide(mask, column)[:, :column])

    def _wide(self, mask: Tensor, columns: int) -> Tensor:
        """The mask ``(R, T)`` with so many columns at least."""
        if (missing := columns - mask.shape[1]) <= 0:
            return mask
        return torch.cat([mask, mask.new_ones(len(mask), max(missing, ROOM))], dim=1)

    def _next(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The tokens ``(R, n)`` that follow ``ids`` ``(R, T)``; -1 where none is possible. The mask
        is as wide as need be."""
        if self.speculator is not None:
            found = self.speculator.round(ids, mask)
            if found is not None:
                return self._found(found)
        step = self._read(ids, mask[:, : ids.shape[1]])
        tokens, scores = self._selection.tokens(ids, step.mixture(), self._run.plan.truncation)
        if not self._stopping.deferred and bool((tokens < 0).any()):
            self._refuse(step)
        if self.scores is not None and scores is not None:
            self.scores += (scores,)
        if self._run.trace is not None:
            truncation = self._run.plan.truncation
            self._run.record(step, steer.scores(step.mixture(), before=truncation))
        return tokens[:, None]

    def _found(self, found: Round) -> Tensor:
        """A round's tokens, once what is wanted of it has been kept."""
        if found.failed:
            self._refuse(found.step)
        if self.scores is not None:
            self.scores += found.target.unbind(1)
        if self.logits is not None:
            self.logits += found.logits.float().unbind(1)
        return found.tokens

    def _read(self, ids: Tensor, mask: Tensor, column: Tensor | None = None) -> Step:
        """Runs the base and all sources on what they have not read; see `Selection.base`."""
        with Running(f"{self._who} at {self._sources.where(ids)}"):
            known = self._base.read(ids, mask)
        if self.logits is not None:
            self.logits += (known.base.float(),)
        if known.hidden is None:  # watched, and asked for before a processor runs the base too
            known = replace(known, hidden=self._base.base_rows(self._run.hidden(), len(ids)))
        base = self._selection.base(ids, known.base, column)
        return Step(self._run.plan, self._sources, ids, mask, base, known)

    def _refuse(self, step: Step) -> None:
        step.check()
        raise FloatingPointError(f"no token is possible at {self._sources.where(step.ids)}")

    def _blame(self, ids: Tensor, mask: Tensor) -> None:
        """Repeats a step that failed some steps ago, to find out why."""
        self._base, self._sources = self._base.restarted(), self._run.incremental_sources()
        self._refuse(self._read(ids, mask))

    def _cut(self, ids: Tensor, first: int) -> Tensor:
        """Forgets what is not behind one of ``ids`` ``(R, T)``, the first of which were given, in
        what was recorded and in the cache too."""
        if is_growing(self._base.cache) or is_static(self._base.cache):  # others cannot forget
            self._base.rewind(self._base.length - (ids.shape[1] - 1))
        self.scores = self.scores and self.scores[: ids.shape[1] - first]
        self.logits = self.logits and self.logits[: ids.shape[1] - first]
        return ids
