"""What a GPU would meet in a captured step, found out without one by fake CUDA tensors.

They have shapes, types and a device, and no numbers. So texts are not compared here, but all
operations of a step are seen, and every kernel launch is planned as for a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import pytest
import torch
from torch._C._autograd import DeviceType
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import plugalign as pa
from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.host_sync import HostSyncDetector
from plugalign.engine.stopping import Stopping
from plugalign.kernels import occupancy
from plugalign.kernels.launch import Launch

aten = torch.ops.aten
CONTROLLERS = (
    "nothing",
    "dexperts",
    "anti-only",
    "lora",
    "self-debias",
    "low-rank",
    "adaptive",
    "head",
    "prefix",
    "prefix-contrast",
    "several",
)
NEW = 5
GPU = "cuda:0"  # with its number: where CUDA is not built in, nobody knows the current one
# What the host would read outside of captured steps, where it may wait.
ANSWERS = {torch.bool: True, torch.float32: 0.0, torch.int64: 7}
SYNCS = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.equal.default,
    aten.allclose.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
    aten.lift_fresh.default,
    aten.multinomial.default,
}


class Seen(TorchDispatchMode):
    """All operations and launches of a warm-up and a capture, and what of them is no good.

    Its rules are simpler and stricter than those of `HostSyncDetector`: a step touches no other
    device.
    """

    def __init__(self):
        super().__init__()
        self.stage, self.steps, self.faults = None, {}, []

    @contextlib.contextmanager
    def during(self, stage):
        self.stage, self.steps[stage] = stage, []
        try:
            yield
        finally:
            self.stage = None

    def launched(self, launch):
        if self.stage:
            name, given = launch.kernel.fn.__name__, variant(launch.arguments)
            self.steps[self.stage].append((name, launch.grid, str(launch.options), given))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.stage:
            self._look(func, args)
        if func in (aten._local_scalar_dense.default, aten.item.default):
            return ANSWERS[args[0].dtype] if isinstance(args[0], FakeTensor) else func(*args)
        if func in (aten.equal.default, aten.allclose.default):
            return True
        if func is aten.nonzero.default or any(map(is_mask, index_of(func, args))):
            return args[0].new_zeros((1, 1), dtype=torch.int64)  # whatever its shape
        found = func(*args, **kwargs)
        if self.stage and func.namespace != "prim":  # which only asks what a tensor is
            both = tensors((args, kwargs, found))
            read = [] if is_view(func) else both  # views are the host's: nothing is launched
            self.steps[self.stage].append((str(func), *((x.dtype, *x.shape) for x in read)))
            self.faults += [f"{func} on {x.device}" for x in both if x.device.type != "cuda"]
        return found

    def _look(self, func, args):
        if func in SYNCS or any(map(is_mask, index_of(func, args))):
            self.faults.append(f"{func} waits")


class Dry:
    """A graph that runs its step twice and replays nothing."""

    def __init__(self, seen):
        self._seen, self.replays, self.watched = seen, 0, []

    def warm(self, step):
        return self._run("warm", step)

    def capture(self, step):
        assert self._run("capture", step) is None

    def replay(self):
        self.replays += 1

    def _run(self, stage, step):
        with self._seen.during(stage), HostSyncDetector() as watching:
            step()
        self.watched.append(watching.why)
        return watching.why


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def index_of(func, args):
    return args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()


def is_mask(index):
    return index is not None and index.dtype == torch.bool


def is_view(func):
    alias = [found.alias_info for found in func._schema.returns]
    return any(x is not None and not x.is_write for x in alias)


def variant(value):
    """What Triton compiles a kernel for, of its arguments, and more than that."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, dict):
        return tuple((name, variant(x)) for name, x in value.items())
    return tuple(map(variant, value)) if isinstance(value, tuple) else repr(value)


def pretended_address(tensor):
    return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()


@pytest.fixture
def guarded():
    """A torch that is built without CUDA switches between its devices as one that is and has none:
    not at all. (Such a build does this itself when fake tensors are made.)"""
    if torch.version.cuda is not None:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * (int(DeviceType.Meta) + 1)).in_dll(library, name)
    before, guards[int(DeviceType.CUDA)] = guards[int(DeviceType.CUDA)], guards[-1]
    yield
    guards[int(DeviceType.CUDA)] = before


