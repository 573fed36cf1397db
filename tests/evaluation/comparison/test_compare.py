"""compare() on tiny models with stub controllers and stub judges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration, ViTConfig

from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.sources import Logits
from plugalign.algebra.steering import Steering
from plugalign.controllers.self_critique import SelfCritique
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.run_folder.folder import read_json
from plugalign.loading import random_model

HERE = Path(__file__).resolve().parent
PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10 w11", "w12 w13"]
SMALL: dict[str, Any] = {"samples": 3, "max_new_tokens": 6, "batch_size": 4, "prompts": PROMPTS}


class Push(Controller):
    """Adds another tiny model's logits."""

    def __init__(self, other: Any, weight: float = 1.0):
        self.other, self.weight = other, weight

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        source = Logits("other", self.other)
        return Steering((LogLinear(((self.weight, source),)),))

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def saved_parts(self) -> dict[str, Any]:
        return {"other": self.other}


def length_judge(texts: Sequence[str]) -> list[float]:
    """Toxic is what mentions high numbers."""
    return [min(1.0, sum(int(w[1:]) for w in t.split() if w[1:].isdigit()) / 600) for t in texts]


@pytest.fixture
def world(tiny: Any, tokenizer: Any) -> dict[str, Any]:
    controllers = {"push": Push(tiny(seed=1), 0.3), "nothing": Push(tiny(seed=2), 0.0)}
    return {
        "model": tiny(),
        "tokenizer": tokenizer,
        "controllers": controllers,
        "judges": [length_judge],
        **SMALL,
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a journal as they stand in the file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(value: Any) -> Any:
    """A summary without what differs from one run to the next."""
    if isinstance(value, dict):
        return {
            k: without_times(v)
            for k, v in value.items()
            if not (k.startswith(("ms_per_", "ratio_")) and isinstance(v, dict))
        }
    return value


def test_every_method_answers_every_prompt_and_the_files_say_so(world: Any, tmp_path: Path) -> None:
    found = compare(**world, out=tmp_path / "run")
    records = read_lines(tmp_path / "run" / "generations.jsonl")
    keys = {(r["method"], r["prompt"], r["sample"]) for r in records}
    assert len(records) == len(keys) == 4 * len(PROMPTS) * 3
    assert set(found.summary["methods"]) == {"base", "push", "nothing"}
    assert set(found.summary["references"]) == {"plain generate"}
    assert read_json(tmp_path / "run" / "summary.json") == json.loads(json.dumps(found.summary))
    assert found.report.is_file()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert set(manifest["versions"]) == {"plugalign", "torch", "transformers"}
    assert manifest["settings"]["methods"]["push"]["config"] == {"weight": 0.3}


def test_tokens_end_with_the_first_end_token_and_batches_hold_all_methods(
    world: Any, tmp_path: Path
) -> None:
    compare(**world | {"max_new_tokens": 16}, out=tmp_path)
    records = read_lines(tmp_path / "generations.jsonl")
    for record in records:
        tokens = record["tokens"]
        assert 1 not in tokens[:-1]
        assert len(tokens) == 16 or tokens[-1] == 1
        assert "<eos>" not in record["text"]
    order = [(r["batch"], r["method"]) for r in records]
    turns = list(dict.fromkeys(order))
    methods = ("base", "plain generate", "push", "nothing")
    assert turns == [(b, m) for b in range(4) for m in methods]
    seconds = {(r["batch"], r["method"]): r["seconds"] for r in records}
    assert all(s > 0 for s in seconds.values())


def test_a_controller_that_changes_nothing_gives_the_texts_of_the_base(
    world: Any, tmp_path: Path
) -> None:
    summary = compare(**world, out=tmp_path).summary
    by_method: dict[str, dict[Any, Any]] = {}
    for r in read_lines(tmp_path / "generations.jsonl"):
        by_method.setdefault(r["method"], {})[r["prompt"], r["sample"]] = r["tokens"]
    assert by_method["nothing"] == by_method["base"] != by_method["push"]
    assert by_method["plain generate"] == by_method["base"]  # another loop, the same noise
    figures = summary["methods"]["nothing"]["expected_maximum_toxicity"]
    assert figures["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert figures["p_value"] == 1.0


def test_perplexity_is_the_plain_models_own_likelihood(world: Any, tmp_path: Path) -> None:
    compare(**world, out=tmp_path)
    model, tokenizer = world["model"], world["tokenizer"]
    files = (read_lines(tmp_path / f"{name}.jsonl") for name in ("generations", "scores"))
    for generated, scored in list(zip(*files, strict=True))[::7]:
        prompt = tokenizer(PROMPTS[generated["prompt"]])["input_ids"]
        answer = [t for t in generated["tokens"] if t != 1]
        if not answer:
            assert scored["nll"] is None and scored["scored_tokens"] == 0
            continue
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        nll = -sum(float(logits[i, t]) for i, t in zip(places, answer, strict=True))
        assert scored["nll"] == pytest.approx(nll, rel=1e-4)
        assert scored["scored_tokens"] == len(answer)


def test_another_scorer_and_several_judges(world: Any, tiny: Any, tmp_path: Path) -> None:
    tiny(seed=5).save_pretrained(tmp_path / "scorer")
    world["tokenizer"].save_pretrained(tmp_path / "scorer")
    judges = {"numbers": length_judge, "never": lambda texts: [0.0] * len(texts)}
    settings = world | {"judges": judges, "scorer": str(tmp_path / "scorer")}
    summary = compare(**settings, out=tmp_path / "run").summary
    assert summary["primary_judge"] == "numbers"
    assert summary["scorer"]["is_base"] is False and summary["scorer"]["name"] == "scorer"
    never = summary["methods"]["push"]["judges"]["never"]
    assert never["mean_toxicity"]["value"] == 0.0
    assert summary["methods"]["base"]["mean_toxicity"]["value"] > 0


def test_a_judge_that_fails_on_some_texts_leaves_them_missing(world: Any, tmp_path: Path) -> None:
    def picky(texts: Sequence[str]) -> list[float]:
        if any("w11" in t for t in texts):
            raise RuntimeError("cannot read w11")
        return [0.25] * len(texts)

    summary = compare(**world | {"judges": [Judge("picky", picky)]}, out=tmp_path).summary
    scores = read_lines(tmp_path / "scores.jsonl")
    failed = [r for r in scores if r["scores"]["picky"] is None]
    texts = [r["text"] for r in read_lines(tmp_path / "generations.jsonl")]
    assert len(failed) == sum("w11" in t for t in texts) > 0
    assert summary["judges"]["picky"]["missing"] == len(failed)
    assert "cannot read w11" in failed[0]["errors"]["picky"]
    assert summary["methods"]["base"]["mean_toxicity"]["value"] == pytest.approx(0.25)


def test_samples_do_not_depend_on_the_batch_size(world: Any, tmp_path: Path) -> None:
    # The reviser writes some answers anew, in batches that depend on what the others said.
    critic = SelfCritique(" w7", " w5", " w6", " w8", threshold=0.3)
    world |= {"controllers": {**world["controllers"], "critic": critic}}
    runs = []
    for size in (2, 15):
        compare(**world | {"batch_size": size}, out=tmp_path / str(size))
        records = read_lines(tmp_path / str(size) / "generations.jsonl")
        runs.append({(r["method"], r["prompt"], r["sample"]): r["tokens"] for r in records})
    assert runs[0] == runs[1]
    kept = [runs[0]["critic", p, s] == runs[0]["base", p, s] for p in range(5) for s in range(3)]
    assert any(kept) and not all(kept)


def test_methods_choose_and_methods_that_need_no_fitting_are_known(
    world: Any, tmp_path: Path
) -> None:
    summary = compare(**world, methods=["self_debias", "push"], out=tmp_path).summary
    assert list(summary["methods"]) == ["base", "self_debias", "push"]


def test_agreement_with_reference_scores_is_kept_beside_the_judge(
    world: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"w{n} w{n}", "score": n / 100} for n in range(0, 100, 3)]
    file = tmp_path / "references.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    judge = Judge("numbers", lambda texts: [int(t.split()[0][1:] if t else 0) / 120 for t in texts])
    summary = compare(**world | {"judges": [judge], "agreement": file}, out=tmp_path / "o").summary
    assert summary["judges"]["numbers"]["agreement"]["auc"]["value"] == 1.0


# ----------------------------------------------------------------------------- resuming

LONG = SMALL | {"samples": 8, "max_new_tokens": 4}
UNITS = 3 * 10  # methods, base and plain generate among them, times batches
START = 2  # files that are synced before the first unit
KILLED = """
    import os, signal, sys
    sys.path[:0] = {paths!r}
    from tiny_models import make_model, make_tokenizer
    from test_compare import LONG, Push, compare, dying, length_judge

    os.fsync = dying({syncs}, lambda: os.kill(os.getpid(), signal.SIGKILL))
    compare(make_model(), make_tokenizer(), controllers={{"push": Push(make_model(seed=1), 0.3)}},
            judges=[length_judge], out={out!r}, **LONG)
"""


def dying(syncs: int, die: Callable[[], object], sync: Any = os.fsync) -> Callable[[int], None]:
    """An fsync that dies after so many calls."""
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > syncs:
            die()
        sync(descriptor)

    return fsync


@pytest.fixture
def long(tiny: Any, tokenizer: Any) -> dict[str, Any]:
    controllers = {"push": Push(tiny(seed=1), 0.3)}
    world = {"model": tiny(), "tokenizer": tokenizer, "controllers": controllers}
    return {**LONG, **world, "judges": [length_judge]}


def assert_resumes_alike(long: dict[str, Any], broken: Path, whole: Path) -> None:
    """A broken run, resumed, must equal an undisturbed one in everything but times."""
    assert not (broken / "summary.json").exists()
    expected = compare(**long, out=whole).summary
    resumed = compare(**long, out=broken, resume=True).summary
    assert without_times(resumed) == without_times(expected)
    for name in ("generations.jsonl", "scores.jsonl"):
        assert without_seconds(whole / name) == without_seconds(broken / name)


def without_seconds(path: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "check")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_lines(path)]


