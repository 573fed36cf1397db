"""Controllers behind gates: every decoding mode against an uncached float64 reference."""

import json
import re

import numpy as np
import paper
import pytest
import torch
from paper import MODES, Formula, assert_close, follows, nucleus, run, shifted
from transformers import LogitsProcessor

import plugalign as pa
from plugalign.algebra.controller import Composition, Controller, Gated
from plugalign.algebra.gates import Gate
from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.sources import Logits
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import MinP, TopK, TopP

PROMPT = 6  # columns
SURE = 0.036  # about half of the steps of the tiny model are more certain


class Declared(Controller):
    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


class Says(Gate):
    """What it is to say at each step."""

    def __init__(self, *steps):
        self.steps = [torch.as_tensor(step, dtype=torch.float32) for step in steps]

    def open(self, step):
        return self.steps[int(step.number[0])].expand(len(step.ids))


# ------------------------------------------------------------------ float64 references


def dexperts(tiny):
    expert, anti = tiny(seed=1), tiny(seed=2)

    def delta(ids, log_p):
        return 2.0 * (paper.log_p(expert, ids) - paper.log_p(anti, ids)), nucleus(log_p, 0.9)

    return pa.DExperts(expert, anti, alpha=2.0, top_p=0.9), delta


def self_debias(model, tokenizer):
    texts = ["w5 w6 w7", "w8"]

    def delta(ids, log_p):
        behind = [paper.log_p(model, tokenizer(text)["input_ids"] + ids) for text in texts]
        worst = np.exp(np.max(behind, axis=0))
        damp = np.exp(-50.0 * np.maximum(worst - np.exp(log_p), 0))
        return np.log(np.maximum(damp, 0.01)), np.ones(120, bool)

    return pa.SelfDebias(texts, decay=50), delta


def behind(delta, is_open, seen, weight=1.0):
    """The formula where ``is_open(log_p, number)``, and nothing elsewhere."""

    def gated(ids, log_p, number):
        seen.add(is_open(log_p, number))
        if not is_open(log_p, number):
            return np.zeros(120), np.ones(120, bool)
        shift, keep = delta(ids, log_p)
        return weight * shift, keep

    return gated


def added(*deltas):
    def delta(*args):
        shifts, keeps = zip(*(delta(*args) for delta in deltas), strict=True)
        return np.sum(shifts, 0), np.all(keeps, 0)

    return delta


def first(log_p, number):
    return number < 2


def unsure(log_p, number):
    return bool(np.exp(log_p.max()) < SURE)


def gated(which, model, tiny, tokenizer, seen):
    """A controller behind gates, and its formula; ``seen`` collects what the gates said."""
    experts, formula = dexperts(tiny)
    debias, damping = self_debias(model, tokenizer)
    if which == "first steps":
        return experts.when(pa.FirstSteps(2)), behind(formula, first, seen)
    if which == "uncertain":
        return debias.when(pa.Uncertain(SURE)), behind(damping, unsure, seen)
    if which == "both":
        nested = (1.5 * experts).when(pa.FirstSteps(2)).when(pa.Uncertain(SURE))
        both = lambda log_p, number: first(log_p, number) and unsure(log_p, number)  # noqa: E731
        return nested, behind(formula, both, seen, 1.5)
    always = lambda log_p, number: True  # noqa: E731
    whole = 2 * experts.when(pa.Uncertain(SURE)) + 0.5 * debias + debias.when(pa.FirstSteps(2))
    return whole, added(
        behind(formula, unsure, seen, 2.0),
        behind(damping, always, set(), 0.5),
        behind(damping, first, set()),
    )


WHICH = ("first steps", "uncertain", "both", "sum")


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_formula(which, mode, tiny, tokenizer, prompts):
    model, batch, seen = tiny(), prompts(rows=3, width=PROMPT), set()
    controller, delta = gated(which, model, tiny, tokenizer, seen)
    steered = pa.wrap(model, tokenizer, controller)
    follows(steered, shifted(delta), batch, mode, tiny(seed=9), start=PROMPT)
    one_row = mode in ("assisted-sample", "lookup")  # a few steps of which may all be alike
    assert seen == {True, False} or one_row


