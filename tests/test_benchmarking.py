"""The bench: parts of the right shape for any model, and honest rows."""

import json

import pytest

from plugalign.benchmarking import MAKERS, run_bench, table, untrained
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
        assert row["rounds"] == 3 and row["threads"] == 1 and row["model"] == "LlamaForCausalLM"
    assert table(costs).row_count == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'; known are none, fudge"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batches": (1, -8)}, "batch must be at least 1, got -8"),
    ],
)
def test_refuses_bad_settings(options, message, tiny, tokenizer):
    with pytest.raises(ValueError, match=message):
        run_bench(tiny(), tokenizer, **options)
