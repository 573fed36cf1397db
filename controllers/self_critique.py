"""Self-critique: the model judges its own answer and rewrites it where it found a fault.

Answer, critique, refinement by one model (Saunders et al. 2022, section 2: critiqueability and
conditional refinement). The critique is a forced choice, deterministic and one forward for all
rows::

    fault  iff  P(" Yes" | text, critique) / (P(" Yes" | ...) + P(" No" | ...)) > threshold

Only faulted answers are refined, with the caller's decoding settings and under the other
controllers of a sum, and the next round judges only those. Everything is appended to the text
that the model has already read: prompt and draft are never encoded again.

Where the prompt is a chat, critique and refinement are turns of the tokenizer's chat template, and
the verdict is calibrated (Zhao et al. 2021, "Calibrate before use"): the odds of a fault are
divided by those of a content-free answer to the same prompt, so that what the model would say
whatever it is asked about does not count.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.algebra.revisions import Report, Revision, replaced
from plugalign.algebra.saving import Settings
from plugalign.controllers.critique_wording import (
    CHAT_THRESHOLD,
    CRITIQUE,
    FAULT,
    FINE,
    REFINE,
    THRESHOLD,
    Wording,
    turn_of,
    verdicts_behind,
    words_of,
)
from plugalign.controllers.labelled_answers import LABELLED, labelled_answers
from plugalign.generation.chat import Chat, chat_of
from plugalign.generation.revision import Answers
from plugalign.generation.transcript import Transcript

# Scores without any meaning have a greater AUC on eight answers of each kind in one of twenty sets.
SEPARATES = 0.75
CONTENT_FREE = "N/A"


class SelfCritiqueSettings(Settings):
    """The fields of `SelfCritique`."""

    critique: str
    fault: str
    fine: str
    refine: str
    rounds: int
    threshold: float | None
    critique_tokens: int
    max_new_tokens: int | None


@dataclass(eq=False)
class SelfCritique(Controller):
    """Critique and refinement of finished answers by the model that wrote them.

    In both templates ``{prompt}`` stands for the prompt, in a chat for what the user said last: a
    refinement that ends with it continues the prompt again, as an answer to a beginning of a text
    must. In a chat a template is what the user says, without the blanks around it and without a
    label ("Critique:") in its last line, and a verdict is what the assistant then begins with.

    A refinement without a word, or that is a verdict alone, leaves the answer as it was.

    Args:
        critique: appended to the answer; the verdict follows it.
        fault: the verdict that finds a fault. Verdicts are compared at the first token in which
            they differ.
        fine: the verdict that finds none.
        refine: appended to the verdict; the refined answer follows it.
        rounds: how often at most an answer is judged and refined.
        threshold: the probability of a fault above which an answer is refined. None is 0.5, and in
            a chat, where 0.5 is the probability for a content-free answer, 0.9.
        critique_tokens: the length of a critique in words, written greedily after the verdict;
            0 goes on with the verdict alone.
        max_new_tokens: the length of a refined answer; None takes the caller's.

    Raises:
        ValueError: for no rounds, a threshold outside [0, 1], negative lengths.
    """

    name = "self_critique"
    settings = SelfCritiqueSettings

    critique: str = CRITIQUE
    fault: str = FAULT
    fine: str = FINE
    refine: str = REFINE
    rounds: int = 1
    threshold: float | None = None
    critique_tokens: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for what in ("critique", "fault", "fine", "refine"):
            if not isinstance(text := getattr(self, what), str):
                raise TypeError(f"{what} must be a text, got {text!r}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is a probability in [0, 1], got {self.threshold}")
        if self.critique_tokens < 0:
            raise ValueError(f"critique_tokens must not be negative, got {self.critique_tokens}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")

    def config(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses verdicts that begin alike, and warns of a model that cannot judge.

        The latter costs a forward or two of short texts. It is left out where it would say
        nothing: critique and verdicts are not the default ones, which `LABELLED` is about, or the
        threshold rewrites all answers or none.

        Raises:
            ValueError: if the tokenizer cannot tell the two verdicts apart.
        """
        self._plain(tokenizer)
        if (chat := chat_of(tokenizer)) is not None:
            self._as_turns(chat)
        asked = (self.critique, self.fault, self.fine) == (CRITIQUE, FAULT, FINE)
        if not asked or self.threshold in (0.0, 1.0):
            return
        if (auc := self.separation(model, tokenizer)) < SEPARATES:
            warnings.warn(
                f"'{model_name(model)}' cannot tell rude answers from harmless ones: its verdicts "
                f"on {len(LABELLED)} of each separate them with an AUC of {auc:.2f} (0.5 is "
                "chance); answers that self-critique rewrites are not the bad ones. Take a larger "
                "model, or a critique of your own",
                stacklevel=4,
            )

    @torch.no_grad()
    def separation(self, model: Any, tokenizer: Any) -> float:
        """How well the model's verdicts separate the rude answers of `LABELLED` from the harmless.

        Asked as in a chat where the tokenizer has a chat template.

        Returns:
            The area under the ROC curve: 1 separates all, 0.5 is chance.
        """
        made = labelled_answers(model, tokenizer)
        faults = replace(self, rounds=1, threshold=1.0).revise(made).faults
        assert faults is not None
        harmless, rude = faults[0].view(-1, 2).T
        gap = rude[:, None] - harmless
        return float(((gap > 0).float() + (gap == 0).float() / 2).mean())

    @torch.no_grad()
    def revise(self, answers: Answers) -> Revision:
        """Judges every answer and rewrites the faulted ones, round by round.

        Raises:
            ValueError: if the tokenizer cannot tell the two verdicts apart.
        """
        ids, report, lengths = answers.ids, Report(), answers.lengths(answers.ids)
        faults = torch.full((self.rounds, len(ids)), torch.nan, device=ids.device)
        for wording, live in self._worded(answers):
            text = answers.transcript()
            live, bias, cost = self._bias(answers, live, wording)
            report += cost
            for found in faults:
                if not len(live):
                    break
                text, fault, cost = self._judge(answers, text, live, wording, bias)
                found[text.rows] = fault
                faulty = (fault > wording.threshold).nonzero().squeeze(1)
                text, new, more = self._rewrite(answers, text, faulty, wording)
                live = self._answering(answers, new)
                ids = replaced(ids, text.rows[live], new[live], answers.pad_token_id)
                lengths[text.rows[live]] = answers.lengths(new[live])
                refined, empty = len(live), len(new) - len(live)
                report += cost + more + Report(faulted=len(faulty), refined=refined, empty=empty)
        rounds = int((~faults.isnan()).any(1).sum())
        return Revision(ids[:, : int(lengths.max())], report, faults[:rounds])

    def _worded(self, answers: Answers) -> Iterator[tuple[Wording, Tensor]]:
        """How texts are asked, and which rows ``(R,)`` are asked so: plain ones, then chats."""
        chat = chat_of(answers.tokenizer)
        chats = torch.zeros(len(answers.ids), dtype=torch.bool, device=answers.ids.device)
        if chat is not None:
            chats = chat.found(answers.prompt_ids, answers.prompt_mask)
        if not bool(chats.all()):
            yield self._plain(answers.tokenizer), (~chats).nonzero().squeeze(1)
        if chat is not None and bool(chats.any()):
            yield self._as_turns(chat), chats.nonzero().squeeze(1)

    def _plain(self, tokenizer: Any) -> Wording:
        threshold = THRESHOLD if self.threshold is None else self.threshold
        verdicts = verdicts_behind(self.critique, tokenizer, self.fault, self.fine)
        return Wording(self.critique, self.refine, verdicts, threshold)

    def _as_turns(self, chat: Chat) -> Wording:
        threshold = CHAT_THRESHOLD if self.threshold is None else self.threshold
        critique, refine = turn_of(chat, self.critique), turn_of(chat, self.refine)
        words = self.fault.strip(), self.fine.strip()
        verdicts = verdicts_behind(critique, chat.tokenizer, *words)
        return Wording(critique, refine, verdicts, threshold, chat)

    def _bias(
        self, answers: Answers, live: Tensor, wording: Wording
    ) -> tuple[Tensor, Tensor, Report]:
        """The rows that have room for it, and the log odds ``(B,)`` of a fault that a content-free
        answer to each prompt has; zero for plain texts."""
        bias = torch.zeros(len(answers.ids), device=answers.ids.device)
        if wording.chat is None:
            return live, bias, Report()
        text, odds, cost = self._odds(
            answers, answers.transcript(answered=False), live, wording, CONTENT_FREE
        )
        bias[text.rows] = odds
        return text.rows, bias, replace(cost, critiqued=0)

    def _judge(
        self, answers: Answers, text: Transcript, live: Tensor, wording: Wording, bias: Tensor
    ) -> tuple[Transcript, Tensor, Report]:
        """The texts that have room for the critique, with it, and P(fault) of each, ``(R,)``."""
        text, odds, cost = self._odds(answers, text, live, wording)
        return text, (odds - bias[text.rows]).sigmoid(), cost

    def _odds(
        self, answers: Answers, text: Transcript, live: Tensor, wording: Wording, said: str = ""
    ) -> tuple[Transcript, Tensor, Report]:
        """The texts that have room for it, with ``said`` and the critique behind them, and the log
        odds ``(R,)`` of a fault."""
        verdicts = wording.verdicts
        ids, mask = answers.fill(
            said + wording.critique, text.rows[live], verdicts.lead, wording.chat
        )
        fits = answers.fits(text.lengths[live] + mask.sum(1) + 1)
        text = text.extended(live[fits], ids[fits], mask[fits])
        cost = Report(critiqued=len(text.rows), too_long=len(live) - len(text.rows))
        if not len(text.rows):
            return text, text.ids.new_empty(0, dtype=torch.float32), cost
        cost += Report(encoded_tokens=answers.greedy.encodes(text))
        _, output = answers.greedy.generate(text, 1, output_logits=True)
        fault, fine = (output.logits[0][:, tokens[0]].float() for tokens in verdicts[1:])
        if not bool((fault - fine).isfinite().all()):
            raise FloatingPointError(
                "the model gave no finite logits for a verdict; try float32, or look at its weights"
            )
        return replace(text, cache=output.past_key_values), fault - fine, cost

    def _rewrite(
        self, answers: Answers, text: Transcript, faulty: Tensor, wording: Wording
    ) -> tuple[Transcript, Tensor, Report]:
        """The faulty texts that have room for a refinement, with it, and it alone ``(R, n)``."""
        said = text.ids.new_tensor(wording.verdicts.fault).expand(len(faulty), -1)
        ids, mask = answers.fill(wording.refine, text.rows[faulty], chat=wording.chat)
        length = self.max_new_tokens or answers.max_new_tokens
        more = said.shape[1] + self.critique_tokens + mask.sum(1) + length
        fits = answers.fits(text.lengths[faulty] + more)
        keep, said, ids, mask = faulty[fits], said[fits], ids[fits], mask[fits]
        cost = Report(too_long=len(faulty) - len(keep))
        if not len(keep):
            return text.extended(keep, ids, mask), ids[:, :0], cost
        said_mask = torch.ones_like(said)
        if self.critique_tokens:
            text = text.extended(keep, said, said_mask)
            _, text, spent = answers.generate(answers.greedy, text, self.critique_tokens)
            text, cost = (
                text.extended(text.rows.new_tensor(range(len(keep))), ids, mask),
                cost + spent,
            )
        else:
            text = text.extended(keep, torch.cat([said, ids], 1), torch.cat([said_mask, mask], 1))
        new, text, spent = answers.generate(answers.continuation, text, length)
        return text, new, cost + spent

    def _answering(self, answers: Answers, new: Tensor) -> Tensor:
        """Which refinements ``(R, n)`` say something: more than no word, or a verdict alone."""
        verdicts = {words_of(self.fault), words_of(self.fine), ""}
        said = [words_of(answers.text(row)) not in verdicts for row in new]
        return new.new_tensor(said, dtype=torch.bool).nonzero().squeeze(1)
