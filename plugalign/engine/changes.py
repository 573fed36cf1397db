"""What logits processors in front of the controllers change, beside what they forbid.

A formula may give the base any weight: an expert alone has it at -1 where alpha is 2, and a
repetition penalty that counted as the base's would reward what is repeated. So the controllers read
the base's own logits, at -inf where a token is forbidden, and all other changes are added once to
what they make of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig

# The settings that change logits and do not only forbid tokens, with values that change nothing.
# Under guidance_scale the guided logits are the base, with all that is changed in them.
CHANGING = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,  # of a model without an encoder: the prompt is meant
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
}


def changes_logits(config: GenerationConfig) -> bool:
    """Whether transformers' processors for these settings change logits that stay possible."""
    if is_guided(config):
        return False
    return any(getattr(config, name, None) not in (None, off) for name, off in CHANGING.items())


def is_guided(config: GenerationConfig) -> bool:
    """Whether a processor runs the model a second time at every step, on a negative prompt."""
    return getattr(config, "guidance_scale", None) not in (None, 1)


def taken_apart(logits: Tensor, processed: Tensor) -> tuple[Tensor, Tensor]:
    """The base's own logits ``(R, V)``, at -inf where processors forbade a token, and what they
    added to the others, float32 ``(R, V)``."""
    processed = forbidding(processed)
    kept = logits.isfinite() & (processed != -torch.inf)
    own = torch.where(kept, logits.float(), processed)
    return own, (processed - own).masked_fill(~kept, 0.0)


def forbidding(processed: Tensor) -> Tensor:
    """Processed logits ``(R, V)``, at -inf where a token is forbidden: ``remove_invalid_values``
    puts the least finite number there, which a formula with a negative weight of the base would
    turn into the largest."""
    return processed.masked_fill(processed <= torch.finfo(processed.dtype).min, -torch.inf)