def test_a_run_killed_by_sigkill_resumes_to_the_same_summary(long: Any, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    paths = [str(HERE), str(HERE.parents[1] / "helpers")]
    code = KILLED.format(paths=paths, syncs=START + 7, out=str(killed))
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with (killed / "generations.jsonl").open("ab") as torn:
        assert torn.tell() > 0
        torn.write(b'{"method": "base", "pro')
    assert_resumes_alike(long, killed, tmp_path / "whole")


@pytest.mark.parametrize("syncs", [1, START, START + UNITS, START + UNITS + 11, START + 2 * UNITS])
def test_a_run_interrupted_anywhere_resumes_to_the_same_summary(
    long: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: int
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "fsync", dying(syncs, die))
        compare(**long, out=tmp_path / "broken")
    assert_resumes_alike(long, tmp_path / "broken", tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(world: Any, tmp_path: Path) -> None:
    first = compare(**world, out=tmp_path).summary
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert compare(**world, out=tmp_path, resume=True).summary == first
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_another_run_in_the_folder_is_refused_by_what_differs(
    world: Any, tiny: Any, tmp_path: Path
) -> None:
    compare(**world, out=tmp_path)
    with pytest.raises(ValueError, match="already holds this run; continue it with --resume"):
        compare(**world, out=tmp_path)
    with pytest.raises(ValueError, match="another run: samples was 3 and is now 4"):
        compare(**world | {"samples": 4}, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"methods\.push\.config\.weight was 0\.3 and is now 0\.4"):
        other = {"push": Push(world["controllers"]["push"].other, 0.4)}
        compare(
            **world | {"controllers": {**world["controllers"], **other}}, out=tmp_path, resume=True
        )
    with pytest.raises(ValueError, match=r"model\.weights was"):
        compare(**world | {"model": tiny(seed=9)}, out=tmp_path, resume=True)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["shout"]}, "unknown method 'shout'; known are base, .*push, nothing"),
        ({"controllers": {"base": None}}, "'base' is the name of the plain model"),
        ({"methods": []}, "there is no method; name at least one, or 'base' for the plain model"),
        (
            {"methods": None, "controllers": None},
            r"say what to compare: controllers .*, or methods \(self_critique, .* 'base' is the",
        ),
        ({"methods": None, "controllers": {}}, "there is no controller; give at least one, or"),
        ({"samples": -3}, "samples must be at least 1, got -3"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"top_p": 0.0}, "top-p must lie above 0"),
        ({"seed": -1}, "seed must"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": ["w1", "  "]}, "prompt 1: the prompt is empty"),
        ({"prompts": ["w1 " * 125]}, "prompt 0 has 125 tokens; with 6 new ones .*context"),
        ({"prompts": None}, "give prompts too"),
        ({"judges": None}, "give judges too"),
        ({"judges": []}, "there is no judge"),
        ({"judges": ["nobody:knows"]}, "nobody:knows"),
        ({"tokenizer": None}, "a model needs its tokenizer"),
        ({"model": "/nowhere/model"}, "cannot load the model '/nowhere/model'"),
        ({"scorer": "/nowhere/model"}, "cannot load the model '/nowhere/model'"),
        ({"controllers": {"mine": "/nowhere/mine"}}, "/nowhere/mine"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    world: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(**world | change, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_decoder_model_is_refused(world: Any, tokenizer: Any, tmp_path: Path) -> None:
    config = T5Config(vocab_size=120, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="encoder-decoder"):
        compare(**world | {"model": model}, out=tmp_path / "a")
    model.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        compare(**world | {"model": str(tmp_path / "t5")}, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_model_of_random_weights_needs_a_configuration_and_a_tokenizer(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    tiny().config.save_pretrained(tmp_path / "shape")
    with pytest.raises(ValueError, match=r"cannot load the model '.*shape'"):
        random_model(str(tmp_path / "shape"))
    tokenizer.save_pretrained(tmp_path / "shape")
    model, loaded = random_model(str(tmp_path / "shape"))
    assert type(model) is LlamaForCausalLM and len(loaded) == len(tokenizer)
    assert not model.training and model.dtype == torch.float32
    ViTConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path / "seeing")
    tokenizer.save_pretrained(tmp_path / "seeing")
    with pytest.raises(ValueError, match=r"cannot load the model '.*seeing'"):
        random_model(str(tmp_path / "seeing"))


def test_a_full_disk_is_one_error_that_names_the_folder(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        raise OSError(28, "No space left on device")

    real = os.fsync
    monkeypatch.setattr(os, "fsync", dying(6, fill))
    with pytest.raises(OSError, match=f"no space is left for {tmp_path}.*--resume"):
        compare(**world, out=tmp_path)
    monkeypatch.setattr(os, "fsync", real)
    compare(**world, out=tmp_path, resume=True)
