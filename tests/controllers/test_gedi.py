"""GeDi and the likelihoods that it reads, against uncached float64 computations."""

import math
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import paper
import pytest
import torch
from paper import MODES, assert_close, follows, in_double, log_softmax, scores_of, shifted, unpadded
from peft import LoraConfig, get_peft_model
from tokenizers import processors

import plugalign as pa
from plugalign.algebra.identity import identify
from plugalign.algebra.sources import Context, TextLikelihood
from plugalign.controllers.dexperts import with_adapter
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.gedi_filter import reaching, reaching_by_sort
from plugalign.engine.readers.likelihood import COLUMNS, LikelihoodReader

CODES = ("w5", "w6 w7 w8")  # of different lengths, so that one has a gap in front
# ------------------------------------------------------------------ float64 references


def likelihood(model, code, text):
    """The sum of the log-probabilities of a text's tokens behind a code, how many they are, and the
    log-probabilities ``(V,)`` of what follows: one row, no padding, no cache, float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*code, *text]]), use_cache=False).logits[0]
    log_p = np.stack([log_softmax(z) for z in logits.numpy()])
    places = [i for i in range(len(code), len(code) + len(text)) if i > 0]
    total = sum(log_p[i - 1, text[i - len(code)]] for i in places)
    return total, len(places), log_p[-1]


def formula(model, codes, omega=30.0, rho=0.2, tau=0.8, scale=1.0, bias=0.0):
    """``(text, log_p) -> (delta, keep)``, from the paper's equations and the filter's words."""

    def delta(text, log_p):
        mean = []
        for code in codes:
            total, count, following = likelihood(model, code, text)
            mean.append((total + following) / (count + 1))
        log_desired = -np.logaddexp(0, -(scale * (mean[0] - mean[1]) + bias))
        shift = omega * log_desired
        mass = np.exp(log_softmax(log_p + shift))
        keep, sum_ = np.ones(len(log_p), bool), 0.0
        for token in np.argsort(log_desired, kind="stable"):
            sum_ += mass[token]
            keep[token] = not (sum_ < 1 - rho and math.exp(log_desired[token]) < tau)
        return shift, keep

    return delta


def of_tokens(tokenizer, codes=CODES):
    return [tokenizer(code)["input_ids"] for code in codes]


# ------------------------------------------------------------------ the filter


def reaching_one_by_one(order, mass, goal):
    """The token with which the mass of tokens, taken in ascending order, reaches its share."""
    tokens = sorted(range(len(order)), key=lambda t: (order[t], t))
    sums = list(accumulate(mass[t] for t in tokens))
    return next(t for t, so_far in zip(tokens, sums, strict=True) if so_far >= goal * sums[-1])


@pytest.mark.parametrize("goal", [0.0, 0.1, 0.8, 0.99999, 1.0])
@pytest.mark.parametrize("kind", ["spread", "peaked", "tied", "all alike", "light decide", "signs"])
def test_where_the_mass_reaches_the_goal(kind, goal):
    rng, vocabulary = np.random.default_rng(7), 3000
    for trial in range(5):
        order = -rng.exponential(size=vocabulary).astype(np.float32)
        logits = rng.normal(size=vocabulary) * (15 if kind == "peaked" else 2)
        if kind == "tied":
            order = np.round(order, 1)
        elif kind == "all alike":
            order[:] = -0.5
        elif kind == "signs":  # of both signs, and zeros of both
            order = np.round(order + 1, 1) * rng.choice([1, -1, -0.0, 0.0], vocabulary)
            order = order.astype(np.float32)
        mass = np.exp(logits - np.logaddexp.reduce(logits)).astype(np.float32)
        if kind == "light decide":  # the heavy token before the goal lacks what light ones have
            order, mass[:] = np.sort(order), 0.5e-3 / vocabulary
            mass[[0, 2999]] = max(goal - 1e-4, 0), max(0.9996 - goal, 0)
        wanted = reaching_one_by_one(order.tolist(), mass.tolist(), goal)
        on_cpu = torch.from_numpy(order)[None], torch.from_numpy(mass)[None]
        assert reaching(*on_cpu, goal).tolist() == [[wanted]], trial
        # As on a GPU, in float64, so that sums are rounded like those above.
        assert reaching_by_sort(*(x.double() for x in on_cpu), goal).tolist() == [[wanted]], trial


def test_a_row_without_numbers_has_no_error_of_its_own():
    nothing = torch.full((2, 8), math.nan)
    assert reaching(nothing, nothing, 0.8).shape == (2, 1)


# ------------------------------------------------------------------ likelihoods


def read(reader, ids, mask):
    return reader.read(SimpleNamespace(ids=ids, mask=mask, base=torch.empty(len(ids), 120)))


def check(reader, model, codes, ids, mask):
    """The reader's answer is that of one text at a time."""
    found = read(reader, ids, mask)
    for k, code in enumerate(codes):
        for row, (text, keep) in enumerate(zip(ids, mask.bool(), strict=True)):
            total, count, following = likelihood(model, code, text[keep].tolist())
            assert found.count[k, row] == count
            assert found.total[k, row].item() == pytest.approx(total, rel=1e-4, abs=1e-3)
            np.testing.assert_allclose(found.following[k, row].numpy(), following, atol=2e-3)


