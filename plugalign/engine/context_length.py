"""How long a text may be: the contexts of all models that must read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.engine.plan import Plan


def context_length_of(model: Any) -> int | None:
    """The most tokens that a model can read, or None where its config names no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def shared_context_length(plan: Plan, model: Any) -> int | None:
    """The most tokens that every model which reads the whole text can hold."""
    models = [each for each, _, _ in readers(plan, model, 0)]
    return min((c for c in map(context_length_of, models) if c is not None), default=None)


def check_length(plan: Plan, model: Any, mask: Tensor, extra: int) -> None:
    """Refuses prompts that leave no room in the context of a model that must read them.

    Args:
        mask: the prompts' mask ``(B, T)``.
        extra: cache positions that attachments put in front of them.

    Raises:
        ValueError: naming the model, or the row of a prompt that was reworded to nothing.
    """
    lengths = mask.sum(-1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == 0:
        raise ValueError(
            f"a controller's prompt() left no tokens of the prompt in row {int(lengths.argmin())}; "
            "it must return a text"
        )
    for each, more, name in readers(plan, model, extra):
        context = context_length_of(each)
        if context is not None and longest + more >= context:
            beside = f" and {more} tokens that controllers put in front" if more else ""
            raise ValueError(
                f"a prompt of {longest} tokens{beside} leaves no room in the context of "
                f"'{name}' ({context} tokens); shorten the prompt"
            )


def readers(plan: Plan, model: Any, extra: int) -> list[tuple[Any, int, str]]:
    """The models that read the whole text, with what stands around it, and a name for messages.

    Args:
        extra: cache positions that attachments put in front of the base's prompts.
    """
    reading = [(source, *pair) for source in plan.sources.values() for pair in source.models]
    base = max((around for _, each, around in reading if each is None), default=0)
    others = [(each, around, source.name) for source, each, around in reading if each is not None]
    return [(model, extra + base, model_name(model)), *others]
