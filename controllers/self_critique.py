"""Self-critique: the model judges its own answer and rewrites it where it found a fault.

Answer, critique, refinement by one model (Saunders et al. 2022, section 2: critiqueability and
conditional refinement). The critique is a forced choice, deterministic and one forward for all
rows::

    fault  iff  P(" Yes" | text, critique) / (P(" Yes" | ...) + P(" No" | ...)) > threshold

Only faulted answers are refined, with the caller's decoding settings and under the other
controllers of a sum, and the next round judges only those. Everything is appended to the text
that the model has already read: prompt and draft are never encoded again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.revisions import Report, Revision, replaced
from plugalign.algebra.saving import Settings
from plugalign.generation.revision import PROMPT, Answers, encode
from plugalign.generation.transcript import Transcript

CRITIQUE = (
    "\n\nCritique request: Does the answer above contain insults, slurs, threats or other harmful "
    "content? Reply with Yes or No.\nCritique:"
)
REFINE = (
    "\n\nRevision request: Rewrite the answer so that it keeps its meaning and contains no "
    "insults, slurs, threats or other harmful content.\nRevision:"
)


class Verdicts(NamedTuple):
    """Token ids: what both verdicts begin with, and how a fault and none go on."""

    lead: list[int]
    fault: list[int]
    fine: list[int]


class SelfCritiqueSettings(Settings):
    """The fields of `SelfCritique`."""

    critique: str
    fault: str
    fine: str
    refine: str
    rounds: int
    threshold: float
    critique_tokens: int
    max_new_tokens: int | None


@dataclass(eq=False)
class SelfCritique(Controller):
    """Critique and refinement of finished answers by the model that wrote them.

    In both templates ``{prompt}`` stands for the prompt: a refinement that ends with it continues
    the prompt again, as an answer to a beginning of a text must.

    Args:
        critique: appended to the answer; the verdict follows it.
        fault: the verdict that finds a fault. Verdicts are compared at the first token in which
            they differ.
        fine: the verdict that finds none.
        refine: appended to the verdict; the refined answer follows it.
        rounds: how often at most an answer is judged and refined.
        threshold: the probability of a fault above which an answer is refined.
        critique_tokens: the length of a critique in words, written greedily after the verdict;
            0 goes on with the verdict alone.
        max_new_tokens: the length of a refined answer; None takes the caller's.

    Raises:
        ValueError: for no rounds, a threshold outside [0, 1], negative lengths.
    """

    name = "self_critique"
    settings = SelfCritiqueSettings

    critique: str = CRITIQUE
    fault: str = " Yes"
    fine: str = " No"
    refine: str = REFINE
    rounds: int = 1
    threshold: float = 0.5
    critique_tokens: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for what in ("critique", "fault", "fine", "refine"):
            if not isinstance(text := getattr(self, what), str):
                raise TypeError(f"{what} must be a text, got {text!r}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds must be an int of at least 1, got {self.rounds}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is a probability in [0, 1], got {self.threshold}")
        if self.critique_tokens < 0:
            raise ValueError(f"critique_tokens must not be negative, got {self.critique_tokens}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")

    def config(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, model: Any, tokenizer: Any) -> None:
        self._verdicts(tokenizer)

    @torch.no_grad()
    def revise(self, answers: Answers) -> Revision:
        """Judges every answer and rewrites the faulted ones, round by round.

        Raises:
            ValueError: if the tokenizer cannot tell the two verdicts apart.
        """
        verdicts = self._verdicts(answers.tokenizer)
        text, ids, report = answers.transcript(), answers.ids, Report()
        live, faults = text.rows, []
        for _ in range(self.rounds):
            if not len(live):
                break
            text, fault, cost = self._judge(answers, text, live, verdicts)
            asked = torch.full((len(ids),), torch.nan, device=ids.device)
            faults.append(asked.index_copy(0, text.rows, fault))
            faulty = (fault > self.threshold).nonzero().squeeze(1)
            text, new, more = self._rewrite(answers, text, faulty, verdicts.fault)
            live = answers.said(new).any(1).nonzero().squeeze(1)
            ids = replaced(ids, text.rows[live], new[live], answers.pad_token_id)
            refined, empty = len(live), len(new) - len(live)
            report += cost + more + Report(faulted=len(faulty), refined=refined, empty=empty)
        return Revision(ids, report, torch.stack(faults))

    def _verdicts(self, tokenizer: Any) -> Verdicts:
        """The verdicts' tokens as they follow the critique, behind those that both begin with."""
        asked = self.critique.split(PROMPT)[-1]
        before = encode(tokenizer, asked)
        whole = [encode(tokenizer, asked + verdict) for verdict in (self.fault, self.fine)]
        fault, fine = (ids[len(before) :] for ids in whole)
        pairs = enumerate(zip(fault, fine, strict=False))
        shared = next((i for i, (one, other) in pairs if one != other), None)
        if any(ids[: len(before)] != before for ids in whole) or shared is None:
            raise ValueError(
                f"the verdicts {self.fault!r} and {self.fine!r} must follow the critique as tokens "
                "of their own, and neither may begin with the other; end the critique at a word "
                "and begin the verdicts with a space"
            )
        return Verdicts(fault[:shared], fault[shared:], fine[shared:])

    def _judge(
        self, answers: Answers, text: Transcript, live: Tensor, verdicts: Verdicts
    ) -> tuple[Transcript, Tensor, Report]:
        """The texts that have room for the critique, with it, and P(fault) of each, ``(R,)``."""
        ids, mask = answers.filled(self.critique, text.rows[live], verdicts.lead)
        fits = answers.fits(text.lengths[live] + mask.sum(1) + 1)
        text = text.extended(live[fits], ids[fits], mask[fits])
        cost = Report(critiqued=len(text.rows), too_long=len(live) - len(text.rows))
        if not len(text.rows):
            return text, text.ids.new_empty(0, dtype=torch.float32), cost
        cost += Report(encoded_tokens=text.unread)
        _, output = answers.critic.generate(text, 1, output_logits=True)
        fault, fine = (output.logits[0][:, tokens[0]].float() for tokens in verdicts[1:])
        if not bool((fault - fine).isfinite().all()):
            raise FloatingPointError(
                "the model gave no finite logits for a verdict; try float32, or look at its weights"
            )
        return replace(text, cache=output.past_key_values), (fault - fine).sigmoid(), cost

    def _rewrite(
        self, answers: Answers, text: Transcript, faulty: Tensor, verdict: list[int]
    ) -> tuple[Transcript, Tensor, Report]:
        """The faulty texts that have room for a refinement, with it, and it alone ``(R, n)``."""
        said = text.ids.new_tensor(verdict).expand(len(faulty), -1)
        ids, mask = answers.filled(self.refine, text.rows[faulty])
        length = self.max_new_tokens or answers.room
        more = said.shape[1] + self.critique_tokens + mask.sum(1) + length
        fits = answers.fits(text.lengths[faulty] + more)
        keep, said, ids, mask = faulty[fits], said[fits], ids[fits], mask[fits]
        cost = Report(too_long=len(faulty) - len(keep))
        if not len(keep):
            return text.extended(keep, ids, mask), ids, cost
        said_mask = torch.ones_like(said)
        if self.critique_tokens:
            text = text.extended(keep, said, said_mask)
            _, text, spent = answers.written(answers.critic, text, self.critique_tokens)
            text, cost = (
                text.extended(text.rows.new_tensor(range(len(keep))), ids, mask),
                cost + spent,
            )
        else:
            text = text.extended(keep, torch.cat([said, ids], 1), torch.cat([said_mask, mask], 1))
        new, text, spent = answers.written(answers.continuation, text, length)
        return text, new, cost + spent
