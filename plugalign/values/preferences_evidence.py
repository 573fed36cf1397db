"""How much more of each feature a text has than the reference would have put there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source, Step
from plugalign.algebra.steering import Steering
from plugalign.controllers.equilibrium import Equilibrium
from plugalign.controllers.equilibrium_top_down import Situation, Situations
from plugalign.files.messages import Prompt
from plugalign.fitting.progress import progress
from plugalign.generation.chat_format import ChatFormat
from plugalign.generation.scoring import left_padded, tokenized
from plugalign.generation.wrap import wrap
from plugalign.kernels.terms.term import Term, Weight

BATCH = 32


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a feature model sees in N texts.

    Attributes:
        phi: ``Phi(y) = sum_t [phi(y_t) - E_rho phi]``, float64 ``(N, F)``.
        tokens: of each text, int64 ``(N,)``.
        outside: those that the reference's candidates do not hold, int64 ``(N,)``. They could not
            have been chosen, under no theta, and count for nothing.
    """

    phi: Tensor
    tokens: Tensor
    outside: Tensor


@dataclass(frozen=True, eq=False)
class Watched(Shift):
    """Adds nothing, and shows what stands to choose: the candidates' probabilities as
    `plugalign.controllers.equilibrium_step.EquilibriumShift` reads them."""

    compares_probabilities: ClassVar[bool] = True

    situations: Situations
    show: Callable[[Step, Situation], None]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.situations, *self.situations.top_down.sources)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        self.show(step, step.read(self.situations))
        return ()


class _Watching(Controller):
    """The base, with an eye on the candidates of an equilibrium."""

    def __init__(self, equilibrium: Equilibrium, show: Callable[[Step, Situation], None]):
        self._equilibrium, self._show = equilibrium, show

    def check(self, model: Any, tokenizer: Any) -> None:
        self._equilibrium.check(model, tokenizer)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        top_down = self._equilibrium.top_down(model, tokenizer)
        return Steering((Watched(_OneColumn(top_down=top_down), self._show),))


class _OneColumn(Situations):
    """The candidates behind one column of a batch at a time."""

    multi_position = False


class _Sum:
    """Adds up the evidence of a batch of texts as its columns go by.

    Attributes:
        phi: what was found so far, ``(R, F)``. outside: see `Evidence`.
    """

    def __init__(self, features: int):
        self._features = features

    def start(self, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> None:
        """Begins a batch of texts, given as token ids behind those of their prompts."""
        batch = left_padded(prompts, texts, 0, "cpu")
        self._ids, self._wanted = batch.ids, batch.wanted
        self.phi = torch.zeros(len(texts), self._features, dtype=torch.float64)
        self.outside = torch.zeros(len(texts), dtype=torch.int64)

    def show(self, step: Step, at: Situation) -> None:
        """Adds the tokens behind a step's prefixes."""
        column = step.ids.shape[1]
        token, counts = self._ids[:, column, None].to(at.ids.device), self._wanted[:, column - 1]
        chosen = at.ids == token
        inside = (chosen & at.log_rho.isfinite()).any(-1).cpu()
        apart = ((chosen.double() - at.log_rho.exp())[:, None] * at.phi).sum(-1).cpu()
        self.phi += apart * (inside & counts)[:, None]
        self.outside += counts & ~inside


def evidence(
    model: Any,
    tokenizer: Any,
    equilibrium: Equilibrium,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    chat: ChatFormat | None = None,
) -> Evidence:
    """The evidence of texts behind prompts, under an equilibrium's top-down controllers.

    Args:
        chat: puts prompts into the tokenizer's chat template, in front of the assistant's answer;
            None leaves them as they are, and then they must be texts.

    Raises:
        ValueError: for an empty text or prompt, one that is longer than a model's context, one that
            the chat template refuses, or a part that cannot work with the model.
        FloatingPointError: if a model gives NaN or infinite logits.
    """
    before = _prompt_ids(prompts, tokenizer, chat)
    behind = tokenized(list(texts), tokenizer, special_tokens=False)
    for i, (prompt, text) in enumerate(zip(before, behind, strict=True)):
        if not (prompt and text):
            raise ValueError(f"{'text' if prompt else 'prompt'} {i} has no tokens")
    total = _Sum(len(equilibrium.preferences.features))
    steered = wrap(model, tokenizer, _Watching(equilibrium, total.show))
    found: list[tuple[Tensor, Tensor]] = []
    with progress("reading texts", len(texts)) as bar:
        for start in range(0, len(texts), BATCH):
            some = slice(start, start + BATCH)
            total.start(before[some], behind[some])
            steered.log_probs(_padded(behind[some]), _padded(before[some]), batch_size=BATCH)
            found.append((total.phi, total.outside))
            bar.advance(len(total.phi))
    phi, outside = (torch.cat(each) for each in zip(*found, strict=True))
    return Evidence(phi, torch.tensor([len(text) for text in behind]), outside)


def _prompt_ids(
    prompts: Sequence[Prompt], tokenizer: Any, chat: ChatFormat | None
) -> list[list[int]]:
    if chat is not None:
        return [chat.ids(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    plain = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(plain) < len(prompts):
        raise ValueError("prompts of messages are read in a chat alone; give plain texts here")
    return tokenized(plain, tokenizer)


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    batch = left_padded(rows, [[] for _ in rows], 0, "cpu")
    return batch.ids, batch.mask
