"""wrap(): every decoding mode on every architecture, against an uncached float64 reference."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from pairwise import pairwise
from tiny_models import ARCHITECTURES
from transformers import GenerationConfig, LogitsProcessor, TextIteratorStreamer, pipeline

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import CandidateShift, HeadAttribute, LowRank
from plugalign.algebra.sources import CandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import MinP, TopK

MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "beam": {"num_beams": 3},
    "beam-sample": {"num_beams": 2, "do_sample": True, "top_k": 0},
    "several": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "static": {"cache_implementation": "static"},
    "assisted": {"assistant": True, "do_sample": False},
    "assisted-sample": {"assistant": True, "do_sample": True, "top_k": 0},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


# ------------------------------------------------------------------ float64 references


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def forward(model, ids):
    """Last-position logits of one unpadded, uncached row, and what the head read."""
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits.double().numpy(), seen[0][0, -1].double().numpy()


def nucleus(log_p, p):
    order = np.argsort(-log_p, kind="stable")
    before = np.cumsum(np.exp(log_p[order])) - np.exp(log_p[order])
    keep = np.zeros(len(log_p), bool)
    keep[order[before < p]] = True
    return keep


class Formula(LogitsProcessor):
    """Evaluates ``delta(ids, log_p) -> (shift, keep)`` row by row from nothing but the prefix."""

    def __init__(self, delta, pad=0):
        self.delta, self.pad = delta, pad

    def __call__(self, input_ids, scores):
        rows = []
        for ids, row in zip(input_ids.tolist(), scores.double().numpy(), strict=True):
            while ids[0] == self.pad:
                ids = ids[1:]
            log_p = log_softmax(row)
            shift, keep = self.delta(ids, log_p)
            rows.append(log_softmax(np.where(keep, log_p + shift, -np.inf)))
        return torch.tensor(np.array(rows), dtype=torch.float32)


class Declared(Controller):
    """A controller that is nothing but its declaration."""

    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


class Predictor(torch.nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.causal, self.backbone = causal, causal.model
        self.head = torch.nn.Linear(32, 1)


def everything(which, model, tiny, tokenizer, architecture):
    """A controller and the reference formula of what it does."""
    everywhere = np.ones(120, bool)
    if which == "dexperts":
        expert, anti = tiny(architecture, seed=1), tiny(architecture, seed=2)

        def delta(ids, log_p):
            return 2.0 * (forward(expert, ids)[0] - forward(anti, ids)[0]), nucleus(log_p, 0.9)

        return pa.DExperts(expert, anti, alpha=2.0, top_p=0.9), delta
    if which == "anti-only":
        anti = tiny(architecture, seed=2)

        def delta(ids, log_p):
            return 1.5 * (log_p - forward(anti, ids)[0]), nucleus(log_p, 0.8)

        return pa.DExperts(antiexpert=anti, alpha=1.5, top_p=0.8), delta
    if which == "self-debias":
        texts = ["w5 w6 w7", "w8"]

        def delta(ids, log_p):
            behind = [tokenizer(t)["input_ids"] + ids for t in texts]
            worst = np.max([np.exp(log_softmax(forward(model, b)[0])) for b in behind], axis=0)
            damp = np.exp(-50.0 * np.maximum(worst - np.exp(log_p), 0))
            return np.log(np.maximum(damp, 0.01)), everywhere

        return pa.SelfDebias(texts, decay=50.0, floor=0.01), delta
    generator = torch.Generator().manual_seed(3)
    if which == "low-rank":
        left = torch.randn(120, 2, generator=generator)
        right = torch.randn(32, 2, generator=generator)
        center = torch.randn(32, generator=generator)

        def delta(ids, log_p):
            hidden = forward(model, ids)[1] - center.double().numpy()
            return -0.7 * left.double().numpy() @ (right.double().numpy().T @ hidden), (
                np.exp(log_p) >= 0.01 * np.exp(log_p.max())
            )

        shift = LowRank(left, right, center, alpha=0.3)
        return Declared(Steering((shift,), (MinP(0.01),))), delta
    if which == "head":
        left, right = (
            torch.randn(120, 3, generator=generator),
            torch.randn(32, 3, generator=generator),
        )
        bias, state = torch.randn(120, generator=generator), torch.randn(32, generator=generator)

        def delta(ids, log_p):
            hidden = forward(model, ids)[1]
            score = left.double().numpy() @ (right.double().numpy().T @ hidden)
            score = score + bias.double().numpy() + state.double().numpy() @ hidden + 0.5
            return -4.0 * np.logaddexp(0, -score), everywhere

        return 4.0 * Declared(Steering((HeadAttribute(left, right, bias, state, 0.5),))), delta
    predictor = Predictor(tiny("llama-gqa", seed=5)).eval()

    def delta(ids, log_p):
        keep = np.zeros(120, bool)
        keep[np.argsort(-log_p, kind="stable")[:10]] = True
        shift = np.zeros(120)
        for token in np.flatnonzero(keep):
            hidden = forward(predictor.causal, [*ids, int(token)])[1]
            weight = predictor.head.weight.detach().double().numpy()[0]
            score = weight @ hidden + predictor.head.bias.item()
            shift[token] = -3.0 * np.logaddexp(0, -score)
        return shift, keep

    scores = CandidateValues("predictor", predictor, 10)
    shift = CandidateShift(scores, "logsigmoid", weight=3.0)
    return Declared(Steering((shift,), (TopK(10),))), delta


CONTROLLERS = ("dexperts", "anti-only", "self-debias", "low-rank", "head", "fudge")


def run(generate, batch, mode, assistant, **more):
    options = dict(MODES[mode])
    if options.pop("assistant", False):
        options["assistant_model"] = assistant
    if mode.startswith(("assisted", "lookup")):
        batch = {k: v[:1] for k, v in batch.items()}
    torch.manual_seed(11)
    return generate(
        **batch,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
        **more,
    )


@pairwise(which=CONTROLLERS, mode=list(MODES), architecture=ARCHITECTURES)
def test_steered_generate_equals_the_formula(which, mode, architecture, tiny, tokenizer, prompts):
    model, assistant = tiny(architecture), tiny(architecture, seed=9)
    controller, delta = everything(which, model, tiny, tokenizer, architecture)
    batch = prompts(rows=2, width=6)
    steered = pa.wrap(model, tokenizer, controller)
    if mode in ("sample", "several"):  # the loop has other noise: see test_decoding.py
        ours = steered.processor(batch["attention_mask"])
        got = run(model.generate, batch, mode, assistant, logits_processor=[ours])
    else:
        got = run(steered.generate, batch, mode, assistant)
    want = run(model.generate, batch, mode, assistant, logits_processor=[Formula(delta)])
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, theirs in zip(got.scores, want.scores, strict=True):
        finite = torch.isfinite(theirs)
        assert torch.equal(torch.isfinite(mine), finite)
        torch.testing.assert_close(mine[finite], theirs[finite], atol=2e-3, rtol=1e-3)


# ------------------------------------------------------------------ composition


def scores_of(controller, model, tokenizer, batch):
    output = pa.wrap(model, tokenizer, controller).generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    return torch.stack(output.scores)


def test_sums_commute_associate_and_scale(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    a = pa.DExperts(tiny(seed=1), tiny(seed=2), alpha=1.0)
    b, c = pa.SelfDebias(["w5 w6"], decay=20.0), pa.DExperts(antiexpert=tiny(seed=3), top_p=1.0)

    def go(controller):
        return scores_of(controller, model, tokenizer, batch)

    assert a + b == b + a and (a + b) + c == a + (b + c)
    assert torch.equal(go(a + b), go(b + a))
    assert torch.equal(go((a + b) + c), go(c + (b + a)))
    assert torch.equal(go(a + a), go(2 * a))
    assert torch.equal(go(0.5 * (a + b)), go(0.5 * b + a * 0.5))


def test_strength_zero_is_the_identity(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    plain = model.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    nothing = 0 * pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=0.5)
    assert torch.equal(scores_of(nothing, model, tokenizer, batch), torch.stack(plain.scores))
    idle = pa.DExperts(tiny(seed=1), tiny(seed=2), alpha=0.0, top_p=1.0)
    want = torch.stack(plain.scores).log_softmax(-1)
    torch.testing.assert_close(scores_of(idle, model, tokenizer, batch), want)


def test_controllers_that_share_an_expert_share_its_forwards(tiny, tokenizer, prompts):
    model, anti, calls = tiny(), tiny(seed=2), []
    anti.register_forward_hook(lambda *_: calls.append(1))
    both = pa.DExperts(tiny(seed=1), anti) + pa.DExperts(tiny(seed=3), anti)
    pa.wrap(model, tokenizer, both).generate(**prompts(), max_new_tokens=4)
    assert len(calls) == 4


def test_prompts_of_the_base_share_one_forward(tiny, tokenizer, prompts):
    model, rows = tiny(), []
    both = pa.SelfDebias(["w5 w6", "w7"]) + pa.SelfDebias(["w7", "w8 w9 w10"])
    steered = pa.wrap(model, tokenizer, both)
    model.register_forward_hook(lambda _, __, output: rows.append(output.logits.shape[0]))
    steered.generate(**prompts(rows=2), max_new_tokens=3)
    assert rows == [(1 + 3) * 2] * 3


# ------------------------------------------------------------------ beside other things


def test_other_processors_stay_beside_ours(tiny, tokenizer, prompts):
    model, batch, seen = tiny(), prompts(), []

    def mine(input_ids, scores):
        seen.append(scores.logsumexp(-1))
        return scores

    pa.wrap(model, tokenizer, pa.SelfDebias(["w5"])).generate(
        **batch, max_new_tokens=3, logits_processor=[mine], repetition_penalty=1.2
    )
    assert len(seen) == 3
    torch.testing.assert_close(torch.stack(seen), torch.zeros(3, 3), atol=1e-5, rtol=0)


def test_plain_processor_equals_wrap(tiny, tokenizer, prompts, architecture):
    model, batch = tiny(architecture), prompts()
    left, right = torch.randn(120, 2), torch.randn(32, 2)
    a = pa.DExperts(tiny(architecture, seed=1)) + Declared(Steering((LowRank(left, right),)))
    want = pa.wrap(model, tokenizer, a).generate(**batch, max_new_tokens=5)
    for mask in (None, batch["attention_mask"]):
        processor = pa.wrap(model, tokenizer, a).processor(mask)
        for _ in range(2):  # the same object serves again
            got = model.generate(**batch, max_new_tokens=5, logits_processor=[processor])
            assert got.tolist() == want.tolist()


def test_streaming_and_chat(tiny, tokenizer):
    model = tiny()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = [{"role": "user", "content": "w5 w6 w7"}]
    batch = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1)))
    whole = steered.generate(**batch, max_new_tokens=5)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    worker = threading.Thread(
        target=steered.generate, kwargs={**batch, "max_new_tokens": 5, "streamer": streamer}
    )
    worker.start()
    assert "".join(streamer).split() == tokenizer.decode(whole[0, 3:]).split()
    worker.join()


def test_pipeline(tiny, tokenizer, caplog):
    model = tiny("gpt2-tied")
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny("gpt2-tied", seed=1)))
    pipe = pipeline("text-generation", model=steered, tokenizer=tokenizer)
    [answer] = pipe("w5 w6 w7", max_new_tokens=5, do_sample=False, return_full_text=False)
    want = steered.generate(**tokenizer("w5 w6 w7", return_tensors="pt"), max_new_tokens=5)
    assert answer["generated_text"].split() == tokenizer.decode(want[0, 3:]).split()
    assert "not supported" not in caplog.text


def test_bf16(tiny, tokenizer, prompts, architecture):
    model = tiny(architecture).bfloat16()
    expert = tiny(architecture, seed=1).bfloat16()
    output = pa.wrap(model, tokenizer, pa.DExperts(expert) + pa.SelfDebias(["w5"])).generate(
        **prompts(), max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    assert output.scores[0].dtype == torch.float32
    sums = torch.stack(output.scores).exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_batch_of_n_is_n_batches_of_one(tiny, tokenizer, prompts, architecture):
    model, batch = tiny(architecture), prompts(rows=3)
    steered = pa.wrap(
        model, tokenizer, pa.DExperts(tiny(architecture, seed=1)) + pa.SelfDebias(["w5 w6"])
    )
    together = steered.generate(**batch, max_new_tokens=5)
    for row in range(3):
        keep = batch["attention_mask"][row].bool()
        alone = steered.generate(batch["input_ids"][row][keep][None], max_new_tokens=5)
        assert alone[0, keep.sum() :].tolist() == together[row, 7:].tolist()


def test_two_threads_do_not_mix(tiny, tokenizer, prompts):
    model, left, right = tiny(), torch.randn(120, 2), torch.randn(32, 2)
    steered = pa.wrap(model, tokenizer, Declared(Steering((LowRank(left, right),))))
    batches = [prompts(rows=3, seed=s) for s in range(4)]
    want = [steered.generate(**b, max_new_tokens=6).tolist() for b in batches]
    got = [None] * 4

    def work(i):
        got[i] = steered.generate(**batches[i], max_new_tokens=6).tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want


# ------------------------------------------------------------------ the model afterwards


def snapshot(model):
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    return hooks, weights, copy.deepcopy(vars(model.generation_config)), model.training


def assert_unchanged(model, before):
    hooks, weights, config, training = snapshot(model)
    assert hooks == before[0] and config == before[2] and training == before[3]
    assert all(torch.equal(weights[k], before[1][k]) for k in before[1])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_untouched_also_after_an_exception(error, tiny, tokenizer, prompts):
    def fail(input_ids, scores):
        raise error("stop here")

    model = tiny()
    before = snapshot(model)
    shift = LowRank(torch.randn(120, 2), torch.randn(32, 2))
    steered = pa.wrap(model, tokenizer, Declared(Steering((shift,))) + pa.SelfDebias(["w5"]))
    steered.generate(**prompts(), max_new_tokens=3)
    assert_unchanged(model, before)
    with pytest.raises(error, match="stop here"):
        steered.generate(**prompts(), max_new_tokens=3, logits_processor=[fail])
    assert_unchanged(model, before)


# ------------------------------------------------------------------ trace


def test_trace_says_who_changed_what(tiny, tokenizer, prompts):
    model, trace = tiny(), pa.Trace()
    dexperts, debias = pa.DExperts(tiny(seed=1), tiny(seed=2)), pa.SelfDebias(["w5 w6"])
    batch = prompts(rows=2)
    output = pa.wrap(model, tokenizer, dexperts + debias).generate(
        **batch, max_new_tokens=4, trace=trace
    )
    assert trace.names == ("DExperts", "SelfDebias")
    assert [c.shape for c in trace.contributions] == [(2, 2)] * 4
    ids = output[0].tolist()  # this row has no padding
    for step, row in enumerate(trace.contributions):
        prefix = ids[: 7 + step]
        log_p = log_softmax(forward(model, prefix)[0])
        shift = 2 * (forward(dexperts.expert, prefix)[0] - forward(dexperts.antiexpert, prefix)[0])
        want = log_softmax(log_p + shift)[ids[7 + step]] - log_p[ids[7 + step]]
        assert row[0, 0].item() == pytest.approx(want, abs=1e-3)


# ------------------------------------------------------------------ bad input


def test_refuses_what_it_cannot_wrap(tiny, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=120, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="encoder-decoder"):
        pa.wrap(t5, tokenizer, pa.SelfDebias(["w5"]))
    with pytest.raises(TypeError, match="needs a Controller"):
        pa.wrap(tiny(), tokenizer, [pa.SelfDebias(["w5"])])


def test_a_steered_model_is_neither_base_nor_expert(tiny, tokenizer):
    """Its forward is the model's own, so ``log_probs`` would leave out what ``generate`` does."""
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1)))
    with pytest.raises(ValueError, match="'LlamaForCausalLM' is steered by DExperts already"):
        pa.wrap(steered, tokenizer, pa.SelfDebias(["w5"]))
    for controller in (pa.DExperts(antiexpert=steered), pa.ContrastiveDecoding(steered)):
        with pytest.raises(ValueError, match=r"give its \.model, and what is to steer one base"):
            pa.wrap(tiny(), tokenizer, controller)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "got None"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, r"got \(1, 0\)"),
        ({"input_ids": torch.full((1, 128), 5)}, "128 tokens and 1 tokens that controllers"),
        (
            {"input_ids": torch.full((1, 3), 5), "attention_mask": torch.zeros(1, 3).long()},
            "all zeros",
        ),
    ],
)
def test_refuses_bad_prompts(batch, message, tiny, tokenizer):
    with pytest.raises(ValueError, match=message):
        pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"])).generate(**batch, max_new_tokens=3)


