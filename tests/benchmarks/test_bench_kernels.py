"""The kernels' benchmark: equal work on both sides, an honest file, clear refusals."""

import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy import stats
from typer.testing import CliRunner

SUITE = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
ROWS = 20000
NAMES = (
    "dexperts_top_p",
    "dexperts",
    "dexperts_greedy",
    "dexperts_scores",
    "self_debias_2",
    "self_debias_6",
    "top_p",
    "plain",
    "row_lse",
    "topk_select",
    "fudge",
    "candidate_sample",
    "group_lora",
    "spec_verify",
)
RANDOM = (
    "dexperts_top_p",
    "dexperts",
    "self_debias_2",
    "self_debias_6",
    "top_p",
    "plain",
    "fudge",
    "candidate_sample",
    "spec_verify",
)


@pytest.fixture(scope="module")
def suite():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SUITE))
        yield importlib.import_module("bench_kernels")


@pytest.fixture(scope="module")
def agreement(suite):
    return importlib.import_module("kernel_agreement").agreement


@pytest.fixture
def command(suite):
    app = typer.Typer()
    app.command()(suite.main)
    # Wide, so that no message is broken into lines.
    return partial(CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke, app)


def operation(suite, name):
    return next(o for o in suite.OPERATIONS if o.name == name)


def test_a_tiny_run_measures_every_operation(command, tmp_path):
    out = tmp_path / "deep" / "kernels.json"
    done = command(
        ["--device", "cpu", "--batch", "2", "--vocab", "1000", "--rounds", "2", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert tuple(row["operation"] for row in report["results"]) == NAMES
    assert report["left"] == [] and not out.with_name("kernels.json.part").exists()
    for row in report["results"]:
        assert (row["batch"], row["vocab"], row["equal_to_twin"]) == (2, 1000, 1.0)
        assert row["gap_to_twin"] == 0 and row["wrong"] is False
        for timed in (row["ours"], row["eager"], row["times_eager"]):
            assert 0 < timed["low"] <= timed["median"] <= timed["high"]
        assert row["times_floor"] == pytest.approx(row["ours"]["median"] / row["floor"])
        assert row["floor"] == pytest.approx(row["bytes"] / row["copy_gb_per_s"] / 1e3)
        assert row["operation"] in done.output and "compiled" not in row
    facts = report["conditions"]
    assert facts["device"] and facts["versions"]["torch"] == torch.__version__
    assert (facts["dtype"], facts["threads"], facts["rounds"]) == ("float32", 1, 2)
    assert facts["clock"] == "process time" and len(facts["load_at_end"]) == 3


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(RANDOM)))
def test_eager_formulas_compute_what_the_operations_do(suite, name):
    case = partial(suite.Case, 5, 1000, torch.float32, CPU, 1.3)
    found = suite.correctness(operation(suite, name), case)
    assert found["equal_to_eager"] == 1 and found["gap_to_eager"] < 1e-4
    assert found["equal_to_twin"] == 1 and found["gap_to_twin"] == 0 and not found["wrong"]


@pytest.mark.parametrize("name", RANDOM)
def test_eager_formulas_draw_from_the_operations_law(suite, agreement, name):
    class OneRow(suite.Case):
        """All rows are alike, so that the tokens of a batch are draws from one law."""

        def rows(self, *shape):
            return self.normal(1, *shape).repeat(self.batch, *[1] * len(shape))

        def drawn(self, logits):
            return super().drawn(logits[:1]).repeat(self.batch, 1)

    torch.manual_seed(5)
    one = operation(suite, name)
    call = one.build(OneRow(ROWS, 40, torch.float32, CPU, 1.3, seed=3))
    results = call.ours("torch"), one.eager(*call.eager)
    assert agreement(*results)[1] < 1e-4  # what is not drawn, where there is such
    counts = np.array([np.bincount(outcomes(x), minlength=400) for x in results])
    rare = counts.sum(0) < 20
    bins = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    bins = bins[:, bins.sum(0) > 0]
    assert bins.shape[1] > 3
    assert stats.chi2_contingency(bins).pvalue > 1e-3