def grow(ids, mask, *new):
    new = torch.tensor(new)[:, None]
    return torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)


@pytest.mark.parametrize("codes", [([5], [6, 7, 8]), ([], [9, 9])])
def test_likelihoods_are_those_of_whole_texts(codes, tiny, prompts, architecture):
    model, batch = tiny(architecture), prompts(rows=3, width=7)
    double, ids, mask = in_double(model), batch["input_ids"], batch["attention_mask"]
    source = TextLikelihood("classes", None, tuple(Context(tuple(code)) for code in codes))
    reader = LikelihoodReader(source, model)
    check(reader, double, codes, ids, mask)
    check(reader, double, codes, ids, mask)  # the same prefixes once more
    for step in range(3):
        ids, mask = grow(ids, mask, 5 + step, 9 + step, 40 + step)
        check(reader, double, codes, ids, mask)
    check(reader, double, codes, ids[:, :8], mask[:, :8])  # rewound by two
    order = torch.tensor([2, 0, 0])  # permuted, as by beams
    ids, mask = grow(ids[:, :8][order], mask[:, :8][order], 7, 8, 9)
    check(reader, double, codes, ids, mask)
    many = torch.tensor([0, 0, 1, 1, 2, 2])
    ids, mask = grow(ids[many], mask[many], 3, 4, 5, 6, 7, 8)
    check(reader, double, codes, ids, mask)  # rows multiply
    check(reader, double, codes, ids[1:3], mask[1:3])  # and vanish
    mask[2, -2] = 0  # a token that is hidden after all
    check(reader, double, codes, ids, mask)
    reader.forget()
    check(reader, double, codes, ids, mask)


@pytest.mark.parametrize("width", [COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS - 10])
def test_long_prompts_are_read_a_block_at_a_time(width, tiny, prompts):
    model, batch, codes = tiny("gpt2-tied"), prompts(rows=2, width=width), ([5], [6, 7, 8])
    source = TextLikelihood("classes", model, tuple(Context(tuple(code)) for code in codes))
    reader, read_at_once = LikelihoodReader(source, None), []
    model.register_forward_hook(lambda _, __, output: read_at_once.append(output.logits.shape[1]))
    ids, mask, double = batch["input_ids"], batch["attention_mask"], in_double(tiny("gpt2-tied"))
    check(reader, double, codes, ids, mask)
    check(reader, double, codes, *grow(ids, mask, 7, 8))
    assert sum(read_at_once) == width + 3 + 1, "no token twice"
    assert max(read_at_once) == COLUMNS


