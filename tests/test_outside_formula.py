"""A formula from outside the package, in one file of its own, and what is refused by name.

Above the first line is what a user writes: a controller with a term, a shift, a source, a support
and a gate of which the package knows nothing. CONTRIBUTING.md walks through it.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import CandidateShift, Shift
from plugalign.algebra.sources import Context, Logits, Source, Step, TextCandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import Support
from plugalign.kernels.head import full
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight, by_row
from plugalign.testing import check_controller


@dataclass(frozen=True, eq=False)
class Bounded(Term):
    """``w c tanh((x(t) - x_0(t)) / c)``: another model's lead over the base, at most c."""

    logits: Tensor
    most: float
    weight: Weight = 1.0

    def inputs(self) -> Iterator[tuple[str, Tensor]]:
        yield "logits", self.logits

    def delta(self, base: Tensor) -> Tensor:
        lead = self.logits.log_softmax(-1) - base.float().log_softmax(-1)
        return (lead / self.most).tanh() * self.most * by_row(self.weight)


@dataclass(frozen=True, eq=False)
class Counts(Source):
    """How often each token stands in the text so far, float32 ``(R, V)``."""

    name: str = "the counts of tokens"

    @property
    def key(self) -> Hashable:
        return "counts"

    def reader(self, base: Any) -> "CountReader":
        return CountReader()


class CountReader:
    def read(self, step: Step) -> Tensor:
        counts = step.base.new_zeros(step.base.shape, dtype=torch.float32)
        return counts.scatter_add(1, step.ids, step.mask.float())

    def forget(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, eq=False)
class Fresh(Shift):
    """A bounded lead behind a hint, less ``rate`` for each time that a token was said."""

    hinted: Logits
    most: float
    rate: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.hinted, Counts())

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        yield Bounded(full(step.read(self.hinted)), self.most, weight)
        counts = step.read(Counts()) * by_row(weight)
        yield Linear((counts,), (-self.rate,))


@dataclass(frozen=True)
class NotAgain(Support):
    """All tokens but the last one."""

    def mask(self, step: Step) -> Tensor:
        return torch.ones_like(step.base, dtype=torch.bool).scatter(1, step.ids[:, -1:], False)


@dataclass(frozen=True)
class Every(Gate):
    """Open at every so manieth token of an answer, the first with it."""

    period: int
    name: ClassVar[str] = "every"

    def open(self, step: Step) -> Tensor:
        return (step.number % self.period == 0).float()

    def config(self) -> dict[str, Any]:
        return {"period": self.period}


class FreshWordsSettings(Settings):
    """The hint, and how much it counts."""

    hint: str
    most: float
    rate: float


class FreshWords(Controller):
    """Says what it would say behind a hint, and not the same words again."""

    name = "fresh_words"
    settings = FreshWordsSettings

    def __init__(self, hint: str, *, most: float = 2.0, rate: float = 1.5):
        self.hint, self.most, self.rate = hint, most, rate

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        ids = tokenizer(self.hint, add_special_tokens=False)["input_ids"]
        hinted = Logits(f"the base behind {self.hint!r}", context=Context(tuple(ids)))
        return Steering((Fresh(hinted, self.most, self.rate),), (NotAgain(),))

    def config(self) -> dict[str, Any]:
        return {"hint": self.hint, "most": self.most, "rate": self.rate}


# ------------------------------------------------------------------ it keeps the contract

PROMPTS = ("w5 w6", "w7 w8 w9 w10 w11", "w20 w30 w40")


def test_it_passes_check_controller(tiny, tokenizer, architecture):
    check_controller(FreshWords("w50 w51"), tiny(architecture), tokenizer, prompts=PROMPTS)