@pytest.mark.parametrize("which", WHICH)
def test_given_texts_are_scored_as_they_are_generated(which, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=3, width=PROMPT)
    controller, _ = gated(which, model, tiny, tokenizer, set())
    steered = pa.wrap(model, tokenizer, controller)
    made = run(steered.generate, batch, "several")
    answers = made.sequences[:, PROMPT:]
    twice = tuple(batch[k].repeat_interleave(2, 0) for k in ("input_ids", "attention_mask"))
    until = (answers == 1).cumsum(1).cumsum(1) <= 1  # the end token too
    scored = steered.log_probs((answers, until.long()), twice)
    for row, log_p in enumerate(scored):
        want = [made.scores[i][row, answers[row, i]] for i in range(len(log_p))]
        torch.testing.assert_close(log_p, torch.stack(want), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("which", WHICH)
def test_one_by_one_is_a_batch(which, tiny, tokenizer, prompts):
    model, batch = tiny("gpt2-tied"), prompts(rows=3, width=PROMPT)
    tied = lambda seed: tiny("gpt2-tied", seed)  # noqa: E731
    controller, _ = gated(which, model, tied, tokenizer, set())
    steered = pa.wrap(model, tokenizer, controller)
    together = steered.generate(**batch, max_new_tokens=5)[:, PROMPT:]
    for row, keep in enumerate(batch["attention_mask"].bool()):
        alone = steered.generate(batch["input_ids"][row][keep][None], max_new_tokens=5)
        alone = alone[0, keep.sum() :].tolist()
        assert alone == together[row, : len(alone)].tolist()


@pytest.mark.parametrize("masked", [True, False])
def test_a_processor_with_and_without_a_mask(masked, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=3, width=PROMPT)
    given = batch["attention_mask"] if masked else None
    for which in ("first steps", "uncertain"):
        controller, _ = gated(which, model, tiny, tokenizer, set())
        steered = pa.wrap(model, tokenizer, controller)
        ours = [steered.processor(given)]
        if which == "first steps" and not masked:
            with pytest.raises(ValueError, match="not known where the prompt ends"):
                model.generate(**batch, max_new_tokens=4, logits_processor=ours)
            continue
        got = model.generate(**batch, max_new_tokens=4, logits_processor=ours)
        assert got.tolist() == steered.generate(**batch, max_new_tokens=4).tolist()


# ------------------------------------------------------------------ what is closed costs nothing


@pytest.fixture
def counted():
    """Counts forwards: ``counted(model)`` is a list that grows by one."""

    def count(model):
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))
        return calls

    return count


@pytest.mark.parametrize("path", ["loop", "processor"])
def test_what_stands_behind_a_closed_gate_costs_no_forward(path, tiny, tokenizer, prompts, counted):
    model, batch = tiny(), prompts(rows=2, width=PROMPT)
    expert, anti = tiny(seed=1), tiny(seed=2)
    own, one, other = counted(model), counted(expert), counted(anti)
    experts, debias = pa.DExperts(expert, anti), pa.SelfDebias(["w5 w6", "w8"])
    controller = experts.when(pa.FirstSteps(2)) + debias.when(Says(0, 0, 0, 0, 1))
    model.generation_config.eos_token_id = None
    steered = pa.wrap(model, tokenizer, controller)
    if path == "loop":
        steered.generate(**batch, max_new_tokens=5)
    else:
        ours = [steered.processor(batch["attention_mask"])]
        model.generate(**batch, max_new_tokens=5, logits_processor=ours)
    assert len(one) == len(other) == 2
    assert len(own) == 5 + 1  # all prompts in one forward, at the last step


@pytest.mark.parametrize("path", ["loop", "processor"])
def test_what_was_closed_catches_up(path, tiny, tokenizer, prompts, counted):
    model, batch = tiny(), prompts(rows=2, width=PROMPT)
    model.generation_config.eos_token_id = None
    experts, formula = dexperts(tiny)
    calls, says = counted(experts.expert), (1, 0, 0, 1, 0, 1)
    steered = pa.wrap(model, tokenizer, experts.when(Says(*says)))
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    if path == "loop":
        got = steered.generate(**batch, **options)
    else:
        ours = [steered.processor(batch["attention_mask"])]
        got = model.generate(**batch, **options, logits_processor=ours)
    assert len(calls) == sum(says)
    delta = behind(formula, lambda _, number: bool(says[number]), set())
    want = model.generate(**batch, **options, logits_processor=[Formula(shifted(delta), PROMPT)])
    assert got.sequences.tolist() == want.sequences.tolist()
    assert_close(torch.stack(got.scores), torch.stack(want.scores))


