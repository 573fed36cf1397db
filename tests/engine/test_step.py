"""What one step makes of declarations: gates and weights by row, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import CandidateShift, LogLinear, Shift
from plugalign.algebra.sources import Context, LastHidden, Logits, Source, TextCandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK, TopP
from plugalign.engine.linear_terms import LinearSum
from plugalign.kernels.terms.linear import Linear

INF = float("inf")


class Declares(Controller):
    """A controller that declares what a test gives it."""

    def __init__(self, *shifts, supports=()):
        self.steering = Steering(shifts, supports)

    def steer(self, model, tokenizer):
        return self.steering


@dataclass  # equal ones have no hash
class Rows(Gate):
    """A number for each row."""

    weights: list[float] = field(default_factory=list)

    def open(self, step):
        return torch.tensor(self.weights)


@dataclass(frozen=True, eq=False)
class Reads(Shift):
    """Reads a source that it may not have declared."""

    read: Source | None = None
    declared: tuple[Source, ...] = ()

    @property
    def sources(self):
        return self.declared

    def terms(self, step, weight):
        step.read(self.read)
        return ()


@dataclass(frozen=True, eq=False)
class OneNumber(Source):
    """Says that it can be read at several places, and gives one value for each row."""

    multi_position = True

    def reader(self, base: Any) -> Any:
        return self

    def read(self, step):
        return torch.zeros(len(step.ids), step.base.shape[-1])

    def forget(self):
        pass


@dataclass(frozen=True, eq=False)
class Adds(Shift):
    source: Source | None = None

    @property
    def sources(self):
        return (self.source,)

    def terms(self, step, weight):
        yield Linear((step.read(self.source),), (weight,))


def scores(steered, batch):
    """Of the next token, on the processor path."""
    ids = batch["input_ids"]
    with torch.no_grad():
        base = steered.model(**batch).logits[:, -1]
    return steered.processor(batch["attention_mask"])(ids, base.float()), base


# ------------------------------------------------------------------ gates and weights by row


def test_a_closed_row_ignores_what_its_sources_give(tiny, tokenizer, prompts):
    """A scorer that forbids a candidate altogether forbids nothing where the gate is closed."""
    model, batch = tiny(), prompts(rows=2)
    values = TextCandidateValues(
        "forbids", lambda texts: torch.tensor([-INF, 1.0, 2.0]).repeat(2), tokenizer, 3
    )
    shift = CandidateShift(values, gates=(Rows([0.0, 1.0]),))
    found, base = scores(pa.wrap(model, tokenizer, Declares(shift)), batch)
    torch.testing.assert_close(found[0], base[0].log_softmax(-1))
    assert found[1].isneginf().sum() == 1 and found[1].exp().sum() == pytest.approx(1)


def test_a_row_that_is_forbidden_all_by_an_expert(tiny, tokenizer, prompts):
    """An expert at -inf counts nothing with a coefficient of 0, nor where two cancel out."""
    model, expert, batch = tiny(), tiny(seed=1), prompts(rows=2)
    expert.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([5, 9]), -INF)
    )
    source = Logits("expert", expert)
    none = LogLinear(((0.0, source), (0.0, Logits())))
    some, less = LogLinear(((1.5, source),)), LogLinear(((-1.5, source),))
    for shifts in ((none,), (some, less)):
        found, base = scores(pa.wrap(model, tokenizer, Declares(*shifts)), batch)
        torch.testing.assert_close(found, base.log_softmax(-1))


def test_weights_that_cancel_out_leave_no_term():
    base, x = torch.zeros(2, 5), torch.full((2, 5), -INF)
    total = LinearSum(base, {})
    total.add(Linear((x, base), (2.0, 0.5)), {id(x): "expert"})
    total.add(Linear((x,), (-2.0,)), {id(x): "expert"})
    assert total.terms() == (1.5, ())


@pytest.mark.parametrize("number", [INF, float("nan"), -1.0])
def test_a_gate_says_a_finite_number(number, tiny, tokenizer, prompts):
    shift = LogLinear(((1.0, Logits("behind", context=Context((5,)))),), gates=(Rows([1, number]),))
    steered = pa.wrap(tiny(), tokenizer, Declares(shift))
    with pytest.raises(ValueError, match="the gate Rows must give one finite number"):
        steered.generate(**prompts(rows=2), max_new_tokens=2)


def test_supports_behind_a_gate_without_a_hash(tiny, tokenizer, prompts):
    gate, batch = Rows([0.0, 1.0]), prompts(rows=2)
    controller = Declares(supports=(TopK(3, gates=(gate,)), TopP(1.0), TopK(3, gates=(gate,))))
    steered = pa.wrap(tiny(), tokenizer, controller)
    assert len(steered.plan.supports) == 2
    found, _ = scores(steered, batch)
    assert found.isfinite().sum(-1).tolist() == [120, 3]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "source", [Logits("a hint", context=Context((5, 6))), LastHidden(), OneNumber("a number")]
)
@pytest.mark.parametrize("path", ["loop", "processor", "log_probs"])
def test_a_source_that_was_not_declared(source, path, tiny, tokenizer, prompts):
    steered, batch = pa.wrap(tiny(), tokenizer, Declares(Reads(source))), prompts(rows=2)
    match = f"'{source.name}' is read and was not declared; name it in the `sources` of the shift"
    with pytest.raises(ValueError, match=match):
        if path == "loop":
            steered.generate(**batch, max_new_tokens=2)
        elif path == "processor":
            scores(steered, batch)
        else:
            steered.log_probs(["w5 w6", "w7 w8"])


def test_the_base_need_not_be_declared(tiny, tokenizer, prompts):
    found, base = scores(pa.wrap(tiny(), tokenizer, Declares(Reads(Logits()))), prompts(rows=2))
    torch.testing.assert_close(found, base.log_softmax(-1))


def test_a_reader_that_gives_too_few_values_for_a_draft(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, Declares(Adds(OneNumber("a number"))))
    steered.generate(**prompts(rows=2), max_new_tokens=3)  # one place at a time
    with pytest.raises(ValueError, match=r"'a number' gave 2 values for 10 .* multi_position"):
        steered.generate(**prompts(rows=2), max_new_tokens=8, speculation=pa.Speculation())
