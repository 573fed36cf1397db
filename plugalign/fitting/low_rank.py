"""LoRA adapters that are to be trained, on all linear layers of a model (Hu et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch


def with_adapters(model: Any, rank: int, seed: int, task: str | None = None) -> Any:
    """A peft model around one whose linear layers get fresh adapters, in place. These learn in
    float32; the model's own weights stay as they are.

    Args:
        task: peft's task type; None for a body without a head.

    Raises:
        ImportError: if peft is missing.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model

    conv = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=conv,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def check_peft() -> None:
    """Raises an ImportError with the cure where peft is missing."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "this fit trains LoRA adapters with peft: pip install 'plugalign[train]'"
        ) from error
