"""Traced runs: what is written, that it is all there, and that it comes out again."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import pytest

import plugalign as pa
from plugalign import pocket
from plugalign.sampling import CoupledSampler
from plugalign.values.account.chain import Chain
from plugalign.values.account.reading import TraceFile, verify
from plugalign.values.account.records import EndLine, content_of
from plugalign.values.account.replay import replay
from plugalign.values.account.tracing import trace

PROMPTS = ["My boss is", "The cook was", "Honestly, that nanny", "The new teacher"]
WITH = {"max_new_tokens": 6, "batch_size": 3, "samples": 2, "seed": 5}


def folders(where):
    """Copies of two of the pocket world's controllers."""
    for name in ("fudge_head", "self_debias"):
        shutil.copytree(pocket.parts() / "controllers" / name, where / name, dirs_exist_ok=True)
    return {name: where / name for name in ("fudge_head", "self_debias")}


def prompts_file(where):
    path = where / "prompts.jsonl"
    strata = ("work", "home", "home", "work")
    rows = [{"text": t, "group": g} for t, g in zip(PROMPTS, strata, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    where = tmp_path_factory.mktemp("traced")
    given = {"prompts": prompts_file(where), "stratum": "group"}
    return where, trace(folders(where), **given, **WITH, out=where / "out")


@pytest.fixture
def copy(run, tmp_path):
    """A run of one's own, to damage."""
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def test_tokens_are_those_that_generate_gives(run):
    where, traced = run
    model, tokenizer = pocket.load()
    parts = [pa.Controller.from_pretrained(str(where / name)) for name in folders(where)]
    steered = pa.wrap(model, tokenizer, parts[0] + parts[1])
    for each in TraceFile(traced.file).answers():
        batch = tokenizer(PROMPTS[each.answer.prompt], return_tensors="pt")
        sampler = CoupledSampler(
            5, [each.answer.prompt], [each.answer.sample], temperature=1.0, top_p=0.9
        )
        options = {"max_new_tokens": 6, "do_sample": False, "logits_processor": [sampler]}
        output = steered.generate(**batch, **options)[0, batch["input_ids"].shape[1] :].tolist()
        assert each.ids == output
        assert each.answer.text == tokenizer.decode(output, skip_special_tokens=True)
        assert "".join(each.answer.pieces) == tokenizer.decode(output)


def test_lines_say_who_changed_what_and_no_prompt_is_stored(run):
    _, traced = run
    answers = list(TraceFile(traced.file).answers())
    assert len(answers) == traced.answers == 8
    assert sum(len(each.tokens) for each in answers) == traced.tokens
    for each in answers:
        assert each.answer.output_tokens == len(each.tokens) <= 6
        assert each.answer.prompt_sha256 == sha256(PROMPTS[each.answer.prompt].encode()).hexdigest()
        assert each.answer.stratum == ("work", "home", "home", "work")[each.answer.prompt]
        for line in each.tokens:
            assert list(line.contributions) == ["fudge_head", "self_debias"]
            assert line.kl is not None and line.kl >= 0 and line.support >= 1
    raw = traced.file.read_text(encoding="utf-8")
    page = traced.page.read_text(encoding="utf-8")
    assert not any(text in raw + page for text in PROMPTS)
    head = json.loads(raw.splitlines()[0])
    assert (
        head["request"]["gen_ai.request.seed"] == 5 and head["controllers"]["fudge_head"]["files"]
    )
    assert head["controllers"]["fudge_head"]["sheet"]["held_out"]["auc"] > 0.5
    assert verify(traced.out).complete and verify(traced.out).head == traced.head


def test_prompts_are_stored_where_that_is_asked_for(tmp_path):
    traced = trace(prompts=PROMPTS[:1], store_prompts=True, max_new_tokens=2, out=tmp_path / "out")
    assert PROMPTS[0] in traced.file.read_text() and PROMPTS[0] in traced.page.read_text()


def test_prompts_are_not_stored_for_what_only_looks_true(tmp_path):
    with pytest.raises(TypeError, match="store_prompts must be True or False, got 'no'"):
        trace(prompts=PROMPTS[:1], store_prompts="no", max_new_tokens=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_replay_gives_the_same_ids(run):
    found = replay(run[1].file)
    assert (found.answers, found.same, found.first) == (8, 8, None)
    assert str(found) == "8 of 8 answers have the same tokens again"


def test_a_replay_with_another_seed_does_not(copy):
    lines = [link.content for link in Chain(copy / "trace.jsonl").links]
    (copy / "trace.jsonl").unlink()
    request = {**lines[0]["request"], "gen_ai.request.seed": 6}
    Chain(copy / "trace.jsonl").append([{**lines[0], "request": request}, *lines[1:]])
    found = replay(copy)
    assert found.same < found.answers and found.first is not None


def test_a_replay_refuses_what_is_not_the_runs(copy, tmp_path):
    with pytest.raises(ValueError, match="is not that of the run: its hash differs"):
        replay(copy, prompts=["Another"])
    with pytest.raises(ValueError, match="'self_debias' is not that of the run: its class"):
        replay(copy, controllers={"self_debias": pocket.controllers()["fudge"]})
    with pytest.raises(ValueError, match="the run has no controller 'other'"):
        replay(copy, controllers={"other": pocket.controllers()["fudge"]})


def test_one_changed_byte_in_a_guide_is_found(copy, run, tmp_path):
    weights = tmp_path / "fudge_head" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-100] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(
        ValueError, match=r"'fudge_head' is not that of the run: its .*files changed"
    ):
        replay(copy, controllers={name: tmp_path / name for name in ("fudge_head", "self_debias")})


def test_a_killed_run_goes_on_where_it_stopped(run, tmp_path):
    where, traced = run
    shutil.copytree(where / "out", tmp_path / "out")
    file = tmp_path / "out" / "trace.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:40])
    given = {"prompts": where / "prompts.jsonl", "stratum": "group", "out": tmp_path / "out"}
    parts = folders(where)
    with pytest.raises(ValueError, match="already holds this run; continue it with --resume"):
        trace(parts, **given, **WITH)
    again = trace(parts, **given, **WITH, resume=True)
    tokens = {
        out: {
            (a.answer.prompt, a.answer.sample): a.ids
            for a in TraceFile(out / "trace.jsonl").answers()
        }
        for out in (traced.out, again.out)
    }
    assert tokens[traced.out] == tokens[again.out]
    found = verify(again.out)
    assert found.complete and found.resumed == 1 and found.tokens == traced.tokens
    with pytest.raises(ValueError, match="holds another run \\(its request differs\\)"):
        trace(parts, **given, **{**WITH, "seed": 6}, resume=True)


def spread(texts):
    """A judge of risk."""
    return [len(text) / 30 for text in texts]


def test_a_killed_run_does_not_go_on_with_other_strata_or_prompts_stored(tmp_path):
    given = {"max_new_tokens": 2, "batch_size": 2, "out": tmp_path / "out", "resume": True}
    by_risk = {**given, "prompts": PROMPTS, "risk": spread}
    file = trace(**by_risk, cuts=[0.5]).file
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-2]))
    for changed, what in (
        ({"cuts": [0.2, 0.5]}, "strata"),
        ({"cuts": [0.5], "store_prompts": True}, "store_prompts"),
    ):
        with pytest.raises(ValueError, match=f"holds another run \\(its {what} differs\\)"):
            trace(**by_risk, **changed)
    traced = trace(**by_risk, cuts=[0.5])
    assert traced.answers == 4
    assert TraceFile(file).run.strata.endswith("on the prompt, cut at 0.5")

    path = prompts_file(tmp_path)
    named = {**given, "out": tmp_path / "named", "prompts": path, "stratum": "group"}
    trace(**named)
    path.write_text(path.read_text(encoding="utf-8").replace("home", "work"), encoding="utf-8")
    with pytest.raises(ValueError, match="its strata differs"):
        trace(**named)


