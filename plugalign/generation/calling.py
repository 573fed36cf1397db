"""One ``generate`` call on the path that it takes: the loop, or transformers with a processor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.run import CheckingProcessor, Run
from plugalign.engine.speculative.drafts import Speculation
from plugalign.errors import Calling
from plugalign.generation.loop import Loop
from plugalign.generation.prompts import sequences_of


def called(
    model: Any,
    run: Run,
    ids: Tensor,
    mask: Tensor,
    options: dict[str, Any],
    *,
    why: str,
    calling: Calling,
    speculation: Speculation | None,
    switch: CaptureSwitch,
) -> Any:
    """What ``model.generate`` returns under the controllers of ``run``.

    Args:
        ids: the prompts ``(B, T)``. mask: ``(B, T)``.
        options: for ``model.generate``, with the run's processor among its ``logits_processor``.
        why: the loop cannot do the call; empty where it can, see `plugalign.generation.routing`.
        calling: names what raises inside.
        speculation: what drafts tokens, if anything.
        switch: whether steps are to be captured.

    Raises:
        ValueError: if a draft or a capture is asked for and the path has none; says why.
    """
    inputs = {"input_ids": ids, "attention_mask": mask}
    if why:
        if speculation is not None:
            raise ValueError(f"no draft can be verified here: {why}")
        switch.check(why)
        if not run.plan.steerings:  # then nobody looks at what the base gives
            options["logits_processor"].insert(0, CheckingProcessor(run))
        with run.watching(), calling:
            output = model.generate(**inputs, **options)
    else:
        loop = Loop(run, options.get("streamer"), speculation, switch)
        with calling:
            output = model.generate(**inputs, custom_generate=loop, **options)
    if run.trace is not None:
        run.trace.chosen(sequences_of(output))
    return output