def test_behind_its_gate_and_in_a_sum_too(tiny, tokenizer, tmp_path):
    tiny(seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fresh = FreshWords("w50 w51")
    check_controller(fresh.when(Every(2)), tiny(), tokenizer, prompts=PROMPTS)
    whole = 0.5 * fresh + pa.DExperts(tmp_path) + fresh.when(Every(2))
    check_controller(whole, tiny(), tokenizer, prompts=PROMPTS)


# ------------------------------------------------------------------ it is its formula


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def logits(model, ids):
    """Behind one unpadded, uncached row."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()


def fresh(model, ids, log_p, most=2.0, rate=1.5):
    hinted = log_softmax(logits(model, [53, 54, *ids]))  # w50 w51
    counts = np.bincount(ids, minlength=len(log_p))
    keep = np.arange(len(log_p)) != ids[-1]
    return most * np.tanh((hinted - log_p) / most) - rate * counts, keep


class Reference(LogitsProcessor):
    """``0.5 * FreshWords + DExperts(expert, top_p=0.9) + FreshWords.when(Every(2))`` in float64."""

    def __init__(self, model, expert, columns):
        self.model, self.expert, self.columns = model, expert, columns

    def row(self, ids, z, is_open):
        log_p = log_softmax(z)
        order = np.argsort(-log_p, kind="stable")
        before = np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order])
        keep = np.zeros(len(z), bool)
        keep[order[before < 0.9]] = True
        shift, allowed = fresh(self.model, ids, log_p)
        whole = (0.5 + is_open) * shift + 2.0 * (logits(self.expert, ids) - z)
        keep &= allowed
        keep[log_p.argmax()] |= not keep.any()
        return log_softmax(np.where(keep, log_p + whole, -np.inf))

    def __call__(self, input_ids, scores):
        rows, is_open = [], (input_ids.shape[1] - self.columns) % 2 == 0
        for ids, z in zip(input_ids.tolist(), scores.double().numpy(), strict=True):
            ids = ids[next(i for i, x in enumerate(ids) if x) :]
            rows.append(self.row(ids, z, is_open))
        return torch.tensor(np.array(rows), dtype=torch.float32)


MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "beam": {"num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "static": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_beside_dexperts_it_equals_the_formula(mode, tiny, tokenizer, prompts, architecture):
    model, expert = tiny(architecture), tiny(architecture, seed=1)
    batch, mine = prompts(rows=1 if mode == "lookup" else 3, width=6), FreshWords("w50 w51")
    controller = 0.5 * mine + pa.DExperts(expert, alpha=2.0, top_p=0.9) + mine.when(Every(2))
    steered = pa.wrap(model, tokenizer, controller)
    make = partial(
        model.generate,
        **batch,
        **MODES[mode],
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ours = steered.processor(batch["attention_mask"])
    torch.manual_seed(1)
    got = make(logits_processor=[ours])
    torch.manual_seed(1)
    want = make(logits_processor=[Reference(model, expert, 6)])
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine_, theirs in zip(got.scores, want.scores, strict=True):
        real = torch.isfinite(theirs)
        torch.testing.assert_close(mine_[real], theirs[real], atol=2e-3, rtol=1e-3)
    if "do_sample" not in MODES[mode]:  # the loop draws with other noise
        whole = steered.generate(**batch, **MODES[mode], max_new_tokens=5)
        assert whole.tolist() == want.sequences.tolist()


def test_what_it_asks_for_is_named(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, FreshWords("w50 w51"))
    explained = steered.explain(max_new_tokens=3)
    assert "the base behind 'w50 w51', the counts of tokens" in explained
    assert "kept by a mask: NotAgain" in explained
    with pytest.raises(ValueError, match="'the counts of tokens' is read at one place at a time"):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation())


# ------------------------------------------------------------------ unknown kinds have names


class Declares(Controller):
    """A controller that declares what a test gives it."""

    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


@dataclass(frozen=True, eq=False)
class Yields(Shift):
    """A shift with the terms that a test gives it."""

    read: tuple[Any, ...] = ()
    made: tuple[Any, ...] = ()

    @property
    def sources(self):
        return self.read

    def terms(self, step, weight):
        for source in self.read:
            step.read(source)
        return self.made


@dataclass(frozen=True)
class Masks(Support):
    said: Any = None

    def mask(self, step):
        return self.said


@dataclass(frozen=True)
class Opens(Gate):
    said: Any = None

    def open(self, step):
        return self.said


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ([], r"Declares declared a list \(\[\]\) where a Steering belongs"),
        (Steering((Linear((), ()),)), "Declares declared a Linear .* where a Shift belongs"),
        (Steering((), (Yields(),)), "Declares declared a Yields .* where a Support belongs"),
        (Steering((Yields(read=("base",)),)), "declared a str .'base'. where a Source belongs"),
        (Steering((Yields(gates=(len,)),)), "where a Gate belongs"),
    ],
)
def test_a_declaration_of_another_kind(steering, message, tiny, tokenizer):
    with pytest.raises(TypeError, match=message):
        pa.wrap(tiny(), tokenizer, Declares(steering))


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (Steering((Yields(read=(Source("oracle"),)),)), r"'oracle' \(Source\) has no reader"),
        (Steering((Yields(made=(1.0,)),)), "Yields of Declares must yield terms, got float"),
        (Steering((), (Masks(torch.ones(2, 120)),)), r"the support Masks must give bool \(2, 120"),
        (Steering((), (Masks(torch.ones(2, 9).bool()),)), "Masks must give bool"),
        (
            Steering((Yields(gates=(Opens(True),)),)),
            "the gate Opens must give one finite number of at least 0 for each of 2 rows, got True",
        ),
    ],
)
@pytest.mark.parametrize("path", ["loop", "processor", "log_probs"])
def test_a_step_of_another_kind(path, steering, message, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=2)
    steered = pa.wrap(model, tokenizer, Declares(steering))
    with pytest.raises((TypeError, ValueError), match=message):
        match path:
            case "loop":
                steered.generate(**batch, max_new_tokens=2)
            case "processor":
                ours = steered.processor(batch["attention_mask"])
                model.generate(**batch, max_new_tokens=2, logits_processor=[ours])
            case _:
                steered.log_probs(["w5 w6", "w7 w8"])


def test_a_link_of_another_kind():
    scores = TextCandidateValues("reward", len, None, 3)
    with pytest.raises(ValueError, match="a link is one of identity, logsigmoid, clamp, got 'exp'"):
        CandidateShift(scores, "exp")


def test_a_formula_without_sources_may_look_at_the_text(tiny, tokenizer, prompts):
    """So it is asked at one place at a time: where given texts are scored, and never of drafts."""

    @dataclass(frozen=True, eq=False)
    class LikesTheNext(Shift):
        def terms(self, step, weight):
            liked = torch.zeros(step.base.shape)
            liked.scatter_(1, (step.ids[:, -1:] + 1) % 120, 5.0)
            yield Linear((liked,), (weight,))

    model, batch = tiny(), prompts(rows=2, width=6)
    model.generation_config.eos_token_id = None
    steered = pa.wrap(model, tokenizer, Declares(Steering((LikesTheNext(),))))
    made = steered.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    answers = made.sequences[:, 6:]
    scored = steered.log_probs(
        (answers, torch.ones_like(answers)), (batch["input_ids"], batch["attention_mask"])
    )
    want = torch.stack(made.scores, 1).gather(-1, answers[..., None])[..., 0]
    torch.testing.assert_close(torch.stack(scored), want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="LikesTheNext names no source, so it may look"):
        steered.generate(**batch, max_new_tokens=3, speculation=pa.Speculation())


def test_a_loaded_name_that_nobody_carries(tmp_path):
    FreshWords("w50").save_pretrained(tmp_path)
    assert type(Controller.from_pretrained(str(tmp_path))) is FreshWords
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("fresh_words", "stale_words"))
    with pytest.raises(ValueError, match=r"'stale_words'; known are .* of your own, import"):
        Controller.from_pretrained(str(tmp_path))
