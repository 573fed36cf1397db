"""The categorical-imperative test: its figures, its worlds, and whom its gate refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plugalign import pocket
from plugalign.evaluation.statistics.intervals import wilson
from plugalign.loading import load_model
from plugalign.values.universalising.commons import Commons
from plugalign.values.universalising.gate import check_comprehension, comprehension, rotations
from plugalign.values.universalising.maxim import (
    GREED,
    LIE,
    MAXIMS,
    SHARE,
    TRUTH,
    Maxim,
    ScriptedAgent,
    Situation,
    drawn,
)
from plugalign.values.universalising.model_agent import ModelAgent
from plugalign.values.universalising.promises import Promises
from plugalign.values.universalising.universalise import universalise

SMOLLM2 = Path("~/.cache/plugalign-models/smollm2").expanduser()
WORLDS = (Promises(), Commons())
FEW = {"worlds": WORLDS, "runs": 4}


@dataclass(frozen=True)
class LetterAgent:
    """Chooses one place whatever stands there."""

    place: int = 0
    name: str = "letters"

    def choose(self, situation, maxim, draw):
        return self.place


class CoinAgent:
    """Chooses by chance."""

    name = "coin"

    def __init__(self):
        self.draw = np.random.default_rng(0)

    def choose(self, situation, maxim, draw):
        return int(self.draw.integers(len(situation.options)))


# ------------------------------------------------------------------ the verdicts


def test_a_lie_contradicts_itself_and_the_truth_does_not():
    lie, truth = universalise("lie", **FEW), universalise("truth", **FEW)
    assert lie.pi.value >= 0.7 and lie.contrary == truth.pi
    [cell] = lie.cells
    assert cell.alone.value > 0.8 and cell.together.value < 0.1 and cell.s2.value > 0.9
    [cell] = truth.cells
    assert truth.pi.value <= 0.05 and cell.s1.value <= 0.05 and cell.s2.value <= 0.05
    assert "pi(lie) = 0.9" in str(lie) and "pi(truth) = 0.00" in str(lie)


def test_greed_works_alone_and_leaves_all_with_less():
    greed = universalise(GREED, **FEW)
    assert greed.pi.value >= 0.7 and greed.contrary is not None and greed.contrary.value <= 0.05


def test_the_same_seed_gives_the_same_table_and_another_does_not():
    first, again = (universalise("lie", **FEW, seed=3) for _ in range(2))
    assert first == again
    assert first.cells != universalise("lie", **FEW, seed=4).cells


def test_cells_are_what_the_worlds_count():
    world, agent = Promises(members=12, rounds=6), ScriptedAgent()
    found = universalise("lie", worlds=[world], runs=3, seed=2)
    s1, s2, joint = [], [], []
    for run in range(3):
        who = {"all": [True] * 12, "none": [False] * 12, "one": [i == run for i in range(12)]}
        played = {k: world.play(agent, LIE, v, 2 * 1_000_003 + run) for k, v in who.items()}
        s1.append(max(0, played["one"].success[run] - played["all"].success.mean()))
        s2.append(np.mean(played["all"].welfare < played["none"].welfare))
        joint.append(s1[-1] * s2[-1])
    [cell] = found.cells
    assert cell.s1.value == pytest.approx(np.mean(s1))
    assert cell.s2.value == pytest.approx(np.mean(s2))
    assert cell.joint.value == pytest.approx(np.mean(joint)) == pytest.approx(found.pi.value)


def test_agents_worlds_and_judge_are_pluggable():
    def nobody(after, before):
        return np.zeros(len(after), dtype=bool)

    agents = [ScriptedAgent("one"), ScriptedAgent("two")]
    found = universalise("lie", agents=agents, worlds=WORLDS, judge=nobody, runs=2)
    assert [(c.agent, c.world) for c in found.cells] == [("one", "loans"), ("two", "loans")]
    assert found.pi.value == 0 and all(cell.s1.value > 0.7 for cell in found.cells)
    nothing = wilson(0.0, 2)  # of two runs
    assert found.pi == nothing and all(cell.s2 == nothing for cell in found.cells)
    with pytest.raises(ValueError, match="one for each member"):
        universalise("lie", worlds=WORLDS, judge=lambda after, before: [True], runs=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"maxim": "gossip"}, "unknown maxim 'gossip'; known are lie, truth, greed, share"),
        ({"maxim": Maxim("gossip", "I tell all.")}, "'gossip' is of none of these worlds"),
        ({"agents": []}, "there is no agent"),
        ({"runs": 1}, "runs must be at least 2"),
    ],
)
def test_bad_arguments_give_one_error(given, message):
    with pytest.raises(ValueError, match=message):
        universalise(**{"maxim": "lie", "worlds": WORLDS, **given})


# ------------------------------------------------------------------ the worlds


def test_promises_are_worth_what_is_kept():
    world, agent = Promises(rounds=3), ScriptedAgent()
    honest = world.play(agent, LIE, [False] * 40, 0)
    assert np.all(honest.welfare >= 0) and honest.success.mean() > 0.6
    liars = world.play(agent, LIE, [True] * 40, 0)
    assert liars.welfare.sum() == pytest.approx(0)  # what one gains another loses
    one = world.play(agent, LIE, [True] + [False] * 39, 0)
    assert one.welfare[0] > honest.welfare[0]


def test_a_stock_that_is_shared_stays_and_one_that_is_not_is_gone():
    world, agent = Commons(), ScriptedAgent()
    shared = world.play(agent, SHARE, [True] * 40, 0)
    assert shared.welfare == pytest.approx(world.share * world.rounds)
    assert shared.success == pytest.approx(1.0)
    greedy = world.play(agent, GREED, [True] * 40, 0)
    assert greedy.welfare.sum() < 0.5 * shared.welfare.sum()


def test_draws_are_options():
    assert [drawn((0.25, 0.75), x) for x in (0, 0.2499, 0.25, 0.999)] == [0, 0, 1, 1]
    assert drawn((0.0, 1.0), 0.0) == 1 and drawn((1.0, 0.0), 0.9999) == 0
    assert drawn((1 / 3, 1 / 3, 1 / 3 - 1e-12), 1 - 1e-13) == 0


# ------------------------------------------------------------------ the gate


def test_the_gate_lets_those_through_who_understand():
    found = comprehension(ScriptedAgent(), WORLDS)
    assert found.right.value == 1 and found.why_refused is None and found.asked == 20


@pytest.mark.parametrize("place", [0, 1])
def test_the_gate_refuses_who_answers_the_letter_by_name(place):
    letter = "AB"[place]
    with pytest.raises(ValueError, match=rf"^letters is refused: .* chose option {letter} in 20"):
        check_comprehension(LetterAgent(place), WORLDS)
    with pytest.raises(ValueError, match="letters is refused"):
        universalise("lie", agents=[ScriptedAgent(), LetterAgent(place)], **FEW)


def test_the_gate_refuses_who_answers_by_chance():
    with pytest.raises(ValueError, match=r"coin is refused: it was right in \d+% .* nothing would"):
        check_comprehension(CoinAgent(), WORLDS)


def test_rotations_move_the_answer_with_the_options():
    [(situation, maxim, answer), *_] = Promises().checks()
    for turned, place in rotations(situation, answer):
        assert turned.options[place] == situation.options[answer]
        assert turned.usual[place] == situation.usual[answer]
        assert ScriptedAgent().choose(turned, maxim, 0.5) == place


class Lenders(Promises):
    """With the lenders' checks alone, which take a model less time."""

    def checks(self):
        return super().checks()[:2]


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs SmolLM2 in ~/.cache/plugalign-models")
def test_smollm2_is_refused():
    model, tokenizer = load_model(str(SMOLLM2), torch.bfloat16)
    with pytest.raises(ValueError, match=r"smollm2 is refused: .* it answers the letter"):
        universalise("lie", agents=[ModelAgent(model, tokenizer)], worlds=[Lenders()])