def outcomes(result):
    """One whole number for what each row has drawn: its token, and what `spec_verify` accepted."""
    drawn = [x for x in ([result] if torch.is_tensor(result) else result) if x.dtype == torch.int64]
    return sum(x * 40**place for place, x in enumerate(reversed(drawn))).numpy()


def test_what_is_left_when_the_budget_is_spent(suite, command, tmp_path):
    out = tmp_path / "kernels.json"
    done = command(
        [
            "--device",
            "cpu",
            "--batch",
            "1,2",
            "--vocab",
            "50,60",
            "--rounds",
            "1",
            "--only",
            "row_lse,candidate_sample",
            "--budget",
            "1e-9",
            "--out",
            str(out),
        ]
    )
    report = json.loads(out.read_text())
    # candidate_sample knows no vocabulary, so it comes twice and row_lse four times.
    assert done.exit_code == 0 and "6 of 6 left" in done.output
    assert report["results"] == [] and len(report["left"]) == 6
    assert report["left"][0] == {"operation": "row_lse", "batch": 1, "vocab": 50}


def test_important_sizes_come_first(suite):
    one = [operation(suite, "plain")]
    grid = [(1, 128256), (2, 50), (8, 50257), (64, 128256)]
    work = suite.plan(one, grid)
    assert [size for _, size, _ in work] == [(64, 128256), (8, 50257), (1, 128256), (2, 50)]
    assert [own_shape for *_, own_shape in work] == [True, True, False, False]


def test_failures_are_recorded_and_the_run_goes_on(suite, command, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr("kernel_operations.row_lse", refuse)
    out = tmp_path / "kernels.json"
    done = command(
        [
            "--device",
            "cpu",
            "--batch",
            "2",
            "--vocab",
            "50",
            "--rounds",
            "1",
            "--compile",
            "--only",
            "row_lse,plain",
            "--out",
            str(out),
        ]
    )
    lse, plain = json.loads(out.read_text())["results"]
    assert done.exit_code == 1 and "failed" in done.output
    assert lse["error"] == "RuntimeError: no compiler here" and lse["wrong"]
    assert plain["compiled"] == {"error": "RuntimeError: no compiler here"}
    assert plain["times_eager"]["median"] > 0 and "times_compiled" not in plain


def test_disagreement_counts_as_wrong(suite, agreement):
    one = operation(suite, "dexperts_scores")
    broken = suite.Operation("off", one.build, lambda *x: one.eager(*x) + 0.1, one.traffic, False)
    case = partial(suite.Case, 2, 50, torch.float32, CPU, 1.3)
    assert suite.correctness(broken, case)["wrong"]
    nan, minus = torch.tensor([float("nan")]), torch.tensor([float("-inf")])
    assert agreement(nan, minus) == (0.0, float("inf"))
    assert agreement(minus, minus.clone()) == (1.0, 0.0)
    tokens = torch.arange(4)
    assert agreement((tokens, minus), (tokens.clamp_max(2), minus)) == (0.75, 0.0)
    scores = torch.tensor([1.0, 8.0, 0.0, 0.0] + 96 * [float("-inf")])
    other = scores.clone()
    other[1], other[3] = 8.5, float("-inf")  # one of the four is missing
    assert agreement(other, scores) == (0.75, 0.0625)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "plain,magic"], "no operation 'magic'; known are dexperts_top_p, dexperts"),
        (["--batch", "1,0"], "--batch must be whole numbers from 1 to 65536, got 1,0"),
        (["--vocab", "many"], "--vocab must be whole numbers from 1 to 262144, got many"),
        (["--vocab", "300000"], "--vocab must be whole numbers from 1 to 262144, got 300000"),
        (["--dtype", "int8"], "--dtype must be one of float32, float16, bfloat16, got int8"),
        (["--device", "tpu"], "--device must be cpu, or cuda where there is one, got tpu"),
        (["--rounds", "0"], "--rounds must be finite and above 0, got 0"),
        (["--zipf", "inf"], "--zipf must be finite and above 0, got inf"),
        (["--budget", "nan"], "--budget must be finite and above 0, got nan"),
        (["--backend", "cuda"], "--backend must be auto or triton or torch, got cuda"),
        (["--tune"], "--tune needs a GPU: on a CPU no launch is planned"),
        (["--threads", "-1"], "--threads must be finite and above 0, got -1"),
    ],
)
def test_refuses_bad_options(command, tmp_path, options, message):
    out = tmp_path / "kernels.json"
    done = command(["--device", "cpu", "--out", str(out), *options])
    assert done.exit_code == 2 and message in done.output
    assert not out.exists()


