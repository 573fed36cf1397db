"""Finds operations of a step that synchronise with the device, which no CUDA graph can hold.

A capture fails at such an operation, and a failed capture cannot be cleaned up completely. So the
step before it, which runs as usual, is watched, and where it synchronises no capture is begun.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their result, or its shape, depends on values, though torch does not tag them so.
SYNCHRONISING = {
    aten.lift_fresh,
    aten.multinomial,
    aten.is_nonzero,
    aten.embedding_renorm_,
    aten._linalg_check_errors,
}
TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {
    aten.index,
    aten._unsafe_index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
}
COPYING = {aten._to_copy, aten.copy_}
FILLING = {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_}
TORCH = str(Path(torch.__file__).parent)


class HostSyncDetector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches all operations of this thread in its block, and runs them.

    Args:
        device_type: of the device that must not be waited for.

    Attributes:
        why: the first operation that synchronises, in words, or None.
    """

    def __init__(self, device_type: str = "cuda"):
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = device_type
        self.why: str | None = None

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Has torch run compiled functions as compiled under this mode too."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self.why is None:
            inputs, outputs = [*_tensors((*args, *kwargs.values()))], [*_tensors((found,))]
            if any(x.device.type == self._type for x in (*inputs, *outputs)):
                why = _reads_values(func, args) or self._crosses(func, inputs, outputs)
                self.why = why and f"{func.overloadpacket} {why}{_place()}"
        return found

    def _crosses(
        self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> str | None:
        """Why an operation copies between host and device, or None. Scalars of the host that a
        kernel takes as arguments do not count, nor the seed that attention returns for no dropout.
        """
        scalars = (*(inputs if _takes_scalars(func) else ()), *outputs)
        if func.overloadpacket in COPYING:
            scalars = ()
        for x in (*inputs, *outputs):
            is_argument = x.ndim == 0 and any(x is scalar for scalar in scalars)
            if x.device.type != self._type and not is_argument:
                return f"takes or gives a tensor on {x.device}"
        return None


def _reads_values(func: Any, args: Sequence[Any]) -> str | None:
    """Why the host must read values to run an operation, or None."""
    if func.overloadpacket in INDEXING:
        masks = any(x.dtype in (torch.bool, torch.uint8) for x in _tensors((args[1],)))
        return "by a mask waits for the device" if masks else None
    waits = func.overloadpacket in SYNCHRONISING or not TAGS.isdisjoint(func.tags)
    return "waits for the device" if waits else None


def _takes_scalars(func: Any) -> bool:
    """Whether an operation takes scalars of the host as arguments of its kernel."""
    packet = func.overloadpacket
    return packet in FILLING or (torch.Tag.pointwise in func.tags and packet is not aten.where)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operation, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _place() -> str:
    """The line outside of torch that called an operation, for messages."""
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back  # type: ignore[assignment]
    return f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})" if frame else ""
