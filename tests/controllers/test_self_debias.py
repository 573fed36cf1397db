"""Self-debiasing: settings, saving, refusals. The formula is tested in test_wrapping."""

import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import processors

import plugalign as pa
from plugalign.algebra.sources import TextLikelihood
from plugalign.controllers.self_debias import prompted
from plugalign.engine.readers.likelihood import LikelihoodReader


def test_saves_and_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    saved = pa.SelfDebias(["w5 w6", "w9"], decay=10, floor=0.1)
    saved.save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, pa.SelfDebias) and loaded.config() == saved.config()
    outputs = [
        pa.wrap(model, tokenizer, c).generate(**batch, max_new_tokens=5) for c in (saved, loaded)
    ]
    assert outputs[0].tolist() == outputs[1].tolist()


def test_no_decay_is_the_identity(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    idle = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6"], decay=0))
    assert idle.generate(**batch, max_new_tokens=6).tolist() == (
        model.generate(**batch, max_new_tokens=6).tolist()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": []}, r"non-empty prefixes, got \[\]"),
        ({"prefixes": "one string"}, "got 'one string'"),
        ({"decay": -1}, "not negative, got -1"),
        ({"floor": 0}, r"\(0, 1\], got 0"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        pa.SelfDebias(**settings)


def test_a_start_token_stands_once_and_first(tiny, tokenizer):
    """With a tokenizer that starts texts by a token, ``<s> x`` becomes ``<s> prefix x``."""
    model = tiny()
    tokenizer.add_special_tokens({"bos_token": "w0"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w0 $A", special_tokens=[("w0", 3)]
    )
    batch = tokenizer(["w5 w6 w7", "w8"], return_tensors="pt", padding=True)
    assert batch["input_ids"][:, 0].tolist() == [3, 0]
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w9 w10"], decay=5))
    got = steered.generate(
        **batch, max_new_tokens=1, return_dict_in_generate=True, output_scores=True
    ).scores[0]
    for row, text in enumerate(["w5 w6 w7", "w8"]):
        with torch.no_grad():
            plain = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double()
            behind = model(**tokenizer(f"w9 w10 {text}", return_tensors="pt")).logits[0, -1]
        gap = (behind.double().softmax(-1) - plain.softmax(-1)).clamp_min(0)
        want = (plain.log_softmax(-1) + (-5 * gap).clamp_min(math.log(0.01))).log_softmax(-1)
        torch.testing.assert_close(got[row].double(), want, atol=1e-4, rtol=1e-4)


def test_the_default_prefixes_are_the_released_ones():
    """timoschick/self-debiasing, self_debiasing.py: DEBIASING_PREFIXES."""
    described = [
        "rude, disrespectful, or unreasonable language",
        "very hateful, aggressive, disrespectful language",
        "sexually explicit language",
        "a threat",
        "negative or hateful language targeting someone because of their identity",
        "swear words, curse words, or other obscene or profane language",
    ]
    assert pa.SelfDebias().prefixes == tuple(
        f"The following text contains {d}:\n" for d in described
    )


def log_probs_in_float64(states, weight, decay, floor):
    """Schick et al. 2021, equations 3 to 5, from what the head reads.

    Args:
        states: behind the text and behind each prefix ``(1 + K, D)``.
    """
    z = states.double() @ weight.double().T
    p = z.softmax(-1)
    gap = (p[1:].amax(0) - p[0]).clamp_min(0)
    return (z[0].log_softmax(-1) + (-decay * gap).exp().clamp_min(floor).log()).log_softmax(-1)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2-tied"])
def test_half_precision_logits_are_not_rounded_before_they_are_compared(
    beams, name, tiny, tokenizer, prompts
):
    """In the loop (one beam) and on the processor path: the log-probabilities are those of the
    float64 product of the very states that the bfloat16 head read."""
    model, batch, seen = tiny(name).bfloat16(), prompts(rows=1), []
    model.generation_config.eos_token_id = None
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6 w7", "w8"], decay=50))
    steered.generate(**batch, max_new_tokens=2, num_beams=beams, do_sample=False)  # finds out
    model.base_model.register_forward_hook(lambda *a: seen.append(a[-1].last_hidden_state[:, -1]))
    scores = steered.generate(
        **batch,
        max_new_tokens=6,
        num_beams=beams,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    ).scores
    weight = model.get_output_embeddings().weight.detach()
    rounded = 0.0
    for step, got in enumerate(scores):
        rows = seen[step] if beams == 1 else torch.cat(seen[2 * step : 2 * step + 2])
        states = rows.view(3, -1, rows.shape[-1])[:, 0]
        want = log_probs_in_float64(states, weight, 50.0, 0.01)
        row = got[0].double() if beams == 1 else got[0].double().log_softmax(-1)
        assert (row - want).abs().max() < 1e-3
        halved = (states @ weight.T).double().softmax(-1)
        exact = (states.double() @ weight.double().T).softmax(-1)
        shift = [(50 * (p[1:].amax(0) - p[0]).clamp_min(0)).clamp_max(4.6) for p in (halved, exact)]
        rounded = max(rounded, float((shift[0] - shift[1]).abs().max()))
    assert rounded > 5e-3  # rounded logits would not have done


# ------------------------------------------------------------------ chats

CHATS = ("w80 w81 w5 w6 w7 w83 w80 w82", "w80 w81 w8 w83 w80 w82 w9 w83 w80 w81 w11 w83 w80 w82")
PREFIXED = (
    "w80 w81 {} w5 w6 w7 w83 w80 w82",
    "w80 w81 {} w8 w83 w80 w82 w9 w83 w80 w81 w11 w83 w80 w82",
    "{} w12 w13",
)


def behind(model, tokenizer, text, more=()):
    """Log-probabilities after a text and some tokens, by an uncached forward, float64 ``(V,)``."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *more]]), use_cache=False).logits[0, -1]
    return logits.double().log_softmax(-1)


def damped(model, tokenizer, row, more, prefixes, bos=""):
    """The formula for one of `PREFIXED`, with the prefix where it stands there."""
    plain = behind(model, tokenizer, bos + PREFIXED[row].replace("{} ", ""), more)
    biased = [behind(model, tokenizer, bos + PREFIXED[row].format(p), more) for p in prefixes]
    gap = (torch.stack(biased).exp().amax(0) - plain.exp()).clamp_min(0)
    return (plain + (-5 * gap).clamp_min(math.log(0.01))).log_softmax(-1)


@pytest.mark.parametrize("bos", ["", "w0 "])
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_in_a_chat_a_prefix_stands_inside_the_users_first_turn(how, bos, tiny, chat_tokenizer):
    """Chats with and without a start token, and a plain prompt in the same batch."""
    model, tokenizer, prefixes = tiny(), chat_tokenizer, ["w9 w10", "w14"]
    model.generation_config.eos_token_id = None
    if bos:
        tokenizer.add_special_tokens({"bos_token": "w0"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="w0 $A", special_tokens=[("w0", 3)]
        )
    batch = tokenizer([*CHATS, "w12 w13"], return_tensors="pt", padding=True)
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(prefixes, decay=5))
    made = steered.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    beams = how.get("num_beams", 1)
    steps = made.scores[:1] if beams > 1 else made.scores
    for step, scores in enumerate(steps):
        for row in range(3):
            more = made.sequences[row, batch["input_ids"].shape[1] :][:step].tolist()
            got = scores[row * beams].double().log_softmax(-1)
            want = damped(model, tokenizer, row, more, prefixes, bos)
            torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def test_answers_of_a_chat_are_scored_as_they_are_generated(tiny, chat_tokenizer):
    model, tokenizer, prefixes = tiny(), chat_tokenizer, ["w9 w10", "w14"]
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(prefixes, decay=5))
    answers = ["w20 w30", "w40 w50 w60"]
    for row, found in enumerate(steered.log_probs(answers, list(CHATS))):
        ids = tokenizer(answers[row])["input_ids"]
        want = [damped(model, tokenizer, row, ids[:i], prefixes)[ids[i]] for i in range(len(ids))]
        torch.testing.assert_close(found.double(), torch.stack(want), atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="text 0 begins a chat, whose opening"):
        steered.log_probs(list(CHATS))


def test_several_gated_prefixes_read_their_own_cache(tiny, chat_tokenizer):
    """Behind a gate the base has a forward of its own for prompts, with the prefix inside too."""
    model, tokenizer, prefixes = tiny(), chat_tokenizer, ["w9 w10", "w14"]
    model.generation_config.eos_token_id = None
    batch = tokenizer(list(CHATS), return_tensors="pt", padding=True, return_token_type_ids=False)
    plain = pa.SelfDebias(prefixes, decay=5)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    one, two = (
        pa.wrap(model, tokenizer, each).generate(**batch, **options)
        for each in (plain, plain.when(pa.FirstSteps(9)))
    )
    assert one.sequences.tolist() == two.sequences.tolist()
    torch.testing.assert_close(one.scores, two.scores, atol=1e-4, rtol=1e-4)


def test_likelihoods_of_a_chat_count_its_own_tokens_alone(tiny, chat_tokenizer):
    """As GeDi asks for them; the first token has nothing in front of it, and is not counted."""
    model, tokenizer = tiny(), chat_tokenizer
    batch = tokenizer([CHATS[0], "w12 w13"], return_tensors="pt", padding=True)
    source = TextLikelihood("chats", contexts=(prompted("w9 w10", tokenizer).context,))
    step = SimpleNamespace(
        ids=batch["input_ids"], mask=batch["attention_mask"], base=torch.zeros(2, 120)
    )
    found = LikelihoodReader(source, model).read(step)
    for row, (text, own) in enumerate(((0, [1, *range(4, 10)]), (2, [2, 3]))):
        ids = tokenizer(PREFIXED[text].format("w9 w10"))["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total = sum(log_p[i - 1, ids[i]] for i in own)
        assert found.count[0, row] == len(own)
        torch.testing.assert_close(found.total[0, row].double(), total, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            found.following[0, row].double(), log_p[-1], atol=1e-4, rtol=1e-4
        )


def test_drafts_of_a_chat_change_nothing(tiny, chat_tokenizer):
    model, tokenizer = tiny(), chat_tokenizer
    model.generation_config.eos_token_id = None
    batch = tokenizer([*CHATS, "w12 w13"], return_tensors="pt", padding=True)
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w9 w10", "w14"], decay=5))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    plain = steered.generate(**inputs, max_new_tokens=8)
    drafted = steered.generate(**inputs, max_new_tokens=8, speculation=pa.Speculation())
    assert drafted.tolist() == plain.tolist()
