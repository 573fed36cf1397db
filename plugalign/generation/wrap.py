"""wrap(): any Hugging Face causal language model's ``generate``, under controllers.

A `Steered` model takes what ``generate`` takes and returns what it returns. Around the call the
controllers' attachments are in place and undone afterwards, whatever happens; inside it the loop,
or a `SteeringProcessor`, applies every declared shift; after it, answers may be revised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial, wraps
from typing import Any

from torch import Tensor

from plugalign.adapters.peft_models import transformers_model
from plugalign.algebra.controller import Controller
from plugalign.algebra.fingerprints import named_fingerprints
from plugalign.algebra.identity import model_name
from plugalign.engine.acceleration.switch import Capture, capture_switch
from plugalign.engine.context_length import check_length
from plugalign.engine.plan import make_plan
from plugalign.engine.processors import SteeringProcessor
from plugalign.engine.readers.heads import SplitModels
from plugalign.engine.run import Run
from plugalign.engine.speculative.drafts import Speculation
from plugalign.errors import EndingStreamer, freeing
from plugalign.generation import scoring
from plugalign.generation.arguments import check_attribute, check_type
from plugalign.generation.calling import PreparedCall, generate_arguments
from plugalign.generation.explanation import Explanation, example_prompts
from plugalign.generation.prompt_memory import PromptMemory
from plugalign.generation.prompts import (
    check_rewordable,
    prompts_of,
    reworded,
    with_prompt,
)
from plugalign.generation.request import Request, by_name, check_possible, make_request
from plugalign.generation.revising import revise
from plugalign.generation.routing import obstacle
from plugalign.trace import Trace

# Methods of a model that return the model itself.
CHAINED = {
    "bfloat16",
    "cpu",
    "cuda",
    "double",
    "eval",
    "float",
    "half",
    "requires_grad_",
    "share_memory",
    "to",
    "train",
    "type",
}
OWN = {"controller", "model", "plan", "split_models", "tokenizer"}  # set here, not on the model


def wrap(model: Any, tokenizer: Any, controller: Controller) -> Steered:
    """Wraps a model so that ``generate`` runs under a controller (or a sum of them).

    Args:
        model: a Hugging Face causal language model. It is not copied and not changed. Of a PEFT
            model the transformers model is wrapped in which its adapters lie.
        tokenizer: its tokenizer.

    Raises:
        ValueError: for an encoder-decoder model, a PEFT model with trained prompts, a model that
            is steered already, or a controller fitted for another model.
        TypeError: if ``controller`` is not a `Controller`.
    """
    if not isinstance(controller, Controller):
        raise TypeError(
            f"wrap needs a Controller (or a sum of them), got {type(controller).__name__}"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"'{model_name(model)}' is an encoder-decoder model; controllers steer causal language "
            "models (AutoModelForCausalLM)"
        )
    model = transformers_model(model)
    # transformers' pipelines look at the name of the class, so it keeps the model's.
    kind = type(type(model).__name__, (Steered,), {"__module__": Steered.__module__})
    steered: Steered = kind(model, tokenizer, controller)
    return steered


class Steered:
    """A model whose ``generate`` is steered. Every other attribute is the model's own, also where
    it is set; where a method such as ``eval`` or ``to`` returns the model, it returns this."""

    def __init__(self, model: Any, tokenizer: Any, controller: Controller):
        self.model, self.tokenizer, self.controller = model, tokenizer, controller
        for part in self._active():
            part.check(model, tokenizer)
        self.plan = make_plan(controller, model, tokenizer)
        self.split_models = SplitModels(self.plan.needs_float32_logits)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made by `wrap`, so only that can make it again in another process.
        return wrap, (self.model, self.tokenizer, self.controller)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # asked for by copy and pickle before __init__ has run
            raise AttributeError(name)
        check_attribute(name)
        found = getattr(self.model, name)
        return self._chained(found) if name in CHAINED else found

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in OWN or hasattr(type(self), name) or not hasattr(self.model, name)
        if own:
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)

    def _chained(self, method: Any) -> Any:
        """A method of the model that returns this where it returns the model."""

        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return self if found is self.model else found

        return call

    @freeing
    def generate(
        self,
        inputs: Tensor | None = None,
        *arguments: Any,
        trace: Trace | None = None,
        speculation: Speculation | None = None,
        capture: Capture = "auto",
        **options: Any,
    ) -> Any:
        """``model.generate`` under the controllers: same arguments, same return value.

        Args:
            inputs: prompt ids ``(B, T)``; ``input_ids=`` is the same.
            arguments: what ``model.generate`` takes behind the prompts by position: a generation
                config, logits processors, ...
            trace: is filled with what was changed at every token, by which controller.
            speculation: drafts several tokens at a time, and counts how many stayed. Off by
                default: it pays where the models that verify a draft cost much more than it does.
            capture: whether the steps are replays of one CUDA graph. "auto": where
                ``cache_implementation="static"`` is asked for on a CUDA device and nothing stands
                in the way, unless the environment variable ``PLUGALIGN_CAPTURE`` (0, 1 or auto)
                says otherwise. True: or an error. False: never.

        Raises:
            TypeError: if ``capture`` is neither a bool nor "auto", or another argument has a wrong
                type.
            ValueError: for an empty prompt, a mask of another shape or with values other than 0
                and 1, a prompt that is longer than a model's context, a trace of beams or drafts,
                speculation where a draft cannot be verified, or ``capture=True`` where no step can
                be captured; says why. (What only a step itself shows is raised after the second
                token.)
            FloatingPointError: if a model gives NaN or infinite logits.
        """
        options = by_name(arguments, options)
        with EndingStreamer(options.get("streamer")):
            switch = capture_switch(capture)
            request = self._request(options, trace, speculation)
            revisers = self._acting_on("revise")
            check_possible(request, trace is not None, speculation is not None, bool(revisers))
            ids, given = prompts_of(self.model, inputs, options, request)
            rewording, pad = self._acting_on("prompt"), request.pad_token_id or 0
            check_rewordable(rewording, options)
            read, mask = reworded(rewording, self.tokenizer, ids, given, pad)
            with self._attached() as extra:
                check_length(self.plan, self.model, mask, extra)
                call = self._prepared(request, read, mask, trace, extra)
                if trace is not None:
                    trace.begin(ids, given, self._fingerprints)
                why = obstacle(self.model, read, request)
                output = call.generate(why, speculation, switch)
                if revisers:
                    new_run = partial(self._run, request, extra=extra)
                    output = revise(output, call, self.tokenizer, revisers, new_run)
            return output if read is ids else with_prompt(output, read.shape[1], ids)

    def explain(
        self,
        inputs: Tensor | None = None,
        *arguments: Any,
        trace: Trace | None = None,
        speculation: Speculation | None = None,
        capture: Capture = "auto",
        **options: Any,
    ) -> str:
        """Which path a ``generate`` call with these arguments takes, and why: the owned loop, with
        what it fuses, or the processor path, with what the loop cannot do; and which controllers
        revise its answers. No model runs.

        Args:
            inputs: prompt ids ``(B, T)``; ``input_ids=`` is the same, and without any one token
                stands in for them.
            capture: see `generate`; where it would raise, this says why.

        Raises:
            TypeError, ValueError: for arguments that `generate` refuses whatever the model.
        """
        switch = capture_switch(capture)
        options = by_name(arguments, options)
        request = self._request(options, trace, speculation)
        attached, revisers = bool(self._acting_on("attach")), self._acting_on("revise")
        check_possible(request, trace is not None, speculation is not None, bool(revisers))
        if inputs is None and options.get("input_ids") is None:
            inputs = example_prompts(request.processors, self.model.device)
        ids, mask = prompts_of(self.model, inputs, options, request)
        call = self._prepared(request, ids, mask, trace)
        return Explanation(call, attached, revisers, speculation, switch).text()

    @freeing
    def log_probs(
        self,
        texts: scoring.Texts,
        prompts: scoring.Texts | None = None,
        *,
        batch_size: int = 32,
        supports: bool = True,
        memory: PromptMemory | None = None,
    ) -> list[Tensor]:
        """``log p'(token | what stands before it)`` under the controllers, for given texts.

        Args:
            texts: strings, or ``(input_ids, attention_mask)`` ``(B, T)`` padded on either side.
            prompts: one in front of each text, not scored; controllers may reword it. Without
                prompts the first token of a text has no prefix and is not scored.
            batch_size: texts at a time.
            supports: whether a token outside of a controller's support (its top-p, say) is
                impossible, as in ``generate``. False applies the shifts to the whole vocabulary,
                so that every token has a finite logarithm: for perplexities and wherever
                likelihoods of given texts are compared. (A shift that is known for candidates
                only, as FUDGE's, then leaves the other tokens unshifted.)
            memory: of calls before, so that what a prompt begins as theirs did is not read again.
                The texts of a call then stand behind one prompt.

        Returns:
            For each text the natural logarithms ``(T_i,)``, float32 on the CPU; -inf where a
            controller's support leaves a token out. The steered perplexity of a text is
            ``exp(-x.mean())``.

        Raises:
            ValueError: for an empty text or prompt, one that is longer than a model's context, a
                controller that revises answers, or a batch size below 1.
            FloatingPointError: if a model gives NaN or infinite logits.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        given = self.model, self.tokenizer, texts, prompts
        prompted, scored = scoring.asked(self._active(), *given)
        found: list[Tensor] = []
        request, together = self._request(), memory is not None
        with self._attached() as extra:
            lengths = [len(p) + len(t) for p, t in zip(prompted, scored, strict=True)]
            scoring.check_fits(self.plan, self.model, lengths, extra)
            sizes = batch_size, request.pad_token_id or 0
            for batch in scoring.batches(
                prompted, scored, *sizes, self.model.device, together=together
            ):
                run = self._run(request, extra=extra, supports=supports)
                found += scoring.log_probs(run, self.model, batch, memory)
        return found

    def processor(self, attention_mask: Tensor | None = None) -> SteeringProcessor:
        """The controllers as one plain ``LogitsProcessor``, for ``model.generate`` or elsewhere.

        It takes the scores that it is given for the base's. transformers puts its own processors
        in front, so a ``repetition_penalty`` of the call weighs what the base weighs in a formula
        (in `generate` it counts once): give a ``RepetitionPenaltyLogitsProcessor`` behind it.

        Args:
            attention_mask: the prompts' mask ``(B, T)`` of the call it is for. Without it, left
                padding is inferred where the pad token differs from the end token.

        Raises:
            ValueError: if a controller does more than change the distribution.
        """
        for part in self._active():
            if beyond := [s for s in ("prompt", "attach", "revise") if part.overrides(s)]:
                raise ValueError(
                    f"{type(part).__name__} acts on {' and '.join(beyond)}, which a "
                    "LogitsProcessor cannot do; use wrap(model, tokenizer, controller).generate"
                )
        return SteeringProcessor(self._run(self._request(), attention_mask))

    def _active(self) -> list[Controller]:
        return [part for weight, part in self.controller.parts() if weight != 0]

    @cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        return named_fingerprints(self._active())

    def _acting_on(self, surface: str) -> list[Controller]:
        return [part for part in self._active() if part.overrides(surface)]

    def _request(
        self, options: Mapping[str, Any] | None = None, trace: Any = None, speculation: Any = None
    ) -> Request:
        check_type("trace", trace, Trace)
        check_type("speculation", speculation, Speculation)
        return make_request(self.model, self.tokenizer, options or {})

    def _prepared(
        self, request: Request, ids: Tensor, mask: Tensor, trace: Trace | None, extra: int = 0
    ) -> PreparedCall:
        run = self._run(request, mask, trace, extra)
        attached, revised = (bool(self._acting_on(surface)) for surface in ("attach", "revise"))
        arguments = generate_arguments(request, run, attached=attached, revised=revised)
        return PreparedCall(self.model, request, ids, mask, run, arguments)

    def _run(
        self,
        request: Request,
        mask: Tensor | None = None,
        trace: Trace | None = None,
        extra: int = 0,
        supports: bool = True,
    ) -> Run:
        plan = self.plan.refreshed(self.controller, self.model, self.tokenizer)
        if plan is not self.plan:
            self.plan, self.split_models = plan, SplitModels(plan.needs_float32_logits)
        pad, ends = request.pad_token_id, request.end_token_ids
        return Run(
            plan if supports else scoring.without_supports(plan),
            self.model,
            prompt_mask=mask,
            pad_token_id=pad or 0,
            infer_mask=None if pad in ends else pad is not None,
            extra_positions=extra,
            trace=trace,
            split_models=self.split_models,
        )

    @contextmanager
    def _attached(self) -> Iterator[int]:
        """All attachments in place; yields the cache positions in front of the prompt."""
        with ExitStack() as stack:
            parts = self._acting_on("attach")
            yield sum(stack.enter_context(part.attach(self.model)) for part in parts)
