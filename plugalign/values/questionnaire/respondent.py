"""Who answers: a language model, plain or steered, as it reads prompts and gives answers.

What a measurement needs of anybody is `Respondent`, so that the tests can answer in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from plugalign.engine.context_length import context_length_of
from plugalign.evaluation.comparison.generation import end_tokens, generated
from plugalign.evaluation.comparison.prompts import left_padded
from plugalign.files.messages import Prompt
from plugalign.generation.chat import encode
from plugalign.generation.chat_format import ChatChoice
from plugalign.generation.prompt_memory import PromptMemory
from plugalign.generation.tokens import token_ids
from plugalign.generation.wrap import Steered
from plugalign.sampling import CoupledSampler

NEW_TOKENS = 24  # of an answer in words: a refusal comes first
ROWS = 16  # answers at a time


class Respondent(Protocol):
    """Whoever is asked."""

    def log_probs(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """The natural logarithm of how probable each answer is behind a prompt."""
        ...

    def say(self, prompts: Sequence[str]) -> list[str]:
        """The beginning of what is answered to each prompt in words."""
        ...


class ModelRespondent:
    """A wrapped model. What its prompts begin with is read once.

    Args:
        chat: whether it is asked in a chat, see `plugalign.generation.chat_format.choose_chat`.
    """

    def __init__(self, steered: Steered, chat: ChatChoice):
        self._steered, self._tokenizer, self._chat = steered, steered.tokenizer, chat
        self._memory = PromptMemory()

    def log_probs(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """See `Respondent`.

        Raises:
            ValueError: the prompt and an answer do not fit into the model's context.
        """
        front = self.ids(prompt)
        behind = [self._answer_ids(prompt, front, answer) for answer in answers]
        found = self._steered.log_probs(
            _padded(behind),
            _padded([front] * len(behind)),
            batch_size=len(behind),
            supports=False,
            memory=self._memory,
        )
        return [float(log_p.double().sum()) for log_p in found]

    def say(self, prompts: Sequence[str], tokens: int = NEW_TOKENS) -> list[str]:
        """See `Respondent`: greedy, a few words.

        Args:
            tokens: the most that an answer has.
        """
        return [
            answer
            for first in range(0, len(prompts), ROWS)
            for answer in self.write(prompts[first : first + ROWS], tokens)
        ]

    def nats(self, text: str, context: int) -> tuple[float, int]:
        """The negative log-likelihood of a text's first tokens, and how many were scored.

        Args:
            context: at most so many tokens, and at most half of what the model can read, so that
                controllers may put something in front.
        """
        limit = context_length_of(self._steered.model)
        context = context if limit is None else min(context, limit // 2)
        ids = token_ids(self._tokenizer, [text])[0][:context]
        if len(ids) < 2:
            return 0.0, 0
        (found,) = self._steered.log_probs(_padded([ids]), supports=False)
        return -float(found.double().sum()), len(found)

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; only in a chat may it be a conversation."""
        if self._chat.format is not None:
            return self._chat.format.ids(prompt)
        if not isinstance(prompt, str):
            raise ValueError("a prompt of messages is read in a chat alone; give a plain text")
        return token_ids(self._tokenizer, [prompt])[0]

    def _answer_ids(self, prompt: str, front: list[int], answer: str) -> list[int]:
        """An answer's token ids, as they follow the prompt: a tokenizer may write the first word
        differently where a text begins."""
        if self._chat.format is not None:
            return encode(self._tokenizer, answer)
        whole = token_ids(self._tokenizer, [f"{prompt} {answer}"])[0]
        if whole[: len(front)] == front:
            return whole[len(front) :]
        return encode(self._tokenizer, f" {answer}")

    def write(
        self, prompts: Sequence[Prompt], tokens: int, sampler: CoupledSampler | None = None
    ) -> list[str]:
        """Answers to a batch of prompts, without special tokens.

        Args:
            tokens: the most that an answer has. sampler: draws them; None is greedy.
        """
        model, tokenizer = self._steered, self._tokenizer
        ends = self._chat.end_tokens(end_tokens(model, tokenizer))
        pad = tokenizer.pad_token_id
        pad = int((ends or [0])[0] if pad is None else pad)
        ids, mask = left_padded([self.ids(prompt) for prompt in prompts], pad)
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            logits_processor=[] if sampler is None else [sampler],
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=ends or None,
        )
        rows = output[:, ids.shape[1] :].tolist()
        return [
            str(tokenizer.decode(generated(row, ends, pad), skip_special_tokens=True))
            for row in rows
        ]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids with their mask, ``(R, T)``, filled on the right."""
    width = max(map(len, rows))
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
