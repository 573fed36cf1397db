"""PPLM against the paper's update in float64, one text at a time and without caches of its own."""

import math
from types import SimpleNamespace

import numpy as np
import paper
import pytest
import torch
from paper import MODES, assert_close, follows, in_double, log_softmax, scores_of
from torch import nn
from transformers import DynamicCache

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.algebra.shifts import LowRank
from plugalign.algebra.sources import Context, Logits
from plugalign.algebra.steering import Steering
from plugalign.controllers.pplm import PPLM, PerturbedRatio, bag_of
from plugalign.controllers.pplm_gradient import Perturbed, Perturber, in_window

WORDS = ["w5", "w6", "w40"]
BAG = [8, 9, 43]
TOLERANCE = 3e-3


class Declared(Controller):
    """A controller that is nothing but its declaration."""

    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


# ------------------------------------------------------------------ float64 references


def classifier(seed=7, classes=3):
    torch.manual_seed(seed)
    return nn.Linear(32, classes)


def remembered(model, text):
    """Keys and values of a text, ``(layers, 2, H_kv, C, D)``."""
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([text])).past_key_values
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


def forward(model, history, **inputs):
    """The next token's log-probabilities and the last state, behind keys and values."""
    cache = DynamicCache()
    for i, (keys, values) in enumerate(history):
        cache.update(keys[None], values[None], i)
    output = model(past_key_values=cache, output_hidden_states=True, **inputs)
    return output.logits[0, -1].log_softmax(-1), output.hidden_states[-1][0, -1]


@torch.enable_grad()  # generate takes it away
def ratio(
    model,
    text,
    *,
    bag=(),
    head=None,
    label=1,
    stepsize=0.02,
    iterations=3,
    gamma=1.5,
    kl=0.01,
    window=0,
    horizon=1,
    variant="paper",
):
    """log p_D - log p of the next token, ``(V,)``: section 3 of the paper for one text."""
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([text]), output_hidden_states=True)
    own, states = whole.logits[0, -1].log_softmax(-1), whole.hidden_states[-1][0]
    if len(text) == 1:
        return np.zeros(len(own))
    history, last = remembered(model, text[:-1]), torch.tensor([text[-1:]])
    everything = remembered(model, text)
    moves = torch.ones(len(text) - 1)
    if window and window < len(text) - 1:
        moves[:] = 0
        moves[slice(-window, None) if variant == "paper" else slice(window)] = 1

    def loss_of(offset):
        log_p, state = forward(model, history + offset, input_ids=last)
        loss = kl * (log_p.exp() * (log_p - own)).sum()
        if bag:
            loss = loss - log_p.exp()[list(bag)].sum().log()
        if head is not None:
            seen = [*states[:-1], state.detach() if variant == "released" else state]
            after, probs = everything, log_p.exp()
            embedding = model.get_input_embeddings().weight
            assert horizon == 1
            seen.append(forward(model, after, inputs_embeds=(probs @ embedding)[None, None])[1])
            scores = head.weight.double() @ torch.stack(seen).mean(0) + head.bias.double()
            loss = loss - scores.log_softmax(-1)[label]
        return loss

    offset = torch.zeros_like(history)
    for _ in range(iterations):
        offset = offset.detach().requires_grad_()
        [grad] = torch.autograd.grad(loss_of(offset), [offset])
        grad = grad * moves[:, None]
        norm = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        offset = offset - stepsize * grad / norm**gamma
    with torch.no_grad():
        return (forward(model, history + offset, input_ids=last)[0] - own).numpy()


def perturbed(model, gm=0.9, top_k=10, **settings):
    """The formula: mixed with the base, and cut."""
    double = in_double(model)

    def formula(ids, log_p):
        mixed = log_p + gm * ratio(double, ids, **settings)
        mixed[np.argsort(-mixed, kind="stable")[top_k or len(mixed) :]] = -np.inf
        return log_softmax(mixed)

    return formula


def source_of(controller, model, tokenizer):
    [source] = pa.wrap(model, tokenizer, controller).plan.sources.values()
    return source


def asked(ids, mask):
    return SimpleNamespace(ids=ids, mask=mask, base=torch.empty(len(ids), 120))


# ------------------------------------------------------------------ the perturbation

