"""Models whose logits are a plain linear head on their last hidden state: body and head apart.

The hidden states are then known without a hook, and where a truncation leaves few tokens the head
is evaluated at those alone (`plugalign.kernels.head`). A model that caps or scales its logits, or
has another kind of head, is run by its own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from plugalign.engine.acceleration.compiled import StaticDecoding
from plugalign.engine.acceleration.traced_step import Reading, Recorder
from plugalign.engine.readers.prefix_hook import PrefixHook
from plugalign.kernels.backend import FLOATS
from plugalign.kernels.head import Head, Logits, full
from plugalign.kernels.product import can_pack, pack


class SplitModel:
    """A body and a linear head that together give the model's logits: up to rounding, and bit for
    bit with ``exact``.

    Args:
        body: gives ``last_hidden_state`` ``(R, T, D)``.
        linear: the head.
        recorder: of the body's one-token forwards.
        attached: the hooks of attached prefixes, in their order.
        static: see `Reading`.
        exact: whether recordings compute what the body does bit for bit.
        float32: whether logits are left in float32, see `Head`.
        models: see `Reading`.
    """

    def __init__(
        self,
        body: Any,
        linear: nn.Linear,
        recorder: Recorder,
        attached: Sequence[PrefixHook] = (),
        static: StaticDecoding | None = None,
        exact: bool = False,
        float32: bool = False,
        models: int = 1,
    ):
        self.body, self.linear, self.float32, self._models = body, linear, float32, models
        self._recorder, self._static, self._attached = recorder, static, attached
        self._reading = Reading(body, recorder, static, exact, models)
        self._packed: Tensor | None = None  # the head's weight, once the body's are

    def exactly(self) -> SplitModel:
        """The same with ``exact``."""
        return SplitModel(
            self.body,
            self.linear,
            self._recorder,
            self._attached,
            self._static,
            exact=True,
            float32=self.float32,
            models=self._models,
        )

    def last(self, inputs: dict[str, Any], positions: int = 1, further: bool = False) -> Head:
        """The logits of the last columns, ``(R * positions, V)``, from the inputs of a forward.

        Args:
            further: whether the cache holds earlier columns of the same texts.
        """
        if positions > 1:
            state = self.states(inputs)[:, -positions:].flatten(0, 1)
        else:
            state = self._reading.last(self._prefixed(inputs, further), further)
        return self.head(state)

    def head(self, states: Tensor) -> Head:
        """The logits of what the head reads, ``(N, D)``."""
        weight = self.linear.weight  # some bodies give float32 whatever the weights are
        if not self._reading.is_packed:
            self._packed = None
        elif self._packed is None and can_pack(weight):
            self._packed = pack(weight, len(states))
        return Head(states.to(weight.dtype), weight, self.linear.bias, self.float32, self._packed)

    def states(self, inputs: dict[str, Any]) -> Tensor:
        """The last hidden states of all columns, ``(R, T, D)``."""
        states: Tensor = self.body(**self._prefixed(inputs)).last_hidden_state
        return states

    def _prefixed(self, inputs: dict[str, Any], further: bool = False) -> dict[str, Any]:
        """The inputs of a forward behind all attached prefixes."""
        for hook in self._attached:
            inputs = (hook.continued if further else hook.prefixed)(self.body, inputs)
        return inputs


class SplitModels:
    """The split models of one wrapped model; whether a model can be split is found out once.

    Args:
        float32: whether they leave logits in float32, see `Head`.

    Attributes:
        recorder: of all of them.
        why_uncapturable: why no step of these models is captured any more, or None.
    """

    def __init__(self, float32: bool = False) -> None:
        self.recorder, self._float32 = Recorder(), float32
        self.why_uncapturable: str | None = None
        self._known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def get(self, model: Any, static: StaticDecoding | None = None) -> SplitModel | None:
        """Body and head of ``model``, or None where its own forward must run: because that does
        more to the logits, or for the sake of hooks."""
        if not self.may_split(model):
            return None
        linear = model.get_output_embeddings()
        if model not in self._known:
            self._known[model] = _is_plain(model, linear)
        if not self._known[model]:
            return None
        attached = _attached(model)
        return SplitModel(
            model.base_model, linear, self.recorder, attached, static, float32=self._float32
        )

    def may_split(self, model: Any) -> bool:
        """Whether ``model`` has a body and a linear head, as far as is known without running it."""
        linear = model.get_output_embeddings()
        if type(linear) is not nn.Linear or linear.weight.dtype not in FLOATS:
            return False
        if _hooked(model, len(_attached(model))) or _hooked(linear):
            return False
        return self._known.get(model, True)


def fit_width(logits: Logits, width: int) -> Logits:
    """Cuts or pads logits ``(R, V')`` to the base's ``V`` columns. The padding is finite and never
    matters, since the base's own logits there are `cut_off`."""
    have = logits.shape[-1]
    if have == width:
        return logits
    if have > width and isinstance(logits, Head):
        bias = None if logits.bias is None else logits.bias[:width]
        return logits.under(logits.weight[:width], bias)
    logits = full(logits)
    if have > width:
        return logits[:, :width]
    floor = logits.amin(-1, keepdim=True).expand(-1, width - have)
    return torch.cat([logits, floor], dim=-1)


def cut_off(logits: Tensor, vocabulary: int | None) -> Tensor:
    """The logits ``(R, V)``, at -inf beyond the first ``vocabulary`` tokens; None for all."""
    if vocabulary is None or vocabulary >= logits.shape[-1]:
        return logits
    padding = logits.new_full((len(logits), logits.shape[-1] - vocabulary), -torch.inf)
    return torch.cat([logits[:, :vocabulary], padding], dim=-1)


def _attached(model: Any) -> list[PrefixHook]:
    """The hooks of attached prefixes on a model's forward, in their order."""
    before = list(model._forward_pre_hooks.values())
    return [hook for hook in before if isinstance(hook, PrefixHook)]


def _hooked(module: Any, own: int = 0) -> bool:
    """Whether a module has other hooks than ``own`` pre-hooks of attachments."""
    before = len(module._forward_pre_hooks) > own
    return bool(before or module._forward_hooks or hasattr(module, "_hf_hook"))


@torch.no_grad()
def _is_plain(model: Any, linear: nn.Linear) -> bool:
    """Whether the head on the body's last hidden state gives the model's logits."""
    body = model.base_model
    if body is model:
        return False
    # Several tokens, since the state behind a padding token may be zero.
    tokens = torch.linspace(0, len(linear.weight) - 1, 8, device=model.device).long()[None]
    hidden = getattr(body(input_ids=tokens, use_cache=False), "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.shape[-1] != linear.in_features:
        return False
    whole: Tensor = model.forward(input_ids=tokens, use_cache=False).logits
    apart: Tensor = linear(hidden.to(linear.weight.dtype))
    return whole.dtype == apart.dtype and torch.equal(whole, apart)


@contextmanager
def head_input(model: Any) -> Iterator[list[Tensor]]:
    """Collects the inputs of the LM head, ``(R, T, D)`` per forward, while the block runs."""
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    try:
        yield seen
    finally:
        handle.remove()


def last_logits(model: Any, inputs: dict[str, Any], keep: int) -> Tensor:
    """The logits ``(R, keep, V)`` of the last positions, by the model's own forward."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs = {**inputs, "logits_to_keep": keep}  # the head is the dear part of a small model
    with contiguous_head_input(model):
        logits: Tensor = model(**inputs).logits[:, -keep:]
    return logits


@contextmanager
def contiguous_head_input(model: Any) -> Iterator[None]:
    """Gives the LM head its input ``(R, T, D)`` as one block of memory, while the block runs.

    A slice of positions is not one. With a weight that takes no gradient torch then makes a product
    for each row, and in bfloat16 on a CPU copies the whole weight for each. A model whose head
    cannot be found is left alone.
    """

    def copied(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # A copy also of one row, whose strides torch looks at too.
        return (args[0].clone(memory_format=torch.contiguous_format), *args[1:]) if args else None

    if (head := model.get_output_embeddings()) is None:
        yield
        return
    handle = head.register_forward_pre_hook(copied)
    try:
        yield
    finally:
        handle.remove()
