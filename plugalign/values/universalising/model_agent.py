"""A language model as an agent: it is given the situation and the options, and says a letter.

The maxim stands in the prompt, or a controller is the maxim: whoever follows it is then the model
under the controller, and who does not is the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from plugalign.algebra.controller import Composition, Controller
from plugalign.algebra.identity import model_name
from plugalign.generation.chat_format import choose_chat
from plugalign.generation.wrap import wrap
from plugalign.values.universalising.maxim import Maxim, Situation, drawn


class ModelAgent:
    """Chooses by the probabilities of the options' letters.

    Args:
        model, tokenizer: a causal language model. An instruct model is asked as a user asks, see
            `plugalign.generation.chat_format.choose_chat`.
        controller: the maxim, if it is one; the text of a maxim then stays out of the prompt.
        name: what tables call it; by default the model's, with the controller's.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        controller: Controller | None = None,
        name: str | None = None,
    ):
        own = model_name(model)
        self._chat = choose_chat(model, tokenizer).format
        if controller is not None:
            own += f" with {controller.display_name}"
        self.name = own if name is None else name
        self._controller = controller
        self._free = wrap(model, tokenizer, Composition())
        self._following = self._free if controller is None else wrap(model, tokenizer, controller)
        self._known: dict[tuple[bool, str, int], tuple[float, ...]] = {}

    @property
    def is_the_maxim(self) -> bool:
        """Whether a controller stands for the maxim, so that no other can be followed."""
        return self._controller is not None

    def choose(self, situation: Situation, maxim: Maxim | None, draw: float) -> int:
        """See `plugalign.values.universalising.maxim.Agent`."""
        return drawn(self.probabilities(situation, maxim), draw)

    def probabilities(self, situation: Situation, maxim: Maxim | None) -> tuple[float, ...]:
        """Of the options' letters; each question is asked once."""
        stated = None if self._controller is not None else maxim
        prompt = self._prompt(situation, stated)
        key = (maxim is not None, prompt, len(situation.options))
        if key not in self._known:
            steered = self._free if maxim is None else self._following
            self._known[key] = self._asked(steered, prompt, letters(len(situation.options)))
        return self._known[key]

    @staticmethod
    def _asked(steered: Any, prompt: str, options: Sequence[str]) -> tuple[float, ...]:
        found = steered.log_probs(list(options), [prompt] * len(options), supports=False)
        totals = torch.stack([log_p.double().sum() for log_p in found])
        return tuple(torch.softmax(totals, 0).tolist())

    def _prompt(self, situation: Situation, maxim: Maxim | None) -> str:
        rule = "" if maxim is None else f"You act by this rule: “{maxim.text}”\n\n"
        names = letters(len(situation.options))
        options = "\n".join(
            f"{letter}) {option}" for letter, option in zip(names, situation.options, strict=True)
        )
        question = f"{rule}{situation.text}\n{options}\nAnswer with one letter."
        if self._chat is None:
            return f"{question}\nAnswer: "
        return self._chat.text(question)


def letters(count: int) -> tuple[str, ...]:
    """A, B, C, ..."""
    return tuple(chr(ord("A") + i) for i in range(count))
