"""One-token forwards, recorded once and replayed without Python.

Most of what a small model's step costs on a CPU is Python around its operations. A recording
(``torch.jit.trace``) holds the operations alone; keys and values are its arguments. It belongs to
one body, number of rows and kind of mask. It is made after some steps, compared with the body
itself at the next lengths, and used from then on; where anything is in doubt the body runs. Weights
are read where they lie, so what changes in place is seen.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from plugalign.engine.compiling import Compiled, Compiling

PATIENCE = 128  # steps before a recording is made, which costs about as much as it saves in these
PROOFS = 2  # steps at which a recording and the body run side by side
KEPT = 16  # bodies whose recordings are kept, and kinds of steps of each; the oldest goes first
# Architectures that do the same operations for a token at any length.
KNOWN = {
    "gemma", "gpt2", "gpt_neo", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi",
    "qwen2", "qwen3", "starcoder2",
}  # fmt: skip
MAKERS = ("torch", "transformers", "plugalign")  # of modules whose forwards are known
MOVING = {"dynamic", "longrope"}  # rotary embeddings that change when a text grows long
# The hooks of this module stay once they were wanted, and idle until they are wanted again.
RECORDERS = "transformers.utils.output_capturing"
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

    def of(self, body: Any) -> dict[Any, Recording]:
        """The recordings of a body, none if it has changed since they were made."""
        state = State(body)
        known = self._known.get(id(body))
        if known is None or known[0] != state:
            self._known.pop(id(body), None)
            _make_room(self._known)
            self._known[id(body)] = known = (state, {})
        return known[1]

    def recording(self, body: Any) -> Recording:
        """A new one."""
        return Recording(body, self._patience)

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
            *((m.training, len(m._forward_hooks), "forward" in vars(m)) for m in self._modules),
            *((t.data_ptr(), t.dtype, t.shape) for t in self._tensors),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State) or self._values != other._values:
            return False
        mine, theirs = ((*s._modules, *s._tensors) for s in (self, other))
        return len(mine) == len(theirs) and all(map(operator.is_, mine, theirs))


class Reading:
    """A body as one ``generate`` call reads with it.

    Args:
        body: gives ``last_hidden_state`` ``(R, T, D)``.
        recorder: where recordings are kept.
        compiling: whether forwards over a static cache are compiled, and how.
    """

    def __init__(self, body: Any, recorder: Recorder, compiling: Compiling | None = None):
        self._body, self._recorder, self._compiling = body, recorder, compiling
        self._recordings: dict[Any, Recording] | None = None  # looked up when a token is read

    def last(self, inputs: dict[str, Any]) -> Tensor:
        """The last column's hidden states ``(R, D)``, from the inputs of a forward."""
        ids = inputs["input_ids"]
        if ids.shape[1] == 1 and self._compiling and _is_static(inputs):
            return self._recorder.compiled(self._body, self._compiling.options).last(inputs)
        if ids.shape[1] > 1 or "position_ids" not in inputs or not _is_growing(inputs):
            return read(self._body, inputs)
        form = (len(ids), "attention_mask" in inputs)
        if self._recordings is None:
            self._recordings = self._recorder.of(self._body)
        recording = self._recordings.get(form)
        if recording is None:
            _make_room(self._recordings)
            recording = self._recordings[form] = self._recorder.recording(self._body)
        return recording.last(inputs)


class Recording:
    """What one body does for one more token of so many rows.

    Args:
        patience: steps before it is made.
    """

    def __init__(self, body: Any, patience: int):
        self._body, self._patience, self._proofs = body, patience, PROOFS
        self._graph: Any = None
        self._refused = not is_repeatable(body)

    def last(self, inputs: dict[str, Any]) -> Tensor:
        """See `Reading.last`; the cache in ``inputs`` grows by a column."""
        self._patience -= 1
        if self._refused or self._patience >= 0:
            return read(self._body, inputs)
        arguments = _flat(inputs)
        if self._graph is None:
            self._graph = _record(self._body, arguments, "attention_mask" in inputs)
            self._refused = self._graph is None
        if self._proofs and not self._refused:
            return self._compared(arguments, inputs)
        if self._refused:
            return read(self._body, inputs)
        state, *keys_values = _replay(self._graph, arguments)
        layers = inputs["past_key_values"].layers
        for layer, keys, values in zip(layers, keys_values[::2], keys_values[1::2], strict=True):
            layer.keys, layer.values = keys, values
        return state

    def _compared(self, arguments: list[Tensor], inputs: dict[str, Any]) -> Tensor:
        """Runs the body, and finds out whether the recording would have given the same."""
        found = _replay(self._graph, arguments)
        state = read(self._body, inputs)
        same = map(_is_same, found, [state, *_keys_values(inputs)])
        self._refused, self._proofs = not all(same), self._proofs - 1
        if self._refused:
            self._graph = None
        return state


