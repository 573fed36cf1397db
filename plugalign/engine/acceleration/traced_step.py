"""One-token forwards, recorded once and replayed without Python.

Most of what a small model's step costs on a CPU is Python around its operations. A recording
(``torch.jit.trace``) holds the operations alone; keys and values are its arguments. It belongs to
one body, number of rows and kind of mask. It is made after some steps, compared with the body
itself at the next lengths, and used from then on; where anything is in doubt the body runs. Weights
are read where they lie, or are arguments where a call has packed them (`packed`), so what changes
in place is seen.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from plugalign.engine.acceleration.compiled import Compiled, StaticDecoding
from plugalign.engine.acceleration.hooks import has_global_hooks
from plugalign.engine.acceleration.packed import AFTER, packed_body, weights_of
from plugalign.engine.acceleration.tracing import is_repeatable, keys_values, read, record
from plugalign.kernels.product import one_row

PATIENCE = 128  # steps before a recording is made, which costs about as much as it saves in these
PROOFS = 3  # steps at which a recording and the body run side by side
KEPT = 16  # bodies whose recordings are kept, and kinds of steps of each; the oldest goes first
ROUNDING = 64  # float32 roundings by which a recording may differ, relative to the largest number


class Recorder:
    """The recordings of the models of one wrapped model, remembered from call to call.

    Args:
        patience: so many steps of a kind run before one is recorded.
    """

    def __init__(self, patience: int = PATIENCE):
        self._patience = patience
        self._known: dict[int, tuple[State, dict[Any, Recording]]] = {}
        self._compiled: dict[int, Compiled] = {}

    def recordings_of(self, body: Any) -> dict[Any, Recording]:
        """The recordings of a body, none if it has changed since they were made."""
        state = State(body)
        known = self._known.get(id(body))
        if known is None or known[0] != state:
            self._known.pop(id(body), None)
            _evict_oldest(self._known)
            self._known[id(body)] = known = (state, {})
        return known[1]

    def recording(self, body: Any, exact: bool) -> Recording:
        """A new one."""
        return Recording(body, self._patience, exact)

    def forget(self, body: Any) -> None:
        """Lets go of a body that will not be read again."""
        self._known.pop(id(body), None)
        self._compiled.pop(id(body), None)

    def compiled(self, body: Any, options: dict[str, Any]) -> Compiled:
        """The body under ``torch.compile``, which finds out by itself what has changed."""
        found = self._compiled.get(id(body))
        if found is None or found.options != options:
            found = self._compiled[id(body)] = Compiled(body, options)
        return found


class State:
    """What recordings of a body hang on: its modules, how they are set, and where their numbers
    lie. It keeps all of them, so that no other can take their place unnoticed."""

    def __init__(self, body: Any):
        self._modules = tuple(body.modules())
        self._tensors = (*body.parameters(), *body.buffers())
        self._values = (
            *map(_settings, self._modules),
            *((t.data_ptr(), t.dtype, t.shape) for t in self._tensors),
            getattr(body.config, "_attn_implementation", None),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State) or self._values != other._values:
            return False
        mine, theirs = ((*s._modules, *s._tensors) for s in (self, other))
        return len(mine) == len(theirs) and all(map(operator.is_, mine, theirs))


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What of a module decides what it does, beside its tensors."""
    # Copies, since another thread may be about to add to them.
    mine = list(vars(module).items())
    plain = ((name, x) for name, x in mine if type(x) in (bool, int, float, str))
    hooks = (*list(module._forward_hooks.values()), *list(module._forward_pre_hooks.values()))
    return (type(module).forward, *plain, *map(id, hooks), "forward" in vars(module))


class Reading:
    """A body as one ``generate`` call reads with it.

    Args:
        body: gives ``last_hidden_state`` ``(R, T, D)``.
        recorder: where recordings are kept.
        static: whether forwards over a static cache are compiled, and how.
        exact: whether recordings compute what the body does bit for bit.
        models: how many models the body is made of, each of which reads its share of the rows.
    """

    def __init__(
        self,
        body: Any,
        recorder: Recorder,
        static: StaticDecoding | None = None,
        exact: bool = False,
        models: int = 1,
    ):
        self._body, self._recorder, self._exact, self._models = body, recorder, exact, models
        self._options = None if static is None else static.options
        self._weight = next(body.parameters())
        self._recordings: dict[Any, Recording] | None = None  # looked up when a token is read
        self._packed, self._weights, self._tokens = body, list[Tensor](), 0  # its tokens

    @property
    def is_packed(self) -> bool:
        """Whether the body reads packed weights by now."""
        return self._packed is not self._body

    def last(self, inputs: dict[str, Any], further: bool = False) -> Tensor:
        """The last column's hidden states ``(R, D)``, from the inputs of a forward.

        Args:
            further: whether the cache holds earlier columns of the same texts.
        """
        ids = inputs["input_ids"]
        one_more = further and ids.shape[1] == 1
        if one_more and self._options is not None and inputs["past_key_values"].is_compileable:
            return self._recorder.compiled(self._body, self._options).last(inputs)
        if ids.shape[1] > 1:  # another text may be of another call, and of other weights
            self._recordings = None
            self._packed, self._weights, self._tokens = self._body, [], 0
        if ids.shape[1] > 1 or not _is_bare():
            return read(self._body, inputs)
        rows = len(ids) // self._models
        self._tokens += 1
        if self._tokens == AFTER and not self._exact:
            self._packed = packed_body(self._body, rows) or self._body
            self._weights = weights_of(self._packed)
        if "position_ids" not in inputs or not _is_growing(inputs):
            return read(self._packed, inputs)
        form = (len(ids), "attention_mask" in inputs, self._exact, self.is_packed)
        if self._recordings is None:
            self._recordings = self._recorder.recordings_of(self._body)
        recording = self._recordings.get(form)
        if recording is None:
            _evict_oldest(self._recordings)
            recording = self._recordings[form] = self._recorder.recording(self._body, self._exact)
        if self._exact:
            return recording.last(inputs, self._body)
        with one_row(rows, self._weight):
            return recording.last(inputs, self._packed, self._weights)


