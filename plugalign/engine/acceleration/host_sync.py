"""Which operations of a step would wait for the device, so that no CUDA graph can hold them.

A capture that meets one fails, and what a failed capture leaves behind is never quite tidy. So the
step before it, which runs as always, is watched; where it would wait no capture is begun.
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
# Beside those that torch itself marks: their answer or its shape hangs on the numbers.
LOOKING = {
    aten.lift_fresh,
    aten.multinomial,
    aten.is_nonzero,
    aten.embedding_renorm_,
    aten._linalg_check_errors,
}
MARKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
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
    """Looks at all operations of this thread in its block, and lets them run.

    Args:
        device_type: of the device that is not to be waited for.

    Attributes:
        why: which operation would have waited first, in words; None where none would have.
    """

    def __init__(self, device_type: str = "cuda"):
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = device_type
        self.why: str | None = None

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Said to torch, which else would run what is compiled as if it were not."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self.why is None:
            given, made = [*_tensors((*args, *kwargs.values()))], [*_tensors((found,))]
            if any(x.device.type == self._type for x in (*given, *made)):
                why = _looks(func, args) or self._crosses(func, given, made)
                self.why = why and f"{func.overloadpacket} {why}{_place()}"
        return found

    def _crosses(self, func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> str | None:
        """What an operation brings to the device or takes from it, if anything. A kernel's launch
        carries scalars of the host with it, and attention hands out the seed of no dropout."""
        scalars = (*(given if _takes_scalars(func) else ()), *made)
        if func.overloadpacket in COPYING:
            scalars = ()
        for x in (*given, *made):
            carried = x.ndim == 0 and any(x is scalar for scalar in scalars)
            if x.device.type != self._type and not carried:
                return f"takes or gives a tensor on {x.device}"
        return None


def _looks(func: Any, args: Sequence[Any]) -> str | None:
    """Whether the host must know numbers to run an operation."""
    if func.overloadpacket in INDEXING:
        masks = any(x.dtype in (torch.bool, torch.uint8) for x in _tensors((args[1],)))
        return "by a mask waits for the device" if masks else None
    waits = func.overloadpacket in LOOKING or not MARKS.isdisjoint(func.tags)
    return "waits for the device" if waits else None


def _takes_scalars(func: Any) -> bool:
    """Whether an operation reads scalars that are on the host while it is launched there."""
    packet = func.overloadpacket
    return packet in FILLING or (torch.Tag.pointwise in func.tags and packet is not aten.where)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or answers of an operation, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _place() -> str:
    """Where in the code that uses torch an operation was asked for, in words."""
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back  # type: ignore[assignment]
    return f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})" if frame else ""
