"""What makes a comparison fair, on whole runs: lengths, truncation, revisions, judges, metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.self_critique import SelfCritique
from plugalign.evaluation.comparison.agreements import named_files
from plugalign.evaluation.comparison.compare import Comparison, compare
from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.metrics.metric import Metric
from plugalign.evaluation.run_folder.folder import read_json
from plugalign.evaluation.statistics.paired import mean_score

PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10 w11", "w12 w13", "w14"]
END = 1


class Hurried(Controller):
    """Ends answers early: an expert whose end token is likely."""

    def __init__(self, model: Any):
        self.model = model

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        return pa.DExperts(expert=self.model, alpha=1.0, top_p=1.0).steer(model, tokenizer)

    def config(self) -> dict[str, Any]:
        return {"hurry": 1}

    def saved_parts(self) -> dict[str, Any]:
        return {"model": self.model}


def words_judge(texts: Sequence[str]) -> list[float]:
    """Toxic is what has many words: an empty answer is perfectly clean."""
    return [min(1.0, len(t.split()) / 6) for t in texts]


@pytest.fixture
def world(tiny: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "model": tiny(),
        "tokenizer": tokenizer,
        "prompts": PROMPTS,
        "judges": [words_judge],
        "samples": 3,
        "max_new_tokens": 6,
        "batch_size": 9,
    }


def hurried(tiny: Any) -> Hurried:
    import torch

    model = tiny("gpt2-tied", seed=4)
    with torch.no_grad():  # a model that mostly wants to end
        model.transformer.ln_f.bias.copy_(3 * model.lm_head.weight[END])
    return Hurried(model)


def read(path: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(r["method"], r["prompt"], r["sample"]): r for r in rows}


# ----------------------------------------------------------------------------- length


def test_short_answers_are_clean_but_not_at_equal_length(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    controllers = {"hurried": hurried(tiny)}
    summary = compare(**world, controllers=controllers, out=tmp_path).summary
    base, found = summary["methods"]["base"], summary["methods"]["hurried"]
    assert found["length"]["value"] < 0.7 * base["length"]["value"]
    assert found["empty"]["value"] > 0.1 and base["empty"]["value"] < found["empty"]["value"]
    change = found["mean_toxicity"]["difference"]
    assert change["high"] < 0  # it seems better
    matched = found["length_matched"]["mean_toxicity"]  # and is not, but for a token or two
    assert abs(matched["difference"]["value"]) < 0.1 * abs(change["value"])  # without a word
    assert matched["value"] - matched["base"] == pytest.approx(matched["difference"]["value"])


def test_matched_scores_are_of_both_answers_cut_to_the_shorter(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    def numbers(texts: Sequence[str]) -> list[float]:
        digits = [[int(w[1:]) for w in t.split() if w[1:].isdigit()] for t in texts]
        return [min(1.0, sum(found) / 3000) for found in digits]

    controllers = {"hurried": hurried(tiny), "patient": -1.0 * hurried(tiny)}
    settings = world | {"judges": [numbers], "controllers": controllers, "max_new_tokens": 24}
    compare(**settings, out=tmp_path)
    generated, scored = (read(tmp_path / f"{n}.jsonl") for n in ("generations", "scores"))
    lengths = []
    for key, record in scored.items():
        if key[0] == "base":
            assert "matched" not in record
            continue
        answers = [
            [t for t in generated[k]["tokens"] if t != END] for k in (key, ("base", *key[1:]))
        ]
        shorter = min(map(len, answers))
        texts = [world["tokenizer"].decode(a[:shorter], skip_special_tokens=True) for a in answers]
        assert record["matched"]["tokens"] == shorter
        found = [record["matched"][side]["numbers"] for side in ("scores", "base")]
        assert found == pytest.approx(numbers(texts))
        lengths.append((shorter, *map(len, answers)))
    assert any(s < a for s, a, _ in lengths) and any(s < b for s, _, b in lengths)


@pytest.mark.parametrize("least", [1, 4, 6])
def test_no_answer_is_shorter_than_it_may_be(
    world: Any, tiny: Any, tmp_path: Path, least: int
) -> None:
    controllers = {
        "hurried": hurried(tiny),
        "dexperts": pa.DExperts(tiny(seed=1), tiny(seed=2)),
        "critic": SelfCritique(" w7", " w5", " w6", " w8", threshold=0.3),
    }
    settings = world | {"controllers": controllers, "min_new_tokens": least}
    summary = compare(**settings, out=tmp_path).summary
    for record in read(tmp_path / "generations.jsonl").values():
        assert len([t for t in record["tokens"] if t != END]) >= least
    assert summary["methods"]["hurried"]["empty"]["value"] == 0.0
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["settings"]["min_new_tokens"] == least
    assert f"{least} to 6 tokens" in (tmp_path / "report.html").read_text()


def test_a_least_length_above_the_length_is_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"between 0 and max_new_tokens \(6\), got 7"):
        compare(**world, min_new_tokens=7, out=tmp_path / "run")
    with pytest.raises(ValueError, match="got -1"):
        compare(**world, min_new_tokens=-1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------- truncation


class Within(Controller):
    """A support and no shift."""

    def __init__(self, *supports: Any):
        self.supports = supports

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        return Steering(supports=self.supports)


def test_a_controller_that_does_not_steer_equals_the_base_that_is_cut_alike(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    pair = pa.DExperts(tiny(seed=1), tiny(seed=2), alpha=0.0, top_p=0.5)
    controllers = {
        "idle": pair,
        "again": pa.DExperts(tiny(seed=1), tiny(seed=2), top_p=0.5),
        "ten": Within(TopK(10)),
        "still": pa.PPLM(["w5"], stepsize=0.0, top_k=8),  # whose support follows what it does
        "free": pa.SelfDebias(["w5 w6"]),
    }
    found = compare(**world | {"controllers": controllers}, out=tmp_path)
    summary = found.summary
    alike = {
        "idle": "base (top-p 0.5)",
        "again": "base (top-p 0.5)",
        "ten": "base (top-k 10)",
        "still": "base (top-k 8)",
    }
    assert summary["cut_alike"] == alike
    assert set(summary["references"]) == {"plain generate", *alike.values()}
    made = read(tmp_path / "generations.jsonl")
    for method in ("idle", "ten", "still"):
        assert all(
            made[key]["tokens"] == made[(alike[method], *key[1:])]["tokens"]
            for key in made
            if key[0] == method
        )
        row = summary["methods"][method]
        for metric in ("perplexity", "mean_toxicity", "toxicity_probability"):
            assert row[metric]["difference_cut_alike"]["value"] == 0.0
        assert row["perplexity"]["difference"]["value"] < 0  # narrower, so it seems more fluent
    assert "difference_cut_alike" not in summary["methods"]["free"]["perplexity"]
    manifest = read_json(tmp_path / "manifest.json")["settings"]
    assert manifest["cut_alike"] == alike
    assert manifest["references"]["base (top-k 10)"] == {"top_k": 10}
    html, text = (tmp_path / "report.html").read_text(), printed(found)
    assert "idle beside base (top-p 0.5)" in html
    assert "idle and again: a support leaves few tokens to choose from" in text


def test_a_method_cannot_have_the_name_of_a_reference(world: Any, tmp_path: Path) -> None:
    controllers = {"plain generate": pa.SelfDebias(["w5"])}
    with pytest.raises(ValueError, match="'plain generate' is the name of a reference"):
        compare(**world | {"controllers": controllers}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------- revisions


def printed(comparison: Comparison) -> str:
    console = Console(file=StringIO(), width=80)
    console.print(comparison.table())
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_faults_and_refinements_are_in_the_files_and_counted(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    critic = SelfCritique(" w7", " w5", " w6", " w8", threshold=0.3, rounds=2)
    controllers = {"critic": critic, "sum": critic + pa.DExperts(tiny(seed=1), tiny(seed=2))}
    found = compare(**world | {"controllers": controllers}, out=tmp_path)
    summary = found.summary
    made = read(tmp_path / "generations.jsonl")
    for method in controllers:
        rows = [r for key, r in made.items() if key[0] == method]
        (one,) = {len(r["revised"]) for r in rows}
        assert one == 1 and all(r["revised"][0]["controller"] == "SelfCritique" for r in rows)
        judged = [r["revised"][0]["faults"] for r in rows]
        assert all(len(f) == 2 and f[0] is not None and 0 <= f[0] <= 1 for f in judged)
        counts = summary["methods"][method]["revisions"]
        assert counts["critiqued"] == sum(p is not None for f in judged for p in f)
        assert counts["faulted"] == sum(p is not None and p > 0.3 for f in judged for p in f)
        changed = [r for r in rows if "draft" in r["revised"][0]]
        assert counts["changed"] == len(changed) > 0
        assert all(r["revised"][0]["draft"] != r["text"] for r in changed)
    drafts = [made["base", p, s]["text"] for p in range(6) for s in range(3)]
    kept = [
        made["critic", p, s]["revised"][0].get("draft", made["critic", p, s]["text"])
        for p in range(6)
        for s in range(3)
    ]
    assert kept == drafts  # what the critic had before it is what base says
    assert "revised" not in made["base", 0, 0] and "revisions" not in summary["methods"]["base"]
    counts = summary["methods"]["critic"]["revisions"]
    assert f"{counts['critiqued']} verdicts" in printed(found)
    report = (tmp_path / "report.html").read_text()
    assert "Answers that were rewritten" in report and f"<td>{counts['critiqued']}</td>" in report


def test_answers_that_were_left_alone_are_as_long_as_they_were(world: Any, tmp_path: Path) -> None:
    world["tokenizer"].pad_token = world["tokenizer"].eos_token  # padding looks like an end
    controllers = {
        "never": SelfCritique(" w7", " w5", " w6", " w8", threshold=1.0, max_new_tokens=12),
        "some": SelfCritique(" w7", " w5", " w6", " w8", threshold=0.3, max_new_tokens=12),
    }
    summary = compare(**world | {"controllers": controllers}, out=tmp_path).summary
    made = read(tmp_path / "generations.jsonl")
    kept = [
        r for key, r in made.items() if key[0] in controllers and "draft" not in r["revised"][0]
    ]
    assert all(r["tokens"] == made["base", r["prompt"], r["sample"]]["tokens"] for r in kept)
    assert 18 < len(kept) < 36
    lengths = [summary["methods"][name]["length"]["value"] for name in ("never", "base")]
    assert lengths[0] == lengths[1]


# ----------------------------------------------------------------------------- judges


def references(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = [
        {"text": " ".join(["w1"] * n), "score": float(np.clip(n / 6 + rng.normal(0, 0.3), 0, 1))}
        for n in rng.integers(1, 7, 60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_judge_and_every_reference_set_is_shown(world: Any, tmp_path: Path) -> None:
    judges = {"many": words_judge, "few": lambda texts: [1 - x for x in words_judge(texts)]}
    files = [references(tmp_path / f"{name}.jsonl", i) for i, name in enumerate(("web", "news"))]
    settings = world | {"judges": judges, "agreement": files, "methods": ["self_debias"]}
    found = compare(**settings, out=tmp_path / "run")
    summary = found.summary
    sets = {a["source"]: a for a in summary["judges"]["few"]["agreements"]}
    assert set(sets) == {"web.jsonl", "news.jsonl"}
    assert sets["web.jsonl"]["spearman"]["value"] < 0 < sets["web.jsonl"]["auc"]["value"] < 0.5
    first = summary["judges"]["few"]["agreement"]
    assert first["spearman"] == sets["web.jsonl"]["spearman"]
    assert sets["web.jsonl"]["spearman"] != sets["news.jsonl"]["spearman"]
    text, html = printed(found), (tmp_path / "run" / "report.html").read_text()
    for judge in judges:
        assert f"judged by {judge}" in text and f"Judged by {judge}" in html
        for name in ("web.jsonl", "news.jsonl"):
            assert f"The judge {judge} against {name}: AUC" in text and name in html


def test_an_answer_that_is_bases_own_is_scored_once(world: Any, tmp_path: Path) -> None:
    """Plain generate answers as base does, and so does a method without any weight."""
    read: list[str] = []

    def judge(texts: Sequence[str]) -> list[float]:
        read.extend(texts)
        return words_judge(texts)

    methods = {"idle": 0.0 * pa.SelfDebias(), "acting": pa.SelfDebias(decay=1000.0)}
    settings = world | {"judges": [Judge("judge", judge)], "controllers": methods}
    found = compare(**settings, out=tmp_path).summary["methods"]
    lines = map(json.loads, (tmp_path / "generations.jsonl").read_text().splitlines())
    texts: dict[str, list[str]] = {}
    for line in lines:
        texts.setdefault(line["method"], []).append(line["text"])
    assert texts["idle"] == texts["plain generate"] == texts["base"] != texts["acting"]
    others = sum(a != b for a, b in zip(texts["acting"], texts["base"], strict=True))
    assert len(texts["base"]) + others <= len(read) <= len(texts["base"]) + 3 * others
    for name in ("toxicity_probability", "perplexity"):
        base, idle = found["base"][name], found["idle"][name]
        assert idle["value"] == base["value"] and idle["difference"]["value"] == 0


def test_reference_sets_have_names(world: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    web, other = references(tmp_path / "web.jsonl", 0), references(tmp_path / "other/web.jsonl", 1)
    settings = world | {"methods": ["self_debias"], "out": tmp_path / "run"}

    def sources(agreement: Any, **more: Any) -> list[str]:
        notes = compare(**settings, agreement=agreement, **more).summary["judges"]["words_judge"]
        return [one["source"] for one in notes["agreements"]]

    assert sources([web, str(other)]) == [str(web), str(other)]  # both files have one name
    assert sources({"people": web, "news": other}, resume=True) == ["people", "news"]
    found = compare(**settings, resume=True)
    html = (tmp_path / "run" / "report.html").read_text()
    for name in ("people", "news"):
        assert f"against {name}: AUC" in printed(found) and f'"name">{name}<' in html
    third = references(tmp_path / "third.jsonl", 2)
    with pytest.raises(ValueError, match="scores called 'news' already, of another content"):
        compare(**settings, agreement={"news": third}, resume=True)
    assert compare(**settings, resume=True).summary == found.summary


@pytest.mark.parametrize("given", [3, [3], {"a": 3}, {3: "a"}, {"": "web.jsonl"}, "", [" "], {"x"}])
def test_a_reference_set_that_is_none_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match=r"agreement takes|cannot name a reference set"):
        named_files(given)


def test_agreement_that_is_asked_for_on_resuming_is_kept(world: Any, tmp_path: Path) -> None:
    files = [references(tmp_path / f"{name}.jsonl", i) for i, name in enumerate(("web", "news"))]
    settings = world | {"methods": ["self_debias"], "out": tmp_path / "run"}
    assert "agreement" not in compare(**settings).summary["judges"]["words_judge"]
    first = compare(**settings, agreement=files[0], resume=True).summary
    assert [a["source"] for a in first["judges"]["words_judge"]["agreements"]] == ["web.jsonl"]
    both = compare(**settings, agreement=[str(f) for f in files], resume=True).summary
    names = [a["source"] for a in both["judges"]["words_judge"]["agreements"]]
    assert names == ["web.jsonl", "news.jsonl"]
    assert compare(**settings, resume=True).summary == both  # and stays


def test_references_that_tell_nothing_are_named(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "clean.jsonl"
    path.write_text('{"text": "w1", "score": 0.1}\n' * 5)
    with pytest.raises(ValueError, match=r"clean\.jsonl, judge 'words_judge': .* each side of 0.5"):
        compare(**world, methods=["base"], agreement=path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_judge_that_cannot_work_is_found_before_the_work(world: Any, tmp_path: Path) -> None:
    def broken(texts: Sequence[str]) -> list[float]:
        raise RuntimeError("no pad token")

    with pytest.raises(ValueError, match="'broken' cannot score 'w4': RuntimeError: no pad"):
        compare(
            **world | {"judges": [words_judge, broken], "methods": ["base"]}, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_the_reason_of_failures_and_their_imbalance_are_shown(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    def picky(texts: Sequence[str]) -> list[float]:
        if any(not t.strip() for t in texts):
            raise RuntimeError("nothing to read")
        return words_judge(texts)

    settings = world | {
        "judges": [Judge("picky", picky)],
        "controllers": {"hurried": hurried(tiny)},
    }
    comparison = compare(**settings, out=tmp_path)
    found = comparison.summary["judges"]["picky"]
    assert found["first_error"] == "RuntimeError: nothing to read"
    lost = found["missing_by_method"]
    assert lost["hurried"] > lost["base"] and found["missing"] == sum(lost.values())
    text, html = printed(comparison), (tmp_path / "report.html").read_text()
    for shown in (text, html):
        assert "nothing to read" in shown and "are missing unevenly" in shown
        assert f"{lost['hurried']} of hurried" in shown


# ----------------------------------------------------------------------------- metrics, settings


def test_metrics_of_ones_own_take_the_place_of_toxicity(world: Any, tmp_path: Path) -> None:
    wordy = Metric("wordiness", mean_score, better="higher", threshold=0.8)
    settings = world | {"metrics": [wordy], "methods": ["self_debias"], "out": tmp_path}
    found = compare(**settings)
    row = found.summary["methods"]["self_debias"]
    assert "toxicity_probability" not in row and row["wordiness"]["value"] > 0
    assert "Wordiness" in found.report.read_text()
    manifest = read_json(tmp_path / "manifest.json")["settings"]["metrics"]
    assert manifest == {"wordiness": wordy.record().model_dump(exclude_unset=True)}
    with pytest.raises(ValueError, match=r"metrics\.wordiness was there and is missing now"):
        compare(**settings | {"metrics": None}, resume=True)


def test_settings_stand_beside_names_in_report_and_manifest(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    whole = pa.DExperts(tiny(seed=1), tiny(seed=2), alpha=1.5) + 0.5 * pa.SelfDebias(
        ["w5"], decay=7.0
    )
    compare(**world | {"controllers": {"sum": whole}}, out=tmp_path)
    parts = read_json(tmp_path / "manifest.json")["settings"]["methods"]["sum"]["parts"]
    found = {p["class"]: (p["weight"], p["config"]) for p in parts}
    assert found["DExperts"][0] == 1.0 and found["DExperts"][1]["alpha"] == 1.5
    assert found["SelfDebias"][0] == 0.5 and found["SelfDebias"][1]["decay"] == 7.0
    html = (tmp_path / "report.html").read_text()
    assert "DExperts (alpha 1.5" in html and "0.5 x SelfDebias (decay 7.0" in html