class Recording:
    """What one body does for one more token of so many rows.

    Args:
        patience: steps before it is made.
        exact: whether it computes what the body does bit for bit.
    """

    def __init__(self, body: Any, patience: int, exact: bool = False):
        self._patience, self._proofs = patience, PROOFS
        self._exact = exact
        self._graph: Any = None
        self._refused = not is_repeatable(body)

    def last(self, inputs: dict[str, Any], body: Any, weights: Sequence[Tensor] = ()) -> Tensor:
        """See `Reading.last`; the cache in ``inputs`` grows by a column.

        Args:
            body: the body, or a call's own mirror of it with packed weights.
            weights: those, see `weights_of`.
        """
        self._patience -= 1
        if self._refused or self._patience >= 0:
            return read(body, inputs)
        arguments = [*_flat(inputs), *weights]
        if self._graph is None:
            self._graph = record(body, arguments, "attention_mask" in inputs, self._exact)
            self._refused = self._graph is None
        if self._proofs and not self._refused:
            return self._compared(arguments, inputs, body)
        if self._refused:
            return read(body, inputs)
        found = self._replayed(arguments)
        if found is None:
            return read(body, inputs)
        layers = inputs["past_key_values"].layers
        for layer, keys, values in zip(layers, found[1::2], found[2::2], strict=True):
            layer.keys, layer.values = keys, values
        return found[0]

    def _replayed(self, arguments: list[Tensor]) -> tuple[Tensor, ...] | None:
        """What the recording gives; None where it breaks, and then the body shall say why."""
        try:
            found: tuple[Tensor, ...] = self._graph(*arguments)
        except RuntimeError:
            self._refused, self._graph = True, None
            return None
        return found

    def _compared(self, arguments: list[Tensor], inputs: dict[str, Any], body: Any) -> Tensor:
        """Runs the body, and finds out whether the recording would have given the same."""
        found = self._replayed(arguments)
        state = read(body, inputs)
        if found is not None:
            alike = torch.equal if self._exact else _is_same
            same = map(alike, found, [state, *keys_values(inputs)])
            self._refused, self._proofs = not all(same), self._proofs - 1
        if self._refused:
            self._graph = None
        return state


def _is_bare() -> bool:
    """Whether a forward does what the modules say and no more."""
    return not (torch.is_grad_enabled() or has_global_hooks() or torch.is_autocast_enabled("cpu"))


def _is_growing(inputs: dict[str, Any]) -> bool:
    """Whether a forward on a CPU reads on behind a cache that only grows."""
    layers: Any = getattr(inputs["past_key_values"], "layers", ())
    grows = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return bool(grows and layers[0].is_initialized and layers[0].keys.is_cpu)


def _evict_oldest(kept: dict[Any, Any]) -> None:
    if len(kept) >= KEPT:
        oldest, *_ = tuple(kept)  # a copy, since another thread may be about to add to it
        kept.pop(oldest, None)


def _flat(inputs: dict[str, Any]) -> list[Tensor]:
    leading = [inputs["input_ids"], inputs["position_ids"]]
    if "attention_mask" in inputs:
        leading.append(inputs["attention_mask"])
    return leading + keys_values(inputs)


def _is_same(found: Tensor, wanted: Tensor) -> bool:
    """Whether numbers ``(R, ...)`` are equal to rounding.

    In half precision a mask that is written out, or left out, now and then rounds a number the
    other way, and what follows in its row differs; a recording that is wrong differs in all rows.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if found.dtype == torch.float32:
        size = torch.finfo(torch.float32).eps * ROUNDING * wanted.abs().max()
        return bool((found - wanted).abs().max() <= size)
    mine, theirs = found.flatten(1), wanted.flatten(1)
    changed = (mine != theirs).any(1)
    if 2 * int(changed.sum()) > len(changed):
        return False
    error = (mine[changed].float() - theirs[changed].float()).norm(dim=1)
    size = theirs[changed].float().norm(dim=1)
    return bool((error <= size * torch.finfo(found.dtype).eps ** 0.5).all())
