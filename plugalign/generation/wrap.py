"""wrap(): any Hugging Face causal language model's ``generate``, under controllers.

A `Steered` model takes what ``generate`` takes and returns what it returns. Around the call the
controllers' attachments are in place and undone afterwards, whatever happens; inside it the loop,
or a `SteeringProcessor`, applies every declared shift; after it, answers may be revised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from plugalign.adapters.peft_models import transformers_model
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.engine.acceleration.switch import Capture, capture_switch
from plugalign.engine.context_length import check_length, shared_context_length
from plugalign.engine.plan import make_plan
from plugalign.engine.readers.heads import SplitModels
from plugalign.engine.run import Run, SteeringProcessor
from plugalign.engine.speculative.drafts import BASE, Speculation
from plugalign.errors import Calling, freeing
from plugalign.generation.calling import called
from plugalign.generation.prompts import inferred_mask, reworded, special_tokens, with_prompt
from plugalign.generation.revision import Answers, check_revisable, reusable_cache, revised
from plugalign.generation.routing import check_asked, check_traceable, described, obstacle
from plugalign.generation.scoring import Batch, Texts, asked, check_fits, log_probs
from plugalign.generation.transcript import Continuation, Transcript
from plugalign.trace import Trace


def wrap(model: Any, tokenizer: Any, controller: Controller) -> Steered:
    """Wraps a model so that ``generate`` runs under a controller (or a sum of them).

    Args:
        model: a Hugging Face causal language model. It is not copied and not changed. Of a PEFT
            model the transformers model is wrapped in which its adapters lie.
        tokenizer: its tokenizer.

    Raises:
        ValueError: for an encoder-decoder model, a PEFT model with trained prompts, or a
            controller fitted for another model.
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
    """A model whose ``generate`` is steered. Every other attribute is the model's own."""

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
        return getattr(self.model, name)

    @freeing
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        trace: Trace | None = None,
        speculation: Speculation | None = None,
        capture: Capture = "auto",
        **options: Any,
    ) -> Any:
        """``model.generate`` under the controllers: same arguments, same return value.

        Args:
            inputs: prompt ids ``(B, T)``; ``input_ids=`` is the same.
            trace: is filled with every controller's contribution to every token.
            speculation: drafts several tokens at a time, and is told how many stayed. Off by
                default: it pays where the models that verify a draft cost much more than it does.
            capture: whether the steps are replays of one CUDA graph. "auto": where
                ``cache_implementation="static"`` is asked for on a CUDA device and nothing stands
                in the way, unless the environment variable ``PLUGALIGN_CAPTURE`` (0, 1 or auto)
                says otherwise. True: or an error. False: never.

        Raises:
            TypeError: if ``capture`` is neither a bool nor "auto", ``trace`` no `Trace`, or
                ``speculation`` no `Speculation`.
            ValueError: for an empty prompt, one that is longer than a model's context, a trace of
                beams or drafts, speculation where a draft cannot be verified, or ``capture=True``
                where no step can be captured; says why. (What only a step itself shows is said
                after the second token.)
            FloatingPointError: if a model gives NaN or infinite logits.
        """
        switch = capture_switch(capture)
        ids = inputs if inputs is not None else options.pop("input_ids", None)
        if ids is None or ids.ndim != 2 or 0 in ids.shape:
            raise ValueError(
                "generate needs prompt token ids of shape (B, T) with at least one row and one "
                f"token, got {None if ids is None else tuple(ids.shape)}"
            )
        check_asked(trace, speculation)
        if trace is not None:
            check_traceable(self.model, options, speculation)
        if self._acting_on("revise"):
            check_revisable(options)
        mask = options.pop("attention_mask", None)
        if mask is None:
            mask = inferred_mask(ids, *special_tokens(self.model, self.tokenizer, options))
        read, read_mask = reworded(self._acting_on("prompt"), self.tokenizer, ids, mask)
        with self._attached() as extra:
            check_length(self.plan, self.model, read_mask, extra)
            run = self._run(read_mask, options, trace, extra)
            given = {**options, "logits_processor": list(options.get("logits_processor") or [])}
            prepared = self._prepared(given, run)
            output = called(
                self.model,
                run,
                read,
                read_mask,
                prepared,
                why=obstacle(self.model, read, prepared),
                calling=Calling(self.model, given, read.shape[1]),
                speculation=speculation,
                switch=switch,
            )
            if self._acting_on("revise"):
                output = self._revised(output, read, read_mask, options, run, extra)
        return output if read is ids else with_prompt(output, read.shape[1], ids)

    def explain(
        self, inputs: Tensor | None = None, *, capture: Capture = "auto", **options: Any
    ) -> str:
        """Which path a ``generate`` call with these arguments takes, and why: the owned loop, with
        what it fuses, or the processor path, with what the loop cannot do. No model runs.

        Args:
            inputs: prompt ids ``(B, T)``; ``input_ids=`` is the same, and one token will do.
            capture: see `generate`; where it would raise, this says why.
        """
        switch = capture_switch(capture)
        ids = inputs if inputs is not None else options.pop("input_ids", None)
        mask, drafts = options.pop("attention_mask", None), options.pop("speculation", None)
        options = self._prepared(options, self._run(mask, options))
        apart = bool(self._acting_on("attach")) or (drafts is not None and drafts.draft == BASE)
        lines = described(
            self.plan,
            self.split_models,
            self.model,
            ids,
            mask,
            options,
            attached=apart,
            speculates=drafts is not None,
            switch=switch,
        )
        who = drafts.described if lines.startswith("the owned loop") and drafts else "nothing there"
        return lines if drafts is None else f"{lines}\ndrafted: {who}"

    @freeing
    def log_probs(
        self, texts: Texts, prompts: Texts | None = None, *, batch_size: int = 32
    ) -> list[Tensor]:
        """``log p'(token | what stands before it)`` under the controllers, for given texts.

        Args:
            texts: strings, or ``(input_ids, attention_mask)`` ``(B, T)`` padded on either side.
            prompts: one in front of each text, not scored; controllers may reword it. Without
                prompts the first token of a text has no prefix and is not scored.
            batch_size: texts at a time.

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
        prompted, scored = asked(self._active(), self.tokenizer, texts, prompts)
        pad, _ = special_tokens(self.model, self.tokenizer, {})
        found: list[Tensor] = []
        with self._attached() as extra:
            lengths = [len(p) + len(t) for p, t in zip(prompted, scored, strict=True)]
            check_fits(self.plan, self.model, lengths, extra)
            for i in range(0, len(scored), batch_size):
                some = slice(i, i + batch_size)
                batch = Batch.of(prompted[some], scored[some], pad or 0, self.model.device)
                found += log_probs(self._run(None, {}, None, extra), self.model, batch)
        return found

    def processor(self, attention_mask: Tensor | None = None) -> SteeringProcessor:
        """The controllers as one plain ``LogitsProcessor``, for ``model.generate`` or elsewhere.

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
        return SteeringProcessor(self._run(attention_mask, {}))

    # ------------------------------------------------------------------ one call

    def _active(self) -> list[Controller]:
        return [part for weight, part in self.controller.parts() if weight != 0]

    def _acting_on(self, surface: str) -> list[Controller]:
        return [part for part in self._active() if part.overrides(surface)]

    def _prepared(self, options: dict[str, Any], run: Run) -> dict[str, Any]:
        """The arguments for the model's own ``generate``."""
        processors = list(options.get("logits_processor") or [])
        if run.plan.steerings:
            processors.insert(0, SteeringProcessor(run))
        options = {**options, "logits_processor": LogitsProcessorList(processors)}
        if self._acting_on("revise"):
            options["return_dict_in_generate"] = True  # for the cache
        if run.needs_hidden or self._acting_on("attach"):
            options.setdefault("disable_compile", True)  # a compiled forward runs no hooks
        return options

    def _run(
        self,
        mask: Tensor | None,
        options: dict[str, Any],
        trace: Trace | None = None,
        extra_positions: int = 0,
    ) -> Run:
        plan = self.plan.refreshed(self.controller, self.model, self.tokenizer)
        if plan is not self.plan:
            self.plan, self.split_models = plan, SplitModels(plan.needs_float32_logits)
        pad, ends = special_tokens(self.model, self.tokenizer, options)
        return Run(
            self.plan,
            self.model,
            prompt_mask=mask,
            pad_token_id=pad or 0,
            infer_mask=pad is not None and pad not in ends,
            extra_positions=extra_positions,
            trace=trace,
            split_models=self.split_models,
        )

    @contextmanager
    def _attached(self) -> Iterator[int]:
        """All attachments in place; yields the cache positions in front of the prompt."""
        with ExitStack() as stack:
            parts = self._acting_on("attach")
            yield sum(stack.enter_context(part.attach(self.model)) for part in parts)

    # ------------------------------------------------------------------ revision

    def _revised(
        self,
        output: Any,
        ids: Tensor,
        mask: Tensor,
        options: dict[str, Any],
        run: Run,
        extra: int,
    ) -> Any:
        """Hands finished answers to every reviser, and puts theirs in the place of the drafts."""
        own = {k: v for k, v in options.items() if k != "logits_processor"}
        steering = partial(self._steering, options.get("logits_processor") or [], options, extra)
        answers = Answers.of(
            output,
            ids,
            mask,
            self.tokenizer,
            special=special_tokens(self.model, self.tokenizer, options),
            cache=reusable_cache(output, options),
            continuation=Continuation(self.model, own, steering),
            context=shared_context_length(self.plan, self.model),
            prefix=extra,
        )
        answers, revisions = revised(self._acting_on("revise"), answers)
        if run.trace is not None:
            run.trace.revisions += revisions
        output.sequences = torch.cat([answers.prompt_ids, answers.ids], dim=1)
        output.past_key_values = None  # it belongs to the drafts
        return output if options.get("return_dict_in_generate") else output.sequences

    @contextmanager
    def _steering(
        self, others: Sequence[Any], options: dict[str, Any], extra: int, text: Transcript
    ) -> Iterator[list[Any]]:
        """The processors for texts that are written anew: a run of their own, then the caller's.
        A processor that goes by rows is asked for the one of these rows."""
        again = [p.restarted(text.rows) if hasattr(p, "restarted") else p for p in others]
        run = self._run(text.mask, options, None, extra)
        with run.watching():
            yield [SteeringProcessor(run), *again] if self.plan.steerings else again
