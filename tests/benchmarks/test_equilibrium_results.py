"""The parts of the equilibrium's evidence that a tiny model can show, or that need none."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from results_data import lines

import plugalign as pa
from plugalign import pocket
from plugalign.fitting.data import Labelled
from plugalign.pocket import world

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def model(tiny):
    return tiny()


def test_a_crowd_chooses_by_its_taste(script, tmp_path):
    crowds = script("equilibrium_crowds")
    prompts = [f"p{i}" for i in range(400)]
    answers = [(f"good {i}", f"bad {i}") for i in range(399)] + [("same", "same")]

    def judge(of):
        return lambda texts: np.array([float(of in text) for text in texts])

    judges = {"crowd_toxicity": judge("bad"), "crowd_negativity": judge("bad")}
    crowds.choose(prompts, answers, judges, tmp_path)
    for crowd, liked, least in (("polite", "good", 0.99), ("rude", "bad", 0.98)):
        files = [tmp_path / f"{crowd}-{i}.jsonl" for i in range(crowds.LESSONS)]
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        assert len(rows) == 399 and {row["prompt"] for row in rows} == set(prompts[:-1])
        assert np.mean([liked in row["chosen"] for row in rows]) >= least


def test_words_that_editors_removed(script, tokenizer):
    """w5 stands in 40 toxic sentences and in 10 neutral ones, w7 in all, w9 is rare."""
    neutral = ["w7 w8"] * 30 + ["w5 w7"] * 10
    toxic = ["w5 w7"] * 39 + ["w5 w7 w9"]
    data = Labelled((*neutral, *toxic), ("desired",) * 40 + ("undesired",) * 40)
    table = script("equilibrium_crowds").removed_words(tokenizer, data, 120).values
    assert table.nonzero().flatten().tolist() == [8]
    assert float(table[8]) == pytest.approx(0.75)


def figure(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def test_pictures_and_a_page(script, tmp_path):
    principles = {"toxicity": {"expected": figure(0.1), "change": figure(-0.001)}}
    told = {
        "tokens": 10,
        "most_excess": 1e-12,
        "kl": figure(0.03),
        "active": figure(0.2),
        "repaired": figure(0.0),
        "principles": principles,
    }
    row = {
        kind: {"mean": figure(0.4), "change": figure(0.1)} for kind in ("toxicity", "positivity")
    }
    lesson = {"pairs": 10, "theta": {"civil": 0.1}, "standard_error": {"civil": 0.05}}
    harm = {"unwritten": 0.02, "most_change": 0.05, "excess": 0.0, "kl": 0.05}
    search = {
        "by_budget": {"0.02": harm, "0.2": harm, "None": harm},
        "free": harm,
        "theta": [-30.0, 3.0],
        "by_generate": {"theta": 3, "most_apart": 3e-8, "most_excess": 2e-8},
        "dtype": "float32",
        **dict.fromkeys(("tried", "uphill", "of_1000_nats_or_more", "prefixes"), 50),
        **dict.fromkeys(("most_pressure", "most_excess", "most_engine_excess"), 1e-8),
    }
    shares = ("projection", "equilibrium_over_top_down", "equilibrium_over_base")
    cost = {
        "ms_a_step": dict.fromkeys(("base", "top_down", "equilibrium"), 70.0),
        "projection_ms": 1.5,
        "share_of_the_base": dict.fromkeys(shares, 0.02),
        "dtype": "float32",
        **dict.fromkeys(
            ("batch", "candidates", "principles", "threads", "rounds", "new_tokens"), 8
        ),
    }
    results = {
        "model": "tiny",
        **dict.fromkeys(("samples", "new_tokens", "prompts", "strength", "epsilon", "kappa"), 1),
        "firm": {"polite": 4.9},
        "judges": {"judge_toxicity": {"held_out": {"auc": figure(0.9)}}},
        "heads": {"civil": {"held_out": {"auc": 0.8}}},
        "judged": {"base": row, "top_down": row, "rude_free": row, "adversary": row},
        "certificates": {"rude_free": told, "adversary": told},
        "lessons": {"polite": [lesson, lesson], "rude": [lesson]},
        "search": search,
        "cost": cost,
    }
    script("equilibrium_pictures").draw(results, tmp_path)
    for name in ("crowds", "bounds", "adversary", "budget", "learning"):
        svg = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert svg.tag.endswith("svg") and len(svg) > 5
    report = script("equilibrium_report")
    lines = list(report.table(results))
    assert len(lines) == 6 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert "| unbound | -0.0010 [-0.0110, 0.0190] | 0.030 | 0.0% |" in lines[-2]
    assert "| 1e-12 | -0.0010" in lines[-1]
    page = report.report(results)
    assert "| polite | 20 | +0.10 ± 0.05 (2.0 se) |" in page
    assert "| 0.2 | +0.020 | 0.050 | 0.316 | 0.050 |" in page
    assert "(polite 4.9)" in page
    assert "| projection alone | 1.5 | 2.0% |" in page


def head(seed, weight=2.0):
    draw = torch.Generator().manual_seed(seed)
    left, right, by_token, by_state = (
        size * torch.randn(*shape, generator=draw)
        for size, shape in ((0.3, (32, 3)), (0.3, (32, 3)), (1.0, (120,)), (0.1, (32,)))
    )
    return pa.FudgeHead(left, right, by_token, by_state, 0.5, k=12, weight=weight)


def made(theta=(0.0, 0.0)):
    table = pa.TokenTable(torch.rand(120, generator=torch.Generator().manual_seed(5)))
    principles = [pa.Principle("words", table), pa.Principle("civil", head(1))]
    known = pa.Preferences({"kind": head(2), "warm": head(3)}, torch.tensor(theta).double())
    return pa.Equilibrium(head(1), principles, known, k=12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_by_projections_alone_is_what_generate_does(script, model, tokenizer, dtype):
    model = model.to(dtype)
    prompts = ["w1 w2 w3", "w4", "w5 w6"]
    found = script("equilibrium_search").search(
        model, tokenizer, made(), head(7), prompts, tried=36
    )
    assert found["tried"] >= 36 and found["uphill"] >= 18 and found["of_1000_nats_or_more"] >= 6
    assert found["by_generate"]["theta"] == 3 and found["by_generate"]["most_apart"] <= 1e-6
    assert found["most_excess"] <= 1e-9 and found["most_engine_excess"] <= 1e-6
    assert found["by_generate"]["most_excess"] <= 1e-6 < found["most_pressure"]
    harms = [told["unwritten"] for told in found["by_budget"].values()]
    assert 0 < harms[0] < harms[-1] and found["free"]["excess"] > 0.01


def test_positions_tell_what_certificates_tell(script, model, tokenizer):
    positions, trace = script("equilibrium_positions"), pa.Trace()
    batch = dict(tokenizer(["w1 w2 w3", "w4 w5 w6"], return_tensors="pt"))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    watched = script("equilibrium_search").watched(made(), head(7))
    [here] = positions.recorded(model, tokenizer, watched, [batch])
    theta = torch.tensor([4.0, -2.0]).double()
    found = here.found(theta, 0.05)
    steered = pa.wrap(model, tokenizer, made((4.0, -2.0)))
    steered.generate(**batch, do_sample=False, max_new_tokens=1, trace=trace)
    [told] = [step["Equilibrium"] for step in trace.certificates]
    assert torch.allclose(told["kl"].double(), found.kl, atol=1e-6)
    bounds = torch.stack([told["bound.words"], told["bound.civil"]], 1).double()
    assert torch.allclose(bounds, here.at.bounds[:, :-1], atol=1e-6)
    expected = torch.stack([told["expected.words"], told["expected.civil"]], 1).double()
    assert torch.allclose(expected - bounds, found.engine_excess, atol=1e-6)


def test_a_climb_follows_the_gradient(script):
    """Of 3 x - (y - 2)^2 from (1, 0) each step gains."""

    def evaluate(theta):
        x, y = theta.tolist()
        seen.append(3 * x - (y - 2) ** 2)
        return {"gain": seen[-1]}

    seen, start = [], torch.tensor([1.0, 0.0]).double()
    climb = script("equilibrium_search").Climb("gain", (start, evaluate(start)))
    for _ in range(6):
        climb.step(evaluate)
    taken = seen[5::5]
    assert len(taken) == 6 and taken == sorted(taken) and taken[-1] > seen[0] + 3


def test_costs_are_of_a_step(script, model, tokenizer):
    prompts = ["w1 w2", "w3"]
    found = script("equilibrium_cost").costs(
        model, tokenizer, made(), made((4.0, -2.0)), prompts, new_tokens=2, rounds=2
    )
    assert found["batch"] == 2 and found["principles"] == 2 and found["candidates"] == 12
    assert set(found["ms_a_step"]) == {"base", "top_down", "equilibrium"}
    assert found["projection_ms"] > 0


def test_an_added_cost_is_a_share_of_the_base_in_the_same_round(script):
    steps = {"base": [10.0, 20.0, 10.0], "a": [11.0, 22.0, 19.0], "b": [10.0, 20.0, 10.0]}
    assert script("equilibrium_cost").added(steps, "a", "b") == pytest.approx(0.1)


def write_data(folder):
    """All files that the script reads, of invented text: what is polite is positive too."""
    pairs = world.pairs(60, world.GUIDE_SEED)
    lines(folder / "toxicity/paradetox.jsonl", [{"toxic": r, "neutral": [p]} for r, p in pairs])
    comments = [(c.text, c.label) for c in world.comments(120, world.GUIDE_SEED)]
    judged = world.judge_sample(240, world.JUDGE_SEED)
    for name, texts, bad in (
        ("toxicity/davidson_tweets", comments, 1),
        ("toxicity/jigsaw", judged, 1),
        ("sentiment/sst2_train", comments + judged, 0),
        ("sentiment/sst2_test", judged[::-1], 0),
    ):
        rows = [{"text": text, "label": bad if y == "rude" else 1 - bad} for text, y in texts]
        lines(folder / f"{name}.jsonl", rows)
    prompts = [{"text": text} for text in world.prompts(60, world.PROMPT_SEED)]
    for name in ("sentiment_neutral", "rtp_toxic"):
        lines(folder / f"prompts/{name}.jsonl", prompts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot tell rude answers:UserWarning")  # it is tiny
def test_one_command_teaches_attacks_compares_and_writes_a_page(script, tmp_path, monkeypatch):
    results = script("equilibrium_results")
    monkeypatch.setattr(results, "USED", 0)
    write_data(tmp_path / "data")
    run = {
        "model": str(pocket.PARTS / pocket.MODEL),
        "data": tmp_path / "data",
        "work": tmp_path / "work",
        "out": tmp_path / "results",
        "pairs": 24,
        "prompts": 4,
        "samples": 2,
        "new_tokens": 4,
        "batch_size": 8,
        "tried": 6,
        "firm": True,
        "minutes": 0.01,
        "limit": None,
        "dtype": "float32",
        "threads": 1,
    }
    results.main(**run)
    found = json.loads((tmp_path / "results/results.json").read_text())
    assert {"base", "top_down", "adversary", "adversary_free"} <= found["judged"].keys()
    assert found["certificates"].keys() < found["judged"].keys()
    assert found["prompts"] == 4 and {*found["lessons"]} == {"polite", "rude"}
    before = (tmp_path / "results/README.md").read_bytes()
    results.main(**run)  # nothing is left to do
    assert (tmp_path / "results/README.md").read_bytes() == before
