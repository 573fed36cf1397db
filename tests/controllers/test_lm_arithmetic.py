"""Language-model arithmetic against theorem 1 of the paper, with uncached forwards in float64."""

from __future__ import annotations

import numpy as np
import paper
import pytest
import torch

import plugalign as pa
from plugalign.controllers.lm_arithmetic import Formula, LMArithmetic, intersection, lm, union

PROMPT, OTHER = "w5 w6 w7", "w8"
FORMULAS = ("difference", "union", "intersection", "prompts", "both")


@pytest.fixture
def written(tiny, tokenizer):
    """A formula by name, with the model that it is for, and the scores that the paper gives it."""

    def written(name, architecture="llama-gqa"):
        model, a, b = (tiny(architecture, seed=seed) for seed in range(3))
        first, second = (tokenizer(text)["input_ids"] for text in (PROMPT, OTHER))
        base, one, two = lm(), lm(a), lm(b)

        def p(who, front=()):
            return lambda ids: paper.log_p(who, [*front, *ids])

        x, y = p(a), p(b)
        behind, other, elsewhere = p(model, first), p(model, second), p(a, second)
        match name:
            case "difference":
                formula = one + 0.5 * base - 0.7 * two
                return model, formula, lambda i, z: (x(i) + 0.5 * z - 0.7 * y(i)) / 0.8
            case "union":
                formula = 0.5 * one + 2 * union(base, two)
                return model, formula, lambda i, z: (0.5 * x(i) + 2 * np.maximum(z, y(i))) / 2.5
            case "intersection":
                formula = intersection(base, one, two)
                return model, formula, lambda i, z: np.minimum(np.minimum(z, x(i)), y(i))
            case "prompts":
                formula = lm(prompt=PROMPT) - lm(prompt=OTHER) / 4
                return model, formula, lambda i, z: (behind(i) - other(i) / 4) / 0.75
            case "both":
                formula = base - 0.6 * one + union(lm(prompt=PROMPT), two)
                formula -= 0.3 * intersection(one, lm(a, prompt=OTHER))

                def wanted(i, z):
                    linear, least = z - 0.6 * x(i), np.minimum(x(i), elsewhere(i))
                    return (linear + np.maximum(behind(i), y(i)) - 0.3 * least) / 1.1

                return model, formula, wanted

    return written


@pytest.mark.parametrize("name", FORMULAS)
def test_generate_equals_the_formula(name, mode, written, tiny, tokenizer, prompts):
    architecture = ("llama-gqa", "gpt2-tied")[FORMULAS.index(name) % 2]
    model, formula, wanted = written(name, architecture)
    steered = pa.wrap(model, tokenizer, LMArithmetic(formula))
    paper.follows(steered, wanted, prompts(rows=2, width=6), mode, tiny(architecture, seed=9))


@pytest.mark.parametrize("name", FORMULAS)
def test_given_texts_are_scored_by_the_formula(name, written, tokenizer, prompts):
    model, formula, wanted = written(name, "gpt2-tied")
    steered = pa.wrap(model, tokenizer, LMArithmetic(formula))
    paper.scores_texts(steered, wanted, prompts(rows=2, width=7))


def test_a_batch_is_its_rows_one_by_one(written, tokenizer, prompts):
    model, formula, _ = written("both")
    batch, controller = prompts(rows=3), LMArithmetic(formula)
    together = paper.decides(model, tokenizer, controller, batch)
    for row in range(3):
        own = paper.alone(batch, row)
        [ids] = paper.decides(model, tokenizer, controller, own)
        assert ids[own["input_ids"].shape[1] :] == together[row][7:]


def test_sums_with_other_controllers(written, tiny, tokenizer, prompts):
    model, formula, wanted = written("union")
    expert = tiny(seed=4)
    a, b = LMArithmetic(formula), pa.DExperts(expert, top_p=1.0, alpha=0.5)
    assert a + b == b + a
    steered, other = (pa.wrap(model, tokenizer, c) for c in (a + b, b + a))
    batch = prompts(rows=2, width=6)

    def both(ids, base):
        return wanted(ids, base) + 0.5 * (paper.log_p(expert, ids) - base)

    paper.follows(steered, both, batch, "greedy")
    paper.follows(other, both, batch, "sample")
    half = paper.scores_of(model, tokenizer, 0.5 * a, batch)[0]
    for row in range(2):
        ids = paper.alone(batch, row)["input_ids"][0].tolist()
        base = paper.log_p(model, ids)
        want = paper.log_softmax(0.5 * wanted(ids, base) + 0.5 * base)
        np.testing.assert_allclose(half[row].numpy(), want, atol=1e-3)