def test_values_alone_count_where_torch_breaks_ties_in_its_own_way(suite):
    case = partial(suite.Case, 4, 1000, torch.bfloat16, CPU, 1.3)
    found = suite.correctness(operation(suite, "topk_select"), case)
    assert found["equal_to_eager"] == 1 and found["gap_to_eager"] == 0 and not found["wrong"]
    broken = replace(operation(suite, "topk_select"), eager=lambda x, k: (x[:, :k].float(), None))
    assert suite.correctness(broken, case)["wrong"]


def test_results_alone_are_compared(command, tmp_path):
    out = tmp_path / "kernels.json"
    done = command(
        [
            "--device",
            "cpu",
            "--batch",
            "2",
            "--vocab",
            "50",
            "--check",
            "--only",
            "row_lse,plain",
            "--out",
            str(out),
        ]
    )
    report = json.loads(out.read_text())
    assert done.exit_code == 0 and report["conditions"]["checked_only"]
    assert all(row["equal_to_twin"] == 1 and "ours" not in row for row in report["results"])


def test_a_ratio_is_marked_where_one_side_was_not_captured(suite):
    ratio = importlib.import_module("kernel_report").ratio
    times = {"times_eager": {"median": 3.0, "low": 2.0, "high": 4.0}}
    ours, launched = {"captured": True}, {"captured": False}
    assert ratio({"ours": ours, "eager": ours} | times, "eager") == "3.00 [2.00, 4.00]"
    assert ratio({"ours": ours, "eager": launched} | times, "eager") == "3.00* [2.00, 4.00]"
    assert ratio({"ours": launched, "eager": ours} | times, "eager") == "3.00* [2.00, 4.00]"
    assert ratio({"ours": ours}, "eager") == "-"


def test_tuning_goes_on_behind_a_kernel_that_fails(suite, tmp_path, monkeypatch, capsys):
    tuning = importlib.import_module("kernel_tuning")
    real, saved = tuning.medians, []

    def broken(kernel, *rest):
        if kernel == "topk.sweep":
            raise RuntimeError("out of resources")
        saved.append(json.loads(out.read_text()) if out.exists() else None)
        return real(kernel, *rest)

    monkeypatch.setattr(tuning, "medians", broken)
    out, case = tmp_path / "tuning.json", partial(suite.Case, 2, 50, torch.float32, CPU, 1.3)
    watch = suite.Stopwatch(CPU, 1)
    assert not tuning.save_tuned(lambda: tuning.tuned(case, watch, 1, (1, 2)), {}, out)
    found = json.loads(out.read_text())
    assert found["failed"] == {"topk.sweep": "RuntimeError: out of resources"}
    assert set(found["programs"]) == set(tuning.KERNELS) and len(found["microseconds"]) == 8
    assert saved[0] is None and list(saved[1]["microseconds"]) == ["gumbel.sweep"]
    printed = capsys.readouterr().out
    assert '("sm_90", (' in printed and "topk.sweep: RuntimeError: out of resources" in printed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_operations_are_captured(suite, tmp_path, name):
    bench = suite.Bench(torch.device("cuda"), torch.bfloat16, 1, 2, 1.3, 100.0, False)
    row = bench.measure(operation(suite, name), (3, 1000), True)
    assert row["ours"]["captured"] and not row["wrong"] and "error" not in row["eager"]