@pytest.fixture
def seen(monkeypatch, guarded):
    seen = Seen()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: seen.stage == "capture")
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "data_ptr", pretended_address)
    # A copy reads what lies at the address.
    monkeypatch.setattr(FakeTensor, "__deepcopy__", lambda self, memo: self.clone(), raising=False)
    monkeypatch.setattr(occupancy, "architecture_of", lambda device: ("sm_90", 132))
    monkeypatch.setattr(Launch, "run", lambda launch: seen.launched(launch))
    monkeypatch.setattr(Stopping, "failed", lambda self, ids, done: None)
    monkeypatch.setattr(Stopping, "surplus", lambda self, ids: 0)
    monkeypatch.setattr(captured_step, "MIN_TOKENS", 1)
    with FakeTensorMode(), seen:
        yield seen


@pytest.fixture
def dry(seen, monkeypatch):
    made = []
    monkeypatch.setattr(
        captured_step, "graph_on", lambda device: made.append(Dry(seen)) or made[-1]
    )
    return made


def generate(steered):
    ids = torch.full((2, 7), 5, device=GPU)
    return steered.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=True,
        min_new_tokens=NEW,
        top_p=0.9,
        pad_token_id=0,
        cache_implementation="static",
        disable_compile=True,
    )


def on_gpu(tiny):
    """The factory `tiny` of models that are on the fake device."""

    def make(*args, **options):
        model, moved = tiny(*args, **options), {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, old in held.items():
                    if old is not None and id(old) not in moved:  # tied weights stay tied
                        new = old.detach().to(GPU)
                        is_buffer = held is module._buffers
                        moved[id(old)] = new if is_buffer else torch.nn.Parameter(new, False), old
                    held[name] = old if old is None else moved[id(old)][0]
        return model

    return make


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied"])
@pytest.mark.parametrize("which", CONTROLLERS)
def test_a_step_can_be_captured(which, architecture, tiny, tokenizer, make, seen, dry):
    model = on_gpu(tiny)(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, on_gpu(tiny), architecture))
    assert generate(steered).shape == (2, 7 + NEW)
    assert [(graph.watched, graph.replays) for graph in dry] == [([None, None], NEW - 2)]
    assert seen.faults == []
    assert len(seen.steps["warm"]) > 100
    assert seen.steps["capture"] == seen.steps["warm"]


class Act(torch.nn.Module):
    """An activation that does something else too."""

    def __init__(self, also):
        super().__init__()
        self._also = also

    def forward(self, x):
        self._also(x)
        return torch.nn.functional.silu(x)


def with_act(tiny, tokenizer, also):
    model = on_gpu(tiny)()
    model.model.layers[1].mlp.act_fn = Act(also)
    return pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))


@pytest.mark.parametrize(
    ("also", "why"),
    [
        (lambda x: x.sum().item(), r"_local_scalar_dense waits .*\(test_fake_cuda.py:\d+\)"),
        (lambda x: x.nonzero(), "nonzero waits"),
        (lambda x: x[x > 0], "index by a mask waits"),
        (lambda x: x.new_tensor([1.0]), "_to_copy takes or gives a tensor on cpu"),
        (lambda x: x[..., torch.arange(3)], "index takes or gives a tensor on cpu"),
        (lambda x: torch.ones(3).to(x.device), "_to_copy takes or gives a tensor on cpu"),
        (lambda x: x.to("cpu"), "_to_copy takes or gives a tensor on cpu"),
        (lambda x: torch.where(x > 0, x, torch.zeros(())), "where takes or gives a tensor on cpu"),
    ],
    ids=["item", "nonzero", "mask", "tensor", "index", "to device", "to host", "scalar"],
)
def test_what_a_capture_would_trip_over_is_found_before(also, why, tiny, tokenizer, seen, dry):
    steered = with_act(tiny, tokenizer, also)
    with pytest.warns(RuntimeWarning, match=f"no CUDA graph of a step .*{why}.* capture=False"):
        assert generate(steered).shape == (2, 7 + NEW)
    assert [(len(graph.watched), graph.replays) for graph in dry] == [(1, 0)]
    assert seen.faults
    assert generate(steered).shape == (2, 7 + NEW)
    assert len(dry) == 1


def test_a_scalar_that_a_launch_carries_is_no_hindrance(tiny, tokenizer, dry):
    steered = with_act(tiny, tokenizer, lambda x: (x * torch.ones(())).masked_fill(x > 0, 1.0))
    generate(steered)
    assert [graph.replays for graph in dry] == [NEW - 2]


def test_a_capture_that_does_something_else_is_seen(tiny, tokenizer, seen, dry):
    capturing_now = torch.cuda.is_current_stream_capturing
    generate(with_act(tiny, tokenizer, lambda x: x.exp() if capturing_now() else None))
    assert seen.faults == []
    assert seen.steps["capture"] != seen.steps["warm"]