def test_strength_zero_and_the_base_itself_are_the_identity(written, tokenizer, prompts):
    model, formula, _ = written("both")
    batch = prompts()
    plain = paper.scores_of(model, tokenizer, 0 * pa.SelfDebias(["w5"]), batch)
    nothing = paper.scores_of(model, tokenizer, 0 * LMArithmetic(formula), batch)
    assert torch.equal(nothing, plain)
    for same in (
        lm(),
        2 * lm() - 0.5 * lm(),
        union(lm(), lm()),
        3 * lm() + intersection(lm(), lm()),
    ):
        scores = paper.scores_of(model, tokenizer, LMArithmetic(same), batch)
        torch.testing.assert_close(scores, plain.log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_models_and_prompts_that_return_are_read_once(tiny, tokenizer, prompts):
    model, other, calls = tiny(), tiny("gpt2-tied", seed=1), []
    other.register_forward_hook(lambda *_: calls.append(1))
    formula = lm(other) + union(lm(), lm(other)) + lm(other) / 2
    pa.wrap(model, tokenizer, LMArithmetic(formula)).generate(**prompts(), max_new_tokens=4)
    assert len(calls) == 4


def test_saves_and_decides_alike(written, tiny, tokenizer, prompts, tmp_path):
    model, formula, _ = written("both")
    tiny(seed=6).save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    saved = LMArithmetic(formula + lm(tmp_path / "folder") + lm(str(tmp_path / "folder")))
    saved.save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("model_*"))) == 3  # two models and one folder
    loaded = pa.Controller.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(loaded, LMArithmetic) and loaded.config() == saved.config()
    batch = prompts()
    decided = [paper.decides(model, tokenizer, each, batch) for each in (loaded, saved)]
    assert decided[0] == decided[1]


def test_ids_on_the_hub_are_saved_by_name(tmp_path):
    saved = LMArithmetic(lm("hub/chat") - 0.2 * lm("hub/base", prompt="Hi") + lm("hub/chat"))
    saved.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    with pytest.raises(ValueError, match="'hub/chat' on the hub as its model_0; if it may"):
        pa.Controller.from_pretrained(str(tmp_path))
    loaded = pa.Controller.from_pretrained(str(tmp_path), allow_hub_parts=True)
    assert loaded.formula == saved.formula


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"model_0",', '"model_7",', "a model 'model_7' that is none of its parts"),
        ('"union"', '"onion"', "'summands.0.operation'"),
        ('"union"', '"model"', "the model of 2 models"),
        ('"weight": 1.0', '"weight": -1.0', "must be positive, got -1"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(old, new, message, tmp_path):
    LMArithmetic(union(lm(), lm("hub/chat"))).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"is damaged: .*{message}"):
        pa.Controller.from_pretrained(str(tmp_path), allow_hub_parts=True)


@pytest.mark.parametrize("name", ["difference", "union", "prompts"])
def test_drafts_change_no_greedy_text(name, written, tokenizer, prompts):
    model, formula, _ = written(name)
    steered, batch = pa.wrap(model, tokenizer, LMArithmetic(formula)), prompts(rows=2)
    drafts = pa.Speculation("base", 3)
    got = steered.generate(**batch, max_new_tokens=12, do_sample=False, speculation=drafts)
    assert torch.equal(got, steered.generate(**batch, max_new_tokens=12, do_sample=False))
    assert drafts.rounds > 0


def test_what_can_be_captured_says_so(written, tokenizer):
    for name, why in (("union", None), ("prompts", None), ("both", "another model in a context")):
        model, formula, _ = written(name)
        found = pa.wrap(model, tokenizer, LMArithmetic(formula)).plan.why_uncapturable
        assert (found is None) if why is None else (why in found)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: LMArithmetic(lm() - lm("a")), ValueError, "must be positive, got 0"),
        (lambda: LMArithmetic({"a": 1.0}), TypeError, "needs a formula.* got dict"),
        (lambda: union(lm()), ValueError, r"union takes two or more of lm\(\.\.\.\)"),
        (lambda: intersection(lm(), 2 * lm("a")), ValueError, "neither sums nor multiples"),
        (lambda: union(lm(), lm("a") + lm("b")), ValueError, "neither sums nor multiples"),
        (lambda: float("nan") * lm(), ValueError, "must be finite, got nan"),
        (lambda: lm() / 0, ValueError, "divided by 0"),
        (lambda: lm() + 1, TypeError, "unsupported operand"),
        (lambda: lm() * True, TypeError, "unsupported operand"),
        (lambda: lm(prompt=3), TypeError, "a prompt is a text, got int"),
        (lambda: lm(7), TypeError, "lm's model must be a causal language model.* got int"),
    ],
)
def test_refuses_by_name(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_a_model_with_another_tokenizer_is_refused_by_name(tiny, tokenizer):
    with pytest.raises(ValueError, match="scores 90 tokens but 'LlamaForCausalLM' has 120"):
        pa.wrap(tiny(), tokenizer, LMArithmetic(lm(tiny(seed=1, vocab=90))))


def test_a_formula_is_a_value():
    one = lm("a") - 0.5 * union(lm(), lm("b", prompt="Hi"))
    assert isinstance(one, Formula) and one.total == 0.5
    assert one == lm("a") + -(union(lm(), lm("b", prompt="Hi")) / 2)
