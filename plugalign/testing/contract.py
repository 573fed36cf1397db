"""The contract that every controller keeps, also one from outside the package.

`check_controller` is for the tests of whoever writes a controller: it runs it in every decoding
mode and says which promise it broke.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.controllers.self_debias import SelfDebias
from plugalign.engine.speculative.drafts import Speculation
from plugalign.generation.scoring import left_padded
from plugalign.generation.wrap import wrap
from plugalign.testing.trial import (
    CLOSE,
    ROUNDING,
    Case,
    State,
    Stateless,
    distance,
    hold,
)

PROMPTS = ("The weather", "She opened the old door and looked", "I think that you are")


def check_controller(
    controller: Controller, model: Any, tokenizer: Any, *, prompts: Sequence[str] | None = None
) -> None:
    """Runs a controller in every way that it may be run, and compares the ways with each other.

    What it cannot know is the formula: compare that with a reference of your own. Settings should
    be such that the controller changes what the model says.

    Args:
        model: a small Hugging Face causal language model: some forty short calls are made, and its
            weights are copied.
        tokenizer: its tokenizer.
        prompts: at least two, of different numbers of tokens.

    Raises:
        AssertionError: naming the controller and the promise that it broke.
        ValueError: for prompts of one length, or a controller that does not fit the model.
    """
    case = Case(controller, model, tokenizer, tuple(PROMPTS if prompts is None else prompts))
    for words, promise in PROMISES.items():
        with torch.random.fork_rng(devices=[]), _promised(controller, words):
            promise(case)


@contextmanager
def _promised(controller: Controller, words: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(
            f"{controller.display_name} breaks a promise: {words} ({error})"
        ) from error


def _leaves_the_model(case: Case) -> None:
    def interrupt(input_ids: Tensor, scores: Tensor) -> Tensor:
        raise InterruptedError

    before = State(case.model)
    case.generate(case.steered)
    before.check("a call")
    with suppress(InterruptedError):
        case.generate(case.steered, logits_processor=[interrupt])
    before.check("an exception inside a call")


def _repeats(case: Case) -> None:
    case.generate(case.steered).check(case.greedy, "two calls", ROUNDING)


def _strength_zero(case: Case) -> None:
    nothing = wrap(case.model, case.tokenizer, 0 * case.controller)
    case.generate(nothing).check(
        case.generate(case.model), "0 * controller and the model", ROUNDING
    )


def _commutes(case: Case) -> None:
    word = case.tokenizer.decode(case.batch["input_ids"][0][-1:])
    mine, other = case.controller, SelfDebias([word], decay=5.0)
    hold(mine + other == other + mine, "they are not equal")
    one, two = (
        case.generate(wrap(case.model, case.tokenizer, each))
        for each in (mine + other, other + mine)
    )
    one.check(two, "what they say", ROUNDING)


def _padding(case: Case) -> None:
    rows = zip(case.batch["input_ids"], case.batch["attention_mask"].bool(), strict=True)
    for row, (ids, real) in enumerate(rows):
        alone = ids[real][None]
        batch = {"input_ids": alone, "attention_mask": torch.ones_like(alone)}
        found = case.generate(case.steered, batch)
        found.check(case.greedy.row(row), f"row {row} alone and in the batch")


def _processor(case: Case) -> None:
    mask = case.batch["attention_mask"]
    with case.may_refuse("a processor"):
        mine = wrap(case.model, case.tokenizer, case.controller).processor(mask)
        found = case.generate(case.model, logits_processor=[mine])
        found.check(case.greedy, "the processor and the loop")


def _pure(case: Case) -> None:
    first = {key: value[:1] for key, value in case.batch.items()}
    modes: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
        "beams": (case.batch, {"num_beams": 2, "num_return_sequences": 2}),
        "sampled beams": (case.batch, {"num_beams": 2, "do_sample": True}),
        "assisted decoding": (first, {"prompt_lookup_num_tokens": 2}),
    }
    for mode, (batch, options) in modes.items():
        with case.may_refuse(mode):
            found = case.generate(case.steered, batch, **options)
            if not case.acts_on("prompt", "attach", "revise"):  # else there is no processor
                stateless = [Stateless(case, batch["attention_mask"])]
                want = case.generate(case.model, batch, logits_processor=stateless, **options)
                found.check(want, f"{mode}, and the same without any memory")


def _static(case: Case) -> None:
    with case.may_refuse("a static cache"):
        found = case.generate(case.steered, cache_implementation="static")
        found.check(case.greedy, "a static cache and a growing one")


def _drafts(case: Case) -> None:
    with case.may_refuse("speculation"):
        found = case.generate(case.steered, speculation=Speculation())
        found.check(case.greedy, "with drafts and without")


def _scores(case: Case) -> None:
    found = case.generate(case.steered, do_sample=True, top_k=0, top_p=1.0, num_return_sequences=2)
    prompts = case.batch["input_ids"], case.batch["attention_mask"]
    ids, mask = (each.repeat_interleave(2, 0) for each in prompts)
    hold(len(found.texts) == len(ids), f"{len(found.texts)} answers to {len(prompts[0])} prompts")
    answers = left_padded(found.texts, [[] for _ in found.texts], 0, case.model.device)
    with case.may_refuse("log_probs"):
        given = case.steered.log_probs((answers.ids, answers.mask), (ids, mask))
        for row, (mine, scores) in enumerate(zip(given, found.scores or (), strict=True)):
            error = distance(mine, scores.cpu()[range(len(mine)), found.texts[row]])
            hold(error <= CLOSE, f"they differ by {error:g} in answer {row}")


def _copies(case: Case) -> None:
    case.decides_like(copy.deepcopy(case.controller), "a copy")
    try:
        pickled = pickle.dumps(case.controller)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"it cannot be pickled: {error}") from error
    case.decides_like(pickle.loads(pickled), "a pickled one")


def _saves(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.controller.save_pretrained(folder)
            loaded = Controller.from_pretrained(folder)
            kind, own = type(loaded), type(case.controller)
            hold(kind is own, f"a {own.__name__} is loaded as a {kind.__name__}")
            case.decides_like(loaded, "a loaded one")
        except (ValueError, TypeError, KeyError) as error:
            raise AssertionError(f"it cannot be saved, loaded and used: {error}") from error


PROMISES: dict[str, Callable[[Case], None]] = {
    "the model is afterwards what it was, bit for bit": _leaves_the_model,
    "the same call gives the same answer": _repeats,
    "strength 0 is the identity": _strength_zero,
    "a + b and b + a are one controller": _commutes,
    "neither padding nor other rows change an answer": _padding,
    "the loop and a LogitsProcessor agree": _processor,
    "what it says of a prefix hangs on the prefix alone": _pure,
    "a static cache changes nothing": _static,
    "log_probs gives what several answers were drawn from": _scores,
    "drafts change nothing": _drafts,
    "copies and pickled ones decide alike": _copies,
    "saved and loaded it decides alike": _saves,
}
