"""The owned loop against the processor path, transformers' own decoding, and the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

import plugalign as pa
from plugalign.sampling import CoupledSampler

CONTROLLERS = (
    "nothing",
    "dexperts",
    "anti-only",
    "self-debias",
    "low-rank",
    "head",
    "fudge",
    "prefix",
    "prefix-contrast",
    "sum",
)


@pytest.fixture
def both(monkeypatch):
    """Runs one call on the loop and on the processor path."""

    def go(steered, batch, **options):
        assert steered.explain(**batch, **options).startswith("the owned loop")
        mine = steered.generate(**batch, **options)
        with monkeypatch.context() as patch:
            patch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
            theirs = steered.generate(**batch, **options)
        return mine, theirs

    return go


def assert_alike(mine, theirs):
    assert mine.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        one, other = (torch.stack(getattr(output, name)) for output in (mine, theirs))
        finite = torch.isfinite(other)
        assert torch.equal(torch.isfinite(one), finite)
        torch.testing.assert_close(one[finite], other[finite], atol=2e-3, rtol=1e-3)


def test_a_negative_prompt_leaves_the_hidden_states_alone(both, tiny, tokenizer, prompts, make):
    """It is as long as the prompt, so that what follows it stands at the same columns."""
    model, batch = tiny(), prompts()
    steered = pa.wrap(model, tokenizer, make("head", model, tiny, "llama-gqa"))
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options |= {"negative_prompt_ids": batch["input_ids"].clamp_min(5).flip(1)}
    assert_alike(*both(steered, batch, guidance_scale=1.5, max_new_tokens=4, **options))


# ------------------------------------------------------------------ greedy


@pytest.mark.parametrize("which", CONTROLLERS)
def test_greedy_is_the_processor_path(which, both, tiny, tokenizer, prompts, architecture, make):
    model = tiny(architecture)
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, architecture))
    batch = prompts(rows=3, width=6)
    want = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    mine, theirs = both(steered, batch, max_new_tokens=6, **want)
    assert_alike(mine, theirs)
    bare = steered.generate(**batch, max_new_tokens=6)  # fused, no scores
    assert bare.tolist() == theirs.sequences.tolist()


OPTIONS = {
    "ends": {"eos_token_id": list(range(3, 60)), "pad_token_id": 2},
    "at-least": {"eos_token_id": list(range(3, 60)), "min_new_tokens": 4},
    "total": {"max_length": 9},
    "penalty": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": list(range(3, 100)), "bad_words_ids": [[101], [102, 103]]},
    "biased": {"sequence_bias": [[[7], 3.0]], "forced_eos_token_id": 9},
    "static": {"cache_implementation": "static"},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("which", ["nothing", "sum"])
def test_arguments_of_generate_mean_what_they_mean(
    which, options, both, tiny, tokenizer, prompts, make
):
    model = tiny("llama-gqa")
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    options = {"max_new_tokens": 7, **options}
    if "max_length" in options:
        del options["max_new_tokens"]
    mine, theirs = both(steered, prompts(), **options)
    assert mine.tolist() == theirs.tolist()
    if which == "nothing":
        assert mine.tolist() == model.generate(**prompts(), **options).tolist()


def test_prompts_without_a_mask(both, tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    mine, theirs = both(steered, {"input_ids": prompts()["input_ids"]}, max_new_tokens=5)
    assert mine.tolist() == theirs.tolist()


# ------------------------------------------------------------------ what surrounds the loop


class Streamed(BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], False

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.ended = True


class Stop(StoppingCriteria):
    """Ends row r after r + 2 new tokens."""

    def __init__(self, start):
        self.start, self.seen = start, []

    def __call__(self, input_ids, scores, **_):
        self.seen.append(None if scores is None else len(scores))
        rows = torch.arange(len(input_ids))
        return input_ids.shape[1] - self.start >= rows + 2


def test_streamer_and_stopping_criteria(tiny, tokenizer, prompts):
    model, outputs = tiny(), []
    for generate in (model.generate, pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"])).generate):
        streamer, stop = Streamed(), Stop(7)
        options = {"stopping_criteria": [stop], "streamer": streamer, "max_new_tokens": 20}
        ids = generate(
            **prompts(), **options, output_scores=True, return_dict_in_generate=True
        ).sequences
        outputs.append((ids.tolist(), streamer.got, streamer.ended, stop.seen))
    assert outputs[0] == outputs[1]
    assert outputs[1][3] == [1, 2, 3, 4]


def test_processors_of_the_caller_run_where_they_ran(both, tiny, tokenizer, prompts):
    class Mine(LogitsProcessor):
        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores):
            self.seen.append((tuple(input_ids.shape), scores.logsumexp(-1).abs().max().item()))
            return scores.roll(1, dims=1)

    processor = Mine()
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1)))
    options = {"logits_processor": [processor], "repetition_penalty": 1.3, "max_new_tokens": 4}
    mine, theirs = both(steered, prompts(), **options)
    assert mine.tolist() == theirs.tolist()
    assert [shape for shape, _ in processor.seen] == [(3, 7 + i) for i in range(4)] * 2
    assert max(total for _, total in processor.seen) < 1e-4  # log-probabilities, not logits


def test_the_cache_that_comes_back_can_be_read_on_from(both, tiny, tokenizer, prompts):
    model = tiny()
    for controller in (0 * pa.SelfDebias(["w5"]), pa.SelfDebias(["w5 w6", "w7"])):
        steered = pa.wrap(model, tokenizer, controller)
        options = {"max_new_tokens": 5, "return_dict_in_generate": True}
        mine, theirs = both(steered, prompts(), **options)
        for one, other in zip(
            mine.past_key_values.layers, theirs.past_key_values.layers, strict=True
        ):
            torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_read_once_for_all_its_samples(tiny, tokenizer, prompts):
    model, expert, read = tiny(), tiny(seed=1), []
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert))
    hook = lambda _, __, inputs: read.append(tuple(inputs["input_ids"].shape))  # noqa: E731
    for each in (model, expert):
        each.register_forward_pre_hook(hook, with_kwargs=True)
    steered.generate(**prompts(rows=2), num_return_sequences=3, do_sample=True, max_new_tokens=3)
    assert read == [(2, 7), (2, 7), (6, 1), (6, 1), (6, 1), (6, 1)]


# ------------------------------------------------------------------ sampling


WARPERS = {
    "plain": {"top_k": 0},
    "warm": {"top_k": 0, "temperature": 1.7, "top_p": 0.8},
    "nested": {"top_k": 9, "temperature": 1.4, "top_p": 0.9},
    "relative": {"top_k": 0, "temperature": 0.6, "top_p": 0.9, "min_p": 0.02},
    "all": {"top_k": 30, "temperature": 0.6, "top_p": 0.9, "min_p": 0.02},
    "typical": {"top_k": 0, "typical_p": 0.7},
}


@pytest.mark.parametrize("warpers", WARPERS.values(), ids=WARPERS)
@pytest.mark.parametrize("which", ["nothing", "dexperts", "self-debias", "low-rank"])
def test_samples_follow_the_processor_paths_distribution(
    which, warpers, both, tiny, tokenizer, prompts, make
):
    """The first token of many samples, against the softmax of the processor path's scores."""
    model, many = tiny(), 4000
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    options = {"do_sample": True, "max_new_tokens": 1, **warpers}
    batch = {k: v[2:3] for k, v in prompts().items()}
    torch.manual_seed(0)
    fused = steered.generate(**batch, **options, num_return_sequences=many)[:, -1]
    whole = {"output_scores": True, "return_dict_in_generate": True}
    mine, theirs = both(steered, batch, **options, **whole)
    torch.testing.assert_close(mine.scores[0].exp(), theirs.scores[0].exp(), atol=1e-4, rtol=1e-3)
    p = theirs.scores[0][0].double().softmax(-1).numpy()
    counts = np.bincount(fused.numpy(), minlength=len(p))
    assert counts[p == 0].sum() == 0
    common = many * p >= 5
    got, want = np.append(counts[common], counts[~common].sum()), many * p
    want = np.append(want[common], want[~common].sum())
    if len(got) > 2 or want[-1] > 0:
        got, want = got[want > 0], want[want > 0]
        assert stats.chisquare(got, want).pvalue > 1e-3


