"""What a controller that rewrites finished answers gets and gives.

`Answers` is the batch of drafts that one ``generate`` call has just made, with the cache that it
left; `Revision` is what becomes of them, with a `Report` of what was done and what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from plugalign.algebra.revisions import Report, Revision
from plugalign.errors import Running
from plugalign.generation.chat import Chat, encode
from plugalign.generation.transcript import Continuation, Transcript

PROMPT = "{prompt}"


@dataclass(frozen=True, eq=False)
class Answers:
    """Finished drafts of one ``generate`` call, as a reviser gets them.

    Attributes:
        tokenizer: the model's tokenizer.
        prompt_ids: left-padded, one row for each answer, ``(B, T)``.
        prompt_mask: ``(B, T)``.
        ids: the answers without the prompts ``(B, T')``, right-padded.
        cache: keys and values of prompt and answer up to the last token or the one before it;
            None (beams, static caches, assisted decoding) encodes the text once more.
        pad_token_id: fills shorter answers.
        end_token_ids: any of them ends an answer.
        continuation: writes on as the drafts were written.
        context: the most tokens that every model involved can read, or None for no limit.
        prefix: cache positions that a prefix controller put in front of the prompt.

    Raises:
        ValueError: if prompts, masks and answers differ in number.
    """

    tokenizer: Any
    prompt_ids: Tensor
    prompt_mask: Tensor
    ids: Tensor
    cache: Cache | None
    pad_token_id: int
    end_token_ids: tuple[int, ...]
    continuation: Continuation
    context: int | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        if not len(self.prompt_ids) == len(self.prompt_mask) == len(self.ids):
            raise ValueError(
                f"{len(self.ids)} answers need as many prompts and masks, got "
                f"{len(self.prompt_ids)} and {len(self.prompt_mask)}; repeat them for each answer"
            )

    def transcript(self, answered: bool = True) -> Transcript:
        """Prompts and answers as texts to go on from, without the tokens that end answers.

        Args:
            answered: whether the texts go on behind the answers, or in their place.
        """
        rows = torch.arange(len(self.ids), device=self.ids.device)
        prompts = Transcript(
            self.prompt_ids, self.prompt_mask, rows, self.pad_token_id, prefix=self.prefix
        )
        mask = self.answer_mask(self.ids)
        return prompts.with_generated(self.ids, mask if answered else mask * 0, self.cache)

    def text(self, ids: Tensor) -> str:
        """An answer ``(n,)`` as text, up to its end."""
        kept = ids[self.answer_mask(ids[None])[0].bool()]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text

    def answer_mask(self, ids: Tensor) -> Tensor:
        """The mask ``(R, n)`` of generated tokens before the end token and the padding."""
        ends = ids.new_tensor(self.end_token_ids)
        ended = torch.isin(ids, ends).cumsum(1) > 0
        padding = (ids == self.pad_token_id).flip(1).long().cumprod(1).flip(1) > 0
        return (~ended & ~padding).to(self.prompt_mask.dtype)

    def lengths(self, ids: Tensor) -> Tensor:
        """How many tokens of answers ``(R, n)`` were generated, ``(R,)``: with the end token."""
        ended = torch.isin(ids, ids.new_tensor(self.end_token_ids)).any(1)
        return self.answer_mask(ids).sum(1) + ended

    def fill(
        self, template: str, rows: Tensor, end: Sequence[int] = (), chat: Chat | None = None
    ) -> tuple[Tensor, Tensor]:
        """A template's token ids ``(R, n)`` and mask, with the tokens ``end`` behind it.

        ``{prompt}`` in a template stands for the row's prompt, without the token that starts it;
        where prompts are a ``chat``, for what the user says last.
        """
        prompt, mask = self.prompt_ids[rows], self.prompt_mask[rows]
        if chat is not None:
            mask = chat.last_message(prompt, mask)
        elif (start := self.tokenizer.bos_token_id) is not None:
            first = (mask.cumsum(1) == 1) & (prompt == start)
            mask = mask.masked_fill(first, 0)
        ids, masks = [], []
        pieces = [encode(self.tokenizer, piece) for piece in template.split(PROMPT)]
        pieces[-1] += end
        for i, piece in enumerate(pieces):
            tokens = prompt.new_tensor(piece, dtype=torch.long).expand(len(rows), -1)
            ids += [prompt, tokens] if i else [tokens]
            masks += [mask, torch.ones_like(tokens)] if i else [torch.ones_like(tokens)]
        return torch.cat(ids, dim=1), torch.cat(masks, dim=1)

    def fits(self, lengths: Tensor) -> Tensor:
        """Which texts of these lengths ``(R,)`` the context holds."""
        limit = self.context if self.context is not None else torch.iinfo(lengths.dtype).max
        return lengths <= limit - self.prefix

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that an answer may have."""
        return self.continuation.answer_length(self.prompt_ids.shape[1])

    @property
    def greedy(self) -> Continuation:
        """Plain greedy decoding by the model itself, whatever steered the answers."""
        options = {"do_sample": False, "num_beams": 1, "pad_token_id": self.pad_token_id}
        ends = {"eos_token_id": list(self.end_token_ids)} if self.end_token_ids else {}
        return Continuation(self.continuation.model, options | ends)

    def generate(
        self, by: Continuation, text: Transcript, max_new_tokens: int
    ) -> tuple[Tensor, Transcript, Report]:
        """What ``by`` generates after a text: its ids ``(R, n)``, the text with them, the cost."""
        encoded = by.encodes(text)
        new, output = by.generate(text, max_new_tokens)
        mask = self.answer_mask(new)
        cost = Report(encoded_tokens=encoded, generated_tokens=int(mask.sum()))
        return new, text.with_generated(new, mask, output.past_key_values), cost


def answers_in(
    output: Any,
    ids: Tensor,
    mask: Tensor,
    tokenizer: Any,
    *,
    special: tuple[int | None, list[int]],
    **others: Any,
) -> Answers:
    """The answers in what ``generate`` returned for prompts ``ids`` ``(B, T)``.

    Args:
        special: the pad token and the end tokens.
        others: the attributes of `Answers` that follow ``end_token_ids``, and ``cache``.
    """
    pad, ends = special
    copies = output.sequences.shape[0] // ids.shape[0]
    return Answers(
        tokenizer=tokenizer,
        prompt_ids=ids.repeat_interleave(copies, 0),
        prompt_mask=mask.repeat_interleave(copies, 0),
        ids=output.sequences[:, ids.shape[1] :],
        pad_token_id=pad if pad is not None else next((end for end in ends if end >= 0), 0),
        end_token_ids=tuple(ends),
        **others,
    )


def revised(revisers: Sequence[Any], answers: Answers) -> tuple[Answers, list[Revision]]:
    """Hands answers from one controller to the next."""
    revisions = []
    for part in revisers:
        with Running(f"the revision by {type(part).__name__}"):
            revisions.append(part.revise(answers))
        answers = replace(answers, ids=revisions[-1].ids, cache=None)
    return answers, revisions
