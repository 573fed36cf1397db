"""Texts as a model meets them while it decodes: plain, or as the assistant's answers in a chat.

A guide of a chat must know the states and likelihoods inside the assistant's turn. There each text
stands behind one request of a user's, and nothing is learnt of the tokens in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.fitting.progress import say
from plugalign.fitting.settings import FitSettings
from plugalign.generation.chat_format import choose_chat

REQUEST = "Write a comment."  # what the user says in front of each text


@dataclass(frozen=True)
class Frame:
    """What stands around each text.

    Attributes:
        context: token ids in front of it, up to where the assistant's answer begins.
        end: the token that closes an answer; None is the tokenizer's end token.
        about: what fit.json says of it.
    """

    context: tuple[int, ...] = ()
    end: int | None = None
    about: tuple[tuple[str, Any], ...] = (("used", False),)

    @property
    def first(self) -> int:
        """The column behind which the first token of a text is predicted: 0 without a context."""
        return max(len(self.context) - 1, 0)

    def learnt(self, mask: Tensor) -> Tensor:
        """The columns of a mask ``(B, T)`` behind which something is learnt."""
        kept: Tensor = mask * (torch.arange(mask.shape[1], device=mask.device) >= self.first)
        return kept

    def record(self) -> dict[str, Any]:
        """What fit.json says of it."""
        return dict(self.about)


PLAIN = Frame()


def frame_of(model: Any, tokenizer: Any, settings: FitSettings) -> Frame:
    """What stands around each text of a fit, by its settings "chat" and "system".

    Raises:
        ValueError: see `plugalign.generation.chat_format.choose_chat`.
    """
    choice = choose_chat(model, tokenizer, settings.chat, settings.system)
    if choice.format is None:
        return Frame(about=(("used", False), ("why", choice.why)))
    say(f"texts are learnt as the assistant's answers to {REQUEST!r}: {choice.why}")
    about = {
        "used": True,
        "why": choice.why,
        "system": settings.system,
        "request": REQUEST,
        "template": choice.format.template,
    }
    ids = tuple(choice.format.ids(REQUEST))
    return Frame(ids, choice.format.chat.end, tuple(about.items()))


def followed(learnt: Tensor) -> Tensor:
    """Which next tokens ``(B, T - 1)`` are learnt, by the columns ``(B, T)`` behind which something
    is."""
    return learnt[:, 1:] * learnt[:, :-1]
