"""The one training loop: AdamW with warm-up and decay, early stopping, and safe restarts.

Step ``i`` is a pure function of the parameters, the optimizer, (seed, i) and the number of steps:
the random generators are seeded anew for each step. So a run that was killed at any moment and
started again continues from its checkpoint and ends with the same parameters, bit for bit, as an
undisturbed one. Only where the time is short does the machine decide, by the speed that it shows,
how many steps there are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plugalign.files.fingerprint import fingerprint
from plugalign.files.replacing import replacing
from plugalign.fitting.clock import Clock, Pace, now
from plugalign.fitting.progress import progress, say

if TYPE_CHECKING:
    from plugalign.fitting.held_out import HeldOut

DAMAGED = (
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    UnpicklingError,
)  # torch.load
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # that AdamW keeps of a parameter
FUSED = ("cpu", "cuda")  # devices with a fused AdamW
WINDOW = 32  # batches that are sorted by length together


def train(
    *,
    parameters: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    title: str,
    most: int | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    seed: int = 0,
    run: str = "",
    held_out: HeldOut | None = None,
    clock: Clock | None = None,
) -> list[float]:
    """Minimises ``loss`` in place and returns its value at each step.

    Args:
        parameters: tensors that require gradients, by name, in float32 or float64.
        loss: the scalar loss of a step, which may use torch's random numbers.
        lr: the highest learning rate; linear warm-up, then a cosine to zero.
        title: what the progress bar and error messages call this training.
        most: as many steps as that where the clock turns out to allow more than ``steps``, which
            were planned; None for no more than them.
        checkpoint: the file to continue from and to write every ``every`` steps and at the end.
            The caller removes it once the result is saved.
        warmup: share of the steps.
        clip: bound on the norm of the gradient.
        run: a `fingerprint` of everything else the loss depends on, such as the data.
        held_out: ends the training when it becomes no better on other texts, and leaves the
            parameters that were best there.
        clock: how long it may take: fewer steps where more would take longer, more up to ``most``
            where there is time for them, each on a schedule of that length.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite, naming the step.
        ValueError: for settings out of range, or a checkpoint that is damaged or another run's.
        OSError: if the checkpoint cannot be written; the one before it is intact.
    """
    check_settings(steps=steps, lr=lr, every=every, clip=clip)
    _check_precision(parameters, title)
    most = steps if most is None else max(steps, most)
    settings = (steps, most, lr, warmup, weight_decay, clip, seed, *([1] if held_out else []))
    names = [(name, tuple(p.shape)) for name, p in parameters.items()]
    made_by = fingerprint(run, settings, names)
    optimizer = adamw(parameters, lr, weight_decay)
    losses, ends = _resume(checkpoint, made_by, parameters, optimizer, held_out, steps)
    before = len(losses)
    look_every = steps if held_out is None else held_out.every(steps)
    pace = Pace(clock or Clock(None), most, len(losses), look_every)
    devices = {p.device for p in parameters.values() if p.device.type == "cuda"}
    with progress(title, ends, len(losses)) as bar, torch.random.fork_rng(devices=list(devices)):
        while (step := len(losses)) < ends:
            if held_out is not None and held_out.is_over:
                break
            torch.manual_seed(_step_seed(seed, step))
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule(step, ends, round(warmup * steps))
            losses.append(descend(loss, step, title, parameters, optimizer, clip))
            ends = pace.steps(step + 1)
            if held_out is not None and (held_out.is_due(step + 1, steps) or step + 1 == ends):
                started = now()
                held_out.look(step + 1, parameters)
                pace.looked(now() - started)
                ends = pace.steps(step + 1)
            bar.advance(note=f"loss {losses[-1]:.3f}", total=ends)
            if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == ends):
                _save(checkpoint, made_by, parameters, optimizer, losses, held_out, ends)
    if before < len(losses) == ends < steps:
        say(f"{title}: the time ended it behind {ends} steps of {steps}")
    if held_out is not None:
        held_out.restore(parameters)
    return losses


def adamw(
    parameters: Mapping[str, Tensor], lr: float, weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """The optimizer; in one pass over memory where the device has that: of a small batch's step the
    passes of the plain one are a third on a CPU."""
    fused = all(p.device.type in FUSED for p in parameters.values())
    return torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=weight_decay, fused=fused)


def descend(
    loss: Callable[[int], Tensor],
    step: int,
    title: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    clip: float = 1.0,
) -> float:
    """One step of gradient descent; returns the loss before it.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite, naming the step.
    """
    optimizer.zero_grad()
    value = loss(step)
    torch.autograd.backward(value)
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
    for what, number in (("loss", value), ("gradient", norm)):
        if not torch.isfinite(number):
            raise FloatingPointError(
                f"{title}: the {what} is {number.item()} at step {step}; try a smaller lr"
            )
    optimizer.step()
    return value.item()


def recompute_activations(model: Any) -> None:
    """From now on a model in training computes the activations of a forward again for its gradient,
    instead of keeping them."""
    newer = getattr(model, "activation_checkpointing_enable", None)  # of newer transformers
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def batches(
    count: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None
) -> Callable[[int], list[int]]:
    """Maps a step to the indices of its batch, over endless epochs that are each shuffled anew.

    The order of epoch ``e`` depends on (seed, e) only, so no state has to be kept. What does not
    fill a batch is left out of its epoch; if there is less than one batch, it is all of them.

    Args:
        lengths: of the examples; batches are then of about equal length, which saves padding.
    """
    check_settings(count=count, batch_size=batch_size)
    per_epoch = steps_of_an_epoch(count, batch_size)

    @lru_cache(maxsize=2)
    def epoch(number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(_step_seed(seed, number))
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        if lengths is not None:
            window = WINDOW * batch_size
            parts = (order[i : i + window] for i in range(0, count, window))
            order = [i for part in parts for i in sorted(part, key=lengths.__getitem__)]
        cut = [order[i * batch_size : (i + 1) * batch_size] for i in range(per_epoch)]
        return [cut[i] for i in torch.randperm(per_epoch, generator=generator).tolist()]

    return lambda step: epoch(step // per_epoch)[step % per_epoch]


def steps_of_an_epoch(count: int, batch_size: int) -> int:
    """How many of the steps of `batches` are an epoch."""
    return max(1, count // batch_size)


def check_settings(**values: float) -> None:
    """Raises a ValueError that names the first setting that is not a positive finite number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")