def test_later_tokens_are_drawn_after_the_earlier_ones(tiny, tokenizer, prompts, make):
    """Pairs of tokens against the product of two exact conditional distributions."""
    model, many = tiny(), 6000
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    batch = {k: v[1:2] for k, v in prompts().items()}
    options = {"do_sample": True, "top_k": 3, "temperature": 2.0}
    torch.manual_seed(1)
    pairs = steered.generate(**batch, **options, num_return_sequences=many, max_new_tokens=2)
    whole = {"output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 1}
    first = steered.generate(**batch, **options, **whole).scores[0][0].double().softmax(-1)
    counts, expected = [], []
    for a in first.nonzero().flatten():
        ids = torch.cat([batch["input_ids"], a[None, None]], 1)
        mask = torch.cat([batch["attention_mask"], torch.ones(1, 1, dtype=torch.long)], 1)
        then = steered.generate(ids, attention_mask=mask, **options, **whole)
        second = then.scores[0][0].double().softmax(-1)
        for b in second.nonzero().flatten():
            counts.append(int(((pairs[:, -2] == a) & (pairs[:, -1] == b)).sum()))
            expected.append(float(first[a] * second[b]) * many)
    counts, expected = np.array(counts), np.array(expected)
    assert counts.sum() == many
    keep = expected > 5
    scale = counts[keep].sum() / expected[keep].sum()
    assert stats.chisquare(counts[keep], expected[keep] * scale).pvalue > 1e-3


def test_manual_seed_decides_and_greedy_draws_nothing(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))

    def sample(seed):
        torch.manual_seed(seed)
        return steered.generate(**prompts(), do_sample=True, max_new_tokens=8).tolist()

    assert sample(4) == sample(4) != sample(5)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    steered.generate(**prompts(), max_new_tokens=2)
    steered.explain(do_sample=True, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("which", ["nothing", "dexperts", "self-debias", "head", "prefix"])
def test_coupled_noise_gives_the_same_tokens(which, both, tiny, tokenizer, prompts, make):
    model = tiny()
    steered = pa.wrap(model, tokenizer, make(which, model, tiny, "llama-gqa"))
    for settings in ({}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5, "temperature": 1.3}):
        outputs = []
        for whole in ({}, {"output_scores": True, "return_dict_in_generate": True}):
            samplers = [CoupledSampler(9, [4, 4, 2], [0, 1, 7], **settings) for _ in range(2)]
            mine, theirs = (
                output if torch.is_tensor(output) else output.sequences
                for output in both(
                    steered,
                    prompts(),
                    do_sample=False,
                    max_new_tokens=10,
                    logits_processor=samplers[:1],
                    **whole,
                )
            )
            outputs += [mine.tolist(), theirs.tolist()]
        assert outputs[1:] == outputs[:-1]


