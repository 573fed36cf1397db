"""Self-debiasing: the model's own idea of a bad continuation, turned against it.

A self-diagnosis prefix s_k in front of the text makes the biased continuation likelier; tokens
that gain from it are damped: with ``d = max(0, max_k p(t | s_k + x) - p(t | x))`` the base's
probability is multiplied by ``max(exp(-decay * d), floor)`` (Schick et al. 2021, equations 3 to 5).
All prefixes are rows of the base's own forward. The decay makes small differences of probabilities
large, so a half precision model's logits are taken in float32, to 16 significant bits or more, for
the base and behind each prefix; a model that caps or scales its logits behind the head gives them
rounded.

It asks the model to know what a description means. Models of 135 and 270 million parameters hardly
do: sampled answers of the first were no less toxic at any decay, those of the second at a decay of
10 by one of two judges, and no decay kept their perplexity within 1.15 times the base's. So the
default is the paper's smallest; measure on your model with ``plugalign tune`` or ``compare``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import BiasDecay
from plugalign.algebra.sources import Context, Logits
from plugalign.algebra.steering import Steering
from plugalign.generation.chat import chat_of

# The self-debiasing inputs of the authors' released code (timoschick/self-debiasing), word for
# word: one for each of Perspective's six attributes.
TEMPLATE = "The following text contains {}:\n"
ATTRIBUTES = (
    "rude, disrespectful, or unreasonable language",
    "very hateful, aggressive, disrespectful language",
    "sexually explicit language",
    "a threat",
    "negative or hateful language targeting someone because of their identity",
    "swear words, curse words, or other obscene or profane language",
)
PREFIXES = tuple(TEMPLATE.format(attribute) for attribute in ATTRIBUTES)


class SelfDebiasSettings(Settings):
    """Prefixes, and how strongly tokens that they make likelier are damped."""

    prefixes: list[str]
    decay: float
    floor: float


class SelfDebias(Controller):
    """Damps what the base would rather say after a description of unwanted text.

    Args:
        prefixes: texts put in front of the prompt, or of what the user says first where it is a
            chat, one row each; by default one per attribute.
        decay: lambda, how fast the probability of a suspicious token falls; the paper tries 10,
            50 and 100, and its code takes 50 by default.
        floor: the smallest factor.

    Raises:
        ValueError: without prefixes, for a negative decay or a floor outside (0, 1].
    """

    name = "self_debias"
    settings = SelfDebiasSettings

    def __init__(
        self,
        prefixes: Sequence[str] = PREFIXES,
        *,
        decay: float = 10.0,
        floor: float = 0.01,
    ):
        if isinstance(prefixes, str) or not prefixes or not all(prefixes):
            raise ValueError(f"self-debiasing needs a list of non-empty prefixes, got {prefixes!r}")
        if not 0 <= decay < math.inf:
            raise ValueError(f"the decay must be finite and not negative, got {decay}")
        if not 0 < floor <= 1:
            raise ValueError(f"the floor must lie in (0, 1], got {floor}")
        self.prefixes, self.decay, self.floor = tuple(prefixes), float(decay), float(floor)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        sources = tuple(prompted(text, tokenizer) for text in self.prefixes)
        return Steering((BiasDecay(sources, self.decay, self.floor),))

    def config(self) -> dict[str, Any]:
        return {"prefixes": list(self.prefixes), "decay": self.decay, "floor": self.floor}


def prompted(text: str, tokenizer: Any) -> Logits:
    """The base behind ``text``.

    A tokenizer that starts every text with a token does so here too, and then the row's own start
    token is hidden. In a chat, ``text`` is the beginning of what the user says first: in front of
    the chat's own beginning no model has seen text.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start, chat = tokenizer.bos_token_id, chat_of(tokenizer)
    turn = () if chat is None else chat.user
    whole = list(tokenizer(text)["input_ids"])
    if start is None or whole[:1] != [start] or ids[:1] == [start]:
        context = Context(tuple(ids), turn=turn)
    else:
        context = Context((start, *ids), start, turn=turn)
    return Logits(f"the base behind {text!r}", context=context)
