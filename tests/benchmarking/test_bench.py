"""The bench: parts of the right shape for any model, and honest rows."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    ASSISTANT,
    CLOSE,
    OPEN,
    SYSTEM,
    USER,
    make_chat_model,
    make_chat_tokenizer,
    make_model,
    make_tokenizer,
)
from typer.testing import CliRunner

from plugalign.algebra.supports import TopK
from plugalign.benchmarking import bench, timed_call
from plugalign.benchmarking.bench import apart, generation, random_prompts, run_bench
from plugalign.benchmarking.costs import failures, table
from plugalign.benchmarking.floors import step_bytes
from plugalign.benchmarking.stopwatch import WRAPPED_CALLS, Rerun, Stopwatch, timed
from plugalign.benchmarking.untrained import untrained
from plugalign.catalogue import METHODS, UNTRAINED
from plugalign.cli import app
from plugalign.engine.acceleration import captured_step, packed
from plugalign.engine.batching.batched_base import BatchedBase
from plugalign.engine.plan import Plan, make_plan
from plugalign.engine.sources import SourceRunner
from plugalign.generation.wrap import wrap
from plugalign.kernels.product import can_pack


def test_every_method_of_the_catalogue_can_be_timed(tiny):
    for method in METHODS:
        assert method.untrained
        for variant in method.untrained:
            assert untrained(variant, tiny()).name == method.name


# Methods whose parts are not made from the configuration or layers of the base: one will do.
ALIKE = ("none", "fudge", "lm_arithmetic", "self_critique", "self_debias", "self_debias_2")
CASES = [
    (method, architecture)
    for method in UNTRAINED
    for architecture in (ARCHITECTURES[:1] if method in ALIKE else ARCHITECTURES)
]


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_untrained_parts_steer_any_architecture(method, tiny, tokenizer, prompts, architecture):
    model = tiny(architecture)
    controller = untrained(method, model)
    output = wrap(model, tokenizer, controller).generate(**prompts(), max_new_tokens=3)
    assert output.shape == (3, 10)


def test_rows_are_complete_and_written(tiny, tokenizer, tmp_path):
    out = tmp_path / "deep" / "bench.json"
    costs = run_bench(
        tiny(),
        tokenizer,
        ["none", "self_debias"],
        batches=(1, 2),
        new_tokens=3,
        prompt_tokens=4,
        rounds=3,
        threads=1,
        out=out,
    )
    rows = json.loads(out.read_text())
    assert [(r["method"], r["batch"]) for r in rows] == [
        ("none", 1),
        ("self_debias", 1),
        ("none", 2),
        ("self_debias", 2),
    ]
    for row in rows:
        assert row["ms_per_token"] > 0 and row["low"] <= row["ratio_to_plain"] <= row["high"]
        assert row["ratio_to_loop"] > 0 and row["path"] == "loop"
        assert min(row["base_ms"], row["tail_ms"], row["host_ms"]) > 0
        assert (row["rows_ms"] is not None) and row["auxiliary_ms"] >= 0
        assert row["floor_share"] == pytest.approx(
            row["floor_ms"] / (row["ms_per_token"] * row["batch"])
        )
        assert row["plain_ms_per_token"] > 0 and row["peak_gib"] is None
        assert row["rounds"] == 3 and row["threads"] == 1 and row["model"] == "LlamaForCausalLM"
    assert [row["ratio_to_loop"] for row in rows[::2]] == [1.0, 1.0]
    assert table(costs).row_count == 4


SHORT = {"batches": (1,), "new_tokens": 3, "prompt_tokens": 4, "rounds": 1}


def test_self_debiasing_has_its_own_prefixes_and_their_rows_a_column(tiny, tokenizer):
    assert len(untrained("self_debias", tiny()).prefixes) == 6
    assert len(untrained("self_debias_2", tiny()).prefixes) == 2
    model = tiny()
    call = generation(untrained("self_debias", model), model, tokenizer)
    parts = call.parts(random_prompts(model, 2, 4), 3)
    assert parts["rows_ms"] > parts["base_ms"]  # of which the base has no forward of its own
    (none,) = run_bench(model, tokenizer, ["none"], **SHORT)
    assert none.rows_ms == 0
    alone = replace(none, base_ms=3.0)
    assert apart({"base_ms": 0.0, "rows_ms": 5.0}, alone) == {"base_ms": 3.0, "rows_ms": 2.0}
    assert apart({"base_ms": 0.0, "rows_ms": 2.0}, alone) == {"base_ms": 2.0, "rows_ms": 0.0}
    assert apart({"base_ms": 0.0, "rows_ms": 2.0}, None) == {"base_ms": 0.0, "rows_ms": 2.0}


def test_a_method_that_fails_leaves_the_others_alone(tiny, tokenizer, tmp_path, monkeypatch):
    made, out = [], tmp_path / "bench.json"

    def make(method, model, config):
        if method == "fudge_head":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 40 GiB")
        gc.collect()
        assert all(there() is None for there in made)
        controller = untrained(method, model, config)
        made.append(weakref.ref(controller))
        return controller

    monkeypatch.setattr(bench, "untrained", make)
    rows = run_bench(tiny(), tokenizer, ["nullspace", "fudge_head", "prefix"], **SHORT, out=out)
    assert [row.method for row in rows] == ["nullspace", "fudge_head", "prefix"]
    assert rows[1].error == "OutOfMemoryError: CUDA out of memory."
    assert failures(rows) == ["fudge_head, batch 1: OutOfMemoryError: CUDA out of memory."]
    assert [row.get("error") for row in json.loads(out.read_text())] == [None, rows[1].error, None]
    assert table(rows).row_count == 3 and len(made) == 3  # with the loop alone


def test_a_call_that_fails_is_not_made_again(tiny, tokenizer):
    model, asked = tiny(), []

    class Broken:
        base, steered = model, True

        def __call__(self, prompts, new_tokens):
            asked.append(new_tokens)
            raise FloatingPointError("NaN")

    calls = {"plain": generation(None, model, tokenizer), "broken": Broken()}
    warming = {"plain": 0, "broken": 1}
    prompts = random_prompts(model, 1, 4)
    found = timed_call.interleaved(calls, prompts, 2, 3, warming)
    assert len(found.seconds["plain"]) == 3 and len(asked) == 1
    assert found.failed == {"broken": "FloatingPointError: NaN"}


def test_captured_steps_are_watched_as_they_are_timed(tiny, tokenizer, monkeypatch):
    graphs = []
    monkeypatch.setattr(captured_step, "graph_on", lambda *_: graphs.append(Rerun()) or graphs[-1])
    monkeypatch.setattr(captured_step, "MIN_TOKENS", 1)
    settings = SHORT | {"new_tokens": 6, "compiled": False}
    costs = run_bench(tiny(), tokenizer, ["dexperts"], captures=("on", "off"), **settings)
    on, off = costs
    assert (on.capture, on.path, on.cache) == ("on", "graph", "static")
    assert (off.capture, off.path, off.cache) == ("off", "loop", "dynamic")
    model, made = tiny(), len(graphs)
    call = generation(untrained("dexperts", model), model, tokenizer).capturing("on")
    parts = call.behind("static", False).parts(random_prompts(model, 2, 4), 6)
    assert parts["path"] == "graph" and len(graphs) > made
    # The experts are batched in the forward of the base, in replays too, and the draw is seen.
    assert parts["rows_ms"] > parts["auxiliary_ms"] and parts["tail_ms"] > 0


def test_plain_generate_with_a_static_cache_is_a_row(tiny, tokenizer):
    (plain,) = run_bench(tiny(), tokenizer, ["plain_static"], **SHORT)
    assert (plain.path, plain.capture, plain.base_ms) == ("generate", None, None)
    assert plain.ratio_to_plain > 0 and plain.floor_share > 0


def test_warming_up_ends_when_steps_are_recorded(tiny, tokenizer, prompts):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [timed_call.warming_rounds(n, cpu) for n in (1, 2, 4, 6, 64)] == [1, 5, 2, 1, 1]
    assert [timed_call.warming_rounds(n, cpu) for n in (8, 9, 10, 11, 12, 13)] == [1, 5, 3, 2, 2, 1]
    assert [timed_call.warming_rounds(n, gpu) for n in (1, 2, 64)] == [1, 1, 1]
    call = generation(untrained("none", tiny()), tiny(), tokenizer)
    for _ in range(2):
        call(prompts(), 4)
    body = call.base.base_model
    (recording,) = call.generator.split_models.recorder.recordings_of(body).values()
    assert recording._graph is not None and recording._proofs == 0


def test_warming_up_ends_when_steps_of_packed_weights_are_recorded(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(packed, "LEAST", 1)
    model = tiny()
    call, new_tokens = generation(untrained("none", model), model, tokenizer), packed.AFTER + 1
    for _ in range(timed_call.warming_rounds(new_tokens, model.device)):
        call(random_prompts(model, 2, 4), new_tokens)
    recordings = call.generator.split_models.recorder.recordings_of(call.base.base_model)
    assert len(recordings) == 1 + any(map(can_pack, model.parameters()))
    assert all(each._graph is not None and each._proofs == 0 for each in recordings.values())


def test_experts_of_another_shape(tiny, tokenizer):
    config = tiny("gpt2-tied").config
    controller = untrained("dexperts", tiny(), config)
    assert type(controller.expert).__name__ == "GPT2LMHeadModel"
    (cost,) = run_bench(tiny(), tokenizer, ["dexperts"], expert_config=config, **SHORT)
    assert cost.auxiliary_ms > 0


def test_a_step_reads_weights_once_and_the_caches_of_all_rows(tiny, tokenizer):
    model = tiny()
    total = sum(p.nbytes for p in model.parameters())
    read = total - model.get_input_embeddings().weight.nbytes  # the head is a matrix of its own
    column = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their width, bytes
    assert step_bytes(model, Plan(()), 3, 10) == read + 3 * 10 * column

    def plan(method, of=model):
        return make_plan(untrained(method, of), of, tokenizer)

    debias = plan("self_debias_2")
    lengths = [10, *(10 + len(source.context.ids) for source in debias.contexts.values())]
    assert step_bytes(model, debias, 3, 10) == read + 3 * sum(lengths) * column
    assert step_bytes(model, plan("dexperts"), 3, 10) == 3 * (read + 3 * 10 * column)
    lora, caches = step_bytes(model, plan("dexperts_lora"), 3, 10), 3 * 3 * 10 * column
    widths = [32 + 32, 32 + 16, 32 + 16, 32 + 32, 3 * (32 + 48)]
    assert lora == read + caches + 2 * 2 * sum(widths) * 16 * 4  # experts, layers, rank, bytes
    tied = tiny("gpt2-tied")
    whole = sum(p.nbytes for p in tied.parameters())
    assert step_bytes(tied, Plan(()), 1, 0) == whole
    assert step_bytes(model, plan("pplm"), 1, 10) is None


def test_a_step_reads_a_scorer_once_and_its_embedding_for_each_candidate(tiny, tokenizer):
    model, controller = tiny(), untrained("fudge", tiny())
    controller.support = TopK(7)
    body, width = controller.predictor.backbone, controller.predictor.shape["width"]
    embedding = body.get_input_embeddings().weight.nbytes
    weights = sum(p.nbytes for p in body.parameters()) - embedding
    column = 2 * 2 * width * 4  # layers, keys and values, width, bytes
    alone = step_bytes(model, Plan(()), 3, 10)
    steered = step_bytes(model, make_plan(controller, model, tokenizer), 3, 10)
    assert steered - alone == weights + 3 * (10 * column + 7 * width * 4)


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


def test_a_cache_that_the_model_would_take_by_itself_is_not_taken(tiny, tokenizer, monkeypatch):
    model = tiny()
    model.generation_config.cache_implementation = "static"
    monkeypatch.setattr(
        type(model), "_prepare_static_cache", lambda *_, **__: pytest.fail("a static cache")
    )
    (cost,) = run_bench(model, tokenizer, ["none"], **SHORT)
    assert (cost.cache, cost.plain_cache) == ("dynamic", "dynamic")


def test_a_row_says_whether_its_own_models_may_be_compiled(tiny, tokenizer):
    model, asked = tiny(), []
    generate = model.generate
    model.generate = lambda **k: asked.append(k.get("disable_compile")) or generate(**k)
    settings = SHORT | {"cache": "static", "compiled": False}
    plain, none = run_bench(model, tokenizer, ["plain_static", "none"], **settings)
    assert plain.compiled and not none.compiled
    assert False in asked  # of the static cache; the loop's own call is not the model's


def test_what_would_not_be_compiled_anyway_cannot_be_kept_from_it(tiny, tokenizer):
    with pytest.raises(ValueError, match=r"no call has one; leave --no-compile out"):
        run_bench(tiny(), tokenizer, ["none"], compiled=False, **SHORT)


def test_tokens_drafted_while_warming_up_do_not_count(tiny, tokenizer):
    settings = SHORT | {"new_tokens": 8, "rounds": 1}
    call = generation(untrained("none", tiny()), tiny(), tokenizer).drafting("base", 3)
    drafted = []
    for warming in (0, 2):
        prompts = random_prompts(call.base, 1, settings["prompt_tokens"])
        found = timed_call.interleaved({"one": call}, prompts, 8, 1, {"one": warming})
        assert len(found.seconds["one"]) == 1
        drafted.append(call.speculation.drafted)
        call.acceptance()
    assert drafted[0] == drafted[1] > 0


def test_rows_name_the_configuration_of_models_beside_the_base(tiny, tokenizer):
    config = tiny().config
    config.name_or_path = "folder/small"
    named, without = (
        run_bench(tiny(), tokenizer, ["dexperts"], expert_config=each, **SHORT)[0].expert_config
        for each in (config, None)
    )
    assert (named, without) == ("small", None)


def test_there_is_no_floor_where_drafts_decide_how_often_experts_are_read(tiny, tokenizer):
    settings = SHORT | {"new_tokens": 8, "draft": "base"}
    drafted, fudge = run_bench(tiny(), tokenizer, ["dexperts", "fudge"], **settings)
    assert drafted.acceptance is not None
    assert drafted.floor_ms is None and drafted.floor_share is None
    assert fudge.acceptance is None and fudge.floor_ms > 0  # it cannot be drafted


def test_drafts_are_reported_where_they_can_be_verified(tiny, tokenizer):
    costs = run_bench(
        tiny(),
        tokenizer,
        ["none", "nullspace", "fudge"],
        batches=(1,),
        new_tokens=12,
        prompt_tokens=4,
        rounds=1,
        draft="base",
        draft_tokens=3,
    )
    plain, shifted, fudge = (cost.acceptance for cost in costs)
    assert plain == 1 and 0 <= shifted < 1 and fudge is None
    drafts = [(cost.draft, cost.draft_tokens) for cost in costs]
    assert drafts == [("base", 3), ("base", 3), (None, None)]
    (static,) = run_bench(
        tiny(),
        tokenizer,
        ["none"],
        batches=(1,),
        new_tokens=3,
        prompt_tokens=4,
        rounds=1,
        draft="prompt",
        cache="static",
        compiled=False,
    )
    assert static.acceptance is None
    with pytest.raises(ValueError, match=r'draft must be "base", "prompt" or a model'):
        run_bench(tiny(), tokenizer, ["none"], draft="bse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'; known are none, args"),
        ({"cache": "sliding"}, "cache must be dynamic or static, got 'sliding'"),
        ({"captures": ("on", "yes")}, "capture must be auto or on or off, got 'yes'"),
        ({"methods": []}, "there is no method to time; give at least one"),
        ({"captures": ()}, "there is no capture to time; give at least one"),
        ({"batches": ()}, "there is no batch size to time; give at least one"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batches": (1, -8)}, "batch must be at least 1, got -8"),
    ],
)
def test_refuses_bad_settings(options, message, tiny, tokenizer):
    with pytest.raises(ValueError, match=message):
        run_bench(tiny(), tokenizer, **options)


def test_the_command_tells_what_failed(tiny, tokenizer, tmp_path):
    model, out = tmp_path / "model", tmp_path / "bench.json"
    tiny("gpt2-tied").config.save_pretrained(model)
    tokenizer.save_pretrained(model)
    command = ["bench", "--model", model, "--expert-config", model, "--random-weights"]
    command += ["--out", out]
    small = ["--methods", "dexperts", "--batch", 1, "--new-tokens", 3, "--rounds", 1]
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    done = runner.invoke(app, list(map(str, [*command, *small, "--capture", "off,on"])))
    off, on = json.loads(out.read_text())
    assert (off["method"], off["capture"], off["path"]) == ("dexperts", "off", "loop")
    assert on["capture"] == "on" and "no step can be captured" in on["error"]
    assert done.exit_code == 1 and "dexperts, batch 1, capture on: ValueError" in done.output
    done = runner.invoke(app, list(map(str, [*command, *small])))
    assert done.exit_code == 0 and "failed" not in done.output


def test_a_length_of_drafts_without_drafts_is_refused():
    done = CliRunner().invoke(app, ["bench", "--draft-tokens", "6"])
    assert "--draft-tokens 6 has no use without --draft base or prompt" in str(done.exception)


def test_time_counts_for_the_innermost_part():
    watch = Stopwatch(torch.device("cpu"), iter([0, 1, 3, 6, 10, 15, 21]).__next__)
    watch.enter("tail")  # at 1
    watch.enter("auxiliary")  # at 3
    watch.enter("base")  # at 6, for a source
    watch.leave()
    watch.leave()  # at 15
    watch.leave()
    assert watch.seconds == {"base": 0, "rows": 0, "auxiliary": 12, "tail": 2 + 6, "host": 1}


PARTS = {
    "none": {"base", "tail", "host"},
    "fudge": {"base", "auxiliary", "tail", "host"},
    "dexperts": {"rows", "tail", "host"},
    "self_critique": {"base", "auxiliary", "tail", "host"},
}


@pytest.mark.parametrize("method", PARTS)
def test_parts_add_up_to_the_call_on_both_paths(method, tiny, tokenizer, monkeypatch):
    model = tiny()
    call = generation(untrained(method, model), model, tokenizer)
    prompts = random_prompts(model, 2, 4)
    parts = call.parts(prompts, 3)
    assert parts.pop("path") == "loop"
    found = {part.removesuffix("_ms") for part, time in parts.items() if time > 1e-4}
    assert PARTS[method] <= found
    for module in ("wrap", "explanation"):
        monkeypatch.setattr(f"plugalign.generation.{module}.obstacle", lambda *_: "a test")
    assert call.parts(prompts, 3)["path"] == "processor"
    with timed(model, loop=False) as watch:
        call(prompts, 3)
    assert min(watch.seconds["base"], watch.seconds["tail"]) > 0


def test_watching_leaves_experts_in_the_forward_of_the_base(tiny, tokenizer, monkeypatch):
    model = tiny()
    call = generation(untrained("dexperts", model), model, tokenizer)
    alone = "an expert ran by itself"
    monkeypatch.setattr(SourceRunner, "read", lambda *_: pytest.fail(alone))
    assert call.parts(random_prompts(model, 2, 4), 6)["path"] == "loop"


def test_nothing_stays_wrapped(tiny, tokenizer):
    model = tiny()
    before = [getattr(owner, name) for owner, name, _ in WRAPPED_CALLS]
    with pytest.raises(ZeroDivisionError), timed(model, loop=False):
        assert BatchedBase.read is not before[0] and "forward" in vars(model)
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name, _ in WRAPPED_CALLS] == before
    assert "forward" not in vars(model)


def test_prompts_are_what_a_user_says_in_a_chat(tmp_path):
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    seen = []

    def note(_, args, kwargs):
        seen.extend(kwargs["input_ids"].tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    out = tmp_path / "costs.json"
    (cost,) = run_bench(model, tokenizer, ["none"], **SHORT, system="w9", out=out)
    assert cost.chat
    front, behind = [OPEN, SYSTEM, 12, CLOSE, OPEN, USER], [CLOSE, OPEN, ASSISTANT]
    said = [row[len(front) : -len(behind)] for row in seen if len(row) > 1]
    assert said and {len(row) for row in said} == {cost.prompt_tokens}
    assert all(row[: len(front)] == front for row in seen if len(row) > 1)
    assert all(row[-len(behind) :] == behind for row in seen if len(row) > 1)
    assert json.loads(out.read_text())[0]["chat"] is True
    (off,) = run_bench(model, tokenizer, ["none"], **SHORT, chat="off")
    assert not off.chat
    for options, message in (
        ({"chat": "on"}, "has no chat template"),
        ({"new_tokens": 126}, "more than the context"),
    ):
        with pytest.raises(ValueError, match=message):
            run_bench(make_model(), make_tokenizer(), ["none"], **SHORT | options)
