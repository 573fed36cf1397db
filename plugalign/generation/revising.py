"""Finished answers of a call, handed to the controllers that revise them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.engine.context_length import shared_context_length
from plugalign.engine.processors import SteeringProcessor
from plugalign.engine.run import Run
from plugalign.generation.calling import PreparedCall
from plugalign.generation.request import ONE_TOKEN_A_STEP
from plugalign.generation.revision import answers_in, revised
from plugalign.generation.transcript import Continuation, Transcript


def revise(
    output: Any,
    call: PreparedCall,
    tokenizer: Any,
    revisers: Sequence[Controller],
    new_run: Callable[[Tensor], Run],
) -> Any:
    """What ``generate`` returns, with revised answers in the place of the drafts.

    Args:
        output: what the call returned, a ``ModelOutput`` with the drafts and their cache.
        revisers: in the order in which they get the answers.
        new_run: makes a run for texts with a mask ``(R, S)``, to go on writing under the same
            controllers.
    """
    request, run = call.request, call.run
    own = {name: value for name, value in request.options.items() if name != "logits_processor"}
    steering = partial(_steering, request.processors, new_run)
    answers = answers_in(
        output,
        call.ids,
        call.mask,
        tokenizer,
        special=(request.pad_token_id, request.end_token_ids),
        cache=output.past_key_values if request.mode in ONE_TOKEN_A_STEP else None,
        continuation=Continuation(call.model, own, steering),
        context=shared_context_length(run.plan, call.model),
        prefix=run.extra_positions,
    )
    answers, revisions = revised(revisers, answers)
    if run.trace is not None:
        run.trace.revisions += revisions
    output.sequences = torch.cat([answers.prompt_ids, answers.ids], dim=1)
    output.past_key_values = None  # it belongs to the drafts
    return output if request.config.return_dict_in_generate else output.sequences


@contextmanager
def _steering(
    others: Sequence[Any], new_run: Callable[[Tensor], Run], text: Transcript
) -> Iterator[list[Any]]:
    """The processors for texts that are written anew: a run of their own, then the caller's.
    A processor that goes by rows is asked for the one of these rows."""
    again = [p.restarted(text.rows) if hasattr(p, "restarted") else p for p in others]
    run = new_run(text.mask)
    with run.watching():
        yield [SteeringProcessor(run), *again] if run.plan.steerings else again