class Afresh(LogitsProcessor):
    """The same controller without anything kept from step to step."""

    def __init__(self, steered, mask):
        self.steered, self.mask = steered, mask

    def __call__(self, input_ids, scores):
        return self.steered.processor(self.mask)(input_ids, scores)


@pytest.mark.parametrize("path", ["loop", "processor"])
@pytest.mark.parametrize(
    "which", ["lora", "low-rank", "adaptive", "head", "fudge", "prefix-contrast", "several"]
)
def test_every_kind_of_source_catches_up(which, path, make, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=3, width=PROMPT)
    model.generation_config.eos_token_id = None
    controller = make(which, model, tiny, "llama-gqa")
    says = ([0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1])
    steered = pa.wrap(model, tokenizer, controller.when(Says(*says)))
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    mask = batch["attention_mask"]
    if path == "loop":
        got = steered.generate(**batch, **options)
    else:
        got = model.generate(**batch, **options, logits_processor=[steered.processor(mask)])
    want = model.generate(**batch, **options, logits_processor=[Afresh(steered, mask)])
    assert got.sequences.tolist() == want.sequences.tolist()
    assert_close(torch.stack(got.scores).log_softmax(-1), torch.stack(want.scores))
    always = pa.wrap(model, tokenizer, controller)
    plain = model.generate(**batch, **options, logits_processor=[Afresh(always, mask)])
    assert not torch.allclose(plain.scores[0][0], got.scores[0][0], atol=1e-3)
    torch.testing.assert_close(plain.scores[0][1], want.scores[0][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("support", [TopK(3), TopP(0.5), MinP(0.2)])
def test_a_gate_leaves_other_rows_alone(support, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=2, width=PROMPT)
    shift = LogLinear(((3.0, Logits("expert", tiny(seed=1))),))
    controller = Declared(Steering((shift,), (support,))).when(Says([1.0, 0.0]))
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    got, plain = (
        made.scores[0].log_softmax(-1)
        for made in (
            pa.wrap(model, tokenizer, controller).generate(**batch, **options),
            model.generate(**batch, **options),
        )
    )
    torch.testing.assert_close(got[1], plain[1])
    assert not torch.allclose(got[0], plain[0])
    assert int(got[0].isfinite().sum()) < 120 == int(got[1].isfinite().sum())


def test_a_gate_may_be_open_in_part(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=2, width=PROMPT)
    experts = pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=1.0)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    half, partly = (
        pa.wrap(model, tokenizer, c).generate(**batch, **options).scores[0]
        for c in (0.25 * experts, experts.when(Says([0.25, 0.25])))
    )
    torch.testing.assert_close(half, partly)


# ------------------------------------------------------------------ sums, saving, words


def test_gated_controllers_add_up(tiny, tokenizer, prompts):
    a, b, gate = pa.SelfDebias(["w5"]), pa.DExperts(tiny(seed=1)), pa.FirstSteps(2)
    behind_gate = a.when(gate)
    assert behind_gate + b == b + behind_gate
    assert a.when(gate) + a.when(gate) == 2 * a.when(gate)
    assert (a + 3 * b).when(gate) == 3 * b.when(gate) + a.when(gate)
    assert (a + b).when(gate) == (b + a).when(gate)
    assert a.when(gate) != a.when(pa.FirstSteps(3)) and a.when(gate) != a
    model, batch = tiny(), prompts(rows=2)
    nothing = pa.wrap(model, tokenizer, 0 * (a + b).when(gate)).generate(**batch, max_new_tokens=4)
    assert nothing.tolist() == model.generate(**batch, max_new_tokens=4).tolist()


def test_saved_and_loaded_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts(rows=3)
    debias = pa.SelfDebias(["w5 w6", "w8"])
    whole = 2 * debias.when(pa.FirstSteps(2)) + debias.when(pa.FirstSteps(4)).when(
        pa.Uncertain(SURE)
    )
    whole.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, Composition) and "FirstSteps(count=2)" in repr(loaded)
    texts = [
        pa.wrap(model, tokenizer, each).generate(**batch, max_new_tokens=6).tolist()
        for each in (whole, loaded)
    ]
    assert texts[0] == texts[1]