@pytest.mark.parametrize("width", [7, 2 * COLUMNS - 10])
def test_equal_rows_are_read_once_until_they_differ(width, tiny, prompts):
    model, codes, read_at_once = tiny("gpt2-tied"), ([5], [6, 7, 8]), []
    double, batch = in_double(tiny("gpt2-tied")), prompts(rows=2, width=width)
    source = TextLikelihood("classes", model, tuple(Context(tuple(code)) for code in codes))
    reader = LikelihoodReader(source, None)
    model.register_forward_hook(lambda _, __, output: read_at_once.append(output.logits.shape[:2]))
    samples = torch.tensor([1, 0, 0, 1, 1])
    ids, mask = batch["input_ids"][samples], batch["attention_mask"][samples]
    check(reader, double, codes, ids, mask)
    assert sum(rows * columns for rows, columns in read_at_once) == 2 * 2 * (width + 3)
    read_at_once.clear()
    check(reader, double, codes, *grow(ids, mask, 7, 8, 9, 7, 7))
    assert read_at_once == [(2 * 5, 1)]


def test_nothing_is_kept_but_what_follows_the_last_column(tiny, prompts):
    model, batch = tiny(), prompts(rows=3, width=20)
    reader = LikelihoodReader(TextLikelihood("classes", model, (Context((5,)),)), None)
    following = read(reader, batch["input_ids"], batch["attention_mask"]).following
    assert following.untyped_storage().nbytes() == following.numel() * following.element_size()


def test_a_token_that_a_model_forbids_spoils_no_padded_row(tiny, prompts):
    """A head that gives -inf at the padding token, as some do: what is not counted may be that."""
    model, batch, codes = tiny(), prompts(rows=3), ([5], [6, 7, 8])

    def forbid(_, __, output):
        output.logits[..., 0] = -torch.inf
        return output

    model.register_forward_hook(forbid)
    source = TextLikelihood("classes", None, tuple(Context(tuple(code)) for code in codes))
    found = read(LikelihoodReader(source, model), batch["input_ids"], batch["attention_mask"])
    assert found.total.isfinite().all() and (found.total < 0).all()
    assert found.count.tolist() == [[7, 5, 3]] * 2


def test_heads_of_other_widths_are_aligned(tiny, prompts):
    batch, source = prompts(), TextLikelihood("classes", None, (Context((5,)),))
    for width in (110, 130):
        reader = LikelihoodReader(source, tiny(vocab=width))
        ids = batch["input_ids"].clamp_max(100)
        following = read(reader, ids, batch["attention_mask"]).following
        assert following.shape == (1, 3, 120) and following.isfinite().all()


def test_trained_prefixes_and_questions_are_no_codes(tiny):
    source = TextLikelihood("classes", None, (Context(after=(5,)),))
    with pytest.raises(ValueError, match="'classes' takes token ids in front of the text"):
        LikelihoodReader(source, tiny())


# ------------------------------------------------------------------ the controller

PAIRS = list(
    zip(MODES, ["own", "base"] * 5, ["llama-gqa", "gpt2-tied", "gpt2-tied"] * 3, strict=False)
)


@pytest.mark.parametrize(("mode", "guide", "architecture"), PAIRS)
def test_steered_generate_equals_the_formula(mode, guide, architecture, tiny, tokenizer, prompts):
    model, batch = tiny(architecture), prompts(rows=2, width=6)
    own = tiny("gpt2-tied", seed=3) if guide == "own" else None
    settings = {"scale": 2.0, "bias": 0.5, "omega": 5.0, "tau": 0.7}
    steered = pa.wrap(model, tokenizer, GeDi(*CODES, model=own, **settings))
    delta = formula(in_double(own or model), of_tokens(tokenizer), **settings)
    follows(steered, shifted(delta), batch, mode, tiny(architecture, seed=9))


@pytest.mark.parametrize("mode", ["greedy", "several"])
def test_the_loop_decides_by_the_formula(mode, tiny, tokenizer, prompts):
    """Every step's scores against the paper's, at the paper's defaults."""
    model, own, batch = tiny(), tiny("gpt2-tied", seed=3), prompts(rows=2, width=6)
    steered = pa.wrap(model, tokenizer, GeDi(*CODES, model=own))
    assert steered.explain(max_new_tokens=5, **MODES[mode]).startswith("the owned loop")
    delta = formula(in_double(own), of_tokens(tokenizer))
    output = follows(steered, shifted(delta), batch, mode)
    assert sum(int(scores.isinf().sum()) for scores in output.scores) > 0


def test_a_batch_is_its_rows_one_by_one(tiny, tokenizer, prompts):
    paper.batches_as_rows(pa.wrap(tiny(), tokenizer, GeDi(*CODES, omega=5.0)), prompts(rows=3))


