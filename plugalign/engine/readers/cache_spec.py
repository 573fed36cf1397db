"""What a model keeps of the tokens it has read from forward to forward: asked, never assumed.

Attention keeps a column for each token, which can be dropped or put elsewhere. State-space and
linear attention keep a state that has taken in all tokens: it goes on by one more, and forgets
none. Some models keep what they have read in a way of their own; those read whole texts.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from plugalign.algebra.identity import model_name
from plugalign.algebra.sources import CandidateValues, Source, TextLikelihood

ARGUMENTS = ("past_key_values", "cache_params")  # of forwards, for a cache
COLUMNS = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class CacheSpec:
    """What a model's forwards take and keep.

    Attributes:
        argument: the forward's argument for a cache; None for a model that reads whole texts.
        columns: whether the cache keeps each token apart, so that the last ones can be dropped.
        positioned: whether the forward takes positions.
    """

    argument: str | None
    columns: bool
    positioned: bool

    def cache(self, model: Any) -> Any:
        """A new cache, or None. Columns outside a sliding window are kept and masked, so that the
        last ones can be dropped at any length."""
        if self.argument is None:
            return None
        return DynamicCache() if self.columns else DynamicCache(config=text_config(model))

    def inputs(
        self, model: Any, ids: Tensor, mask: Tensor, place: Tensor, cache: Any
    ) -> dict[str, Any]:
        """The inputs of a forward that reads ``ids`` ``(R, n)`` at ``place`` ``(R, n)``, behind
        what ``cache`` holds; ``mask`` ``(R, T)`` is of all."""
        positions = {"position_ids": place} if self.positioned else {}
        given = {"attention_mask": mask, "use_cache": cache is not None, **positions}
        if cache is not None:
            given[str(self.argument)] = cache
        if self.columns or cache is None:
            return {"input_ids": ids, **given}
        prepared = model.prepare_inputs_for_generation(
            ids, is_first_iteration=mask.shape[1] == ids.shape[1], **given
        )
        prepared.pop("logits_to_keep", None)
        return dict(prepared)


def cache_spec_of(model: Any) -> CacheSpec:
    """Asks a model, or the body of one."""
    accepted = inspect.signature(model.forward).parameters
    argument = next((name for name in ARGUMENTS if name in accepted), None)
    positioned = "position_ids" in accepted
    default = getattr(model, "_supports_default_dynamic_cache", None)
    if argument is None or (default is not None and not default()):
        return CacheSpec(None, False, positioned)
    layers = [type(layer) for layer in DynamicCache(config=text_config(model)).layers]
    columns = all(layer in COLUMNS for layer in layers)
    if columns and getattr(model, "_is_stateful", False):
        return CacheSpec(None, False, positioned)  # a state that no cache of transformers holds
    return CacheSpec(argument, columns, positioned)


def check_source(source: Source, base: Any) -> None:
    """Refuses a source whose model cannot be read in the way that it asks for.

    Raises:
        ValueError: naming the model.
    """
    for each, _ in source.models:
        model = base if each is None else each
        check_apart(model)
        if isinstance(source, CandidateValues):
            check_columns(model, "its candidates are read beside")
        if isinstance(source, TextLikelihood):
            check_cache(model)


def check_apart(model: Any) -> None:
    """Refuses a model that can be in the middle of one text only.

    Raises:
        ValueError: naming the model.
    """
    stateful = getattr(model, "_is_stateful", False)
    if stateful and any(hasattr(module, "_setup_cache") for module in model.modules()):
        raise ValueError(
            f"'{model_name(model)}' keeps what it has read in its own modules, so it cannot read a "
            "second text beside the first: it can be a base, but no expert, and nothing reads it "
            "under prompts"
        )


def check_columns(model: Any, what: str) -> None:
    """Refuses a model whose cache does not keep each token apart.

    Args:
        what: needs that it does, for the message.

    Raises:
        ValueError: naming the model.
    """
    if not cache_spec_of(model).columns:
        raise ValueError(
            f"'{model_name(model)}' does not keep keys and values of each token, as state-space "
            f"and linear attention models do not, and {what} just those; take a model with "
            "attention alone"
        )


def check_cache(model: Any) -> None:
    """Refuses a model with a way of its own to keep what it has read, for reading given texts: it
    may look at no mask, and texts of one batch differ in length.

    Raises:
        ValueError: naming the model.
    """
    if cache_spec_of(model).argument is None:
        raise ValueError(
            f"'{model_name(model)}' keeps what it has read in a way of its own, so no likelihood "
            "of given texts can be read; take a model with a cache of transformers"
        )


def windows_of(model: Any, cache: Any) -> list[int]:
    """The columns that layers attend to, where it is not all: those of a cache's sliding windows,
    and of the local attention of GPT-Neo, whose cache keeps every column."""
    sliding = [x.sliding_window for x in cache.layers if type(x) is DynamicSlidingWindowLayer]
    config = text_config(model)
    local = "local" in getattr(config, "attention_layers", ())
    return [*sliding, config.window_size] if local else sliding


def text_config(model: Any) -> Any:
    """The configuration of the part of a model that reads text."""
    return model.config.get_text_config(decoder=True)
