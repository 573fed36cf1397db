"""What the head of a frozen model reads of texts: computed once, kept in a file, learnt from often.

The file is memory-mapped, so states may be many more than fit into memory. It is appended to chunk
by chunk: a fit that is killed continues behind the last whole text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugalign.fitting.budget import remember, remembered
from plugalign.fitting.clock import Clock, now
from plugalign.fitting.data import pad
from plugalign.fitting.progress import duration, progress, say
from plugalign.fitting.shared_context import read_behind

CHUNK = 256  # texts between two writes
FEWEST = 64  # texts whose states are computed whatever the time


class States:
    """Hidden states of texts, each ``(T, D)``.

    Args:
        values: those of all texts, one after the other, ``(N, D)``.
        ends: where each text's end, ascending.
    """

    def __init__(self, values: Tensor, ends: Sequence[int]):
        self.values, self._bounds = values, [0, *ends]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def width(self) -> int:
        """D."""
        return self.values.shape[1]

    def __getitem__(self, text: int) -> Tensor:
        """The states of one text, ``(T, D)``."""
        return self.values[self._bounds[text] : self._bounds[text + 1]]

    def padded(self, texts: Sequence[int]) -> Tensor:
        """The states of some texts, ``(B, T, D)`` in float32, zero behind each text's end."""
        return pad_sequence([self[i].float() for i in texts], batch_first=True)


def keep_states(
    model: Any,
    rows: Sequence[Sequence[int]],
    path: Path,
    batch_size: int,
    *,
    columns: Sequence[Sequence[int]] | None = None,
    shared: int = 0,
    clock: Clock | None = None,
    least: int = FEWEST,
) -> States:
    """The states of texts of token ids, in their order, in ``path``.

    Args:
        rows: token ids; what should be left out first where the time is short stands last.
        columns: the positions to keep of each text, ascending; None keeps all.
        shared: so many tokens are the same in all texts, and none is a whole text.
        clock: compute no more than its time allows, by the speed so far, but so many at ``least``.

    Returns:
        As many as there are rows, or fewer where the time was short.
    """
    columns = columns or [range(len(row)) for row in rows]
    ends = list(accumulate(len(each) for each in columns))
    width, dtype = _shape_of(model)
    note = path.with_name(path.name + ".json")
    size = width * dtype.itemsize
    clock = clock or Clock(None)
    known = remembered(note, "texts")
    wanted = most = len(rows) if known is None else int(known["texts"])
    first = done = _complete_texts(path, ends, size)
    started, some = now(), CHUNK if clock.minutes is None else min(least, CHUNK)
    with path.open("ab") as file, progress("hidden states", wanted, done) as bar:
        while done < wanted:
            here = slice(done, min(done + some, wanted))
            file.write(_bytes(_states(model, rows[here], columns[here], batch_size, shared)))
            file.flush()
            each = (now() - started) / (here.stop - first)
            wanted = min(most, max(least, clock.fitting(each, here.stop, most)))
            if done == first:
                say(estimated(each, wanted, most))
            bar.advance(here.stop - done, total=wanted)
            done, some = here.stop, clock.piece(each, CHUNK, batch_size)
    remember(note, {"texts": wanted})
    count = ends[wanted - 1]
    values = torch.from_file(str(path), shared=False, size=count * width, dtype=dtype)
    return States(values.view(count, width), ends[:wanted])


def drawn_columns(length: int, count: int, seed: int, text: int, first: int = 0) -> list[int]:
    """Columns of a text of so many tokens: random ones from ``first`` on, and the last."""
    draw = np.random.default_rng((seed, text))
    inner = first + draw.permutation(length - 1 - first)[:count]
    return [*sorted(inner.tolist()), length - 1]


def estimated(seconds: float, count: int, texts: int) -> str:
    """How long it takes to read texts at so many seconds each, and how many are read."""
    text = f"hidden states of {texts} texts: about {duration(seconds * texts)}"
    return text + (f"; {count} fit into the time" if count < texts else "")


def _complete_texts(path: Path, ends: Sequence[int], size: int) -> int:
    """How many texts a file holds completely; what is behind the last of them is cut off."""
    if not path.is_file():
        return 0
    held = path.stat().st_size // size
    done = sum(end <= held for end in ends)
    os.truncate(path, size * (ends[done - 1] if done else 0))
    return done


def _states(
    model: Any,
    rows: Sequence[Sequence[int]],
    columns: Sequence[Sequence[int]],
    batch_size: int,
    shared: int,
) -> Tensor:
    """States ``(N, D)`` of some texts. They are read in the order of their lengths, which saves
    padding, and no further than the last position that is kept."""
    cut = [row[: kept[-1] + 1] for row, kept in zip(rows, columns, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(cut[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        ids, mask = (x.to(model.device) for x in pad([cut[i] for i in some]))
        seen = head_inputs(model, ids, mask, shared).cpu()
        for i, states in zip(some, seen, strict=True):
            found[i] = states[list(columns[i])]
    return torch.cat([found[i] for i in range(len(rows))])


@torch.no_grad()
def head_inputs(model: Any, ids: Tensor, mask: Tensor, shared: int = 0) -> Tensor:
    """What the model's LM head reads, ``(B, T, D)``, for right-padded ids ``(B, T)``, of which
    ``shared`` columns are the same in all rows."""
    seen: list[Tensor] = []

    def ask_for_little(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])  # the logits are not needed and would cost the most
        return (args[0].new_zeros(1, 1, args[0].shape[-1]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(ask_for_little)
    try:
        behind = read_behind(model, ids, mask, shared, lambda _: seen[-1])
    finally:
        handle.remove()
    front = seen[0][:, :shared]  # of one row, where it was read once
    return torch.cat([front.expand(len(ids), -1, -1), behind], 1)


def _shape_of(model: Any) -> tuple[int, torch.dtype]:
    """The width and dtype of what the head reads."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    states = head_inputs(model, ids, torch.ones_like(ids))
    return states.shape[-1], states.dtype


def _bytes(states: Tensor) -> bytes:
    return states.contiguous().view(torch.uint8).numpy().tobytes()
