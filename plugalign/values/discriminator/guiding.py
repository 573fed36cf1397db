"""A value discriminator as a guide of decoding, which is a principle's scorer too, or a gate.

Both read the states of the very model that is steered, so they need a discriminator that was
fitted on it with ``--model``.
"""

from __future__ import annotations

from typing import Any

import torch

from plugalign.controllers.value_guide import ValueGate, ValueGuide
from plugalign.controllers.value_head import ValueHead
from plugalign.values.discriminator.discriminator import ValueDiscriminator


def head_of(discriminator: ValueDiscriminator) -> ValueHead:
    """Its head with Platt's scaling folded in: what it gives are log-odds.

    Raises:
        ValueError: if it reads with an encoder.
    """
    reader = discriminator.reader
    if reader.kind != "causal":
        raise ValueError(
            f"{discriminator.statement!r} reads with the encoder '{reader.model_name}', which "
            f"cannot follow a text as it grows; fit it on the model to steer, with --model"
        )
    slope, shift = discriminator.calibration.slope, discriminator.calibration.shift
    return ValueHead(
        discriminator.statement,
        reader.layers[0],
        torch.from_numpy(slope * discriminator.head.weights).float(),
        slope * discriminator.head.offset + shift,
        reader.identity,
    )


def guide(discriminator: ValueDiscriminator, **options: Any) -> ValueGuide:
    """A controller that steers towards what conforms; see `ValueGuide` for its options.

    It is also the scorer of a `plugalign.controllers.principles.Principle`, which bounds
    ``1 - P(v | x, t)``.
    """
    return ValueGuide(head_of(discriminator), **options)


def gate(discriminator: ValueDiscriminator, threshold: float = 0.5) -> ValueGate:
    """Open where the text so far breaks the value, for ``controller.when(gate(...))``."""
    return ValueGate(head_of(discriminator), threshold)
