"""Philox4x32-10, the counter-based generator behind every random choice.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter of four 32-bit
words and a 64-bit key give four random 32-bit words. There is no state, so a word has an address
and is the same on every device, in any batch and in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox4x32(
    c0: Tensor | int, c1: Tensor | int, c2: Tensor | int, c3: Tensor | int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each counter ``(c0, c1, c2, c3)`` under the key ``seed``.

    Args:
        c0, c1, c2, c3: ints or integer tensors that broadcast, taken modulo 2**32. At least one is
            a tensor, and its device is the result's.
        seed: in [0, 2**64); its low half is the first key word.

    Returns:
        Four int64 tensors of the broadcast shape with values in [0, 2**32).

    Raises:
        ValueError: if the seed does not fit, or no counter word is a tensor.
    """
    check_seed(seed)
    counter = (c0, c1, c2, c3)
    tensors = [word for word in counter if isinstance(word, Tensor)]
    if not tensors:
        raise ValueError("four ints have no device: make one counter word a tensor")
    shape = torch.Size(torch.broadcast_shapes(*(t.shape for t in tensors)))  # type: ignore[no-untyped-call]
    words = [_as_word(word, tensors[0].device) for word in counter]
    if words[0].device.type == "cpu":
        # The rounds are a hundred small operations, and one of NumPy's costs half of torch's.
        found = [torch.from_numpy(word) for word in rounds([w.numpy() for w in words], seed)]
    else:
        found = rounds(words, seed)
    w0, w1, w2, w3 = (word.reshape(shape) for word in found)
    return w0, w1, w2, w3


def check_seed(seed: int) -> None:
    """Raises ValueError unless ``seed`` is an int that fits the 64-bit key."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an int in [0, 2**64), got {seed!r}")


def _as_word(value: Tensor | int, device: torch.device) -> Tensor:
    # Never zero-dimensional: NumPy warns of products of scalars that wrap, and arrays may wrap.
    if not isinstance(value, Tensor):
        return torch.full((1,), value & WORD, dtype=torch.int64, device=device)
    return (value.to(torch.int64) & WORD).reshape(value.shape or (1,))


def rounds(counter: list[Any], seed: int) -> list[Any]:
    """Ten rounds on int64 arrays of NumPy or torch with values in [0, 2**32), none of them
    zero-dimensional, that broadcast. Products wrap modulo 2**64.

    c1 and c3 keep rubbish above their 32 bits until the end: each is only xored into a word that
    is masked next, and that saves a sixth of the work.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & WORD, seed >> 32
    for _ in range(ROUNDS):
        product0, product2 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((product2 >> 32) ^ c1 ^ key0) & WORD
        c2 = ((product0 >> 32) ^ c3 ^ key1) & WORD
        c1, c3 = product2, product0
        key0, key1 = (key0 + WEYL[0]) & WORD, (key1 + WEYL[1]) & WORD
    return [c0, c1 & WORD, c2, c3 & WORD]
