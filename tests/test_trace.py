"""The trace of a call: what it records, that it changes nothing, and which rows it counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import transformers
from torch.nn.functional import kl_div
from transformers import GenerationConfig, StoppingCriteria

import plugalign as pa
from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.revisions import Revision
from plugalign.algebra.shifts import Shift
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopP
from plugalign.kernels.terms.linear import Linear
from plugalign.sampling import CoupledSampler
from plugalign.trace import hash_of


@pytest.fixture(params=["loop", "processor"])
def path(request, monkeypatch):
    """A call on either path that takes a trace."""
    if request.param == "processor":
        monkeypatch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
    return request.param


@dataclass(frozen=True, eq=False)
class Certified(Shift):
    """Nothing but a certificate."""

    shape: int = 0

    def terms(self, step, weight):
        yield Linear((torch.zeros_like(step.base),), (1.0,))

    def certificate(self, step, weight):
        return {"excess": -torch.arange(len(step.base) + self.shape).double()}


class WithCertificate(Controller):
    def __init__(self, *shifts):
        self.shifts = shifts or (Certified(),)

    def steer(self, model, tokenizer):
        return Steering(self.shifts)


class ShortRows(StoppingCriteria):
    """Ends row r behind r + 2 new tokens."""

    def __init__(self, start):
        self.start, self.asked = start, 0

    def __call__(self, input_ids, scores, **options):
        self.asked += 1
        new = input_ids.shape[1] - self.start
        return torch.arange(len(input_ids)) + 2 <= new


def some_controller(tiny):
    return pa.DExperts(tiny(seed=1), tiny(seed=2)) + pa.SelfDebias(["w5 w6"])


SAMPLED = [
    {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": True, "top_p": 0.8, "temperature": 1.5},
    {"cache_implementation": "static", "output_logits": True},
    {"min_new_tokens": 3, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_a_traced_call_gives_the_same_output(path, options, tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, some_controller(tiny))
    found = []
    for trace in (None, pa.Trace()):
        torch.manual_seed(3)
        found.append(
            steered.generate(
                **prompts(rows=3),
                max_new_tokens=4,
                trace=trace,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
        )
    untraced, traced = found
    assert torch.equal(untraced.sequences, traced.sequences)
    for one, other in zip(untraced.scores, traced.scores, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.stack(trace.tokens, 1), traced.sequences[:, -len(trace.tokens) :])
    copies = options.get("num_return_sequences", 1)
    assert len(trace.prompts) == 3 and len(trace.tokens[0]) == 3 * copies


def test_what_is_recorded_is_what_the_distributions_say(path, tiny, tokenizer, prompts):
    model, trace = tiny(), pa.Trace()
    controller = pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=0.7) + pa.SelfDebias(["w5 w6"])
    batch = prompts(rows=2, width=5)
    steered = pa.wrap(model, tokenizer, controller)
    output = steered.generate(**batch, max_new_tokens=3, trace=trace)
    processor = steered.processor(batch["attention_mask"])
    free = pa.wrap(
        model,
        tokenizer,
        pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=1.0) + pa.SelfDebias(["w5 w6"]),
    ).processor(batch["attention_mask"])
    for step in range(3):
        ids = output[:, : 5 + step]
        ones = torch.ones(2, step, dtype=torch.long)
        mask = torch.cat([batch["attention_mask"], ones], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1].float()
        log_p, log_q = logits.double().log_softmax(-1), processor(ids, logits).double()
        token = output[:, 5 + step, None]
        torch.testing.assert_close(
            trace.base[step].double(), log_p.gather(1, token)[:, 0], atol=2e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            trace.final[step].double(), log_q.gather(1, token)[:, 0], atol=2e-4, rtol=1e-4
        )
        joint = free(ids, logits).double().gather(1, token) - log_p.gather(1, token)
        torch.testing.assert_close(trace.joint[step].double(), joint[:, 0], atol=2e-4, rtol=1e-4)
        inside = log_q.isfinite()
        assert trace.support[step].tolist() == inside.sum(1).tolist()
        want = kl_div(log_p, log_q, log_target=True, reduction="none")
        want = torch.where(inside, want, 0).sum(1)
        torch.testing.assert_close(trace.kl[step].double(), want, atol=2e-4, rtol=1e-3)


def test_alive_rows_sum_to_the_generated_tokens(path, tiny, tokenizer, prompts):
    steered, batch = pa.wrap(tiny(), tokenizer, some_controller(tiny)), prompts(rows=6)
    width = batch["input_ids"].shape[1]
    ends = list(range(0, 120, 5))  # so many tokens end a row that rows differ in length
    config = GenerationConfig(eos_token_id=ends, pad_token_id=1, max_new_tokens=12, do_sample=True)
    trace = pa.Trace()
    torch.manual_seed(0)
    output = steered.generate(**batch, generation_config=config, trace=trace)[:, width:].tolist()
    lengths = [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in output]
    assert torch.stack(trace.alive, 1).sum(1).tolist() == lengths
    assert len(set(lengths)) > 1 and sum(lengths) < 6 * len(trace.alive)
    assert all(len(column) == len(trace.tokens) for column in (trace.kl, trace.times, trace.base))


def test_rows_that_a_criterion_of_the_callers_ends_are_not_alive(path, tiny, tokenizer, prompts):
    steered, batch = pa.wrap(tiny(), tokenizer, some_controller(tiny)), prompts(rows=3)
    criterion, trace = ShortRows(batch["input_ids"].shape[1]), pa.Trace()
    options = {"max_new_tokens": 9, "eos_token_id": None, "stopping_criteria": [criterion]}
    output = steered.generate(**batch, **options, trace=trace)
    assert torch.stack(trace.alive, 1).sum(1).tolist() == [2, 3, 4]
    assert criterion.asked == 4 == output.shape[1] - criterion.start


def test_rows_that_stop_strings_end_are_not_alive():
    model, tokenizer = pocket.load()
    steered, trace = pa.wrap(model, tokenizer, pa.SelfDebias(["rude"])), pa.Trace()
    batch = tokenizer(["My boss is", "The cook was"], return_tensors="pt", padding=True)
    free = steered.generate(**batch, max_new_tokens=8, eos_token_id=None)
    options = {"stop_strings": [tokenizer.decode(free[0, -6:-4])], "tokenizer": tokenizer}
    output = steered.generate(**batch, **options, max_new_tokens=8, eos_token_id=None, trace=trace)
    assert "stop_strings" in steered.explain(**batch, **options)
    alive = torch.stack(trace.alive, 1).sum(1).tolist()
    assert alive[0] == 4 and max(alive) == output.shape[1] - batch["input_ids"].shape[1]


def test_the_seed_of_the_noise_is_recorded(tiny, tokenizer, prompts):
    steered, batch = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"])), prompts(rows=2)
    seeds = []
    for options in (
        {"logits_processor": [CoupledSampler(7, [0, 1], [0, 0])]},
        {"do_sample": True},
        {},
    ):
        trace = pa.Trace()
        steered.generate(**batch, max_new_tokens=2, trace=trace, **options)
        seeds.append(trace.seed)
    assert seeds[0] == 7 and seeds[1] not in (None, 7) and seeds[2] is None


def test_it_says_under_what_a_call_ran(tiny, tokenizer, prompts, make):
    model, batch = tiny(), prompts(rows=2)
    twice = pa.SelfDebias(["w5"]) + pa.SelfDebias(["w6"]) + make("lora", model, tiny, None)
    found = []
    for controller in (twice, twice, pa.SelfDebias(["w5"], decay=3.0)):
        trace = pa.Trace()
        pa.wrap(model, tokenizer, controller).generate(**batch, max_new_tokens=1, trace=trace)
        found.append(trace)
    first, again, other = found
    assert (
        list(first.fingerprints) == ["DExperts", "SelfDebias", "SelfDebias (2)"] == [*first.names]
    )
    assert first.fingerprints == again.fingerprints and first.prompts == again.prompts
    assert first.fingerprints["DExperts"] is None  # adapters in memory
    assert other.fingerprints["SelfDebias"] not in [None, *first.fingerprints.values()]
    assert first.versions["transformers"] == transformers.__version__
    assert first.prompts[0] == hash_of(batch["input_ids"][0].tolist()) != first.prompts[1]


# ------------------------------------------------------------------ certificates


class SecondRow(Gate):
    """Open for the second row alone."""

    def open(self, step):
        return (torch.arange(len(step.base)) == 1).float()


def test_a_certificate_is_recorded_by_controller(path, tiny, tokenizer, prompts):
    trace = pa.Trace()
    controller = WithCertificate() + pa.SelfDebias(["w5"])
    pa.wrap(tiny(), tokenizer, controller).generate(
        **prompts(rows=3), max_new_tokens=2, trace=trace
    )
    assert [list(found) for found in trace.certificates] == [["WithCertificate"]] * 2
    assert trace.certificates[0]["WithCertificate"]["excess"].tolist() == [0, -1, -2]


def test_a_certificate_behind_a_closed_gate_is_nan(tiny, tokenizer, prompts):
    trace = pa.Trace()
    controller = WithCertificate().when(SecondRow())
    pa.wrap(tiny(), tokenizer, controller).generate(
        **prompts(rows=3), max_new_tokens=1, trace=trace
    )
    found = trace.certificates[0]["WithCertificate.when(SecondRow)"]["excess"]
    assert found.isnan().tolist() == [True, False, True] and found[1] == -1


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ((Certified(shape=1),), r"'excess' of WithCertificate must be one number for each of 3"),
        ((Certified(), Certified()), "is given by two of its shifts; rename one"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(shifts, message, tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, WithCertificate(*shifts))
    steered.generate(**prompts(rows=3), max_new_tokens=1)  # nobody asks without a trace
    with pytest.raises(ValueError, match=message):
        steered.generate(**prompts(rows=3), max_new_tokens=1, trace=pa.Trace())


def test_a_support_alone_shifts_nothing(tiny, tokenizer, prompts):
    class Cut(Controller):
        def steer(self, model, tokenizer):
            return Steering((), (TopP(0.3),))

    trace = pa.Trace()
    pa.wrap(tiny(), tokenizer, Cut()).generate(**prompts(rows=2), max_new_tokens=3, trace=trace)
    assert torch.stack(trace.joint).abs().max() < 1e-5
    kept = torch.stack(trace.final) - torch.stack(trace.base)
    assert (kept > 0.1).all() and (torch.stack(trace.support) < 120).all()


def test_tracing_a_plain_model_and_one_that_is_revised_changes_nothing(path, tiny, tokenizer):
    class Shouts(Controller):
        def revise(self, answers):
            return Revision(answers.ids + 1)

    model, batch = tiny(), {"input_ids": torch.arange(20, 30).view(2, 5)}
    for controller in (0 * pa.SelfDebias(["w5"]), Shouts(), Shouts() + pa.SelfDebias(["w5"])):
        steered, trace = pa.wrap(model, tokenizer, controller), pa.Trace()
        options = {"max_new_tokens": 4, "eos_token_id": None}
        plain, traced = (steered.generate(**batch, **options, trace=t) for t in (None, trace))
        assert torch.equal(plain, traced)
        assert len(trace.tokens) == len(trace.kl) == 4
        drafted = plain[:, 5:] - (1 if trace.revisions else 0)
        assert torch.equal(torch.stack(trace.tokens, 1), drafted)
        if not trace.names:
            assert torch.stack(trace.kl).abs().max() < 1e-6 and trace.contributions == []
