"""Memory of a GPU between measurements."""

from __future__ import annotations

import gc

import torch


def freed() -> None:
    """Hands back what nobody holds any more."""
    gc.collect()  # steps and their graphs refer to each other
    torch.cuda.empty_cache()  # does nothing where there is no GPU


def peak_gib(device: torch.device) -> float | None:
    """The most that was allocated since this was last asked, in GiB; None without a GPU."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return most
