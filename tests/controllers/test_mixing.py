"""DeRA and MOD against their papers, with uncached float64 forwards."""

from __future__ import annotations

from pathlib import Path

import paper
import pytest
import torch
from peft import LoraConfig, get_peft_model

import plugalign as pa
from plugalign.controllers.mixing import MOD, DeRA


@pytest.fixture
def written(tiny):
    """A controller by name, with the model that it is for, and the scores of its paper."""

    def written(name):
        architecture = "llama-gqa" if name == "dera" else "gpt2-tied"
        model, a, b = (tiny(architecture, seed=seed) for seed in range(3))
        if name == "dera":
            return model, DeRA(a, weight=1.4), lambda i, z: -0.4 * z + 1.4 * paper.log_p(a, i)

        def wanted(ids, base):
            return 0.2 * base + 0.5 * paper.log_p(a, ids) + 0.3 * paper.log_p(b, ids)

        return model, MOD({None: 0.2, a: 0.5, b: 0.3}), wanted

    return written


@pytest.mark.parametrize("name", ["dera", "mod"])
def test_generate_equals_the_formula(name, mode, written, tiny, tokenizer, prompts):
    model, controller, wanted = written(name)
    assistant = tiny("llama-gqa" if name == "dera" else "gpt2-tied", seed=9)
    steered = pa.wrap(model, tokenizer, controller)
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, assistant)


@pytest.mark.parametrize("name", ["dera", "mod"])
def test_given_texts_are_scored_by_the_formula(name, written, tokenizer, prompts):
    model, controller, wanted = written(name)
    paper.scores_texts(pa.wrap(model, tokenizer, controller), wanted, prompts(rows=2))


def test_a_batch_is_its_rows_one_by_one(written, tokenizer, prompts):
    model, controller, _ = written("mod")
    batch = prompts(rows=3)
    together = paper.decides(model, tokenizer, controller, batch)
    for row in range(3):
        own = paper.alone(batch, row)
        [ids] = paper.decides(model, tokenizer, controller, own)
        assert ids[own["input_ids"].shape[1] :] == together[row][7:]


def test_the_ends_are_the_base_and_the_aligned_model(tiny, tokenizer, prompts):
    model, aligned, batch = tiny(), tiny(seed=1), prompts()
    plain = paper.scores_of(model, tokenizer, 0 * DeRA(aligned, weight=0.5), batch)
    none = paper.scores_of(model, tokenizer, DeRA(aligned, weight=0), batch)
    torch.testing.assert_close(none, plain.log_softmax(-1), atol=1e-5, rtol=1e-5)
    theirs = paper.scores_of(aligned, tokenizer, 0 * DeRA(model, weight=0.5), batch)
    for controller in (DeRA(aligned, weight=1), MOD({aligned: 1.0})):
        found = paper.scores_of(model, tokenizer, controller, batch)
        torch.testing.assert_close(found, theirs.log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_an_adapter_of_the_base_is_aligned(tiny, tokenizer, prompts, tmp_path):
    torch.manual_seed(4)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(tiny(), config)
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload().eval()
    steered = pa.wrap(tiny(), tokenizer, DeRA(tmp_path, weight=0.5))

    def wanted(ids, base):
        return 0.5 * base + 0.5 * paper.log_p(merged, ids)

    paper.follows(steered, wanted, prompts(rows=2, width=6), "greedy")


def test_sums_with_other_controllers(written, tiny, tokenizer, prompts):
    model, a, wanted = written("mod")
    expert = tiny("gpt2-tied", seed=4)
    b = pa.DExperts(expert, top_p=1.0, alpha=0.5)
    assert a + b == b + a

    def both(ids, base):
        return wanted(ids, base) + 0.5 * (paper.log_p(expert, ids) - base)

    for controller, mode in ((a + b, "greedy"), (b + a, "sample")):
        steered = pa.wrap(model, tokenizer, controller)
        paper.follows(steered, both, prompts(rows=2, width=6), mode)


@pytest.mark.parametrize("name", ["dera", "mod"])
def test_saves_and_decides_alike(name, written, tokenizer, prompts, tmp_path):
    model, saved, _ = written(name)
    saved.save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert type(loaded) is type(saved) and loaded.config() == saved.config()
    decided = [paper.decides(model, tokenizer, each, prompts()) for each in (saved, loaded)]
    assert decided[0] == decided[1]


def test_ids_on_the_hub_are_saved_by_name(tmp_path):
    for name, saved in {"d": DeRA("hub/a", weight=2), "m": MOD({"hub/a": 0.5, None: 0.5})}.items():
        saved.save_pretrained(tmp_path / name)
        loaded = pa.Controller.from_pretrained(str(tmp_path / name), allow_hub_parts=True)
        assert loaded.formula == saved.formula


def test_another_formula_is_refused_by_name(tmp_path):
    DeRA("hub/a", weight=2).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"weight": -1', '"weight": 3'))
    with pytest.raises(ValueError, match="is damaged: its formula is none of DeRA"):
        pa.Controller.from_pretrained(str(tmp_path), allow_hub_parts=True)


@pytest.mark.parametrize("name", ["dera", "mod"])
def test_drafts_and_captures(name, written, tokenizer, prompts):
    model, controller, _ = written(name)
    steered, drafts = pa.wrap(model, tokenizer, controller), pa.Speculation("base", 3)
    options = {**prompts(rows=2), "max_new_tokens": 12, "do_sample": False}
    got = steered.generate(**options, speculation=drafts)
    assert torch.equal(got, steered.generate(**options)) and drafts.rounds > 0
    assert steered.plan.why_uncapturable is None


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: DeRA(None, weight=0.5), TypeError, "needs the aligned model, got None"),
        (lambda: DeRA("a", weight=float("inf")), ValueError, "must be finite"),
        (lambda: DeRA("a", weight="1"), TypeError, "DeRA's weight must be a number, got '1'"),
        (lambda: DeRA("a", weight=True), TypeError, "DeRA's weight must be a number, got True"),
        (lambda: DeRA(3, weight=0.5), TypeError, "must be a causal language model.* got int"),
        (lambda: MOD({"a": 0.5, None: 0.6}), ValueError, "must add up to 1, got 1.1"),
        (lambda: MOD({"a": 0.5, Path("a"): 0.5}), ValueError, "the model 'a' twice; add up its"),
        (lambda: MOD(["a"]), TypeError, "needs weights by model, got list"),
        (lambda: MOD({"a": True}), TypeError, "MOD's weights must be numbers, got True"),
        (lambda: MOD({}), ValueError, "must add up to 1, got 0"),
        (lambda: MOD({"a": float("nan")}), ValueError, "must add up to 1, got nan"),
    ],
)
def test_refuses_by_name(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