def test_a_start_token_stands_once_and_first(tiny, tokenizer):
    """With a tokenizer that starts texts by a token, ``<s> x`` becomes ``<s> code x``."""
    model = tiny()
    tokenizer.add_special_tokens({"bos_token": "w0"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w0 $A", special_tokens=[("w0", 3)]
    )
    texts = ["w9 w10 w11", "w12"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    steered = pa.wrap(model, tokenizer, GeDi(*CODES, omega=5.0))
    output = steered.generate(
        **batch, max_new_tokens=3, return_dict_in_generate=True, output_scores=True
    )
    delta, double = formula(in_double(model), of_tokens(tokenizer), omega=5.0), in_double(model)
    for step, got in enumerate(output.scores):
        for row, ids in enumerate(output.sequences[:, : batch["input_ids"].shape[1] + step]):
            start, *text = unpadded(ids.tolist())
            log_p = likelihood(double, [], [start, *text])[2]
            want = log_softmax(shifted(delta)(text, log_p))
            assert_close(got[row], want)


def test_scored_texts_are_the_formula(tiny, tokenizer):
    model, own = tiny(), tiny(seed=3)
    steered = pa.wrap(model, tokenizer, GeDi(*CODES, model=own, omega=3.0, rho=0.9))
    delta = formula(in_double(own), of_tokens(tokenizer), omega=3.0, rho=0.9)
    paper.scores_answers(steered, shifted(delta), tokenizer)


def test_adds_up_with_others_in_any_order(tiny, tokenizer, prompts):
    """On the intersection of DExperts' nucleus and what the filter leaves of the base."""
    model, batch, expert = tiny(), prompts(rows=2), tiny(seed=1)
    a, b = GeDi(*CODES, omega=2.0), pa.DExperts(expert, alpha=1.0, top_p=0.9)
    got = scores_of(model, tokenizer, a + b, batch)
    assert torch.equal(got, scores_of(model, tokenizer, b + a, batch))
    double = in_double(model)
    delta = formula(double, of_tokens(tokenizer), omega=2.0)
    for row in range(2):
        [text] = paper.alone(batch, row)["input_ids"].tolist()
        log_p = likelihood(double, [], text)[2]
        shift, kept = delta(text, log_p)
        kept &= paper.nucleus(log_p, 0.9)
        pull = likelihood(in_double(expert), [], text)[2] - log_p
        want = np.where(kept, log_p + shift + pull, -np.inf)
        assert_close(got[0, row], log_softmax(want))


def test_half_the_weight_is_half_the_shift_behind_the_same_filter(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=1)
    got = scores_of(model, tokenizer, 0.5 * GeDi(*CODES, omega=4.0), batch)[0, 0]
    double, text = in_double(model), batch["input_ids"][0].tolist()
    log_p = likelihood(double, [], text)[2]
    shift, keep = formula(double, of_tokens(tokenizer), omega=4.0)(text, log_p)
    want = log_softmax(np.where(keep, log_p + 0.5 * shift, -np.inf))
    assert_close(got, want)


def test_classes_by_the_base_stand_behind_its_attached_prefix(make, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=2)
    prefix = make("prefix", model, tiny, "llama-gqa")  # of the tokens 11, 12, 13
    got = scores_of(model, tokenizer, GeDi(*CODES, omega=4.0) + prefix, batch)
    double, front = in_double(model), [11, 12, 13]
    delta = formula(double, [[*front, *code] for code in of_tokens(tokenizer)], omega=4.0)
    for row in range(2):
        [text] = paper.alone(batch, row)["input_ids"].tolist()
        for step in range(4):
            log_p = likelihood(double, front, text)[2]
            want = log_softmax(shifted(delta)(text, log_p))
            assert_close(got[step, row], want)
            text = [*text, int(got[step, row].argmax())]


def test_strength_zero_is_the_identity(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    plain = model.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(
        scores_of(model, tokenizer, 0 * GeDi(*CODES), batch), torch.stack(plain.scores)
    )
    idle = GeDi(*CODES, omega=0.0, rho=1.0)
    want = torch.stack(plain.scores).log_softmax(-1)
    torch.testing.assert_close(scores_of(model, tokenizer, idle, batch), want)


def test_saves_and_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    settings = {"omega": 4.0, "rho": 0.3, "tau": 0.7, "scale": 1.5, "bias": 2.0}
    saved = GeDi(*CODES, model=tiny(seed=3), **settings)
    saved.save_pretrained(tmp_path / "own")
    GeDi(*CODES, **settings).save_pretrained(tmp_path / "base")
    loaded = pa.Controller.from_pretrained(str(tmp_path / "own"))
    assert isinstance(loaded, GeDi) and loaded.config() == saved.config()
    got = [scores_of(model, tokenizer, c, batch) for c in (saved, loaded)]
    torch.testing.assert_close(*got)
    assert pa.Controller.from_pretrained(str(tmp_path / "base")).model is None
    named = GeDi(*CODES, model="somewhere/gedi")
    assert named.config()["models"] == {"model": "somewhere/gedi"} and not named.saved_parts()


def test_what_needs_all_places_at_once_says_why_it_cannot(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, GeDi(*CODES))
    why = "'classes by the base' is read at one place at a time"
    with pytest.raises(ValueError, match=f"no draft can be verified here: {why}"):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation("prompt"))
    assert (
        "'classes by the base' of GeDi is read in a way of its own" in steered.plan.why_uncapturable
    )


def test_a_broken_guide_is_named_with_the_step(tiny, tokenizer, prompts):
    own = tiny(seed=3)
    with torch.no_grad():
        own.get_output_embeddings().weight[40] = float("nan")
    with pytest.raises(FloatingPointError, match="the controller GeDi gave NaN logits at step 0"):
        pa.wrap(tiny(), tokenizer, GeDi(*CODES, model=own)).generate(**prompts(), max_new_tokens=2)


def test_a_text_longer_than_the_class_models_context_is_refused(tiny, tokenizer):
    batch = {"input_ids": torch.full((1, 125), 5), "attention_mask": torch.ones(1, 125).long()}
    steered = pa.wrap(tiny(), tokenizer, GeDi(*CODES))
    with pytest.raises(ValueError, match="125 tokens and 3 tokens that controllers put in front"):
        steered.generate(**batch, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"desired": ""}, "two different codes that are not empty, got '' and 'w6'"),
        ({"desired": "w6"}, "two different codes"),
        ({"omega": -1}, "omega must be finite and not negative, got -1"),
        ({"scale": math.inf}, "scale must be finite and not negative, got inf"),
        ({"rho": 1.5}, r"rho must lie in \[0, 1\], got 1.5"),
        ({"tau": -0.1}, r"tau must lie in \[0, 1\], got -0.1"),
        ({"bias": math.nan}, "the bias must be finite, got nan"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GeDi(**{"desired": "w5", "undesired": "w6", **settings})


def test_refuses_what_does_not_fit_the_model(tiny, tokenizer):
    with pytest.raises(ValueError, match=r"makes no token of GeDi's code ' '"):
        pa.wrap(tiny(), tokenizer, GeDi("w5", " "))
    with pytest.raises(ValueError, match="scores 60 tokens"):
        pa.wrap(tiny(), tokenizer, GeDi(*CODES, model=tiny(vocab=60)))


def test_an_adapter_follows_the_weights_that_it_changes(tiny, tokenizer, prompts, tmp_path):
    """A LoRA adapter of the base is a class-conditional model, also after the base was trained."""
    torch.manual_seed(4)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(tiny(), config).save_pretrained(tmp_path)
    model, batch = tiny(), prompts()
    controller = GeDi(*CODES, model=tmp_path, fitted_for=identify(model, tokenizer))
    steered = pa.wrap(model, tokenizer, controller)
    before = steered.generate(**batch, max_new_tokens=4)
    own = GeDi(*CODES, model=with_adapter(model, tmp_path))
    assert before.tolist() == (
        pa.wrap(model, tokenizer, own).generate(**batch, max_new_tokens=4).tolist()
    )
    declared = steered.plan
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    steered.generate(**batch, max_new_tokens=1)
    assert steered.plan is not declared