KINDS = {
    "words": {},
    "recent": {"window": 3},
    "oldest": {"window": 3, "variant": "released"},
    "class": {"head": True, "stepsize": 0.1},
    "released class": {"head": True, "stepsize": 0.1, "variant": "released"},
    "both": {"head": True, "bag": True, "kl": 0.5, "gamma": 1.0, "iterations": 2, "stepsize": 0.3},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied"])
def test_what_is_read_is_the_papers_update(kind, architecture, tiny, tokenizer, prompts):
    """In float64, to which one reader and the reference agree almost bit for bit: padded rows,
    texts that grow, are rewound, permuted and multiplied."""
    settings, model = dict(KINDS[kind]), tiny(architecture).double()
    head = classifier() if settings.pop("head", False) else None
    words = WORDS if settings.pop("bag", head is None) else ()
    controller = PPLM(words, discriminator=head, **settings)
    reader = Perturber(source_of(controller, model, tokenizer), model)
    batch = prompts(rows=3, width=6)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    seen = []

    def check(ids, mask):
        found = reader.read(asked(ids, mask))
        for row, keep in enumerate(mask.bool()):
            text = ids[row][keep].tolist()
            want = ratio(model, text, bag=BAG if words else (), head=head, **settings)
            np.testing.assert_allclose(found[row].numpy(), want, atol=1e-5, rtol=1e-5)
            seen.append(np.abs(want).max())

    check(ids, mask)
    longer = torch.cat([ids, torch.tensor([[5, 6], [7, 8], [9, 10]])], 1)
    wider = torch.cat([mask, torch.ones(3, 2, dtype=torch.long)], 1)
    check(longer[:, :7], wider[:, :7])
    check(longer, wider)
    check(longer[:, :7], wider[:, :7])  # rewound
    order = torch.tensor([2, 0, 0, 1])
    check(longer[:, :7][order[:3]], wider[:, :7][order[:3]])  # permuted
    check(longer[order], wider[order])  # multiplied
    assert min(seen) > 1e-3


def test_gradients_are_finite_differences(tiny, tokenizer, prompts):
    model, batch = tiny("gpt2-tied").double(), prompts(rows=2, width=6)
    controller = PPLM(WORDS, discriminator=classifier(), kl=0.3, horizon=2, window=2)
    reader = Perturber(source_of(controller, model, tokenizer), model)
    with torch.no_grad():
        text = reader._texts(batch["input_ids"], batch["attention_mask"])
        draw = torch.Generator().manual_seed(2)
        offsets = [
            0.1 * torch.randn(x.shape, generator=draw, dtype=torch.double)
            for pair in text.past
            for x in pair
        ]
        grads, step = text.gradients(offsets), 1e-5
        for i in range(len(offsets)):
            for place in ((0, 1, 4, 3), (1, 2, 3, 0), (0, 0, 2, 1), (1, 0, 0, 2)):
                losses = []
                for sign in (1, -1):
                    moved = [x.clone() for x in offsets]
                    moved[i][place] += sign * step
                    losses.append(text.loss(moved).sum())
                slope = ((losses[0] - losses[1]) / (2 * step)).item()
                within = place[2] in (3, 4)  # of five columns the two most recent ones may move
                assert grads[i][place].item() == pytest.approx(slope if within else 0, abs=1e-6)


def test_windows_are_counted_in_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert in_window(mask, 0, "paper").long().tolist() == mask.tolist()
    recent, oldest = (in_window(mask, 2, v).long().tolist() for v in ("paper", "released"))
    assert recent == [[0, 0, 0, 0, 1, 1]] * 2
    assert oldest == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert in_window(mask, 9, "paper").long().tolist() == mask.tolist()


def test_a_text_of_one_token_has_no_past_to_move(tiny, tokenizer):
    model, ids = tiny(), torch.tensor([[5], [6]])
    reader = Perturber(source_of(PPLM(WORDS), model, tokenizer), model)
    assert not reader.read(asked(ids, torch.ones_like(ids))).any()
    ids, mask = torch.tensor([[0, 5], [6, 7]]), torch.tensor([[0, 1], [1, 1]])
    found = reader.read(asked(ids, mask))
    torch.testing.assert_close(found[0], torch.zeros(120), atol=1e-5, rtol=0)
    assert found[1].abs().max() > 1e-3


# ------------------------------------------------------------------ the controller

PAIRS = list(
    zip(MODES, ["words", "class"] * 5, ["llama-gqa", "gpt2-tied", "gpt2-tied"] * 3, strict=False)
)


@pytest.mark.parametrize(("mode", "kind", "architecture"), PAIRS)
def test_steered_generate_equals_the_formula(mode, kind, architecture, tiny, tokenizer, prompts):
    model, batch = tiny(architecture), prompts(rows=2, width=6)
    settings = {"stepsize": 0.05, "gamma": 1.0, "iterations": 2, "kl": 0.1}
    if kind == "words":
        controller = PPLM(WORDS, **settings)
        formula = perturbed(model, bag=BAG, **settings)
    else:
        head = classifier()
        controller = PPLM(discriminator=head, label=2, top_k=0, **settings)
        formula = perturbed(model, head=head, label=2, top_k=0, **settings)
    steered = pa.wrap(model, tokenizer, controller)
    follows(steered, formula, batch, mode, tiny(architecture, seed=9), atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["greedy", "several"])
def test_the_loop_decides_by_the_formula(mode, tiny, tokenizer, prompts):
    """Every step's scores against the paper's, at the paper's settings."""
    model, batch = tiny(), prompts(rows=2, width=6)
    steered = pa.wrap(model, tokenizer, PPLM(WORDS))
    described = steered.explain(max_new_tokens=4, **MODES[mode])
    assert described.startswith("the owned loop") and "kept by a mask: MixedTop" in described
    follows(steered, perturbed(model, bag=BAG), batch, mode, atol=TOLERANCE)


def test_words_become_likelier_and_classes_too(tiny, tokenizer, prompts):
    """The loss falls: what the method is for."""
    model, batch, head = tiny(), prompts(rows=3), classifier()
    for controller in (PPLM(WORDS, stepsize=0.05), PPLM(discriminator=head, stepsize=0.05)):
        reader = Perturber(source_of(controller, model, tokenizer), model)
        with torch.no_grad():
            text = reader._texts(batch["input_ids"], batch["attention_mask"])
            offsets = [torch.zeros_like(x) for pair in text.past for x in pair]
            moved = [x + 0.1 * move for x, move in zip(offsets, text.moves(offsets), strict=True)]
            assert (text.loss(moved) < text.loss(offsets)).all()


@pytest.mark.parametrize(("horizon", "read"), [(0, [1]), (1, [1, 0]), (3, [1, 1, 1, 0])])
def test_the_head_reads_no_state_whose_logits_nobody_wants(horizon, read, tiny, tokenizer, prompts):
    """In an iteration: the last token's, and of those to come all but the last one's."""
    model, batch, columns = tiny(), prompts(rows=2), []
    controller = PPLM(discriminator=classifier(), horizon=horizon)
    reader = Perturber(source_of(controller, model, tokenizer), model)
    model.get_output_embeddings().register_forward_hook(
        lambda head, given, logits: columns.append(logits.shape[1])
    )
    with torch.no_grad():
        text = reader._texts(batch["input_ids"], batch["attention_mask"])
        columns.clear()
        text.moves([torch.zeros_like(x) for pair in text.past for x in pair])
    assert columns == read


def test_a_batch_is_its_rows_one_by_one(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, PPLM(WORDS, discriminator=classifier(), window=4))
    paper.batches_as_rows(steered, prompts(rows=3))


def test_scored_texts_are_the_formula(tiny, tokenizer):
    model, head = tiny(), classifier()
    steered = pa.wrap(model, tokenizer, PPLM(WORDS, discriminator=head, top_k=0))
    formula = perturbed(model, bag=BAG, head=head, top_k=0)
    paper.scores_answers(steered, formula, tokenizer)


def test_adds_up_with_others_in_any_order(tiny, tokenizer, prompts):
    model, batch, expert = tiny(), prompts(rows=2), tiny(seed=1)
    a, b = PPLM(WORDS, top_k=60), pa.DExperts(expert, alpha=0.5, top_p=0.95)
    got = scores_of(model, tokenizer, a + b, batch)
    assert torch.equal(got, scores_of(model, tokenizer, b + a, batch))
    formula = perturbed(model, bag=BAG, top_k=60)
    for row in range(2):
        [ids] = paper.alone(batch, row)["input_ids"].tolist()
        log_p, pull = (paper.log_p(in_double(m), ids) for m in (model, expert))
        want = formula(ids, log_p) + 0.5 * (pull - log_p)
        want[~paper.nucleus(log_p, 0.95)] = -np.inf
        assert_close(got[0, row], log_softmax(want), TOLERANCE)


def test_a_trained_prefix_is_part_of_the_past(make, tiny, tokenizer, prompts):
    """Keys and values that an attachment puts in front are read, and may move like others: those of
    real tokens do what the tokens themselves do."""
    model, batch = tiny(), prompts(rows=2)
    prefix = make("prefix", model, tiny, "llama-gqa")
    got = scores_of(model, tokenizer, PPLM(WORDS) + prefix, batch)
    front = torch.tensor([[11, 12, 13]]).expand(2, -1)
    whole = {
        "input_ids": torch.cat([batch["input_ids"][:, :0], front, batch["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(front), batch["attention_mask"]], 1),
    }
    assert_close(got, scores_of(model, tokenizer, PPLM(WORDS), whole), TOLERANCE)


ANOTHER = Logits("behind a prompt", context=Context((5, 6)))


class AfterAnother(Perturbed):
    """Reads another source first, and then what the perturbed base says."""

    def reader(self, base):
        inner = super().reader(base)

        class Reading:
            forget = staticmethod(inner.forget)

            def read(self, step):
                step.read(ANOTHER)
                return inner.read(step)

        return Reading()


class Declaring(PerturbedRatio):
    """Declares what its source reads, too."""

    @property
    def sources(self):
        return (*super().sources, ANOTHER)


@pytest.mark.parametrize("beams", [1, 2])
def test_what_the_base_does_for_a_reader_is_not_what_it_does_for_the_text(
    beams, tiny, tokenizer, prompts
):
    """The hidden states that another formula reads are those of the text's own forwards, also where
    a reader runs the base after it has read another source."""
    model, batch = tiny(), prompts(rows=2)
    draw = torch.Generator().manual_seed(3)
    low = LowRank(torch.randn(120, 2, generator=draw), torch.randn(32, 2, generator=draw))
    kept = {"iterations": 3, "gamma": 1.5, "kl": 0.01, "window": 0, "horizon": 1}
    source = AfterAnother("one", tuple(BAG), None, 1, 0.5, **kept, variant="paper")
    plain = Perturbed("one", tuple(BAG), None, 1, 0.5, **kept, variant="paper")
    found = []
    for each in (source, plain):
        declared = Declared(Steering((Declaring(each, weight=0.9), low)))
        steered = pa.wrap(model, tokenizer, declared)
        processor = steered.processor(batch["attention_mask"])
        with processor.run.watching():
            output = model.generate(
                **batch,
                max_new_tokens=4,
                num_beams=beams,
                logits_processor=[processor],
                return_dict_in_generate=True,
                output_scores=True,
            )
        found.append(torch.stack(output.scores))
    torch.testing.assert_close(*found)


def test_strength_zero_is_the_identity(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    plain = model.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    nothing = scores_of(model, tokenizer, 0 * PPLM(WORDS), batch)
    assert torch.equal(nothing, torch.stack(plain.scores))
    want = torch.stack(plain.scores).log_softmax(-1)
    for idle in ({"gm": 0.0}, {"stepsize": 0.0}, {"iterations": 0}):
        got = scores_of(model, tokenizer, PPLM(WORDS, top_k=0, **idle), batch)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ the model afterwards


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_untouched_also_after_an_exception(fails, tiny, tokenizer, prompts):
    model, head, batch = tiny(), classifier(), prompts(rows=2)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    asking = [p.requires_grad for p in model.parameters()]
    steered = pa.wrap(model, tokenizer, PPLM(WORDS, discriminator=head))
    want = steered.generate(**batch, max_new_tokens=3).tolist()
    if fails:
        calls = []

        def spoil(_, __, output):
            calls.append(torch.is_grad_enabled())
            if len(calls) > 9 and calls[-1]:
                raise RuntimeError("in the middle of a gradient")

        handle = model.model.layers[1].register_forward_hook(spoil)
        with pytest.raises(RuntimeError, match="in the middle of a gradient"):
            steered.generate(**batch, max_new_tokens=3)
        handle.remove()
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == asking
    assert all(p.grad is None for p in [*model.parameters(), *head.parameters()])
    assert steered.generate(**batch, max_new_tokens=3).tolist() == want


def test_inference_mode_and_bf16(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=2)
    steered = pa.wrap(model, tokenizer, PPLM(WORDS, discriminator=classifier()))
    want = steered.generate(**batch, max_new_tokens=3)
    with torch.inference_mode():
        assert steered.generate(**prompts(rows=2), max_new_tokens=3).tolist() == want.tolist()
    half = pa.wrap(tiny().bfloat16(), tokenizer, PPLM(WORDS, discriminator=classifier()))
    scores = half.generate(
        **batch, max_new_tokens=2, return_dict_in_generate=True, output_scores=True
    ).scores
    assert scores[0].dtype == torch.float32 and (scores[0].isfinite().sum(-1) == 10).all()


# ------------------------------------------------------------------ saving, refusals


def test_saves_and_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    fitted = identify(model, tokenizer)
    saved = PPLM(
        WORDS,
        discriminator=classifier(),
        label=2,
        stepsize=0.03,
        iterations=2,
        gamma=1.0,
        gm=0.8,
        kl=0.02,
        window=5,
        horizon=2,
        top_k=20,
        variant="released",
        fitted_for=fitted,
    )
    saved.save_pretrained(tmp_path / "both")
    PPLM(WORDS).save_pretrained(tmp_path / "words")
    loaded = pa.Controller.from_pretrained(str(tmp_path / "both"))
    assert isinstance(loaded, PPLM) and loaded.config() == saved.config()
    assert torch.equal(*(scores_of(model, tokenizer, c, batch) for c in (saved, loaded)))
    assert pa.Controller.from_pretrained(str(tmp_path / "words")).discriminator is None
    other = tiny(seed=5)
    with pytest.raises(ValueError, match="PPLM's discriminator was fitted for the weights of"):
        pa.wrap(other, tokenizer, loaded)


def test_what_needs_all_places_at_once_says_why_it_cannot(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, PPLM(WORDS))
    why = "'the perturbed base' is read at one place at a time"
    with pytest.raises(ValueError, match=f"no draft can be verified here: {why}"):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation("prompt"))
    assert "'the perturbed base' of PPLM is read in a way" in steered.plan.why_uncapturable


def test_words_are_single_tokens(tiny, tokenizer):
    assert bag_of(["w6", "w5", "w6"], tokenizer) == (9, 8)
    with pytest.warns(UserWarning, match="words that are not one token: w5 w6, nothing"):
        assert bag_of(["w5 w6", "w7", "nothing"], tokenizer) == (10,)
    with pytest.raises(ValueError, match="none of PPLM's words is one token: nothing, w5 w6"):
        pa.wrap(tiny(), tokenizer, PPLM(["nothing", "w5 w6"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": ()}, "needs words, a discriminator, or both"),
        ({"words": "war"}, "a list of words, got 'war'"),
        ({"words": ["a", ""]}, r"a list of words, got \['a', ''\]"),
        ({"discriminator": nn.Linear(32, 2), "label": 2}, "discriminator's 2 classes, .* got 2"),
        ({"label": True}, "label must be an int and not negative, got True"),
        ({"stepsize": -0.1}, "stepsize must be finite and not negative, got -0.1"),
        ({"gm": math.nan}, "gm must be finite and not negative, got nan"),
        ({"iterations": 1.5}, "iterations must be an int and not negative, got 1.5"),
        ({"window": -1}, "window must be an int and not negative, got -1"),
        ({"variant": "other"}, 'variant must be "paper" or "released", got \'other\''),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PPLM(**{"words": WORDS, **settings})


def test_a_discriminator_of_another_width_is_refused(tiny, tokenizer):
    with pytest.raises(ValueError, match=r"reads states of 16 numbers, but those of .* have 32"):
        pa.wrap(tiny(), tokenizer, PPLM(discriminator=nn.Linear(16, 2)))