def test_a_sampler_for_other_rows_is_refused(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    with pytest.raises(ValueError, match="made for 2 rows and got 3"):
        sampler = CoupledSampler(0, [0, 1], [0, 0])
        steered.generate(**prompts(), max_new_tokens=2, logits_processor=[sampler])


# ------------------------------------------------------------------ trace, faults, explain


def test_a_trace_is_the_processor_paths(tiny, tokenizer, prompts, both):
    controller = pa.DExperts(tiny(seed=1)) + pa.SelfDebias(["w5 w6"])
    traces = [pa.Trace(), pa.Trace()]
    steered = pa.wrap(tiny(), tokenizer, controller)
    generate, steered.generate = steered.generate, None
    given = iter(traces)
    steered.generate = lambda **options: generate(**options, trace=next(given))
    both(steered, prompts(), max_new_tokens=5)
    mine, theirs = traces
    assert mine.names == theirs.names and len(mine.contributions) == 5
    for one, other in zip(mine.contributions, theirs.contributions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert torch.equal(torch.stack(mine.changed), torch.stack(theirs.changed))


BEYOND = {
    "beam search": {"num_beams": 2},
    "assisted generation": {"prompt_lookup_num_tokens": 2},
    "use_cache=False": {"use_cache": False},
    "custom_generate": {"custom_generate": lambda model, input_ids, **_: input_ids},
    "position_ids": {"position_ids": torch.zeros(1, 1, dtype=torch.long)},
    "the cache is offloaded": {"cache_implementation": "offloaded"},
    "stop_strings": {"stop_strings": ["w9"]},
}


@pytest.mark.parametrize("reason", BEYOND)
def test_explain_names_what_the_loop_does_not_do(reason, tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    got = steered.explain(max_new_tokens=3, **BEYOND[reason])
    assert got.startswith("the processor path") and reason in got


def test_explain_says_what_is_fused(tiny, tokenizer):
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(tiny(seed=1), top_p=0.8))
    filters = {"do_sample": True, "top_k": 7, "top_p": 0.6, "temperature": 0.5}
    got = steered.explain(max_new_tokens=3, repetition_penalty=1.2, **filters)
    assert "sampling" in got and "RepetitionPenalty" in got and "one fused draw" in got
    assert "top-p 0.8" in got and "top-k 7, top-p 0.6, at temperature 0.5" in got
    got = steered.explain(max_new_tokens=3, logits_processor=[TopKLogitsWarper(4)])
    assert "greedy" in got and "whole scores, for TopKLogitsWarper" in got


def test_a_model_with_inputs_of_its_own_takes_the_processor_path(tiny, tokenizer, prompts):
    model = tiny()
    kind = type(model)

    class Own(kind):
        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            return super().prepare_inputs_for_generation(input_ids, **kwargs)

    want = pa.wrap(model, tokenizer, pa.SelfDebias(["w5"])).generate(**prompts(), max_new_tokens=3)
    model.__class__ = Own
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5"]))
    assert "in a way of its own" in steered.explain(max_new_tokens=3)
    assert steered.generate(**prompts(), max_new_tokens=3).tolist() == want.tolist()


# ------------------------------------------------------------------ looking at a device seldom


@pytest.fixture
def seldom(monkeypatch):
    """The loop looks at end tokens and faults now and then, as on a device it would wait for."""
    from plugalign.engine.stopping import Stopping
    from plugalign.generation import decoding_method

    class Seldom(Stopping):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.deferred = True

    monkeypatch.setattr(decoding_method, "Stopping", Seldom)


@pytest.mark.parametrize("new", [3, 30])
def test_columns_behind_the_last_end_are_cut(new, seldom, both, tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5 w6"]))
    ends = {"eos_token_id": list(range(3, 60)), "pad_token_id": 2, "max_new_tokens": new}
    want = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    mine, theirs = both(steered, prompts(seed=6), **ends, **want)
    if new == 30:
        assert mine.sequences.shape[1] % 8, "it did not end where the loop looks anyway"
    assert mine.sequences.tolist() == theirs.sequences.tolist()
    assert len(mine.scores) == len(mine.logits) == len(theirs.scores)
    lengths = [out.past_key_values.get_seq_length() for out in (mine, theirs)]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("broken", [2, 5])
def test_a_fault_that_is_found_late_is_named(broken, seldom, tiny, tokenizer, prompts):
    anti = tiny(seed=2)

    def spoil(_, inputs, output):
        if inputs["past_key_values"].get_seq_length() == 7 + broken:
            output.logits[1] = float("nan")
        return output

    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(antiexpert=anti))
    anti.register_forward_hook(
        lambda module, args, inputs, output: spoil(module, inputs, output), with_kwargs=True
    )
    with pytest.raises(FloatingPointError, match=rf"NaN logits at step {broken} \(row 1\)"):
        steered.generate(**prompts(), max_new_tokens=6)


# ------------------------------------------------------------------ rows and heads


def forwards(model):
    """The shapes of token ids in the model's forwards, as they come; of its body where that runs
    by itself, which hooks on the model itself would prevent."""
    seen = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    return seen, handle


def test_prompts_and_prefixes_are_batched_with_the_base(tiny, tokenizer, prompts, make):
    model = tiny()
    batched = pa.SelfDebias(["w5 w6", "w7"]) + make("prefix-contrast", model, tiny, "llama-gqa")
    steered = pa.wrap(model, tokenizer, batched)
    steered.generate(**prompts(rows=2), max_new_tokens=1)  # finds out how the model is made
    seen, handle = forwards(model)
    steered.generate(**prompts(rows=2), max_new_tokens=3)
    assert seen == [(5 * 2, 7 + 2), (5 * 2, 1), (5 * 2, 1)]
    seen.clear()
    steered.generate(**prompts(rows=2), num_return_sequences=3, do_sample=True, max_new_tokens=2)
    assert seen == [(5 * 2, 7 + 2), (5 * 6, 1)]
    seen.clear()
    steered.generate(**prompts(rows=2), max_new_tokens=2, cache_implementation="static")
    assert sorted(rows for rows, _ in seen[:4]) == [2, 2, 2, 2 * 2]  # no rows can be added to it
    handle.remove()


def test_experts_heads_are_read_only_where_the_nucleus_is(
    tiny, tokenizer, prompts, monkeypatch, make
):
    from plugalign.kernels.head import Head

    monkeypatch.setattr("plugalign.kernels.head.GATHERED", 0)  # few, even of a small vocabulary
    whole, entries = [], []
    full, at = Head.full, Head.at
    monkeypatch.setattr(Head, "full", lambda *args: whole.append(1) or full(*args))
    monkeypatch.setattr(
        Head, "at", lambda head, row, token: entries.append(len(row)) or at(head, row, token)
    )
    model = tiny()
    steered = pa.wrap(model, tokenizer, make("dexperts", model, tiny, "llama-gqa"))
    steered.generate(**prompts(), max_new_tokens=3)
    assert len(whole) == 3 and len(entries) == 6  # the base's head; the experts' entries
    assert max(entries) < 3 * 120


WINDOWED = {  # sizes of a small Gemma
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 5,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def test_a_model_that_caps_its_logits_is_run_whole(both, tiny, tokenizer, prompts):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from plugalign.engine.readers.heads import SplitModels

    def gemma(seed):
        torch.manual_seed(seed)
        config = Gemma2Config(**WINDOWED, final_logit_softcapping=2.0)
        return Gemma2ForCausalLM(config).eval()

    model = gemma(0)
    assert SplitModels().get(model) is None and SplitModels().get(tiny()) is not None
    steered = pa.wrap(model, tokenizer, pa.DExperts(gemma(1)) + pa.SelfDebias(["w5 w6"]))
    mine, theirs = both(steered, prompts(), max_new_tokens=8)  # beyond the sliding window
    assert mine.tolist() == theirs.tolist()


def windowed(seed, window=5):
    """A Gemma 3 whose first layer has a sliding window, and no cap on its logits."""
    torch.manual_seed(seed)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**{**WINDOWED, "sliding_window": window}, layer_types=kinds)
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("prompted", [False, True])
def test_experts_are_rows_over_sliding_windows_too(prompted, both, tokenizer, prompts, monkeypatch):
    model, expert, anti = (windowed(seed) for seed in range(3))
    controller = pa.DExperts(expert, anti)
    if prompted:  # whose contexts are read apart
        controller = controller + pa.SelfDebias(["w5 w6"])
    steered = pa.wrap(model, tokenizer, controller)
    mine, theirs = both(steered, prompts(), max_new_tokens=12)
    assert mine.tolist() == theirs.tolist()
    assert steered.explain(max_new_tokens=12).count("rows of the base's forward") == 2
    _check_kept_cache(model, steered, prompts())
    ran, forward = [], type(model.model).forward
    monkeypatch.setattr(
        type(model.model), "forward", lambda s, *a, **k: ran.append(s) or forward(s, *a, **k)
    )
    steered.generate(**prompts(), max_new_tokens=12)
    assert ran and not any(body is m.model for m in (expert, anti) for body in ran)


# Three prompts of seven columns, two more for the context, and seven tokens.
@pytest.mark.parametrize(("window", "batched"), [(16, True), (15, False)])
def test_contexts_are_rows_while_windows_hold_all(window, batched, both, tokenizer, prompts):
    model = windowed(0, window)
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6", "w7"]))
    mine, theirs = both(steered, prompts(), max_new_tokens=7)
    assert mine.tolist() == theirs.tolist()
    _check_kept_cache(model, steered, prompts(), max_new_tokens=7)
    said = steered.explain(**prompts(), max_new_tokens=7)
    how = (
        "rows" if batched else "a forward of their own: 16 columns may be more than a window of 15"
    )
    assert f"the base in other contexts (2): {how}" in said
    seen, _ = forwards(model)
    steered.generate(**prompts(), max_new_tokens=7)
    assert {rows for rows, _ in seen} == ({9} if batched else {3, 6})


@pytest.mark.parametrize("window", [12, 16, 20])
def test_contexts_are_not_rows_where_local_attention_would_count_them(
    window, both, make, tiny, tokenizer, prompts
):
    """GPT-Neo's cache keeps every column, and its local layers attend to the last ones."""
    torch.manual_seed(0)
    kinds = [[["global", "local"], 1]]
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    config = GPTNeoConfig(**sizes, attention_types=kinds, window_size=window)
    model = GPTNeoForCausalLM(config).eval()
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6 w7 w8"], decay=3))
    steered_by_prefix = pa.wrap(
        model, tokenizer, pa.SelfDebias(["w5 w6"]) + make("prefix-contrast", model, tiny, "gpt-neo")
    )
    rows = prompts(rows=1)
    for each in (steered, steered_by_prefix):
        mine, theirs = both(each, rows, max_new_tokens=10)
        assert mine.tolist() == theirs.tolist()
    said = steered.explain(**rows, max_new_tokens=10)
    room = rows["input_ids"].shape[1] + 4 + 10 <= window
    assert ("contexts (1): rows of" in said) == room
    assert ("contexts (1): a forward of their own" in said) == (not room)


@pytest.mark.parametrize("window", [6, 9])
def test_a_prompt_over_windows_is_as_far_from_a_short_row_as_from_a_long_one(
    window, tokenizer, prompts
):
    """A window counts columns, so those that pad a row stand in front of its prompt."""
    steered = pa.wrap(windowed(0, window), tokenizer, pa.SelfDebias(["w5 w6 w7 w8"]))
    batch = prompts()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = steered.generate(**batch, **options)[:, -8:]
    pads = (batch["attention_mask"] == 0).sum(1).tolist()
    assert max(pads) > 1
    for row, pad in enumerate(pads):
        alone = {name: each[row : row + 1, pad:] for name, each in batch.items()}
        assert steered.generate(**alone, **options)[0, -8:].tolist() == together[row].tolist()


def _check_kept_cache(model, steered, inputs, max_new_tokens=12):
    """That a call leaves the base's cache as the base alone would."""
    options = {"return_dict_in_generate": True, "max_new_tokens": max_new_tokens}
    kept = steered.generate(**inputs, **options, do_sample=False).past_key_values
    alone = model.generate(**inputs, **options, do_sample=False).past_key_values
    assert kept.get_seq_length() == alone.get_seq_length()
    for ours, own in zip(kept.layers, alone.layers, strict=True):
        assert ours.keys.shape == own.keys.shape


def test_hooks_of_others_are_run(tiny, tokenizer, prompts):
    expert, calls = tiny(seed=1), []
    steered = pa.wrap(tiny(), tokenizer, pa.DExperts(expert))
    steered.generate(**prompts(), max_new_tokens=2)
    for module in (expert, expert.get_output_embeddings()):
        handle = module.register_forward_hook(lambda *_: calls.append(1))
        steered.generate(**prompts(), max_new_tokens=3)
        handle.remove()
    assert len(calls) == 6


def test_half_precision_stays_a_distribution(tiny, tokenizer, prompts, architecture):
    model, expert = tiny(architecture).bfloat16(), tiny(architecture, seed=1).bfloat16()
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert) + pa.SelfDebias(["w5"]))
    ids = steered.generate(**prompts(), max_new_tokens=5)
    assert ids.shape == (3, 12) and ids.dtype == torch.long


