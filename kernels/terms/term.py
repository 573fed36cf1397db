"""What a step adds to the base's logits: the interface of a term.

A term is a formula over logits ``(B, V)``, as data. Its torch form is its specification and all
that it needs: what has no kernel is computed by torch and enters the fused kernels as logits. A
term with a kernel names a function of Triton that computes it for some tokens of a row
(`Term.fused`), and the kernels that sample, truncate and write scores compile it in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from plugalign.kernels.backend import check_logits
from plugalign.kernels.head import Logits

Weight = float | Tensor  # a number, or float32 (B,) with one for each row
MOST = torch.finfo(torch.float32).max


class Fused(NamedTuple):
    """A term as the kernels take it.

    Attributes:
        inputs: the logits ``(B, V)`` that the kernel reads.
        constants: ``constants(data, row)``, a function of Triton; what is the same for all tokens
            of a row, loaded once.
        value: ``value(data, constants, z, x, row, token, bound, ROWS, FAST)``, a function of
            Triton; ``z`` with the term at some tokens added, ``x`` are the base's logits there.
        data: the arguments of both, numbers and tensors in (named) tuples.
        launches: kernels that must run before.
    """

    inputs: tuple[Tensor, ...]
    constants: Any
    value: Any
    data: Any
    launches: list[Any]


class Term(ABC):
    """A formula that is added to the base's logits, ``z(t) = w x_0(t) + sum_i term_i(t)``.

    Attributes:
        heavy: whether its kernel holds so much of each token that a second such term in one sweep
            would leave registers for too few programs; torch then computes the second.
    """

    heavy: ClassVar[bool] = False

    @abstractmethod
    def inputs(self) -> Iterator[tuple[str, Logits]]:
        """Every ``(B, V)`` input but the base, with its name for messages."""

    @abstractmethod
    def delta(self, base: Tensor) -> Tensor:
        """What is added to z, float32 ``(B, V)``, where the base's logits are ``base`` ``(B, V)``.
        At tokens that the base forbids any value will do."""

    def delta_at(self, base: Tensor, row: Tensor, token: Tensor) -> Tensor:
        """`delta` at some entries, float32 ``(N,)`` for int64 ``row`` and ``token`` ``(N,)``."""
        return self.delta(base)[row, token]

    def add_to(self, z: Tensor, base: Tensor) -> None:
        """Adds `delta` to ``z``, float32 ``(B, V)``, in place."""
        z += self.delta(base)

    def add_at(self, z: Tensor, base: Tensor, row: Tensor, token: Tensor) -> None:
        """Adds `delta_at` to ``z``, float32 ``(N,)``, in place."""
        z += self.delta_at(base, row, token)

    def fused(self, base: Tensor) -> Fused | None:
        """The term as a kernel of Triton takes it, or None where it has none."""
        return None

    def check(self, base: Tensor) -> None:
        """Refuses inputs that do not fit the base's ``(B, V)``.

        Raises:
            ValueError: naming the input.
        """
        for name, logits in self.inputs():
            check_input(f"{type(self).__name__}'s {name}", logits, base)


def check_input(name: str, logits: Logits, base: Tensor) -> None:
    """Refuses logits that are not of the base's shape and device.

    Raises:
        ValueError: naming them.
    """
    if isinstance(logits, Tensor):
        check_logits(logits, name)
    if tuple(logits.shape) != tuple(base.shape) or logits.device != base.device:
        raise ValueError(
            f"{name} must be {tuple(base.shape)} on {base.device} like the base, got "
            f"{tuple(logits.shape)} on {logits.device}"
        )


def check_weight(name: str, weight: Weight, base: Tensor) -> None:
    """Refuses a weight that is no finite number, nor one for each row.

    Raises:
        ValueError: naming it.
    """
    if not isinstance(weight, Tensor):
        check_finite(name, weight)
        return
    if weight.shape != base.shape[:1] or weight.dtype != torch.float32:
        raise ValueError(
            f"{name} must be a number or float32 ({len(base)},), got {weight.dtype} "
            f"{tuple(weight.shape)}"
        )
    if weight.device != base.device:
        raise ValueError(f"{name} must be on {base.device} like the base, got {weight.device}")
    if weight.is_cpu:  # on a GPU values stay unread: reading them would wait for the device
        for value in weight.tolist():
            check_finite(name, value)


def check_finite(name: str, value: float) -> None:
    """Refuses a number that float32 cannot hold.

    Raises:
        ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise ValueError(f"{name} must be finite in float32, got {value!r}")


def times(values: Tensor, weight: Weight) -> Tensor:
    """``values`` times a weight that broadcasts. Where a row's weight is 0, as behind a closed
    gate, the product is 0 whatever the values are: 0 times -inf would be NaN."""
    if not isinstance(weight, Tensor):
        return values * weight
    return (values * weight).masked_fill_(weight == 0, 0.0)


def by_row(weight: Weight) -> Weight:
    """A weight that multiplies ``(B, V)``."""
    return weight[:, None] if isinstance(weight, Tensor) else weight


def by_entry(weight: Weight, row: Tensor) -> Weight:
    """A weight that multiplies entries ``(N,)`` of some rows."""
    return weight[row] if isinstance(weight, Tensor) else weight