def test_nan_names_the_source_and_the_step(tiny, tokenizer, prompts):
    model, anti = tiny(), tiny(seed=2)
    anti.config.name_or_path = "somewhere/broken-anti"
    calls = []

    def spoil(_, __, output):
        calls.append(1)
        if len(calls) == 3:
            output.logits[1] = float("nan")
        return output

    anti.register_forward_hook(spoil)
    steered = pa.wrap(model, tokenizer, pa.DExperts(antiexpert=anti))
    with pytest.raises(
        FloatingPointError, match=r"broken-anti' gave NaN logits at step 2 \(row 1\)"
    ):
        steered.generate(**prompts(), max_new_tokens=5)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="the base model"):
        pa.wrap(model, tokenizer, pa.SelfDebias(["w5"])).generate(**prompts(), max_new_tokens=2)


def test_padded_heads_are_aligned_and_other_vocabularies_refused(tiny, tokenizer, prompts):
    wide, narrow = tiny(vocab=128), tiny(seed=1)
    for base, expert in ((wide, narrow), (narrow, wide)):
        output = pa.wrap(base, tokenizer, pa.DExperts(expert)).generate(
            **prompts(), max_new_tokens=4, return_dict_in_generate=True, output_scores=True
        )
        assert torch.isfinite(output.scores[0].logsumexp(-1)).all()
    with pytest.raises(ValueError, match="scores 60 tokens"):
        pa.wrap(narrow, tokenizer, pa.DExperts(tiny(vocab=60)))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"do_sample": True}, id="loop"),
        pytest.param({"do_sample": True, "typical_p": 0.999}, id="processor"),
        pytest.param({"num_beams": 2}, id="beams"),
        pytest.param({"prompt_lookup_num_tokens": 2}, id="transformers' drafts"),
        pytest.param({"speculation": "base"}, id="the base's drafts"),
        pytest.param({"speculation": "model"}, id="a model's drafts"),
    ],
)
def test_padding_beyond_the_narrowest_head_is_never_chosen(options, tiny, tokenizer, prompts):
    """The base favours the padding of its own head, and a negative weight would its lack."""
    base, anti = tiny(vocab=128), tiny(seed=1)
    with torch.no_grad():
        base.get_output_embeddings().weight[120:] *= 50
    assert (base.generate(**prompts(), max_new_tokens=1) >= 120).any()
    steered = pa.wrap(base, tokenizer, pa.DExperts(antiexpert=anti, alpha=2.0, top_p=1.0))
    if (draft := options.get("speculation")) is not None:
        speculation = pa.Speculation(anti if draft == "model" else draft, tokens=3)
        options = {"do_sample": True, "speculation": speculation}
    ids = torch.arange(5, 25).view(4, 5)
    for row in ids.split(1):  # transformers' drafts take one row
        assert (steered.generate(row, max_new_tokens=8, pad_token_id=0, **options) < 120).all()
    logits, others = base(ids).logits[:, -1], anti(ids).logits[:, -1]
    scores = steered.processor()(ids, logits)
    expected = (3 * logits[:, :120] - 2 * others).log_softmax(-1)
    torch.testing.assert_close(scores[:, :120], expected)
    assert (scores[:, 120:] == -torch.inf).all()


