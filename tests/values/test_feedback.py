"""Feedback files, lessons and their history, on the pocket world."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import make_chat_model, make_chat_tokenizer

import plugalign as pa
from plugalign import pocket
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.comparison.prompts import prompts_of_run
from plugalign.files.messages import said_last
from plugalign.generation.chat_format import choose_chat
from plugalign.values.feedback import known_texts, read_feedback
from plugalign.values.feedback_history import HISTORY, read_history
from plugalign.values.feedback_learning import load_taught, read_choices, teach
from plugalign.values.preferences import most_probable, nothing_known

PROMPT, KIND, RUDE = "The nurse was", " kind", " lazy"
ROWS = (
    {"prompt": PROMPT, "chosen": KIND, "rejected": RUDE},
    {"prompt": PROMPT, "text": KIND, "liked": True},
    {"prompt": PROMPT, "text": RUDE, "liked": 0},
    {"prompt": PROMPT, "text": RUDE, "edited": KIND},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, tokenizer = pocket.load()
    kind = pa.TokenTable.of_words(["kind", "honest"], model, tokenizer)
    rude = pa.TokenTable.of_words(["lazy"], model, tokenizer)
    features = {"kind": kind, "rude": rude}
    made = pa.Equilibrium(None, [pa.Principle("rude", rude)], pa.Preferences(features), k=60)
    folder = tmp_path_factory.mktemp("saved") / "it"
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "it")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


def test_every_kind_of_feedback_is_a_choice(tmp_path, rows):
    found = [(c.kind, c.better, c.worse) for c in read_feedback(rows)]
    pair = (KIND, RUDE)
    assert found == [("pair", *pair), ("like", KIND, None), ("like", None, RUDE), ("edit", *pair)]
    table = tmp_path / "likes.csv"
    table.write_text("prompt,text,liked\nthe dog, barks,true\nthe dog, sits,0\n")
    assert [c.better for c in read_feedback(table)] == [" barks", None]


def test_texts_of_a_run_may_be_named(tmp_path):
    compare(methods=["self_debias"], limit=2, samples=2, max_new_tokens=4, out=tmp_path / "run")
    known = known_texts(tmp_path / "run")
    assert {"base", "self_debias"} <= set(known.methods)
    one, other = ({"method": "base", "sample": i} for i in (0, 1))
    path = write(tmp_path / "f.jsonl", [{"prompt": 1, "chosen": one, "rejected": other}])
    [choice] = read_feedback(path, known)
    assert choice.prompt == known.prompts[1] and choice.better == known.answers["base", 1, 0]
    for row, message in (
        ({"prompt": 7, "chosen": one, "rejected": other}, "has the prompts 0 to 1, and no 7"),
        (
            {"prompt": 0, "chosen": {"method": "shout", "sample": 0}, "rejected": other},
            "'chosen' names the method 'shout'; .* has base",
        ),
        (
            {"prompt": 0, "chosen": {"method": "base", "sample": 9}, "rejected": other},
            "has no answer 'base', prompt 0, sample 9",
        ),
        ({"prompt": 0, "chosen": {"metod": "base"}, "rejected": other}, "method is missing"),
        ({"prompt": "x", "chosen": one, "rejected": other}, "give the number of its prompt"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_feedback(write(path, [row]), known)
        assert "f.jsonl, line 1" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="say of which run, with --texts RUN"):
        read_feedback(write(path, [{"prompt": 0, "chosen": one, "rejected": other}]))
    with pytest.raises(ValueError, match=r"holds no prompts\.jsonl, so it is no run of compare"):
        known_texts(tmp_path)


def test_the_prompts_of_a_chat_run_are_read(tmp_path):
    turns = [{"role": "user", "content": "Hello\u2028you"}]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": 0, "text": "x", "messages": turns}])
    assert prompts_of_run(tmp_path).texts == ("Hello\u2028you",)
    write(prompts, [{"prompt": 0, "text": "x"}, {"prompt": 1}])
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 2: the prompt is null"):
        prompts_of_run(tmp_path)


TALK = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2"},
    {"role": "user", "content": "w3 w4"},
]


def test_texts_of_a_chat_are_read_in_it(tmp_path):
    """The prompts stand in front of their texts as they stood in the run."""
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    mine = pa.Equilibrium(
        None,
        [pa.Principle("low", pa.TokenTable(torch.linspace(0, 1, 120)))],
        pa.Preferences({"high": pa.TokenTable(torch.linspace(1, 0, 120))}),
        k=60,
    )
    mine.save_pretrained(tmp_path / "it")
    given = {"model": model, "tokenizer": tokenizer}
    run = tmp_path / "run"
    judges = {"length": lambda texts: [min(1.0, len(text) / 60) for text in texts]}
    compare(
        **given,
        **{"methods": ["self_debias"], "prompts": ["w5", TALK], "judges": judges},
        **{"controllers": {"self_debias": pa.SelfDebias(["w7"])}, "system": "w9"},
        **{"samples": 2, "max_new_tokens": 4, "out": run},
    )
    known = known_texts(run)
    assert [said_last(each) for each in known.prompts] == ["w5", "w3 w4"]
    one, other = ({"method": "base", "sample": i} for i in (0, 1))
    path = write(tmp_path / "f.jsonl", [{"prompt": 1, "chosen": one, "rejected": other}])
    [lesson] = teach(tmp_path / "it", path, texts=run, **given).history
    assert lesson.chat and lesson.system == "w9"

    [choice] = read_feedback(path, known)
    chat = choose_chat(model, tokenizer, "on", "w9").format
    differences, _ = read_choices(model, tokenizer, mine, [choice], chat)
    as_text = chat.text(choice.prompt)  # the words of the template are tokens of their own
    plain, _ = read_choices(model, tokenizer, mine, [replace(choice, prompt=as_text)])
    torch.testing.assert_close(differences, plain)
    assert lesson.theta["high"] == pytest.approx(
        float(most_probable(differences, nothing_known(1)).theta)
    )
    more = write(tmp_path / "more.jsonl", [{"prompt": TALK, "chosen": "w8", "rejected": "w9"}])
    for options, message in (
        ({"texts": run, "chat": "off"}, "says how its prompts stood; leave out --chat"),
        ({"chat": "off"}, "prompts of messages are chats; leave --chat off out"),
        ({"system": " "}, "a system message needs a text"),
    ):
        with pytest.raises(ValueError, match=message):
            teach(tmp_path / "it", more, **options, **given)
    assert teach(tmp_path / "it", more, **given).history[-1].chat


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "y"}, "a pair has prompt, chosen and rejected, a like"),
        ({"chosen": "x", "rejected": "y"}, "the fields are 'chosen', 'rejected'; a pair has"),
        ({"prompt": "x", "text": "y", "liked": "so"}, "'liked' must be true or false, got 'so'"),
        ({"prompt": "x", "text": "y", "edited": "y"}, "'edited' and 'text' are the same text"),
        ({"prompt": "x", "chosen": "", "rejected": "y"}, "'chosen' is empty"),
        ({"prompt": "x", "chosen": 3, "rejected": "y"}, "'chosen' must be text, got 3"),
        ({"prompt": 0, "text": "y", "liked": 1}, "'prompt' is the number 0; say of which run"),
        (
            {"prompt": "x", "text": "y", "liked": 1, "edited": "z"},
            "the fields are .* a pair has prompt",
        ),
    ],
)
def test_a_malformed_row_is_named(row, message, tmp_path):
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=message) as caught:
        read_feedback(path)
    assert "bad.jsonl, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_it_is_taught_and_its_history_is_kept(folder, rows, tmp_path):
    taught = teach(folder, rows)
    model, tokenizer = pocket.load()
    differences, _ = read_choices(
        model, tokenizer, load_taught(folder).equilibrium, read_feedback(rows)
    )
    want = most_probable(differences, nothing_known(2))
    learned = pa.load(folder).preferences
    assert torch.equal(learned.theta, want.theta) and torch.equal(
        learned.covariance, want.covariance
    )
    assert float(learned.theta[0]) > 0 > float(learned.theta[1])

    [lesson] = read_history(folder)
    given = lesson.feedback
    assert (given.pairs, given.likes, given.edits) == (1, 2, 1) and given.file == "pairs.jsonl"
    assert lesson.agreement == (0.5, 1.0) and lesson.theta["kind"] == float(want.theta[0])
    more = write(tmp_path / "more.jsonl", [{"prompt": PROMPT, "text": KIND, "liked": False}] * 30)
    with pytest.raises(ValueError, match=r"has learned before, .* a ridge \(5\) has no place"):
        teach(folder, more, ridge=5.0)
    again = teach(folder, more, learner="gradient", keep=0.5)
    assert [each.learner for each in again.history] == ["map", "gradient"]
    assert [each.ridge for each in again.history] == [1.0, None]
    assert float(again.equilibrium.preferences.theta[0]) < float(want.theta[0])
    assert load_taught(folder).history == again.history and taught.history == again.history[:1]


def test_where_there_is_no_earlier_evidence_all_of_it_is_kept(folder, rows, tmp_path):
    """The ridge is no evidence: at a first lesson the share to keep changes nothing."""
    other = shutil.copytree(folder, tmp_path / "other")
    whole, share = (teach(each, rows, keep=k).history[0] for each, k in ((folder, 1), (other, 0.1)))
    assert share.theta == whole.theta and share.covariance == whole.covariance
    assert (whole.keep, share.keep) == (1, 0.1)


def test_feedback_without_a_token_to_choose_is_no_lesson(tmp_path):
    """Of one candidate, the model's favourite, a text of others is no evidence."""
    features = {"high": pa.TokenTable(torch.linspace(1, 0, 120))}
    principles = [pa.Principle("low", pa.TokenTable(torch.linspace(0, 1, 120)))]
    mine = pa.Equilibrium(None, principles, pa.Preferences(features), k=1)
    mine.save_pretrained(tmp_path / "it")
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    with torch.no_grad():
        favourite = int(model(**tokenizer("w5", return_tensors="pt")).logits[0, -1].argmax())
    other = "w8" if tokenizer.decode(favourite) == "w9" else "w9"
    path = write(tmp_path / "f.jsonl", [{"prompt": "w5", "text": other, "liked": True}])
    before = {p: p.read_bytes() for p in (tmp_path / "it").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"f\.jsonl: none of its 1 tokens is among the candidates"):
        teach(tmp_path / "it", path, model=model, tokenizer=tokenizer, chat="off")
    after = {p: p.read_bytes() for p in (tmp_path / "it").rglob("*") if p.is_file()}
    assert {p for p in after if before.get(p) != after[p]} <= {tmp_path / "it" / ".lock"}