def _check_precision(parameters: Mapping[str, Tensor], title: str) -> None:
    """Raises a ValueError that names the first parameter in half precision."""
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{title}: train in float32; {name} is {parameter.dtype}")


def _step_seed(seed: int, step: int) -> int:
    """One 63-bit seed for (seed, step); neighbouring seeds share no steps."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _schedule(step: int, steps: int, rise: int) -> float:
    """The share of the highest learning rate; it rises for so many steps."""
    rise = max(1, rise)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _save(
    path: Path,
    made_by: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    held_out: HeldOut | None,
    ends: int,
) -> None:
    """Writes beside the old checkpoint and replaces it only when the new one is complete."""
    state = {
        "made_by": made_by,
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "ends": ends,
        "held_out": None if held_out is None else held_out.state(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as half, half.open("wb") as file:
            torch.save(state, file)
    except OSError as error:
        error.add_note(f"{path} could not be written; the checkpoint before it is intact")
        raise


def _resume(
    path: Path | None,
    made_by: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    held_out: HeldOut | None,
    steps: int,
) -> tuple[list[float], int]:
    """The losses of the steps that were made, and behind how many it ends: as many as were made if
    the time had ended it, else as many as are planned, or more where there was time for them."""
    if path is None or not path.is_file():
        return [], steps
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_then, kept, optimized = (state[k] for k in ("made_by", "parameters", "optimizer"))
        looked, losses, ends = state["held_out"], list(state["losses"]), int(state["ends"])
        if not all(each.keys() >= MOMENTS for each in optimized["state"].values()):
            raise KeyError("its optimizer's moments")
    except DAMAGED as error:
        reason = str(error).split(". ")[0] or "it is empty"
        raise ValueError(f"{path} is damaged ({reason}); remove it to start anew") from error
    if made_then != made_by:
        raise ValueError(
            f"{path} is the checkpoint of a run with other settings or data; remove it to start "
            f"anew, or use the settings it was made with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    optimizer.load_state_dict(optimized)
    if held_out is not None:
        held_out.load(looked)
    return losses, ends if ends == len(losses) else max(ends, steps)
