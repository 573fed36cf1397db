"""What stands in for a CUDA graph where there is none, and a draw that it can hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.host_sync import HostSyncDetector
from plugalign.kernels import steer
from plugalign.kernels.launch import Launch
from plugalign.kernels.mixture import mix
from plugalign.kernels.philox import WORD, rounds

aten = torch.ops.aten
# Operations whose answer the host looks at, or that bring a number of the host to the device.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.lift_fresh.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
    aten.item.default,
}


class Tape(TorchDispatchMode):
    """A graph of operations on a CPU.

    It keeps operations and kernel launches with the very tensors that they were given, refuses what
    would have to wait for a device, undoes what it ran while it captured, and repeats all of it
    without any Python of the engine.
    """

    def __init__(self, watches=True):
        super().__init__()
        self.entries, self.replays, self._before = [], 0, {}
        self._watches = watches

    def warm(self, step):
        with HostSyncDetector("cpu") as watching:
            step()
        return watching.why if self._watches else None

    def capture(self, step):
        run = Launch.run
        try:
            Launch.run = lambda launch: self._launch(launch, run)
            with self:
                step()
        finally:
            Launch.run = run
            for storage, before in self._before.values():
                storage.copy_(before)

    def replay(self):
        self.replays += 1
        for again in self.entries:
            again()

    def _launch(self, launch, run):
        with _disable_current_modes():
            run(launch)
        self.entries.append(lambda: run(launch))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        index = args[1] if func is aten.index.Tensor else ()
        if func in WAITING or any(i is not None and i.dtype == torch.bool for i in index):
            raise RuntimeError(f"{func} waits for the device")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(args[place] if place < len(args) else kwargs.get(argument.name))
        found = func(*args, **kwargs)
        given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        new = [x.untyped_storage().data_ptr() not in given for x in tensors(found)]

        def again():
            for old, now, is_new in zip(
                tensors(found), tensors(func(*args, **kwargs)), new, strict=True
            ):
                if is_new:
                    old.copy_(now)

        self.entries.append(again)
        return found

    def _keep(self, tensor):
        if tensor is not None:
            storage = tensor.untyped_storage()
            self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def drawn(mixture, *, seed, prompt, sample, step, temperature, before, after):
    """`plugalign.kernels.steer.sample` from its definition, in operations of fixed shapes."""
    base = mixture.base.float()
    z = mix(mixture)
    z = torch.where(kept(base, before) & (base > -math.inf), z, -math.inf)
    if temperature > 0:
        z = torch.where(kept(z / temperature, after), z, -math.inf)
    noised = z + temperature * gumbel(z.shape, seed, step, prompt, sample)
    tokens = noised.argmax(-1)
    return torch.where(z.isnan().any(-1) | (z.amax(-1) == -math.inf), -1, tokens)


def kept(x, cut):
    """A mask of the tokens of ``x`` ``(R, V)`` that a truncation keeps."""
    order = x.argsort(dim=-1, descending=True, stable=True)
    p = x.softmax(-1).gather(1, order)
    rank = torch.arange(x.shape[1]).expand(x.shape)
    keep = (rank < (cut.top_k or x.shape[1])) & (p >= cut.min_p * p[:, :1])
    if cut.top_p < 1:
        keep = keep & ((p.cumsum(-1) - p < cut.top_p) | (rank == 0))
    return torch.zeros_like(keep).scatter(1, order, keep)


def gumbel(shape, seed, step, prompt, sample):
    rows, vocab = shape
    blocks = torch.arange(-(-vocab // 4)).expand(rows, -1)
    step = torch.full((), step) if isinstance(step, int) else step
    address = [(x & WORD).expand(rows)[:, None] for x in (step, prompt, sample)]
    words = torch.stack(rounds([blocks, *address], seed), -1).flatten(1)[:, :vocab]
    return -(-(-((words.double() + 0.5) / 2**32)).log1p()).log().float()


@pytest.fixture
def tape():
    """The kind of graph that a CPU has."""
    return Tape


@pytest.fixture
def tapes(monkeypatch):
    """All graphs that were made: every device has one, and draws fit into it."""
    made = []
    monkeypatch.setattr(captured_step, "graph_on", lambda device: made.append(Tape()) or made[-1])
    monkeypatch.setattr(captured_step, "MIN_TOKENS", 1)
    monkeypatch.setattr(steer, "sample", drawn)
    return made
