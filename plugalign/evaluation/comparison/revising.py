"""What controllers that rewrite finished answers did to them, answer by answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor

from plugalign.algebra.controller import Composition, Controller
from plugalign.algebra.revisions import Revision
from plugalign.evaluation.run_folder.records import Revised
from plugalign.generation.revision import Answers

Text = Callable[[Sequence[int]], str]


@dataclass
class Revisions:
    """What the revisers of one method did in its last call, in their order."""

    found: list[tuple[str, Tensor, Revision]] = field(default_factory=list)

    def clear(self) -> None:
        self.found.clear()

    def note(self, controller: str, draft: Tensor, revision: Revision) -> None:
        self.found.append((controller, draft, revision))

    def of_row(self, row: int, text: Text) -> tuple[Revised, ...]:
        """What they did to one answer.

        Args:
            text: token ids of an answer, with what is behind its end, to its text.
        """
        return tuple(
            _revised(name, draft, revision, row, text) for name, draft, revision in self.found
        )

    def kept(self, row: int, pad: int) -> list[int] | None:
        """The token ids of an answer that was left as it was, None of one that was not.

        A batch of revised answers is padded to its longest one. Where the pad token is the end
        token too, the first padding behind an answer that did not end would be taken for its end.
        """
        if not self.found:
            return None
        draft, final = (ids[row].tolist() for ids in (self.found[0][1], self.found[-1][2].ids))
        return draft if final == draft + [pad] * (len(final) - len(draft)) else None

    def counts(self) -> dict[str, int]:
        """What they counted over all answers of the call."""
        total: dict[str, int] = {}
        for _, _, revision in self.found:
            for name, count in asdict(revision.report).items():
                total[name] = total.get(name, 0) + int(count)
        return total


def watched(controller: Controller, revisions: Revisions) -> Controller:
    """The same controller, whose revisions are noted.

    A `plugalign.trace.Trace` would tell as much, but recording every step costs time, and cost is
    what is measured.
    """
    parts = controller.parts()
    if not any(part.overrides("revise") for _, part in parts):
        return controller
    noted = [(weight, _watched(part, revisions)) for weight, part in parts]
    return noted[0][1] if len(noted) == 1 and noted[0][0] == 1 else Composition(*noted)


def _watched(part: Controller, revisions: Revisions) -> Controller:
    if not part.overrides("revise"):
        return part

    def revise(answers: Answers) -> Revision:
        revision = part.revise(answers)
        revisions.note(type(part).__name__, answers.ids, revision)
        return revision

    copied = copy.copy(part)
    object.__setattr__(copied, "revise", revise)  # of this copy alone, whatever its class is
    return copied


def _revised(controller: str, draft: Tensor, revision: Revision, row: int, text: Text) -> Revised:
    before, after = (text(ids[row].tolist()) for ids in (draft, revision.ids))
    asked = [] if revision.faults is None else revision.faults[:, row].tolist()
    faults = tuple(None if math.isnan(p) else float(p) for p in asked)
    return Revised(controller=controller, faults=faults, draft=before if before != after else None)