def test_a_file_that_was_cut_at_its_end_is_not_complete(copy):
    lines = (copy / "trace.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "trace.jsonl").write_bytes(b"".join(lines[:-1]))
    assert not verify(copy).complete
    (copy / "trace.jsonl").write_bytes(b"".join(lines[:-3]))
    assert (
        verify(copy).unfinished == len(lines) - 3 - 1 - verify(copy).tokens - verify(copy).answers
    )


def test_an_end_that_miscounts_is_found(copy):
    path = copy / "trace.jsonl"
    contents = [link.content for link in Chain(path).links][:-1]
    path.unlink()
    end = EndLine(time="2026-01-01T00:00:00+00:00", answers=9, tokens=1)
    Chain(path).append([*contents, content_of(end)])
    with pytest.raises(ValueError, match="it counts 9 answers of 1 tokens, and there are 8 of"):
        verify(path)


BAD = {
    "no controller": (
        {"model": "somewhere", "prompts": PROMPTS, "controllers": {}},
        "there is no controller; give at least one",
    ),
    "no prompts": ({"model": "somewhere"}, "with a model of your own, give prompts too"),
    "texts have no fields": ({"prompts": PROMPTS, "stratum": "group"}, "have no fields"),
    "two sorters": ({"prompts": PROMPTS, "stratum": "g", "risk": "pocket"}, "not from both"),
    "cuts alone": ({"prompts": PROMPTS, "cuts": [0.5]}, "name the judge too"),
    "falling cuts": (
        {"prompts": PROMPTS, "risk": "pocket", "cuts": [0.5, 0.2]},
        "rising numbers between 0 and 1",
    ),
    "cuts that are no numbers": (
        {"prompts": PROMPTS, "risk": "pocket", "cuts": [float("nan")]},
        "rising numbers between 0 and 1",
    ),
    "several values": ({"settings": {"dexperts.alpha": [1, 2]}}, "a setting has one value"),
    "no room": ({"max_new_tokens": 9999}, "with 9999 new ones it is longer than the context"),
    "no answers": ({"samples": 0}, "samples must be at least 1"),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_arguments_give_one_error_before_any_work(which, tmp_path):
    options, message = BAD[which]
    with pytest.raises(ValueError, match=message):
        trace(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_controller_of_another_model_is_refused_before_any_work(tiny, tokenizer, tmp_path):
    given = {"model": tiny(), "tokenizer": tokenizer, "prompts": ["w1"], "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="has another vocabulary; fit it again"):
        trace(folders(tmp_path), **given)
    assert not (tmp_path / "out").exists()


def test_a_model_of_ones_own_is_found_again(tmp_path):
    model, tokenizer = pocket.load()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    given = {"prompts": prompts_file(tmp_path), "max_new_tokens": 3, "out": tmp_path / "out"}
    traced = trace(folders(tmp_path), model=tmp_path / "model", **given)
    assert replay(traced.out).same == 4
    shutil.rmtree(tmp_path / "out")
    traced = trace(folders(tmp_path), model=model, tokenizer=tokenizer, **given)
    with pytest.raises(ValueError, match=r"does not say where .* lies; give the model"):
        replay(traced.out)
    assert replay(traced.out, model=model, tokenizer=tokenizer).same == 4
