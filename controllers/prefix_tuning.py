"""Prefix tuning: trained keys and values in front of the prompt, the model itself untouched.

One prefix per attribute value is trained with a contrastive loss (Qian et al. 2022; see
`plugalign.fitting.prefix`). `PrefixTuning` puts the desired one into the cache of a ``generate``
call; `PrefixContrast` runs the base behind both prefixes beside itself and adds
``alpha (z_desired - z_contrast)`` to its logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.sources import Context, Logits
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopP
from plugalign.engine.readers.prefix_hook import PrefixHook, cache_shape


class PrefixTuningSettings(Settings):
    """The model that the prefix was trained for."""

    fitted_for: Identity | None


class PrefixTuning(Controller):
    """Lets the model generate behind a trained prefix.

    In a layer with a sliding window the prefix leaves the window as a text's first tokens do.

    Args:
        keys_values: ``(layers, 2, H_kv, P, D_head)``, what stands in the cache in front of the
            prompt.
        contrast: the prefix of the other class, same shape, where there is one.
        fitted_for: the model that the prefix was trained for.

    Raises:
        ValueError: for tensors of another shape.
    """

    name = "prefix"
    settings = PrefixTuningSettings
    learned: ClassVar[Mapping[str, int]] = {"keys_values": 5}
    optional: ClassVar[Mapping[str, int]] = {"contrast": 5}

    def __init__(
        self,
        keys_values: Tensor,
        contrast: Tensor | None = None,
        *,
        fitted_for: Identity | None = None,
    ):
        _check_shape(keys_values, keys_values if contrast is None else contrast)
        self.keys_values, self.contrast, self.fitted_for = keys_values, contrast, fitted_for

    def against(self, alpha: float = 2.0, top_p: float = 0.9) -> PrefixContrast:
        """The same prefixes as a contrast pair on the distribution.

        Raises:
            ValueError: if there is no prefix of another class.
        """
        if self.contrast is None:
            raise ValueError("this prefix has no contrast; fit it on data with two classes")
        return PrefixContrast(
            self.keys_values, self.contrast, alpha=alpha, top_p=top_p, fitted_for=self.fitted_for
        )

    @contextmanager
    def attach(self, model: Any) -> Iterator[int]:
        """Every cache that this thread's forwards of ``model`` start begins with the prefix.

        Yields:
            P, the cache positions in front of the prompt.
        """
        hook = PrefixHook(model, self.keys_values)
        handle = model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield hook.width
        finally:
            handle.remove()

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """Changes nothing at the steps; refuses a model that the prefix does not fit.

        Raises:
            ValueError: naming both models, or both shapes.
        """
        check_model(self.keys_values, self.fitted_for, model, tokenizer)
        return Steering()

    def config(self) -> dict[str, Any]:
        return {"fitted_for": None if self.fitted_for is None else self.fitted_for.to_dict()}

    def tensors(self) -> dict[str, Tensor]:
        pair = {"keys_values": self.keys_values, "contrast": self.contrast}
        return {key: tensor for key, tensor in pair.items() if tensor is not None}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        return cls(**_rebuilt(config, tensors))


class PrefixContrastSettings(Settings):
    """Strength, support and the model that the prefixes were trained for."""

    alpha: float
    top_p: float
    fitted_for: Identity | None


class PrefixContrast(Controller):
    """Adds ``alpha (z_desired - z_contrast)``, the base behind either prefix, to the base.

    Args:
        desired: ``(layers, 2, H_kv, P, D_head)``. contrast: the same shape.
        alpha: strength.
        top_p: the base's nucleus, taken before mixing as in DExperts; 1 keeps every token.
        fitted_for: the model that the prefixes were trained for.

    Raises:
        ValueError: for tensors of another shape, ``alpha`` that is not finite, or ``top_p`` outside
            [0, 1].
    """

    name = "prefix_contrast"
    settings = PrefixContrastSettings
    learned: ClassVar[Mapping[str, int]] = {"desired": 5, "contrast": 5}

    def __init__(
        self,
        desired: Tensor,
        contrast: Tensor,
        *,
        alpha: float = 2.0,
        top_p: float = 0.9,
        fitted_for: Identity | None = None,
    ):
        _check_shape(desired, contrast)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        self.desired, self.contrast, self.fitted_for = desired, contrast, fitted_for
        self.alpha, self.support = float(alpha), TopP(top_p)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``alpha (z_desired - z_contrast)`` inside the base's top-p set.

        Raises:
            ValueError: if the prefixes do not fit the model.
        """
        check_model(self.desired, self.fitted_for, model, tokenizer)
        desired, contrast = (
            Logits(f"the base behind the {name} prefix", context=Context(keys_values=prefix))
            for name, prefix in (("desired", self.desired), ("contrast", self.contrast))
        )
        shift = LogLinear(((1.0, desired), (-1.0, contrast)), weight=self.alpha)
        supports = (self.support,) if self.support.p < 1 else ()
        return Steering((shift,), supports)

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        return {"alpha": self.alpha, "top_p": self.support.p, "fitted_for": fitted}

    def tensors(self) -> dict[str, Tensor]:
        return {"desired": self.desired, "contrast": self.contrast}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        return cls(**_rebuilt(config, tensors))


def check_model(
    keys_values: Tensor, fitted_for: Identity | None, model: Any, tokenizer: Any
) -> None:
    """Refuses a model that the prefix was not trained for, or that it cannot stand in."""
    if fitted_for is not None:
        fitted_for.check(model, tokenizer, needs="weights", what="this prefix")
    layers, _, heads, _, width = keys_values.shape
    if (layers, heads, width) != (shape := cache_shape(model)):
        raise ValueError(
            f"the prefix has (layers, heads, width) {(layers, heads, width)}, but the cache of "
            f"'{model_name(model)}' has {shape}"
        )


def _check_shape(keys_values: Tensor, other: Tensor) -> None:
    if keys_values.ndim != 5 or keys_values.shape[1] != 2 or 0 in keys_values.shape:
        raise ValueError(
            f"a prefix is (layers, 2, H_kv, P, D_head), got {tuple(keys_values.shape)}"
        )
    if keys_values.shape != other.shape:
        raise ValueError(
            f"both prefixes must have one shape, got {tuple(keys_values.shape)} and "
            f"{tuple(other.shape)}"
        )


def _rebuilt(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    fitted = config["fitted_for"]
    identity = None if fitted is None else Identity.from_dict(fitted)
    return {**config, **tensors, "fitted_for": identity}
