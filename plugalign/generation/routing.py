"""Which of the two engines a ``generate`` call takes, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from plugalign.algebra.sources import BASE, Logits
from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.batching.batched_base import takes_rows
from plugalign.engine.call import prepared_call
from plugalign.engine.plan import Plan
from plugalign.engine.readers.heads import SplitModels
from plugalign.kernels.truncation import Truncation
from plugalign.sampling import CoupledSampler

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
CACHES = (None, "dynamic", "static")
REPLAYED = "the third is captured, and then replayed"
CACHE_LENGTH = "_previous_max_cache_length"
ARGUMENTS = {  # of generate, beside those of its GenerationConfig
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "assistant_model",
    "tokenizer",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "synced_gpus",
    "trust_remote_code",
    "input_ids",
    "attention_mask",
}


def obstacle(model: Any, ids: Tensor, options: dict[str, Any]) -> str:
    """Why the loop cannot do a ``generate`` call, in words, or nothing."""
    if options.get("custom_generate") is not None:
        return "custom_generate is a loop of its own"
    given = {k: v for k, v in options.items() if k not in ARGUMENTS}
    config, beyond = model._prepare_generation_config(options.get("generation_config"), **given)
    mode = config.get_generation_mode(options.get("assistant_model"))
    if mode not in MODES:
        return f"{mode.value.replace('_', ' ')} moves rows or columns about"
    if beyond := [name for name, value in beyond.items() if value is not None]:
        return f"{beyond[0]} is an argument of the model's forward"
    if config.stop_strings is not None:
        return "stop_strings need the tokenizer"
    if config.use_cache is False:
        return "use_cache=False reads the whole text at every step"
    if config.cache_implementation not in CACHES:
        return f"the cache is {config.cache_implementation}"
    if config.token_healing or config.prefill_chunk_size is not None:
        return "the prompt is read in a way of its own"
    if options.get("synced_gpus") or is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
        return "several processes generate in step"
    if ids.device != model.device:
        return f"the prompts are on {ids.device} and the model is on {model.device}"
    return _own_ways(model)


def _own_ways(model: Any) -> str:
    """What sets a model apart from those that the loop knows how to call, or nothing."""
    kind = type(model)
    for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation"):
        if getattr(kind, name, None) is not getattr(GenerationMixin, name):
            return f"{kind.__name__} prepares the inputs of its forward in a way of its own"
    if not kind._supports_default_dynamic_cache():
        return f"{kind.__name__} keeps a cache of its own"
    return ""


def check_traceable(model: Any, options: dict[str, Any], speculation: Any) -> None:
    """Refuses a ``generate`` call that a trace cannot follow.

    Raises:
        ValueError: for beams and drafts.
    """
    config = options.get("generation_config") or model.generation_config
    beams = options.get("num_beams") or getattr(config, "num_beams", None) or 1
    drafts = ("assistant_model", "prompt_lookup_num_tokens")
    if beams > 1 or speculation is not None or any(options.get(name) for name in drafts):
        raise ValueError(
            "a trace follows rows that grow by one token a step, so it needs greedy decoding "
            "or sampling; beams and drafts move rows about"
        )


def described(
    plan: Plan,
    split_models: SplitModels,
    model: Any,
    ids: Tensor | None,
    mask: Tensor | None,
    options: dict[str, Any],
    attached: bool = False,
    speculates: bool = False,
    switch: CaptureSwitch | None = None,
) -> str:
    """Which path a ``generate`` call takes, why, and what the loop would fuse. Nothing runs but
    transformers' own preparation of the call; without prompts, of one with a single token.

    Args:
        attached: whether an attachment has a say in how the base reads.
        speculates: whether a draft is wanted.
        switch: whether the call's steps are to be captured.
    """
    switch = switch or CaptureSwitch()
    if ids is None:
        samplers = [p for p in options["logits_processor"] if isinstance(p, CoupledSampler)]
        columns = max((p.prompt_length or 1 for p in samplers), default=1)
        ids = torch.zeros(1, columns, dtype=torch.long, device=model.device)
    mask = torch.ones_like(ids) if mask is None else mask
    if why := obstacle(model, ids, options):
        refused = f"\n{_steps(why, switch)}" if switch.required else ""
        return f"the processor path: {why}{refused}"
    options = {k: v for k, v in options.items() if k != "streamer"}
    with torch.random.fork_rng(devices=[]), _as_it_was(model):  # a selection draws its seed
        call = model.generate(
            input_ids=ids, attention_mask=mask, custom_generate=prepared_call, **options
        )
    selection = call.selection
    alone = (
        switch.why_off
        or captured_step.graph_obstacle(model.device)
        or captured_step.argument_obstacle(speculates, None)
    )
    uncaptured = alone or captured_step.obstacle(call, plan, split_models, int(attached), switch)
    beside = [source.name for key, source in plan.always_read.items() if key != BASE]
    gated = [source.name for key, source in plan.sources.items() if key not in plan.always_read]
    lines = [
        f"the owned loop: {'greedy' if selection.temperature == 0 else 'sampling'}",
        f"run at every step: {', '.join(['the base', *beside])}",
        *([f"run where a gate is open: {', '.join(gated)}"] if gated else []),
        *_experts(plan, model, takes_rows(call.cache, uncaptured is None) and not attached),
        *selection.description(),
        f"kept of the base: {_words(plan.truncation)}",
        *(f"kept by a mask: {type(support).__name__}" for support in plan.masks),
        f"kept of what is drawn from: {_words(selection.after)}, "
        f"at temperature {selection.temperature}",
        _steps(uncaptured, switch),
    ]
    return "\n".join(lines)


def _steps(why: str | None, switch: CaptureSwitch) -> str:
    """How a call's steps are launched, where ``why`` says what stands in the way of a capture."""
    if why is None:
        return f"steps: {REPLAYED}"
    how = f"{switch.origin} is refused" if switch.required else "launched by the host"
    return f"steps: {how}: {why}"


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """transformers makes every later static cache of a model as long as the longest it prepared."""
    before = getattr(model, CACHE_LENGTH, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(model, CACHE_LENGTH, before)
        elif hasattr(model, CACHE_LENGTH):
            delattr(model, CACHE_LENGTH)


def _experts(plan: Plan, model: Any, rows: bool) -> list[str]:
    """How the other models are run, a line each."""
    lines = []
    for source in plan.sources.values():
        if isinstance(source, Logits) and source.model is not None:
            why = _why_apart(plan, source, model, rows)
            how = f"a forward of its own: {why}" if why else "rows of the base's forward"
            lines.append(f"{source.name}: {how}")
    return lines


def _why_apart(plan: Plan, source: Logits, model: Any, rows: bool) -> str | None:
    """Why another model has no rows in the base's forward, in words, or None."""
    if source.key not in plan.always_read:
        return "it stands behind a gate"
    if not source.context.is_empty:
        return "it reads another context"
    return plan.groups.why_not_grouped(model, source.model) if rows else "the base takes no rows"


def _words(cut: Truncation) -> str:
    named = (("top-k", cut.top_k, 0), ("top-p", cut.top_p, 1.0), ("min-p", cut.min_p, 0.0))
    return ", ".join(f"{name} {value}" for name, value, all_ in named if value != all_) or "all"