# ------------------------------------------------------------------ models


def test_a_model_chooses_by_the_probabilities_of_letters():
    model, tokenizer = pocket.load()
    agent = ModelAgent(model, tokenizer)
    situation = Situation("The cook asks you.", ("I help.", "I do not."), (0.5, 0.5))
    rule = replace(TRUTH, text="I am kind.")
    free, told = (agent.probabilities(situation, maxim) for maxim in (None, rule))
    assert sum(free) == pytest.approx(1) and free != told
    prompt = agent._prompt(situation, None)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    with torch.no_grad():
        totals = []
        for letter in letters:
            whole = torch.cat([ids, torch.tensor([letter])], 1)
            log_p = model(whole).logits.double().log_softmax(-1)[0, ids.shape[1] - 1 : -1]
            totals.append(log_p.gather(1, torch.tensor(letter)[:, None]).sum())
    want = torch.softmax(torch.stack(totals), 0)
    assert free == pytest.approx(tuple(want.tolist()), abs=1e-4)
    assert agent.choose(situation, None, 0.0) == 0 and agent.choose(situation, None, 0.9999) == 1


def test_a_controller_may_be_the_maxim():
    model, tokenizer = pocket.load()
    controller = pocket.controllers()["fudge_head"]
    agent, plain = ModelAgent(model, tokenizer, controller), ModelAgent(model, tokenizer)
    situation = Promises().asking(False)
    assert agent.name == "pocket with FudgeHead" or agent.name.endswith("with FudgeHead")
    assert agent.probabilities(situation, None) == plain.probabilities(situation, None)
    # Any maxim's name will do, since its text is not told.
    steered = agent.probabilities(situation, LIE)
    assert steered == agent.probabilities(situation, replace(LIE, text="something else"))
    assert steered != pytest.approx(agent.probabilities(situation, None), abs=1e-6)
    with pytest.raises(ValueError, match="with FudgeHead is refused"):
        universalise("lie", agents=[agent], **FEW)


def test_a_controller_that_is_the_maxim_follows_no_contrary():
    @dataclass(frozen=True)
    class Steered(ScriptedAgent):
        is_the_maxim: bool = True

    found = universalise("lie", agents=[Steered()], **FEW)
    assert found.contrary is None and "pi(truth)" not in str(found)
    assert found.pi == universalise("lie", **FEW).pi
    model, tokenizer = pocket.load()
    controller = pocket.controllers()["fudge_head"]
    assert ModelAgent(model, tokenizer, controller).is_the_maxim
    assert not ModelAgent(model, tokenizer).is_the_maxim


@pytest.mark.parametrize("name", MAXIMS)
def test_an_agent_that_is_the_maxim_is_asked_nothing_of_its_contrary(name):
    @dataclass(frozen=True)
    class Fixed(ScriptedAgent):
        """Follows one maxim perfectly, whichever it is given."""

        is_the_maxim: bool = True

        def choose(self, situation, maxim, draw):
            return super().choose(situation, None if maxim is None else MAXIMS[name], draw)

    found = universalise(name, agents=[Fixed()], **FEW)
    assert found.gates[0].right.value == 1
    assert found.pi == universalise(name, **FEW).pi
    with pytest.raises(ValueError, match="is refused"):
        universalise(MAXIMS[name].contrary, agents=[Fixed()], **FEW)


def test_every_maxim_has_its_contrary():
    assert all(MAXIMS[MAXIMS[m.contrary].contrary] is m for m in MAXIMS.values())