@pytest.mark.parametrize("kind", [bool, int, torch.tensor, lambda x: torch.full((3,), int(x))])
def test_criteria_may_answer_in_any_way(kind, tiny, tokenizer, prompts):
    class Short(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return kind(ids.shape[1] >= 10)

    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    ids = steered.generate(**prompts(), max_new_tokens=9, stopping_criteria=[Short()])
    assert ids.shape == (3, 10)


# ------------------------------------------------------------------ what explain takes


def test_explain_names_who_revises(tiny, tokenizer):
    critic = pa.SelfCritique(critique="w5", refine="w6", fault=" w7", fine=" w8")
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]) + critic)
    for beams in (1, 2):
        explained = steered.explain(max_new_tokens=3, num_beams=beams)
        assert explained.endswith("\nfinished answers are revised by SelfCritique")
    plain = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    assert "revised" not in plain.explain(max_new_tokens=3)


def test_explain_takes_what_generate_takes(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    explained = steered.explain(**prompts(), trace=pa.Trace(), max_new_tokens=3)
    assert explained.startswith("the owned loop")
    explained = steered.explain(prompts()["input_ids"], GenerationConfig(num_beams=2))
    assert explained.startswith("the processor path: beam search")


def test_a_folder_named_by_its_role_is_named_once(tiny, tokenizer, tmp_path):
    for role in ("expert", "antiexpert"):
        tiny(seed=1).save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    controller = pa.DExperts(tmp_path / "expert", tmp_path / "antiexpert")
    explained = pa.wrap(tiny(), tokenizer, controller).explain(max_new_tokens=3)
    assert "run at every step: the base, expert, antiexpert\n" in explained