def test_a_kill_before_the_tensors_loses_nothing(folder, rows):
    before = (folder / "model.safetensors").read_bytes()
    taught = teach(folder, rows).equilibrium.preferences
    (folder / "model.safetensors").write_bytes(before)
    assert torch.equal(load_taught(folder).equilibrium.preferences.theta, taught.theta)
    with pytest.raises(ValueError, match="this feedback was learned already"):
        teach(folder, rows)
    for name in ("theta", "covariance"):  # as everybody else loads them
        assert torch.equal(getattr(pa.load(folder).preferences, name), getattr(taught, name))


def test_names_may_hold_what_ends_a_line_elsewhere(folder, tmp_path):
    """U+2028 ends a line for `str.splitlines`, and JSON writes it as it is."""
    one, other = (tmp_path / f"{name}\u2028\x85.jsonl" for name in "ab")
    teach(folder, write(one, ROWS))
    taught = teach(folder, write(other, ROWS[:2]))
    assert [lesson.feedback.file for lesson in taught.history] == [one.name, other.name]
    assert read_history(folder) == list(taught.history)


def test_what_is_wrong_is_said_before_any_work(folder, rows, tmp_path):
    content = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    other = tmp_path / "other"
    pa.SelfDebias(["x"]).save_pretrained(other)
    for call, message in (
        (lambda: teach(folder, rows, keep=0), r"to keep lies in \(0, 1\], got 0"),
        (lambda: teach(folder, rows, ridge=-1), "the ridge must be positive and finite, got -1"),
        (lambda: teach(folder, rows, learner="x"), "a learner is one of map, gradient, got 'x'"),
        (lambda: teach(other, rows), "holds a SelfDebias; feedback teaches an Equilibrium"),
        (lambda: teach(tmp_path / "no", rows), "the equilibrium: .*no is no folder"),
        (lambda: teach(folder, tmp_path / "no.jsonl"), r"no\.jsonl: there is no such file"),
        (lambda: teach(folder, write(tmp_path / "e.jsonl", [])), "holds no feedback"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    now = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert now == content


def test_the_same_feedback_twice_and_a_history_that_was_changed(folder, rows, tmp_path):
    teach(folder, rows)
    teach(folder, write(tmp_path / "more.jsonl", ROWS[:1]))
    with pytest.raises(ValueError, match=r"learned already, as 'pairs\.jsonl' at .* line 1"):
        teach(folder, rows)
    lines = (folder / HISTORY).read_text().splitlines(keepends=True)
    for changed in (lines[1:], [lines[0].replace('"map"', '"gradient"'), lines[1]], lines[::-1]):
        (folder / HISTORY).write_text("".join(changed))
        with pytest.raises(ValueError, match=r"history\.jsonl, line \d: the line before it was"):
            load_taught(folder)
    (folder / HISTORY).write_text("{}\n")
    with pytest.raises(ValueError, match="time is missing"):
        load_taught(folder)
