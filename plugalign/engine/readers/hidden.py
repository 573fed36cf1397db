"""The base's last hidden state and its logits, taken by hooks from the forwards that ``generate``
makes anyway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from plugalign.engine.readers.cache_spec import ARGUMENTS


class HiddenWatch:
    """Keeps the input of the LM head in the last forward, its logits, or both, and the tokens that
    they belong to.

    Only forwards of the thread that made the watch count, and none while `paused`, when a source
    runs the same model.
    """

    def __init__(self, model: Any):
        self._model = model
        self._thread = threading.get_ident()
        self._hidden: Tensor | None = None
        self._logits: Tensor | None = None
        # None: a state has taken in the tokens before, and does not tell how many they were.
        self._start: int | None = 0
        self._window = torch.empty(0, 0, dtype=torch.long)
        self.paused = False
        self.extra_positions = 0  # cache positions in front of the prompt

    @contextmanager
    def watching(self, hidden: bool = True, logits: bool = False) -> Iterator[None]:
        """Hooks the model for the length of the block.

        Args:
            hidden, logits: what of its forwards is kept.
        """
        model = self._model
        hooks = [model.register_forward_pre_hook(self._note_window, with_kwargs=True, prepend=True)]
        if hidden:
            head = model.get_output_embeddings()
            hooks.append(head.register_forward_pre_hook(self._note_hidden))
        if logits:
            hooks.append(model.register_forward_hook(self._note_logits))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def find(self, ids: Tensor) -> Tensor | None:
        """The hidden state ``(R, D)`` after the prefixes ``ids`` ``(R, T)``, in float32, or None
        where the last forward did not read just these tokens (a draft that was rejected, say)."""
        return self._after(ids, self._hidden)

    def find_logits(self, ids: Tensor) -> Tensor | None:
        """The logits ``(R, V)`` after the prefixes ``ids`` ``(R, T)``, as `find`."""
        return self._after(ids, self._logits)

    def _after(self, ids: Tensor, kept: Tensor | None) -> Tensor | None:
        """What was kept at the last column of these prefixes, in float32."""
        if kept is None or self._start is None:
            return None
        new = ids.shape[1] - self._start  # columns of the window that belong to these prefixes
        if not 0 < new <= self._window.shape[1]:
            return None
        column = kept.shape[1] - self._window.shape[1] + new - 1
        if column < 0 or not torch.equal(self._window[:, :new], ids[:, self._start :]):
            return None
        return kept[:, column].float()

    def last(self) -> Tensor | None:
        """The hidden state ``(R, D)`` at the last column, in float32; None before a forward."""
        return None if self._hidden is None else self._hidden[:, -1].float()

    def _ours(self) -> bool:
        return not self.paused and threading.get_ident() == self._thread

    def _note_window(
        self, _: Any, args: tuple[Any, ...], inputs: dict[str, Any] | None = None
    ) -> None:
        # torch leaves the inputs out where another thread's forward meets the hook's removal.
        if inputs is not None and self._ours():
            cache = next((inputs[name] for name in ARGUMENTS if inputs.get(name) is not None), None)
            past = 0 if cache is None else _columns_in(cache)
            self._start = None if past is None else max(0, past - self.extra_positions)
            self._window = inputs["input_ids"] if "input_ids" in inputs else args[0]

    def _note_hidden(self, _: Any, args: tuple[Any, ...]) -> None:
        if self._ours():
            self._hidden = args[0].detach()

    def _note_logits(self, _: Any, args: tuple[Any, ...], output: Any) -> None:
        if self._ours():
            self._logits = output.logits.detach()


def _columns_in(cache: Any) -> int | None:
    """The columns that a cache holds, or None where no layer keeps any."""
    kept = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return int(cache.get_seq_length()) if kept or not cache.layers else None
