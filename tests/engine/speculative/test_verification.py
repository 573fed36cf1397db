"""Drafts change no greedy text and no distribution, whatever drafts and whatever steers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pairwise import pairwise
from scipy import stats
from tiny_models import ARCHITECTURES
from transformers import AutoModelForCausalLM, LogitsProcessor, MistralConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import plugalign as pa
from plugalign.engine.speculative.drafters import last_match

STEERED = (
    "nothing",
    "dexperts",
    "self-debias",
    "low-rank",
    "head",
    "prefix",
    "prefix-contrast",
    "sum",
)
DRAFTS = ("base", "prompt", "model")


def speculation(draft, tiny, architecture="llama-gqa", tokens=4):
    return pa.Speculation(tiny(architecture, seed=7) if draft == "model" else draft, tokens)


def generate(steered, inputs, **options):
    options = {"max_new_tokens": 13, "do_sample": False, "pad_token_id": 0} | options
    torch.manual_seed(3)
    return steered.generate(**inputs, **options)


def repeating(rows, width=9):
    """Prompts that repeat themselves, so that looking up finds something."""
    ids = (torch.arange(width)[None] % 3) + 5 + 4 * torch.arange(rows)[:, None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pairwise(which=STEERED, draft=DRAFTS, architecture=ARCHITECTURES)
def test_greedy_texts_are_those_without_a_draft(
    which, draft, architecture, tiny, tokenizer, prompts, make
):
    model = tiny(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, architecture))
    for inputs in (prompts(rows=3), repeating(1)):
        spec = speculation(draft, tiny, architecture)
        got = generate(steered, inputs, speculation=spec)
        assert torch.equal(got, generate(steered, inputs))
        assert spec.rounds > 0 or draft == "prompt"


@pytest.mark.parametrize("which", ["nothing", "dexperts", "self-debias"])
def test_sampled_texts_are_the_same_where_a_draft_is_no_draw(which, tiny, tokenizer, make):
    model, spec = tiny(), pa.Speculation("prompt", 3)
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    for rows, seed in itertools.product((1, 2), range(4)):
        options = {"do_sample": True, "top_p": 0.9, "temperature": 0.1, "max_new_tokens": 30 + seed}
        inputs = repeating(rows)
        got = generate(steered, inputs, speculation=spec, **options)
        assert torch.equal(got, generate(steered, inputs, **options))
    assert spec.accepted > 0


def test_nothing_is_rejected_where_the_target_is_the_draft(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    spec = pa.Speculation("base", 5)
    options = {"do_sample": True, "top_p": 0.8, "max_new_tokens": 19}
    got = generate(steered, prompts(rows=3), speculation=spec, **options)
    assert torch.equal(got, generate(steered, prompts(rows=3), **options))
    assert spec.acceptance == 1 and spec.rounds == 3  # 19 = the first + 3 x (5 + 1)
    assert spec.emitted == 3 * 18 and spec.drafted == 3 * 15


def joint(steered, inputs, length, options):
    """The probability of every text of a length, by steering one step at a time."""
    found = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, mass in found.items():
            ids = torch.cat([inputs["input_ids"], torch.tensor([text], dtype=torch.long)], 1)
            answer = steered.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
                **options,
            )
            p = answer.scores[0][0].double().softmax(-1)
            longer |= {(*text, int(t)): mass * float(p[t]) for t in p.nonzero()[:, 0]}
        found = longer
    return found


@pytest.mark.parametrize("draft", ["base", "model"])
def test_sampled_texts_are_distributed_as_without_a_draft(draft, tiny, tokenizer):
    model = tiny("gpt2-tied")
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny("gpt2-tied", seed=1), alpha=0.4))
    spec = speculation(draft, tiny, "gpt2-tied", tokens=2)
    options = {"do_sample": True, "top_k": 3, "temperature": 3.0}
    inputs, length, calls = repeating(1, 5), 4, 400
    # The first token and two rounds of one to three tokens; two rows hold each other up.
    want = joint(steered, inputs, length, options)
    seen = dict.fromkeys(want, 0)
    pair = {name: x.repeat(2, 1) for name, x in inputs.items()}
    for seed in range(calls):
        torch.manual_seed(seed)
        texts = steered.generate(
            **pair, max_new_tokens=length, pad_token_id=0, speculation=spec, **options
        )
        for text in texts[:, 5:].tolist():
            seen[tuple(text)] += 1
    assert 0.05 < spec.acceptance < 0.95
    expected, counts = np.array(list(want.values())) * 2 * calls, np.array(list(seen.values()))
    order = np.argsort(expected)
    rare = max(1, int(np.searchsorted(expected[order].cumsum(), 5)) + 1)  # as one bin
    expected, counts = (
        np.append(x[order[rare:]], x[order[:rare]].sum()) for x in (expected, counts)
    )
    assert len(counts) > 60 and expected.min() >= 5
    assert stats.chisquare(counts, expected).pvalue > 1e-3


class NoTwice(LogitsProcessor):
    """Forbids the last token, and notes what it was shown."""

    def __init__(self):
        self.lengths = []

    def __call__(self, ids, scores):
        self.lengths.append(ids.shape[1])
        return scores.scatter(1, ids[:, -1:], -torch.inf)


def test_processors_see_each_prefix(tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    options = {"repetition_penalty": 1.3, "min_new_tokens": 13, "do_sample": False}
    plain, drafted = NoTwice(), NoTwice()
    want = generate(steered, prompts(), logits_processor=[plain], **options)
    spec = speculation("model", tiny)
    got = generate(steered, prompts(), logits_processor=[drafted], speculation=spec, **options)
    assert torch.equal(got, want)
    assert set(plain.lengths) <= set(drafted.lengths)


class Until(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, ids, scores, **_):
        return torch.full((len(ids),), ids.shape[1] >= self.length)


class Heard(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_text_ends_where_it_would_have(draft, stop, tiny, tokenizer, make):
    model, inputs = tiny(), repeating(1)
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    whole = generate(steered, inputs, max_new_tokens=9)[0, 9:].tolist()
    for options in (
        {"max_new_tokens": stop},
        {"stopping_criteria": [Until(9 + stop)]},
        {"eos_token_id": whole[stop - 1]},
    ):
        heard, spec = Heard(), speculation(draft, tiny)
        want = generate(steered, inputs, **options)
        got = generate(steered, inputs, speculation=spec, streamer=heard, **options)
        assert torch.equal(got, want)
        assert heard.tokens == want[0].tolist() and heard.ended


@pytest.mark.parametrize("draft", DRAFTS)
def test_rows_end_at_different_lengths(draft, tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    free = generate(steered, prompts(rows=3), max_new_tokens=16)
    ends = [int(free[0, 7 + 3]), int(free[1, 7 + 8])]
    options = {"max_new_tokens": 16, "eos_token_id": ends}
    got = generate(steered, prompts(rows=3), speculation=speculation(draft, tiny), **options)
    assert torch.equal(got, generate(steered, prompts(rows=3), **options))


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_generate_returns_beside_the_text(draft, tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make("self-debias", model, tiny, "llama-gqa"))
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for length in (5, 6, 7, 8):
        want = generate(steered, prompts(), max_new_tokens=length, **options)
        spec = speculation(draft, tiny)
        got = generate(steered, prompts(), max_new_tokens=length, speculation=spec, **options)
        for name in ("scores", "logits"):
            ours, theirs = getattr(got, name), getattr(want, name)
            assert len(ours) == len(theirs) == length
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(
            got.past_key_values.layers, want.past_key_values.layers, strict=True
        ):
            torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-4, atol=1e-4)


def test_several_samples_of_a_prompt(tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    got = generate(steered, prompts(), speculation=pa.Speculation("prompt"), **options)
    assert torch.equal(got, generate(steered, prompts(), **options))


@pytest.mark.parametrize("draft", ["base", "model"])
def test_coupled_samples_do_not_hang_on_the_batch(draft, tiny, tokenizer):
    """A row's draft, verdicts and noise are its own, and a row alone rejects no later."""
    model = tiny()
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    sampler = pa.sampling.CoupledSampler(9, [4, 5], [0, 0], temperature=0.8)
    both = generate(steered, repeating(2), logits_processor=[sampler])
    one = pa.sampling.CoupledSampler(9, [5], [0], temperature=0.8)
    alone = {name: x[1:] for name, x in repeating(2).items()}
    spec = pa.Speculation("base", 4)
    got = generate(steered, alone, logits_processor=[one], speculation=spec)
    assert torch.equal(got, both[1:])


