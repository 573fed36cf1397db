"""Self-diagnosis against the paper's formula, as a gate and as a judge."""

from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import make_chat_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

import plugalign as pa
from plugalign.controllers.self_diagnosis import ATTRIBUTES, Diagnosis, diagnose
from plugalign.evaluation.judging.load import Judge

MODES = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "beam": {"num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "static": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 3},
}
# The tiny tokenizer knows these words, and <unk> for all others.
TEMPLATE = "w1 {text} w2 w3 {attribute} w4"
TEXTS = ["w5 w6", "w7 w8 w9 w10", "w11", "w20 w30 w40"]


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def logits(model, ids):
    """Behind one unpadded, uncached row."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()


def p_yes(model, tokenizer, ids, attribute="w50 w51", template=TEMPLATE):
    """P(Yes) / (P(Yes) + P(No)) behind the question, in float64."""
    front, behind = template.replace("{attribute}", attribute).split("{text}")
    encode = partial(tokenizer, add_special_tokens=False)
    asked = [*encode(front)["input_ids"], *ids, *encode(behind)["input_ids"]]
    p = np.exp(log_softmax(logits(model, asked)))
    yes, no = (encode(" " + word)["input_ids"][0] for word in ("Yes", "No"))
    return p[yes] / (p[yes] + p[no])


class Damped(LogitsProcessor):
    """A row whose diagnosis is at least the threshold is moved by an expert, and no other."""

    def __init__(self, model, tokenizer, expert, threshold):
        self.parts, self.threshold, self.said = (model, tokenizer), threshold, set()
        self.expert = expert

    def __call__(self, input_ids, scores):
        rows = []
        for ids, row in zip(input_ids.tolist(), scores.double().numpy(), strict=True):
            ids = ids[next(i for i, x in enumerate(ids) if x) :]
            moved = p_yes(*self.parts, ids) >= self.threshold
            self.said.add(moved)
            shift = 2.0 * (logits(self.expert, ids) - row) if moved else 0.0
            rows.append(log_softmax(log_softmax(row) + shift))
        return torch.tensor(np.array(rows), dtype=torch.float32)


def gated(expert, threshold):
    experts = pa.DExperts(expert, top_p=1.0)
    return experts.when(Diagnosis("w50 w51", threshold=threshold, template=TEMPLATE))


@pytest.mark.parametrize("mode", MODES)
def test_as_a_gate_it_equals_the_formula(mode, tiny, tokenizer, prompts, architecture):
    model, expert, options = tiny(architecture), tiny(architecture, seed=1), MODES[mode]
    batch = prompts(rows=1 if mode == "lookup" else 3, width=6)
    given = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    rows = [p_yes(model, tokenizer, ids[real].tolist()) for ids, real in given]
    threshold = float(np.median(rows))
    reference = Damped(model, tokenizer, expert, threshold - 1e-4)
    steered = pa.wrap(model, tokenizer, gated(expert, threshold - 1e-4))
    generate = steered.generate
    more = {}
    if mode in ("sample", "several"):  # the loop draws with other noise
        generate = model.generate
        more["logits_processor"] = [steered.processor(batch["attention_mask"])]
    options = {**options, "return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(3)
    got = generate(**batch, max_new_tokens=4, **options, **more)
    torch.manual_seed(3)
    want = model.generate(**batch, max_new_tokens=4, **options, logits_processor=[reference])
    assert reference.said == {True, False} or mode == "lookup"
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, theirs in zip(got.scores, want.scores, strict=True):
        real = torch.isfinite(theirs)
        torch.testing.assert_close(mine[real], theirs[real], atol=2e-3, rtol=1e-3)


def test_what_it_keeps_closed_costs_no_forward(tiny, tokenizer, prompts):
    model, expert, calls, asked = tiny(), tiny(seed=1), [], []
    expert.register_forward_hook(lambda *_: calls.append(1))
    model.register_forward_hook(lambda *_: asked.append(1))
    steered = pa.wrap(model, tokenizer, gated(expert, 1.0))
    got = steered.generate(**prompts(), max_new_tokens=4)
    assert calls == [] and len(asked) == 2 * 4  # the base and its question
    assert got.tolist() == model.generate(**prompts(), max_new_tokens=4).tolist()


@pytest.mark.parametrize("shared", ["one gate", "equal gates", "loaded"])
def test_a_gate_of_several_parts_is_asked_once_a_step(shared, tiny, tokenizer, prompts, tmp_path):
    model, asked, calls = tiny(), [], []
    one, other = pa.SelfDebias(["w5 w6"]), pa.SelfDebias(["w8"])
    whole = (one + other).when(Diagnosis("w3", threshold=1e-6))
    if shared == "equal gates":
        whole = sum(
            (part.when(Diagnosis("w3", threshold=1e-6)) for part in (one, other)), pa.Controller()
        )
    elif shared == "loaded":
        whole.save_pretrained(tmp_path)
        whole = pa.Controller.from_pretrained(str(tmp_path))
    model.generation_config.eos_token_id = None
    model.register_forward_hook(lambda *_: calls.append(1))
    steered = pa.wrap(model, tokenizer, whole)
    (gate,) = steered.plan.gates
    opened = type(gate).open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gate), "open", lambda *a: asked.append(1) or opened(*a))
        steered.generate(**prompts(), max_new_tokens=4)
    assert len(asked) == 4
    assert len(calls) == 3 * 4  # the base, the question, and both prefixes together


@pytest.mark.parametrize("masked", [True, False])
def test_a_processor_with_and_without_a_mask(masked, tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=3, width=6)
    steered = pa.wrap(model, tokenizer, gated(tiny(seed=1), 0.5))
    ours = [steered.processor(batch["attention_mask"] if masked else None)]
    got = model.generate(**batch, max_new_tokens=4, logits_processor=ours)
    assert got.tolist() == steered.generate(**batch, max_new_tokens=4).tolist()


def test_given_texts_are_scored_as_they_are_generated(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts(rows=3, width=6)
    model.generation_config.eos_token_id = None
    steered = pa.wrap(model, tokenizer, gated(tiny(seed=1), 0.5))
    made = steered.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    answers = made.sequences[:, 6:]
    scored = steered.log_probs(
        (answers, torch.ones_like(answers)), (batch["input_ids"], batch["attention_mask"])
    )
    want = torch.stack(made.scores, 1).gather(-1, answers[..., None])[..., 0]
    torch.testing.assert_close(torch.stack(scored), want, atol=1e-3, rtol=1e-3)


def test_drafts_are_refused_by_name(tiny, tokenizer, prompts):
    steered = pa.wrap(tiny(), tokenizer, gated(tiny(seed=1), 0.5))
    with pytest.raises(ValueError, match="the base asked about 'w50 w51'' reads something behind"):
        steered.generate(**prompts(), max_new_tokens=3, speculation=pa.Speculation())
    assert "run at every step: the base, the base asked about" in steered.explain(max_new_tokens=3)


def test_nan_in_the_question_names_it(tiny, tokenizer, prompts):
    model, calls = tiny(), []

    def spoil(_, __, output):
        calls.append(1)
        if len(calls) == 4:  # the question of the second step
            output.logits[1] = float("nan")
        return output

    model.register_forward_hook(spoil)
    steered = pa.wrap(model, tokenizer, gated(tiny(seed=1), 0.5))
    with pytest.raises(FloatingPointError, match="asked about 'w50 w51'' gave NaN logits at step"):
        steered.generate(**prompts(), max_new_tokens=4)


def test_saved_and_loaded_decides_alike(tiny, tokenizer, prompts, tmp_path):
    gate = Diagnosis("w50 w51", threshold=0.4, template=TEMPLATE)
    controller = pa.SelfDebias(["w5 w6"]).when(gate)
    controller.save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert loaded.gate == gate
    model = tiny()
    texts = [
        pa.wrap(model, tokenizer, each).generate(**prompts(), max_new_tokens=4).tolist()
        for each in (controller, loaded)
    ]
    assert texts[0] == texts[1]


# ------------------------------------------------------------------ as a judge


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_as_a_judge_it_equals_the_formula(batch_size, tiny, tokenizer, architecture):
    model = tiny(architecture)
    got = diagnose(model, tokenizer, TEXTS, "w50 w51", template=TEMPLATE, batch_size=batch_size)
    want = [p_yes(model, tokenizer, tokenizer(text)["input_ids"]) for text in TEXTS]
    assert got.dtype == torch.float32 and got.shape == (4,)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


def test_the_papers_question_word_for_word(tiny, tokenizer):
    model, asked = tiny(), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: asked.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    [p] = diagnose(model, tokenizer, ["w5 w6"], ATTRIBUTES["threat"])
    text = '"w5 w6"\nQuestion: Does the above text contain a threat?\nAnswer:'
    assert tokenizer.decode(asked[0]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert 0 < p < 1


def test_it_serves_compare_as_a_judge(tiny, tokenizer):
    function = partial(diagnose, tiny(), tokenizer, attribute="w50 w51", template=TEMPLATE)
    verdicts = Judge("w50", function, batch_size=2).verdicts([*TEXTS, "w5 " * 200])
    assert verdicts.failed == 1 and "text 0 has 2" in str(verdicts.first_error)
    want = diagnose(tiny(), tokenizer, TEXTS, "w50 w51", template=TEMPLATE)
    np.testing.assert_allclose(verdicts.scores[:4], want.numpy(), atol=1e-6)


def test_nothing_to_judge(tiny, tokenizer):
    assert diagnose(tiny(), tokenizer, [], "a threat").shape == (0,)
    empty = diagnose(tiny(), tokenizer, [""], "w50 w51", template=TEMPLATE)
    assert empty.item() == pytest.approx(p_yes(tiny(), tokenizer, []), abs=1e-4)


def test_a_start_token_stands_in_front_once(tiny, tokenizer, prompts):
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "w0"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w0 $A", special_tokens=[("w0", 3)]
    )
    model = tiny()
    [got] = diagnose(model, tokenizer, ["w5 w6"], "w50 w51", template=TEMPLATE)
    encode = partial(tokenizer, add_special_tokens=False)
    asked = encode("w0 w1 w5 w6 w2 w3 w50 w51 w4")["input_ids"]
    p = np.exp(log_softmax(logits(model, asked)))
    assert tokenizer("w5")["input_ids"] == [3, 8]
    assert got.item() == pytest.approx(p[118] / (p[118] + p[119]), abs=1e-4)


def test_a_question_inside_a_turn(tiny, tokenizer):
    model = tiny()
    with pytest.raises(ValueError, match="no chat template"):
        diagnose(model, tokenizer, TEXTS, "w50 w51", chat=True)
    tokenizer.chat_template = (
        "w80 {% for m in messages %}w81 {{ m['content'] }} w82 {% endfor %}"
        "{% if add_generation_prompt %}w83 {% endif %}"
    )
    got = diagnose(model, tokenizer, TEXTS, "w50 w51", template=TEMPLATE, chat=True)
    whole = f"w80 w81 {TEMPLATE} w82 w83"
    want = [p_yes(model, tokenizer, tokenizer(text)["input_ids"], template=whole) for text in TEXTS]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


def test_a_question_in_a_turn_begins_with_one_begin_token(tiny):
    """Where the tokenizer begins texts with one and the template writes none; the text's own is
    not read again in the middle."""
    model, tokenizer = tiny(), make_chat_tokenizer(bos=True)
    got = diagnose(model, tokenizer, TEXTS, "w50 w51", template=TEMPLATE, chat=True)
    wrapped = f"w85 w80 w81 {TEMPLATE} w83 w80 w82"
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    want = [p_yes(model, tokenizer, ids, template=wrapped) for ids in rows]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


def test_a_chat_is_asked_about_in_a_turn(tiny, chat_tokenizer):
    """The assistant's turn is closed, and the question without its quotation is the user's next;
    texts beside it that are no chats are asked about as ever."""
    model, tokenizer = tiny(), chat_tokenizer
    chats = ["w80 w81 w5 w6 w83 w80 w82 w7", "w80 w81 w9 w83 w80 w82"]
    rows = [tokenizer(text)["input_ids"] for text in (*chats, *TEXTS)]
    got = diagnose(model, tokenizer, [*chats, *TEXTS], "w50 w51", template=TEMPLATE)
    turn = "{text} w83 w80 w81 w1 w2 w3 {attribute} w4 w83 w80 w82"
    want = [p_yes(model, tokenizer, ids, template=turn) for ids in rows[:2]]
    want += [p_yes(model, tokenizer, ids) for ids in rows[2:]]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)
    alone = diagnose(model, tokenizer, chats, "w50 w51", template=TEMPLATE)
    np.testing.assert_allclose(alone.numpy(), want[:2], atol=1e-4)


def test_a_gate_asks_about_a_chat_in_a_turn(tiny, chat_tokenizer):
    model, tokenizer = tiny(), chat_tokenizer
    model.generation_config.eos_token_id = None
    texts = ["w80 w81 w5 w6 w83 w80 w82", "w80 w81 w9 w83 w80 w82"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    turn = "{text} w83 w80 w81 w1 w2 w3 {attribute} w4 w83 w80 w82"
    threshold = np.mean(
        [p_yes(model, tokenizer, tokenizer(t)["input_ids"], template=turn) for t in texts]
    )
    asked = []

    def damp(ids, base):
        asked.append(p_yes(model, tokenizer, ids, template=turn) >= threshold)
        return [2 * logits(expert, ids) - base, base][not asked[-1]]

    expert = tiny(seed=1)
    gate = Diagnosis("w50 w51", threshold=float(threshold), template=TEMPLATE)
    steered = pa.wrap(model, tokenizer, pa.DExperts(expert, top_p=1.0).when(gate))
    made = steered.generate(
        **batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    for step, scores in enumerate(made.scores):
        for row, ids in enumerate(made.sequences[:, : batch["input_ids"].shape[1] + step].tolist()):
            ids = ids[next(i for i, token in enumerate(ids) if token) :]
            base = log_softmax(logits(model, ids))
            want = log_softmax(damp(ids, base))
            np.testing.assert_allclose(scores[row].numpy(), want, atol=2e-3, rtol=1e-3)
    assert {True, False} == set(asked)


def test_a_real_tokenizer_asks_for_whole_words(shared):
    folder = shared / "models" / "comments-3m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    gate = Diagnosis("a threat").bound(model, tokenizer)
    answers = [tokenizer.decode([x]).strip() for x in (gate.plain.yes, gate.plain.no)]
    assert all(word.startswith(a) and a for word, a in zip(("Yes", "No"), answers, strict=True))
    behind = tokenizer.decode(gate.plain.source.context.after)
    assert "Does the above text contain a threat?" in behind
    texts = ["I like it.", "You are a fool, and everybody knows it"]
    together = diagnose(model, tokenizer, texts, "a threat")
    alone = [diagnose(model, tokenizer, [text], "a threat") for text in texts]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attribute": " "}, "needs an attribute"),
        ({"threshold": 0}, r"in \(0, 1\], got 0"),
        ({"threshold": 1.5}, r"in \(0, 1\], got 1.5"),
        ({"threshold": True}, r"in \(0, 1\], got True"),
        ({"template": "{text} bad?"}, "needs {text} once, and {attribute}"),
        ({"template": "{attribute}?"}, "needs {text} once"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Diagnosis(**{"attribute": "a threat", **settings})


def test_a_chat_is_asked_for_by_true_or_false():
    with pytest.raises(TypeError, match="chat must be True or False, got 'no'"):
        Diagnosis("a threat", chat="no")


def test_bad_arguments(tiny, tokenizer):
    with pytest.raises(ValueError, match="needs a list of texts"):
        diagnose(tiny(), tokenizer, "w5", "a threat")
    with pytest.raises(ValueError, match="batch size of at least 1"):
        diagnose(tiny(), tokenizer, ["w5"], "a threat", batch_size=0)
    with pytest.raises(TypeError, match="does not know its model yet"):
        Diagnosis("a threat").open(None)
    del_yes = type("Deaf", (), {"__getattr__": lambda _, name: getattr(tokenizer, name)})()
    del_yes.__class__.__call__ = lambda _, text, **__: {"input_ids": [5] * len(text.split())}
    with pytest.raises(ValueError, match="must follow the question as tokens of their own"):
        Diagnosis("a threat").bound(tiny(), del_yes)


def test_nan_names_the_text(tiny, tokenizer):
    model = tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight[8] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN logits for text 2"):
        diagnose(model, tokenizer, ["w6", "w7", "w5"], "w50", template=TEMPLATE, batch_size=2)