def test_what_cannot_be_saved_says_so(tmp_path):
    with pytest.raises(ValueError, match="Says has no name"):
        pa.SelfDebias(["w5"]).when(Says(1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Declared has no name"):
        Declared(Steering()).save_pretrained(tmp_path)


def test_an_unknown_gate_is_refused(tmp_path):
    pa.SelfDebias(["w5"]).when(pa.FirstSteps(2)).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("first_steps", "full_moon"))
    with pytest.raises(ValueError, match="has the gate 'full_moon'; known are diagnosis, first"):
        Controller.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"name": "first_steps"}, "the gate 'first_steps' do not fit: .*'count'"),
        ({"name": "first_steps", "count": 2, "more": 1}, "'first_steps' do not fit: .*'more'"),
        ({"name": "uncertain", "p": "0.5"}, "the gate 'uncertain' do not fit"),
        ({"name": "diagnosis", "attribute": 3}, "'diagnosis' do not fit: the attribute must be"),
        ({"name": "value"}, "the gate 'value' do not fit: 'threshold'"),
    ],
)
def test_damaged_settings_of_a_gate_are_refused_by_name(gate, message, tmp_path):
    pa.SelfDebias(["w5"]).when(pa.FirstSteps(2)).save_pretrained(tmp_path)
    config = {"controller": "gated", "gate": gate}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path} is damaged: the settings of .*{message}"):
        Controller.from_pretrained(str(tmp_path))


def test_only_what_steers_alone_stands_behind_a_gate(make, tiny):
    model = tiny()
    prefix = make("prefix", model, tiny, "llama-gqa")
    with pytest.raises(ValueError, match="PrefixTuning acts on attach, which cannot stand behind"):
        prefix.when(pa.FirstSteps(2))
    with pytest.raises(ValueError, match="SelfCritique acts on revise"):
        (pa.SelfDebias(["w5"]) + pa.SelfCritique()).when(pa.FirstSteps(2))
    with pytest.raises(TypeError, match="needs a Gate, such as"):
        pa.SelfDebias(["w5"]).when(5)
    with pytest.raises(TypeError, match="a sum stands behind a gate part by part"):
        Gated(2 * pa.SelfDebias(["w5"]), pa.FirstSteps(2))


def test_drafts_and_captures_are_refused_by_name(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]).when(pa.FirstSteps(2)))
    with pytest.raises(ValueError, match="the gate FirstSteps is asked at one place at a time"):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation())
    assert "the gate FirstSteps" in str(steered.plan.why_uncapturable)
    with pytest.raises(ValueError, match="capture=True"):
        steered.generate(**prompts(), max_new_tokens=3, capture=True)


def test_explain_names_what_runs_only_behind_a_gate(tiny, tokenizer):
    steered = pa.wrap(
        tiny(),
        tokenizer,
        pa.DExperts(tiny(seed=1)) + pa.SelfDebias(["w5"]).when(pa.Uncertain(0.5)),
    )
    explained = steered.explain(max_new_tokens=3)
    assert "run where a gate is open: the base behind 'w5'" in explained
    [always] = re.findall("run at every step: (.*)", explained)
    assert "w5" not in always and "expert" in always


def test_a_trace_names_the_controller_and_its_gate(tiny, tokenizer, prompts):
    trace, steered = (
        pa.Trace(),
        pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]).when(pa.FirstSteps(1))),
    )
    steered.generate(**prompts(rows=2), max_new_tokens=3, trace=trace)
    assert trace.names == ("SelfDebias.when(FirstSteps)",)
    assert trace.contributions[0].abs().max() > 0
    assert all(not later.any() for later in trace.contributions[1:])


def test_a_gate_that_says_nonsense_is_refused_by_name(tiny, tokenizer, prompts):
    for said in ([1.0, -1.0], [1.0, float("nan")]):
        steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]).when(Says(said)))
        with pytest.raises(
            ValueError, match="the gate Says must give one finite number of at least 0"
        ):
            steered.generate(**prompts(rows=2), max_new_tokens=1)


@pytest.mark.parametrize("count", [0, -1, True, 2.0])
def test_bad_counts(count):
    with pytest.raises(ValueError, match="FirstSteps needs a number of steps"):
        pa.FirstSteps(count)


@pytest.mark.parametrize("p", [0, -0.5, 1.5, float("nan"), True])
def test_bad_probabilities(p):
    with pytest.raises(ValueError, match="Uncertain needs a probability"):
        pa.Uncertain(p)
