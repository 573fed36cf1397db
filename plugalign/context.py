"""How long a text may be: the contexts of all models that must read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plugalign.engine.plan import Plan
from plugalign.identity import model_name
from plugalign.steering import ModelLogits


def context_of(model: Any) -> int | None:
    """The most tokens that a model can read, or None where its config names no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def context_of_all(plan: Plan, model: Any) -> int | None:
    """The most tokens that every model which reads the whole text can hold."""
    models = [model, *(source.model for source in _others(plan))]
    return min((c for c in map(context_of, models) if c is not None), default=None)


def check_length(plan: Plan, model: Any, mask: Tensor, extra: int) -> None:
    """Refuses prompts that leave no room in the context of a model that must read them.

    Args:
        mask: the prompts' mask ``(B, T)``.
        extra: cache positions that attachments put in front of them.

    Raises:
        ValueError: naming the model, or for a prompt without tokens.
    """
    longest = int(mask.sum(-1).max())
    if longest == 0:
        raise ValueError("a prompt has no tokens: its attention mask is all zeros")
    others = [(source.model, 0, source.name) for source in _others(plan)]
    prefix = max((len(prompt.prefix) for prompt in plan.prompts.values()), default=0)
    for each, more, name in [(model, extra + prefix, model_name(model)), *others]:
        context = context_of(each)
        if context is not None and longest + more >= context:
            beside = f" and {more} tokens that controllers put in front" if more else ""
            raise ValueError(
                f"a prompt of {longest} tokens{beside} leaves no room in the context of "
                f"'{name}' ({context} tokens); shorten the prompt"
            )


def _others(plan: Plan) -> list[ModelLogits]:
    return [source for source in plan.sources.values() if isinstance(source, ModelLogits)]
