"""How often the host waits for a device between two tokens that are not captured."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import plugalign as pa
from plugalign.engine import sources
from plugalign.engine.speculative.verification import Speculator

NEW = 12


class Looks(TorchDispatchMode):
    """Counts how often the host looks at a number, but for those of a list."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def generate(steered, inputs, **options):
    torch.manual_seed(1)
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    return steered.generate(**inputs, **length, do_sample=True, **options)


def late(step):
    """A hook that spoils what a predictor's head gives for candidates, from a step on."""
    calls = []

    def hook(_module, _inputs, output):
        calls.append(1)
        return output * torch.nan if len(calls) > step else output

    return hook


@pytest.mark.parametrize("elsewhere", [False, True], ids=["cpu", "device"])
@pytest.mark.parametrize("step", [0, 3, NEW - 1])
def test_scores_that_go_wrong_name_source_and_step(
    step, elsewhere, tiny, tokenizer, prompts, make, monkeypatch
):
    model = tiny()
    fudge = make("fudge", model, tiny, "llama-gqa")
    steered = pa.wrap(model, tokenizer, fudge)
    want = generate(steered, prompts())
    checks, check = [], sources.SourceRunner.check_value
    monkeypatch.setattr(
        sources.SourceRunner, "check_value", lambda *a: checks.append(1) or check(*a)
    )
    if elsewhere:  # nothing is on the CPU, as far as the engine can tell
        monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    assert torch.equal(generate(steered, prompts()), want)
    assert len(checks) == (0 if elsewhere else NEW)
    fudge.predictor.head.register_forward_hook(late(step))
    who = r"the source '.*' gave NaN logits at step"
    with pytest.raises(FloatingPointError, match=f"{who} {step} "):
        generate(steered, prompts())


def test_a_row_of_scores_is_spoiled_as_a_whole():
    inf = torch.inf
    scores = torch.tensor([[1.0, -inf, 2.0], [1.0, inf, 0.0], [torch.nan, 0.0, 0.0], [-inf] * 3])
    got = sources.nan_unless_finite(scores)
    assert torch.equal(got[0], scores[0])
    assert got[1:].isnan().all()


@pytest.mark.parametrize("draft", ["base", "model"])
def test_a_round_looks_once_at_what_it_found(draft, tiny, tokenizer, prompts, monkeypatch):
    looks, found = [], Speculator.counted
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(1) or tolist(x))

    def counted(*args):
        lists.clear()
        with Looks() as seen:
            answer = found(*args)
        looks.append((len(lists), seen.count))
        return answer

    monkeypatch.setattr(Speculator, "counted", counted)
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), tiny(seed=2)))
    spec = pa.Speculation(tiny(seed=3) if draft == "model" else draft, 3)
    generate(steered, prompts(), speculation=spec)
    assert spec.rounds > 0
    assert set(looks) == {(1, 0)}
