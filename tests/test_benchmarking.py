"""The bench: parts of the right shape for any model, and honest rows."""

import json

import pytest
import torch

from plugalign.benchmarking import generation, random_prompts, run_bench
from plugalign.costs import table
from plugalign.engine.rows import BaseRows
from plugalign.engine.sources import SourceRunner
from plugalign.stopwatch import SEAMS, Stopwatch, timed
from plugalign.untrained import MAKERS, untrained
from plugalign.wrapping import wrap


@pytest.mark.parametrize("method", MAKERS)
def test_untrained_parts_steer_any_architecture(method, tiny, tokenizer, prompts, architecture):
    model = tiny(architecture)
    controller = untrained(method, model, tokenizer)
    output = wrap(model, tokenizer, controller).generate(**prompts(), max_new_tokens=3)
    assert output.shape == (3, 10)


def test_rows_are_complete_and_written(tiny, tokenizer, tmp_path):
    out = tmp_path / "deep" / "bench.json"
    costs = run_bench(
        tiny(), tokenizer, ["none", "self_debias"], batches=(1, 2), new_tokens=3,
        prompt_tokens=4, rounds=3, threads=1, out=out,
    )  # fmt: skip
    rows = json.loads(out.read_text())
    assert [(r["method"], r["batch"]) for r in rows] == [
        ("none", 1), ("self_debias", 1), ("none", 2), ("self_debias", 2),
    ]  # fmt: skip
    for row in rows:
        assert row["ms_per_token"] > 0 and row["low"] <= row["ratio_to_plain"] <= row["high"]
        assert row["ratio_to_loop"] > 0 and row["path"] == "loop"
        assert min(row["base_ms"], row["tail_ms"], row["host_ms"]) > 0
        assert row["rounds"] == 3 and row["threads"] == 1 and row["model"] == "LlamaForCausalLM"
    assert table(costs).row_count == 4


def test_caches_are_chosen_apart_for_plain_generate(tiny, tokenizer, monkeypatch):
    model, asked = tiny(), []
    prepare = type(model)._prepare_static_cache
    monkeypatch.setattr(
        type(model), "_prepare_static_cache", lambda *a, **k: asked.append(1) or prepare(*a, **k)
    )
    settings = {"batches": (1,), "new_tokens": 3, "prompt_tokens": 4, "rounds": 1}
    (cost,) = run_bench(model, tokenizer, ["none"], cache="static", compiled=False, **settings)
    assert (cost.cache, cost.plain_cache, cost.compiled) == ("static", "dynamic", False)
    steered = len(asked)
    run_bench(model, tokenizer, ["none"], plain_cache="static", **settings)
    assert 0 < len(asked) - steered < steered


def test_drafts_are_reported_where_they_can_be_verified(tiny, tokenizer):
    costs = run_bench(
        tiny(), tokenizer, ["none", "nullspace", "fudge"], batches=(1,), new_tokens=12,
        prompt_tokens=4, rounds=1, draft="base", draft_tokens=3,
    )  # fmt: skip
    plain, shifted, fudge = (cost.acceptance for cost in costs)
    assert plain == 1 and 0 <= shifted < 1 and fudge is None
    (static,) = run_bench(
        tiny(), tokenizer, ["none"], batches=(1,), new_tokens=3, prompt_tokens=4, rounds=1,
        draft="prompt", cache="static", compiled=False,
    )  # fmt: skip
    assert static.acceptance is None
    with pytest.raises(ValueError, match=r'draft must be "base", "prompt" or a model'):
        run_bench(tiny(), tokenizer, ["none"], draft="bse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'; known are none, fudge"),
        ({"cache": "sliding"}, "cache must be dynamic or static, got 'sliding'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batches": (1, -8)}, "batch must be at least 1, got -8"),
    ],
)
def test_refuses_bad_settings(options, message, tiny, tokenizer):
    with pytest.raises(ValueError, match=message):
        run_bench(tiny(), tokenizer, **options)


def test_time_counts_for_the_innermost_part(monkeypatch):
    clock = iter([0, 1, 3, 6, 10, 15, 21])
    monkeypatch.setattr(Stopwatch, "_now", lambda _: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    watch.enter("tail")  # at 1
    watch.enter("auxiliary")  # at 3
    watch.enter("base")  # at 6, for a source
    watch.leave()
    watch.leave()  # at 15
    watch.leave()
    assert watch.seconds == {"base": 0, "auxiliary": 12, "tail": 2 + 6, "host": 1}


PARTS = {
    "none": {"base", "tail", "host"},
    "fudge": {"base", "auxiliary", "tail", "host"},
    "dexperts": {"base", "tail", "host"},
    "self_critique": {"base", "tail", "host"},
}


@pytest.mark.parametrize("method", PARTS)
def test_parts_add_up_to_the_call_on_both_paths(method, tiny, tokenizer, monkeypatch):
    model = tiny()
    call = generation(untrained(method, model, tokenizer), model, tokenizer)
    prompts = random_prompts(model, 2, 4)
    parts = call.parts(prompts, 3)
    assert parts.pop("path") == "loop"
    found = {part.removesuffix("_ms") for part, time in parts.items() if time > 1e-4}
    assert PARTS[method] <= found
    for module in ("wrapping", "engine.routing"):
        monkeypatch.setattr(f"plugalign.{module}.obstacle", lambda *_: "a test")
    assert call.parts(prompts, 3)["path"] == "processor"
    with timed(model, loop=False) as watch:
        call(prompts, 3)
    assert min(watch.seconds["base"], watch.seconds["tail"]) > 0


def test_watching_leaves_experts_in_the_forward_of_the_base(tiny, tokenizer, monkeypatch):
    model = tiny()
    call = generation(untrained("dexperts", model, tokenizer), model, tokenizer)
    alone = "an expert ran by itself"
    monkeypatch.setattr(SourceRunner, "_ask", lambda *_: pytest.fail(alone))
    assert call.parts(random_prompts(model, 2, 4), 6)["path"] == "loop"


def test_nothing_stays_wrapped(tiny, tokenizer):
    model = tiny()
    before = [getattr(owner, name) for owner, name, _ in SEAMS]
    with pytest.raises(ZeroDivisionError), timed(model, loop=False):
        assert BaseRows.read is not before[0] and "forward" in vars(model)
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name, _ in SEAMS] == before
    assert "forward" not in vars(model)
