"""The decoding method that ``generate`` runs through its ``custom_generate`` hook.

transformers prepares a call as always (configuration, cache, processors, stopping criteria) and
hands it over; here the readers of all models, the selection of tokens and the `DecodingLoop` are
made for it. What the loop does not do takes the processor path (`plugalign.generation.routing`
decides), which follows the same plan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.generation import GenerateDecoderOnlyOutput

from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.compiled import static_decoding
from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.batching.batched_base import BatchedBase
from plugalign.engine.call import Call, prepared_call
from plugalign.engine.readers.incremental import is_static
from plugalign.engine.run import Run
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.drafters import make_drafter
from plugalign.engine.speculative.drafts import BASE, Speculation
from plugalign.engine.speculative.verification import Speculator, check_verifiable
from plugalign.engine.stopping import Stopping
from plugalign.generation.loop import DecodingLoop


class DecodingMethod:
    """A decoding method of plugalign's own for one ``generate`` call: a callable for its argument
    ``custom_generate``, which runs a `DecodingLoop`.

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
        base, loop = self._loop(call)
        mask = inputs.get("attention_mask")
        with self._run.watching(base.split is None), loop:
            ids = loop.decode(
                input_ids, torch.ones_like(input_ids) if mask is None else mask, self._streamer
            )
        if not call.returns_dict:
            return ids
        base.keep_base_cache(len(ids))
        return GenerateDecoderOnlyOutput(
            sequences=ids, scores=loop.scores, logits=loop.logits, past_key_values=call.cache
        )

    def _loop(self, call: Call) -> tuple[BatchedBase, DecodingLoop]:
        """The base's reader and the loop for a prepared call; no model has run."""
        run, speculation = self._run, self._speculation
        graph = self._graph(call)
        stopping = Stopping(
            call.criteria,
            call.ids,
            call.config._pad_token_tensor,
            every_step=self._streamer is not None or speculation is not None,
            captured=graph is not None,
            max_columns=call.cache.get_max_length() + 1 if is_static(call.cache) else None,
        )
        remaining = stopping.remaining(call.ids) - 1
        if isinstance(call.cache, StaticCache):
            # Of the longest call so far: no shorter one is compiled anew. Windows may hold less.
            remaining = max(remaining, call.cache.get_max_length() - call.ids.shape[1])
        static = static_decoding(
            call.model, call.cache, call.config, remaining, captured=graph is not None
        )
        split = run.split_models.get(call.model, static)
        if speculation is not None:
            check_verifiable(
                run.plan, speculation, split is not None, call.cache, call.selection, stopping
            )
        # A base that drafts runs ahead of the other models, so none is batched with it.
        alone = speculation is not None and speculation.draft == BASE
        batched: Any = ({}, None)
        if not alone:
            columns = stopping.max_length
            batched = run.batched_with_base(call.cache, columns, graph is not None)
        base = BatchedBase(
            call.model,
            *batched,
            cache=call.cache,
            split=split,
            repeats=call.repeats,
            pad_token_id=run.pad,
            all_positions=speculation is not None,
            linear=run.plan.linear,
            exact=call.returns_logits or call.selection.want_scores,
        )
        sources = run.incremental_sources(call.repeats, speculation is not None, static)
        loop = DecodingLoop(run, base, sources, call.selection, stopping, graph, self._switch)
        loop.logits = () if call.returns_logits else None
        if speculation is not None:
            parts = (base, sources, call.selection, stopping)
            loop.speculator = self._speculator(speculation, *parts)
        return base, loop

    def _graph(self, call: Call) -> captured_step.Graph | None:
        """What the steps of a call are captured in, or None where the host launches each."""
        run, drafts = self._run, self._speculation is not None
        why = captured_step.argument_obstacle(drafts, run.trace)
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
            speculation, base, selection, plan, run.incremental_model, sources.check
        )
        return Speculator(plan, speculation, draft, base, sources, selection, stopping)
