"""Whether somebody else changes what modules do: hooks, other forwards, unknown classes."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

MAKERS = ("torch", "transformers", "plugalign")  # of modules whose forwards are known
# The hooks of this module stay once they were wanted, and idle until they are wanted again.
RECORDERS = "transformers.utils.output_capturing"


def is_as_made(body: nn.Module) -> bool:
    """Whether all modules are of known makers, out of training and without somebody's hooks."""
    return all(map(_is_plain, body.modules()))


def _is_plain(module: nn.Module) -> bool:
    made_by = type(module).__module__.split(".")[0]
    return made_by in MAKERS and not module.training and not is_tampered_with(module)


def is_tampered_with(module: nn.Module) -> bool:
    """Whether a module does more, for somebody else, than its class does."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = {"forward", "_hf_hook"} & vars(module).keys()
    return bool(own) or any(getattr(hook, "__module__", "") != RECORDERS for hook in hooks)


def has_global_hooks() -> bool:
    """Whether every module's forward does more, for somebody else."""
    return bool(_global_forward_hooks or _global_forward_pre_hooks)
