"""Several values, their conflicts, and what words do, by discriminators whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit

from plugalign.values.discriminator.explanation import explain
from plugalign.values.discriminator.judgement import Assessment, judge_texts


@dataclass
class Words:
    """Log-odds that a text conforms: 1 and the sum of its words' weights."""

    weights: dict[str, float]
    validated: bool = True
    statement: str = "It is kind."
    calls: int = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return 1 - self.conforms(texts)

    def conforms(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        odds = [1 + sum(self.weights.get(w, 0.0) for w in t.split()) for t in texts]
        return expit(np.array(odds))

    def assess(self, texts: Sequence[str]) -> Assessment:
        p = self.conforms(texts)
        verdicts = np.select([p > 0.7, p < 0.3], ["conforms", "breaks"], "undecided")
        return Assessment(p, verdicts.tolist())


def test_opposite_verdicts_are_a_conflict_and_stand_in_order_of_priority() -> None:
    principles = {
        "care": Words({"idiot": -3.0}),
        "doubt": Words({"idiot": -1.0}),
        "truth": Words({"idiot": 3.0}),
    }
    rude, kind = judge_texts(principles, ["you idiot", "hello"])
    assert [one.verdict for one in rude.judgements] == ["breaks", "undecided", "conforms"]
    assert [(a.principle, b.principle) for a, b in rude.conflicts] == [("care", "truth")]
    assert kind.conflicts == []
    found = json.loads(json.dumps(rude.to_json()))
    assert found["conflicts"] == [["care", "truth"]]
    assert [one["principle"] for one in found["judgements"]] == list(principles)
    assert str(rude).splitlines() == [
        "care: breaks (P 0.12)",
        "doubt: undecided (P 0.50)",
        "truth: conforms (P 0.98)",
        "conflict: care (breaks) goes before truth (conforms)",
    ]
    backwards = dict(reversed(principles.items()))
    (turned,) = judge_texts(backwards, ["you idiot"])
    assert turned.conflicts[0][0].principle == "truth"


def test_no_principle_is_refused() -> None:
    with pytest.raises(ValueError, match="no principle"):
        judge_texts({}, ["a"])


def test_a_word_is_worth_what_the_judgement_loses_without_it() -> None:
    judge = Words({"idiot": -3.0, "please": 0.5, "damn": -1.0})
    (found,) = explain({"care": judge}, "please go , you damn idiot !")
    assert [word.word for word in found.words] == ["please", "go", ",", "you", "damn", "idiot", "!"]
    effects = [judge.weights.get(word.word, 0.0) for word in found.words]
    assert [word.effect for word in found.words] == pytest.approx(effects)
    assert (found.top.word, found.top.position) == ("idiot", 5)
    assert found.top.without == pytest.approx(expit(0.5))
    assert judge.calls == 2  # one for the judgement, one for all words
    assert "most of all for 'idiot', without it P 0.62" in str(found)
    assert json.loads(json.dumps(found.to_json()))["top"]["word"] == "idiot"


def test_the_top_word_speaks_for_the_side_of_the_judgement() -> None:
    judge = Words({"please": 2.0, "damn": -1.0}, validated=False)
    (found,) = explain({"care": judge}, "please damn")
    assert found.top.word == "please" and "unvalidated" in str(found)
    (none,) = explain({"care": judge}, "one")
    assert none.top is None and str(none).endswith("no word stands out")