def test_explain_says_who_drafts(tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    lines = steered.explain(max_new_tokens=3, speculation=pa.Speculation("base", 3))
    assert "drafted: 3 tokens at a time by the base" in lines
    assert "drafted" not in steered.explain(max_new_tokens=3)
    beams = steered.explain(max_new_tokens=3, num_beams=2, speculation=pa.Speculation())
    assert "drafted: nothing there" in beams


def test_last_place_is_the_last_earlier_one():
    ids = torch.tensor(
        [[5, 6, 7, 5, 6, 8, 5, 6], [0, 0, 0, 0, 9, 9, 9, 9], [1, 2, 3, 4, 5, 6, 7, 8]]
    )
    mask = torch.ones_like(ids)
    assert last_match(ids, mask, 2).tolist() == [5, 7, 0]
    mask[1, :6] = 0  # what is masked is never found
    assert last_match(ids, mask, 2).tolist() == [5, 0, 0]


class TestBadInput:
    def refused(self, steered, inputs, match, **options):
        with pytest.raises(ValueError, match=match):
            generate(steered, inputs, **options)

    def test_settings(self, tiny):
        with pytest.raises(ValueError, match=r"draft must be .* got 'bas'"):
            pa.Speculation("bas")
        with pytest.raises(TypeError, match="got int"):
            pa.Speculation(3)
        with pytest.raises(ValueError, match=r"tokens must lie in \[1, 32\], got 0"):
            pa.Speculation("base", 0)
        with pytest.raises(ValueError, match="ngram must be at least 1, got 0"):
            pa.Speculation("prompt", ngram=0)

    def test_what_cannot_be_verified(self, tiny, tokenizer, prompts, make):
        model, spec = tiny(), pa.Speculation()
        fudge = pa.wrap(model, tokenizer, make("fudge", model, tiny, "llama-gqa"))
        self.refused(fudge, prompts(), "read at one place at a time", speculation=spec)
        plain = pa.wrap(model, tokenizer, pa.SelfDebias(["w5"]))
        self.refused(plain, prompts(), "moves rows", num_beams=2, speculation=spec)
        static = {"cache_implementation": "static", "speculation": spec}
        named = "forgets no columns: a StaticCache; leave cache_implementation"
        self.refused(plain, prompts(), named, **static)
        self.refused(plain, prompts(), "trace", speculation=spec, trace=pa.Trace())
        assert spec.rounds == 0

    def test_models_whose_caches_forget_nothing(self, tiny, tokenizer, prompts):
        config = MistralConfig(
            vocab_size=120,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            pad_token_id=0,
        )
        sliding = AutoModelForCausalLM.from_config(config).eval()
        plain = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
        windows = "forgets no columns: sliding windows"
        self.refused(plain, prompts(), windows, speculation=pa.Speculation(sliding))
        expert = pa.wrap(tiny(), tokenizer, pa.DExperts(sliding))
        self.refused(expert, prompts(), windows, speculation=pa.Speculation())
        base = pa.wrap(sliding, tokenizer, pa.SelfDebias(["w5"]))
        self.refused(
            base, prompts(), f"the base keeps a cache that {windows}", speculation=pa.Speculation()
        )

    def test_a_draft_model_without_room(self, tiny, tokenizer, prompts):
        small = tiny("gpt2-tied")  # 128 positions
        plain = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
        long = {"max_new_tokens": 125, "speculation": pa.Speculation(small)}
        self.refused(plain, prompts(), "reads 128 tokens, and a text may have 132", **long)

    def test_processors_with_a_memory(self, tiny, tokenizer, prompts):
        plain = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
        remembering = {"guidance_scale": 1.5, "speculation": pa.Speculation()}
        self.refused(plain, prompts(), "remembers what it was asked", **remembering)

    def test_a_head_that_is_not_plain(self, tiny, tokenizer, prompts, make):
        model = tiny()
        hook = model.lm_head.register_forward_hook(lambda _m, _a, out: out)
        steered = pa.wrap(model, tokenizer, make("head", model, tiny, "llama-gqa"))
        self.refused(steered, prompts(), "no plain linear", speculation=pa.Speculation())
        hook.remove()
        assert generate(steered, prompts(), speculation=pa.Speculation()) is not None


def test_a_draft_model_may_know_fewer_tokens(tiny, tokenizer, prompts):
    model, spec = tiny(), pa.Speculation(tiny("gpt2-tied", vocab=40))
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1)))
    got = generate(steered, prompts(), speculation=spec)
    assert torch.equal(got, generate(steered, prompts())) and spec.rounds