class Step(nn.Module):
    """A body's step as a function of tensors."""

    def __init__(self, body: nn.Module, masked: bool):
        super().__init__()
        self.body, self._masked = body, masked

    def forward(self, ids: Tensor, place: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Tokens and positions ``(R, 1)``, a mask ``(R, T)`` if masked, each layer's keys and
        values; gives the hidden states ``(R, D)``, and keys and values again."""
        flat = list(rest)
        mask = flat.pop(0) if self._masked else None
        cache = DynamicCache()
        cache.layers = [Layer(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        inputs = {"input_ids": ids, "position_ids": place, "past_key_values": cache}
        state = read(self.body, {**inputs, "attention_mask": mask, "use_cache": True})
        return (state, *_keys_values(inputs))


class Layer(DynamicLayer):  # type: ignore[misc]
    """A layer's cache that begins with given keys and values."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends ``(R, H_kv, n, D_head)``."""
        self.keys = torch.cat([self.keys, keys], dim=-2)
        self.values = torch.cat([self.values, values], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """The columns held; a traced number, so it is not looked at here."""
        return self.keys.shape[-2]


def read(body: Any, inputs: dict[str, Any]) -> Tensor:
    """What a body itself gives for the last column, ``(R, D)``."""
    state: Tensor = body(**inputs).last_hidden_state[:, -1]
    return state


def is_repeatable(body: Any) -> bool:
    """Whether a body's step may be recorded at all."""
    if getattr(body.config, "model_type", "") not in KNOWN:
        return False
    parts = list(body.modules())
    moving = any(getattr(m, "rope_type", "") in MOVING for m in parts)
    return not moving and all(map(_is_plain, parts))


def _is_plain(module: nn.Module) -> bool:
    made_by = type(module).__module__.split(".")[0]
    return made_by in MAKERS and not module.training and not is_tampered_with(module)


def is_tampered_with(module: nn.Module) -> bool:
    """Whether a module does more, for somebody else, than its class does."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = {"forward", "_hf_hook"} & vars(module).keys()
    return bool(own) or any(getattr(hook, "__module__", "") != RECORDERS for hook in hooks)


def _is_growing(inputs: dict[str, Any]) -> bool:
    """Whether a forward on a CPU reads on behind a cache that only grows."""
    layers: Any = getattr(inputs["past_key_values"], "layers", ())
    grows = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    if not grows or not layers[0].is_initialized or torch.is_grad_enabled():
        return False
    return bool(layers[0].keys.is_cpu and not torch.is_autocast_enabled("cpu"))


def _is_static(inputs: dict[str, Any]) -> bool:
    """Whether a forward reads on behind a static cache."""
    cache = inputs["past_key_values"]
    return bool(cache.is_compileable and cache.layers and cache.layers[0].is_initialized)


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) == KEPT:
        del kept[next(iter(kept))]


def _flat(inputs: dict[str, Any]) -> list[Tensor]:
    front = [inputs["input_ids"], inputs["position_ids"]]
    if "attention_mask" in inputs:
        front.append(inputs["attention_mask"])
    return front + _keys_values(inputs)


def _keys_values(inputs: dict[str, Any]) -> list[Tensor]:
    return [x for layer in inputs["past_key_values"].layers for x in (layer.keys, layer.values)]


def _record(body: Any, arguments: list[Tensor], masked: bool) -> Any:
    """The body's step as operations, or None where torch cannot trace it."""
    with warnings.catch_warnings():
        # The tracer warns of every number it takes for constant: `Recording` compares instead.
        warnings.simplefilter("ignore")
        step, given = Step(body, masked).eval(), tuple(arguments)
        try:
            traced = torch.jit.trace(step, given, check_trace=False)  # type: ignore[no-untyped-call]
            # Freezing takes the modules out and leaves the weights where they are.
            return torch.jit.freeze(traced, optimize_numerics=False)
        except (RuntimeError, TypeError):
            return None


def _replay(graph: Any, arguments: list[Tensor]) -> tuple[Tensor, ...]:
    # As recorded: nothing is fused, and nothing is made anew for a shape.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        found: tuple[Tensor, ...] = graph(*arguments)
    return found


def _is_same(found: Tensor, wanted: Tensor) -> bool:
    """Equal bit for bit, or, in float32, to rounding."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if found.dtype != torch.float32:
        return torch.equal(found, wanted)
    size = torch.finfo(torch.float32).eps * ROUNDING * wanted.abs().max()
    return bool((found - wanted).abs().max() <= size)
