"""One prepared ``generate`` call, on the path that it takes: the loop, or transformers' own
decoding with a processor."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.changes import changes_logits, is_guided
from plugalign.engine.processors import CheckingProcessor, SteeringProcessor
from plugalign.engine.run import Run
from plugalign.engine.speculative.drafts import Speculation
from plugalign.errors import Calling
from plugalign.generation.decoding_method import DecodingMethod
from plugalign.generation.prompts import sequences_of
from plugalign.generation.request import Request


@dataclass(frozen=True, eq=False)
class PreparedCall:
    """Everything that ``model.generate`` needs under the controllers of a run.

    Attributes:
        model: the base.
        request: what the caller asked for.
        ids, mask: the prompts as the controllers reworded them ``(B, T)``.
        run: the call's state.
        arguments: of ``model.generate``, beside the prompts; see `generate_arguments`.
    """

    model: Any
    request: Request
    ids: Tensor
    mask: Tensor
    run: Run
    arguments: dict[str, Any]

    def generate(
        self, why: str | None, speculation: Speculation | None, switch: CaptureSwitch
    ) -> Any:
        """What ``model.generate`` returns under the controllers.

        Args:
            why: what keeps the call off the loop, or None; see `plugalign.generation.routing`.
            speculation: what drafts tokens, if anything.
            switch: whether steps are to be captured.

        Raises:
            ValueError: if a draft or a capture is asked for and the path has none; says why.
        """
        calling = Calling(self.model, self.request.options, self.ids.shape[1])
        if why is None:
            streamer = self.request.options.get("streamer")
            method = DecodingMethod(self.run, streamer, speculation, switch)
            with calling:
                output = self._called(custom_generate=method)
        else:
            if speculation is not None:
                raise ValueError(f"no draft can be verified here: {why}")
            switch.check(why)
            # Where nothing steers, nobody else looks at what the base gives.
            checking = [] if self.run.plan.steerings else [CheckingProcessor(self.run)]
            processors = LogitsProcessorList([*checking, *self.arguments["logits_processor"]])
            with self._watching(), calling:
                output = self._called(logits_processor=processors, **self._observed())
        if self.run.trace is not None:
            self.run.trace.chosen(sequences_of(output))
        return output

    def _watching(self) -> AbstractContextManager[None]:
        """What is watched in transformers' own decoding."""
        config = self.request.config
        changed, beams = changes_logits(config), (config.num_beams or 1) > 1
        # The model's last forward is then not that of the text, so hidden states are read anew.
        return self.run.watching(not is_guided(config), changed=changed, normalised=beams)

    def _observed(self) -> dict[str, Any]:
        """The stopping criteria of transformers' own decoding, which a trace looks at to know which
        rows have ended; without a trace the caller's are left alone."""
        if self.run.trace is None:
            return {}
        options, request = self.request.options, self.request
        rows = self.run.live_rows
        found = rows.observed(
            options.get("stopping_criteria") or (),
            request.end_token_ids,
            request.config.stop_strings,
            options.get("tokenizer"),
        )
        return {"stopping_criteria": StoppingCriteriaList(found)}

    def _called(self, **more: Any) -> Any:
        prompts = {"input_ids": self.ids, "attention_mask": self.mask}
        arguments = {**self.arguments, **more}
        if "custom_generate" not in more and changes_logits(self.request.config):
            arguments = with_settings(arguments, {"disable_compile": True})  # hooks must run
        return self.model.generate(**prompts, **arguments)


def with_settings(arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` with these settings: inside their configuration, where there is
    one, since transformers warns where settings come in both ways."""
    if (config := arguments.get("generation_config")) is None:
        return arguments | settings
    config = copy.deepcopy(config)
    config.update(**settings)
    others = {name: value for name, value in arguments.items() if name not in settings}
    return others | {"generation_config": config}


def generate_arguments(
    request: Request, run: Run, *, attached: bool, revised: bool
) -> dict[str, Any]:
    """The keyword arguments of ``model.generate``: the caller's, with the run's processor in front
    of the caller's own.

    Args:
        attached: whether a controller acts on the model's own forward.
        revised: whether finished answers are revised, which needs the cache of the drafts.
    """
    ours = [SteeringProcessor(run)] if run.plan.steerings else []
    settings: dict[str, Any] = {"return_dict_in_generate": True} if revised else {}
    if request.config.disable_compile is None and (run.needs_hidden or attached):
        settings["disable_compile"] = True  # a compiled forward runs no hooks
    processors = LogitsProcessorList([*ours, *request.processors])
    return with_settings({**request.options, "logits_processor": processors}, settings)