def test_criteria_see_the_scores_of_what_is_written(tiny, tokenizer, prompts):
    class Counts(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            assert len(scores) == ids.shape[1] - 7
            return torch.zeros(len(ids), dtype=torch.bool)

    steered = pa.wrap(tiny(), tokenizer, 0 * pa.SelfDebias(["w5"]))
    options = {"output_scores": True, "return_dict_in_generate": True}
    spec = pa.Speculation("base", 5)
    generate(steered, prompts(), stopping_criteria=[Counts()], speculation=spec, **options)
    assert spec.acceptance == 1


@pytest.mark.parametrize("spoiled", ["expert", "base", "draft"])
def test_nan_names_source_and_step(spoiled, tiny, tokenizer, prompts):
    model, expert, small = tiny(), tiny(seed=1), tiny(seed=2)
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert))
    spec = pa.Speculation(small, 3)
    bad = {"expert": expert, "base": model, "draft": small}[spoiled]

    calls = []

    def late(_module, _inputs, output):
        calls.append(output)
        if len(calls) > 1:
            output[...] = torch.nan

    bad.get_output_embeddings().register_forward_hook(late)
    who = {"expert": "the source 'expert", "base": "the base model", "draft": "the draft model"}
    step = 2 if spoiled == "draft" else 1  # it reads the prompts when the first draft is due
    match = rf"{who[spoiled]}.* gave NaN logits at step {step} \(row 0\)"
    with pytest.raises(FloatingPointError, match=match):
        generate(steered, prompts(), speculation=spec)
