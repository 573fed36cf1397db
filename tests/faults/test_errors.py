"""Errors in the middle of a call: who is named, and what is left behind."""

from __future__ import annotations

import copy
import gc
import warnings
from functools import partial

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plugalign.engine.acceleration.traced_step import Recorder


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Leaves what is older to others: the garbage collector is asked often here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ------------------------------------------------------------------ what is left behind


def state_of(model):
    """Everything about a model and the process that a call must leave alone."""
    modules, tables = list(model.modules()), ("_forward_hooks", "_forward_pre_hooks")
    hooks = [dict(getattr(module, table)) for module in modules for table in tables]
    flags = [m.training for m in modules], [p.requires_grad for p in model.parameters()]
    configs = [copy.deepcopy(vars(c)) for c in (model.config, model.generation_config)]
    process = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        list(warnings.filters),
        torch.jit.is_tracing(),
    )
    return hooks, flags, configs, [set(vars(module)) for module in modules], process


def keys_and_values():
    """How many tensors look like keys or values ``(R, H, T, 8)`` of the prompts here."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.ndim == 4]
    return sum(o.shape[-1] == 8 and o.shape[-2] >= 7 for o in found)


@pytest.fixture
def broken(prompts, afresh):
    """Runs a call that breaks; gives its error, when all else has been found in order."""
    return partial(run_broken, prompts, afresh)


def run_broken(prompts, afresh, steered, error, options, mend=lambda: None):
    models = [steered.model, *steered.plan.experts.values()]
    steered.generate(**prompts(), max_new_tokens=1)  # finds out how the models are made
    weights = [p.detach().clone() for model in models for p in model.parameters()]
    before, held = [state_of(model) for model in models], keys_and_values()
    with pytest.raises(error) as caught:
        steered.generate(**prompts(), max_new_tokens=5, **options)
    mend()
    assert type(caught.value) is error and caught.value.args == ("stop here",)
    assert keys_and_values() == held, "the error keeps keys and values"
    assert [state_of(model) for model in models] == before
    assert all(map(torch.equal, weights, (p for model in models for p in model.parameters())))
    again = steered.generate(**prompts(), max_new_tokens=5)
    assert torch.equal(again, afresh(steered).generate(**prompts(), max_new_tokens=5))
    return caught.value


# ------------------------------------------------------------------ who raises


def breaks(error, column, input_ids, scores, **_):
    """A logits processor, or a stopping criterion one column later, that raises at step 2."""
    if input_ids.shape[1] == column:
        raise error("stop here")
    return scores if column == 9 else torch.zeros(len(input_ids), dtype=torch.bool)


class Chokes(BaseStreamer):
    def __init__(self):
        self.left, self.ended = 4, 0  # the prompts, then steps 0 to 2

    def put(self, value):
        self.left -= 1
        if not self.left:
            raise ValueError("stop here")

    def end(self):
        self.ended += 1


def test_a_processor_raises(kind, path, wrapped, broken):
    def mine(input_ids, scores):
        return breaks(RuntimeError, 9, input_ids, scores)

    error = broken(wrapped(kind), RuntimeError, {"logits_processor": [mine]})
    assert error.__notes__ == ["while running the logits processor mine at step 2"]


@pytest.mark.parametrize("kind", ["nothing", "sum"])
def test_a_criterion_or_a_streamer_raises(kind, path, wrapped, broken):
    options = {"stopping_criteria": [partial(breaks, KeyboardInterrupt, 10)]}
    error = broken(wrapped(kind), KeyboardInterrupt, options)
    assert error.__notes__ == ["while running the stopping criterion breaks at step 2"]
    streamer = Chokes()
    error = broken(wrapped(kind), ValueError, {"streamer": streamer})
    assert streamer.ended == 1
    assert error.__notes__ == ["while running the streamer Chokes at step 2"]


@pytest.fixture
def attention_breaks(monkeypatch):
    """The second layer's attention raises when it reads a token for the ``step``-th time: keys and
    values are in caches and in frames. Of the first model to read one, or of a given one. Returns
    what restores it."""
    table, attend = ALL_ATTENTION_FUNCTIONS._global_mapping, ALL_ATTENTION_FUNCTIONS["sdpa"]

    def go(error, own=None, step=1):
        mine, reads = own and own.model.layers[1].self_attn, []

        def raises(module, query, key, *args, **options):
            if module.layer_idx == 1 and query.shape[2] == 1 and (own is None or module is mine):
                reads.append(key.shape)
                if len(reads) == step:
                    raise error("stop here")
            return attend(module, query, key, *args, **options)

        monkeypatch.setitem(table, "sdpa", raises)
        return lambda: monkeypatch.setitem(table, "sdpa", attend)

    return go


BATCHED = {
    "dexperts": ("expert LlamaForCausalLM", "antiexpert LlamaForCausalLM"),
    "lora": ("expert 1", "antiexpert 2"),
    "self-debias": ("the base behind 'w5 w6 w7'", "the base behind 'w8'"),
    "prefix-contrast": ("the base behind the desired prefix", "the base behind the contrast pre"),
}


def test_the_bases_forward_raises(kind, path, wrapped, broken, attention_breaks):
    steered = wrapped(kind)
    mend = attention_breaks(torch.OutOfMemoryError)
    (note,) = broken(steered, torch.OutOfMemoryError, {}, mend).__notes__
    assert note.startswith("while running the base model") and note.endswith(" at step 1")
    if kind != "sum":
        names = BATCHED.get(kind, ()) if path == "loop" else ()
        assert all(f"'{name}" in note for name in names)
        assert ("with the rows of" in note) == bool(names)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("role", ["expert", "antiexpert"])
def test_an_experts_own_forward_raises(role, error, path, wrapped, broken, attention_breaks):
    steered = wrapped("dexperts")
    expert = getattr(steered.controller, role)
    expert.config.rms_norm_eps *= 2  # it is no row of the base's forward any more
    mend = attention_breaks(error, expert, step=2)
    notes = broken(steered, error, {}, mend).__notes__
    assert notes == [f"while running the source '{role} LlamaForCausalLM' at step 2"]


def test_a_predictor_raises(path, wrapped, broken):
    def raises(*_):
        if seen:
            raise RuntimeError("stop here")

    def notices(_, scores):
        seen.append(1)
        return scores

    steered, seen = wrapped("fudge"), []
    handle = steered.controller.predictor.head.register_forward_pre_hook(raises)
    mine = {"logits_processor": [notices]}
    error = broken(steered, RuntimeError, mine, handle.remove)
    assert error.__notes__[0] == "while running the source 'the FUDGE predictor' at step 1"


def test_a_formula_raises(path, wrapped, prompts):
    steered = wrapped("nullspace")
    steered.plan.shifts[0].right.resize_(31, 3)
    with pytest.raises(RuntimeError) as caught:
        steered.generate(**prompts(), max_new_tokens=5)
    assert caught.value.__notes__ == ["while running the controller Nullspace at step 0"]


def test_a_revision_raises(path, wrapped, broken):
    def mine(input_ids, scores):
        if input_ids.shape[1] > 12:  # a prompt and its draft
            raise RuntimeError("stop here")
        return scores

    notes = broken(wrapped("critique"), RuntimeError, {"logits_processor": [mine]}).__notes__
    assert notes == [
        "while running the logits processor mine at step 0",
        "while running the revision by SelfCritique",
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_step_breaks_while_it_is_recorded(error, wrapped, prompts, attention_breaks):
    """Out of memory it is not recorded, and runs; an interruption gets through."""
    steered = wrapped("self-debias")
    want = steered.generate(**prompts(), max_new_tokens=5)
    steered.split_models.recorder = Recorder(patience=0)
    mend = attention_breaks(error)
    if error is KeyboardInterrupt:
        with pytest.raises(error):
            steered.generate(**prompts(), max_new_tokens=5)
    else:
        assert torch.equal(steered.generate(**prompts(), max_new_tokens=5), want)
    mend()
    assert not torch.jit.is_tracing()
    assert torch.equal(steered.generate(**prompts(), max_new_tokens=5), want)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_error_leaves_what_is_the_callers(beams, wrapped, prompts):
    """A cache that the caller gave, and the frames of an error that was being handled."""

    def outside():
        local = torch.ones(1)
        raise KeyError(local)

    steered, cache = wrapped("self-debias"), DynamicCache()
    options = {"past_key_values": cache, "num_beams": beams, "max_new_tokens": 5}
    try:
        outside()
    except KeyError as handled:
        with pytest.raises(OSError, match="stop here") as caught:
            own = [partial(breaks, OSError, 9)]
            steered.generate(**prompts(), **options, logits_processor=own)
        assert "local" in handled.__traceback__.tb_next.tb_frame.f_locals
    assert cache.get_seq_length() == 9 and len(cache.layers[0].keys) == 3 * beams
    assert caught.value.__notes__ == ["while running the logits processor breaks at step 2"]
