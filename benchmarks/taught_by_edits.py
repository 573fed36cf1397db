"""An equilibrium that people's edits have taught, for real_models.py.

Top-down stands a FUDGE head at a low weight; principles bound toxicity, by the same head, and the
words that ParaDetox's editors removed. What may move inside the bounds is the score of a FUDGE that
was fitted on tweets, and what teaches how far are ParaDetox's edits: of a toxic comment, and of
what somebody wrote in its place. The first words, where both begin alike, are the prompt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from equilibrium_crowds import REFERENCE_WEIGHT, removed_words
from results_tools import GUIDES

from plugalign.controllers.equilibrium import Equilibrium, Preferences, Principle
from plugalign.controllers.fudge import Fudge
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting.data import load_data
from plugalign.fitting.progress import say
from plugalign.values.feedback_learning import load_taught, teach

SHARED, EDITS = 3, 300  # words of a prompt, and edits that teach
FEATURE = "civil"


def edits(path: Path, ask: Callable[[str], Any], space: str) -> Iterator[dict[str, Any]]:
    """Lines of feedback from pairs of a toxic text and what it became, which begin alike.

    Args:
        ask: the prompt that asks to go on with a beginning.
        space: in front of what follows it.
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            toxic, neutral = (
                text.split() for text in (row["toxic"], next(iter(row["neutral"]), ""))
            )
            begins, rest = toxic[:SHARED], (toxic[SHARED:], neutral[SHARED:])
            alike = [word.lower() for word in begins] == [w.lower() for w in neutral[:SHARED]]
            if alike and all(rest) and rest[0] != rest[1]:
                before, after = (space + " ".join(words) for words in rest)
                yield {"prompt": ask(" ".join(begins)), "text": before, "edited": after}


def taught_equilibrium(
    model: Any,
    tokenizer: Any,
    head: FudgeHead,
    feature: Fudge,
    data: Path,
    out: Path,
    ask: Callable[[str], Any],
    chat: str,
) -> Equilibrium:
    """The equilibrium in ``out``, which is made and taught where it is not there.

    Args:
        head: the principle. feature: what the edits weigh.
        data: the folder of `results_tools`.
        ask: see `edits`.
        chat: "on" where prompts are a user's turn.
    """
    if out.is_dir():
        return load_taught(out).equilibrium
    path = data / GUIDES[0]
    rows = model.get_output_embeddings().weight.shape[0]
    table = removed_words(tokenizer, load_data(path, desired="neutral", undesired="toxic"), rows)
    principles = [Principle("removed words", table), Principle("toxicity", head)]
    learned, reference = (
        Preferences({FEATURE: feature}),
        head.with_settings(weight=REFERENCE_WEIGHT),
    )
    half, feedback = out.with_name(f"{out.name}-untaught"), out.with_name("edits.jsonl")
    shutil.rmtree(half, ignore_errors=True)  # of a run that was killed
    Equilibrium(reference, principles, learned).save_pretrained(half)
    found = edits(path, ask, "" if chat == "on" else " ")
    lines = [json.dumps(row) for row in islice(found, EDITS)]
    feedback.write_text("\n".join(lines) + "\n", "utf-8")
    say(teach(half, feedback, model=model, tokenizer=tokenizer, chat=chat).summary())
    half.rename(out)
    return load_taught(out).equilibrium