def test_no_warnings_from_a_plain_call(tiny, tokenizer, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"])).generate(**prompts(), max_new_tokens=2)


def test_a_model_without_an_end_token_may_be_revised(tiny, tokenizer, prompts):
    model = tiny()
    model.generation_config.eos_token_id = None
    critic = pa.SelfCritique(critique="w5", refine="w6", threshold=0.0)
    output = pa.wrap(model, tokenizer, critic).generate(**prompts(), max_new_tokens=3)
    assert output.shape == (3, 10)
    with pytest.raises(ValueError, match="output_scores belongs to a draft"):
        pa.wrap(model, tokenizer, critic).generate(**prompts(), output_scores=True)


@pytest.mark.parametrize("method", ["eval", "cpu", "float", "to", "requires_grad_"])
def test_what_returns_the_model_returns_it_steered(method, tiny, tokenizer):
    """``wrap(...).eval()`` is written as for any model."""
    model = tiny()
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5"]))
    arguments = {"to": ("cpu",), "requires_grad_": (False,)}.get(method, ())
    assert getattr(steered, method)(*arguments) is steered
    assert steered.get_input_embeddings() is model.get_input_embeddings()


def test_what_is_set_is_set_on_the_model(tiny, tokenizer, prompts):
    """``steered.generation_config = ...`` is written as for any model; ``generate`` reads it."""
    model = tiny()
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5"]))
    steered.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    assert model.generation_config is steered.generation_config
    assert steered.generate(**prompts()).shape == (3, 10)
    steered.controller = 2.0 * steered.controller
    steered.generate = steered.note = None
    assert steered.generate is None and callable(model.generate)
    assert not {"controller", "note"} & vars(model).keys()
