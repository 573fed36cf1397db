"""Self-critique in chats: turns, calibrated verdicts, and a model that cannot judge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import make_chat_tokenizer
from transformers import GenerationConfig

import plugalign as pa
from plugalign.controllers.critique_wording import CRITIQUE as CRITIQUE_TEXT
from plugalign.controllers.critique_wording import turn_of
from plugalign.controllers.labelled_answers import LABELLED, labelled_answers
from plugalign.controllers.self_critique import SelfCritique
from plugalign.generation.chat import chat_of
from plugalign.generation.revision import Answers
from plugalign.generation.transcript import Continuation

# Tokens of the chat template: w80 opens a turn, w81 the user, w82 the assistant, w83 closes it.
NEXT_USER, REPLY = [86, 83, 84], [86, 83, 85]
WORDS = {"critique": "w30 w31 w32:", "fault": " w40 w41", "fine": " w50", "refine": " w60 w61"}
CRITIQUE, FAULT, FINE, REFINE = [33, 34, 35, 2], [43, 44], [53], [63, 64]
CHATS = (
    "w80 w81 w5 w6 w7 w83 w80 w82",
    "w80 w81 w8 w83 w80 w82 w9 w83 w80 w81 w11 w83 w80 w82",
    "w80 w81 w20 w83 w80 w82",
    "w80 w81 w21 w22 w83 w80 w82",
)
NEW = 5


def answers_to(
    texts: tuple[str, ...], drafts: list[list[int]], model: Any, tokenizer: Any, **more: Any
) -> Answers:
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    width = max(map(len, drafts))
    options = {"max_new_tokens": NEW, "do_sample": False}
    fields = {"cache": None, "pad_token_id": 0, "end_token_ids": (1,)}
    return Answers(
        tokenizer=tokenizer,
        prompt_ids=batch["input_ids"],
        prompt_mask=batch["attention_mask"],
        ids=torch.tensor([ids + [0] * (width - len(ids)) for ids in drafts]),
        continuation=Continuation(model, options),
        **fields | more,
    )


DRAFTS = [[100, 101], [102], [103, 104, 105], [106]]


@torch.no_grad()
def log_odds(model: Any, ids: list[int]) -> float:
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return float(logits[FAULT[0]] - logits[FINE[0]])


def greedy(model: Any, ids: list[int], length: int = NEW) -> list[int]:
    new: list[int] = []
    with torch.no_grad():
        while len(new) < length and (not new or new[-1] != 1):
            logits = model(torch.tensor([ids + new]), use_cache=False).logits[0, -1]
            new.append(int(logits.argmax()))
    return new


def turn(content: list[int]) -> list[int]:
    return [*NEXT_USER, *content, *REPLY]


def reference(
    model: Any, tokenizer: Any, prompt: list[int], draft: list[int], words: int = 0
) -> tuple[float, list[int]]:
    """P(fault) of one answer in a chat, and its refinement, by uncached forwards."""
    content_free = tokenizer("N/A")["input_ids"]
    odds = [log_odds(model, prompt + said + turn(CRITIQUE)) for said in (draft, content_free)]
    text = prompt + draft + turn(CRITIQUE) + FAULT
    text += [token for token in greedy(model, text, words) if token != 1]
    return 1 / (1 + math.exp(odds[1] - odds[0])), greedy(model, text + turn(REFINE))


@pytest.mark.parametrize("words", [0, 3])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2-tied"])
def test_critique_and_refinement_are_turns(name, words, tiny, chat_tokenizer):
    model, tokenizer = tiny(name, seed=3), chat_tokenizer
    answers = answers_to(CHATS, DRAFTS, model, tokenizer)
    critic = SelfCritique(**WORDS, threshold=0.0, critique_tokens=words)
    revision = critic.revise(answers)
    for i, text in enumerate(CHATS):
        prompt = tokenizer(text)["input_ids"]
        fault, refined = reference(model, tokenizer, prompt, DRAFTS[i], words)
        assert float(revision.faults[0, i]) == pytest.approx(fault, abs=1e-4)
        assert revision.ids[i].tolist()[: len(refined)] == refined
    assert revision.report.critiqued == revision.report.refined == 4


def test_the_prompt_is_not_encoded_again(tiny, chat_tokenizer):
    """Neither for the critique nor for the content-free answer."""
    model, tokenizer = tiny(seed=3), chat_tokenizer
    batch = tokenizer(list(CHATS), return_tensors="pt", padding=True, return_token_type_ids=False)
    model.generation_config.eos_token_id = None
    made = model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    drafts = made.sequences[:, batch["input_ids"].shape[1] :].tolist()
    fresh = answers_to(CHATS, drafts, model, tokenizer)
    cached = answers_to(CHATS, drafts, model, tokenizer, cache=made.past_key_values)
    one, two = (SelfCritique(**WORDS, threshold=0.0).revise(each) for each in (fresh, cached))
    torch.testing.assert_close(one.faults, two.faults, atol=1e-5, rtol=1e-4)
    assert torch.equal(one.ids, two.ids)
    asked, refine = len(turn(CRITIQUE)), len(FAULT) + len(turn(REFINE))
    free = len(tokenizer("N/A")["input_ids"])
    assert two.report.encoded_tokens == 4 * ((free + asked) + (1 + asked) + refine)


def test_plain_prompts_beside_chats_are_asked_as_ever(tiny, chat_tokenizer):
    model, tokenizer = tiny(seed=3), chat_tokenizer
    texts, drafts = ("w5 w6 w7", *CHATS[:2], "w9"), DRAFTS
    critic = SelfCritique(**WORDS, threshold=0.0, rounds=2)
    both = critic.revise(answers_to(texts, drafts, model, tokenizer))
    for i, text in enumerate(texts):
        alone = critic.revise(answers_to((text,), drafts[i : i + 1], model, tokenizer))
        torch.testing.assert_close(both.faults[:, i], alone.faults[:, 0], atol=1e-5, rtol=1e-4)
        width = alone.ids.shape[1]
        assert both.ids[i].tolist() == alone.ids[0].tolist() + [0] * (both.ids.shape[1] - width)
    prompt = tokenizer(texts[0])["input_ids"]
    odds = log_odds(model, prompt + drafts[0] + CRITIQUE)
    assert float(both.faults[0, 0]) == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)


def test_the_prompt_in_a_template_is_what_the_user_says_last(tiny, chat_tokenizer):
    model, tokenizer = tiny(seed=3), chat_tokenizer
    words = WORDS | {"refine": "w60 {prompt} w61"}
    revision = SelfCritique(**words, threshold=0.0).revise(
        answers_to(CHATS, DRAFTS, model, tokenizer)
    )
    for i, said in enumerate(([8, 9, 10], [14], [23], [24, 25])):
        text = tokenizer(CHATS[i])["input_ids"] + DRAFTS[i] + turn(CRITIQUE) + FAULT
        refined = greedy(model, text + turn([63, *said, 64]))
        assert revision.ids[i].tolist()[: len(refined)] == refined


def test_a_label_in_the_last_line_is_what_the_assistants_turn_stands_for(chat_tokenizer):
    chat = chat_of(chat_tokenizer)
    assert turn_of(chat, "\n\nw30: w31\nw32:") == chat.turn("w30: w31")
    assert turn_of(chat, " w32:") == chat.turn("w32:")
    assert turn_of(chat, CRITIQUE_TEXT).count("Critique") == 1


def scripted(model: Any, *script: list[int]) -> None:
    """Makes the model write given tokens, row by row, and then end, as refinements."""
    width, step = max(map(len, script)) + 1, [0]
    rows = torch.tensor([ids + [1] * (width - len(ids)) for ids in script])

    def write(_: Any, args: Any, inputs: Any, output: Any) -> Any:
        refined = inputs["input_ids"].shape[1] == 1
        if refined or (inputs["input_ids"][:, -5:-3] == torch.tensor(REFINE)).all():
            column = min(step[0], width - 1)
            output.logits[:, -1] = torch.nn.functional.one_hot(rows[:, column], 120) * 1e3
            step[0] += 1
        return output

    model.register_forward_hook(write, with_kwargs=True)


def test_an_answer_is_never_replaced_by_a_verdict_or_by_no_word(tiny, chat_tokenizer):
    """Both verdicts and <unk>, which is no word, leave it; a word beside a verdict does not."""
    model, tokenizer = tiny(seed=3), chat_tokenizer
    scripted(model, FAULT, FINE, [2, 2], [*FINE, 70])
    revision = SelfCritique(**WORDS, threshold=0.0).revise(
        answers_to(CHATS, DRAFTS, model, tokenizer)
    )
    assert revision.ids.tolist() == [[100, 101, 0], [102, 0, 0], [103, 104, 105], [53, 70, 1]]
    assert (revision.report.refined, revision.report.empty) == (1, 3)


@pytest.mark.parametrize(("threshold", "faulted"), [(None, 1), (0.5, 3), (1.0, 0)])
def test_in_a_chat_a_fault_must_be_clear(threshold, faulted, tiny, chat_tokenizer):
    """Without a threshold of the caller's it is the odds of ten to one, or nearly so."""
    model, tokenizer = tiny(seed=3), chat_tokenizer
    odds = [[0.0] * 4, [-1.0, 1.0, 2.1, 2.3]]

    def verdict(_: Any, args: Any, inputs: Any, output: Any) -> Any:
        if inputs["input_ids"][0, -3:].tolist() == REPLY and odds:
            output.logits[:, -1, FAULT[0]] = torch.tensor(odds.pop(0))
            output.logits[:, -1, FINE[0]] = 0.0
        return output

    model.register_forward_hook(verdict, with_kwargs=True)
    answers = answers_to(CHATS, DRAFTS, model, tokenizer)
    report = SelfCritique(**WORDS, threshold=threshold).revise(answers).report
    assert report.faulted == faulted


# ------------------------------------------------------------------ a whole call


@pytest.mark.parametrize("pad", [0, 1])
def test_nothing_is_padded_to_the_width_of_a_template(pad, tiny, chat_tokenizer):
    model, tokenizer = tiny(seed=3), chat_tokenizer
    batch = tokenizer(list(CHATS), return_tensors="pt", padding=True, return_token_type_ids=False)
    critic = SelfCritique(" w7" * 30, " w40", " w50", " w60" * 30, threshold=1.0)
    options = {"max_new_tokens": 4, "pad_token_id": pad, "do_sample": False}
    made = pa.wrap(model, tokenizer, critic).generate(**batch, **options)
    assert torch.equal(made, model.generate(**batch, **options))


def test_the_batch_is_as_wide_as_its_longest_answer(tiny, chat_tokenizer):
    """Drafts of six tokens, all of them replaced by refinements of at most two."""
    model, tokenizer = tiny(seed=3), chat_tokenizer
    model.generation_config = GenerationConfig(pad_token_id=1, eos_token_id=1)
    scripted(model, [70, 71], [72], [73, 74], [75])
    drafts = [[100 + i for i in range(6)] for _ in CHATS]
    critic = SelfCritique(**WORDS, threshold=0.0, max_new_tokens=2)
    revision = critic.revise(answers_to(CHATS, drafts, model, tokenizer, pad_token_id=1))
    assert revision.ids.tolist() == [[70, 71], [72, 1], [73, 74], [75, 1]]


# ------------------------------------------------------------------ can it judge?


def judging(model: Any, tokenizer: Any, known: set[int]) -> Any:
    """A model that says "Yes" where it has read any of some tokens, and else cannot decide."""
    yes, no = (tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))

    def judge(_: Any, args: Any, inputs: Any, output: Any) -> Any:
        hit = torch.isin(inputs["input_ids"], torch.tensor(list(known))).any(1)
        output.logits[:, -1, yes], output.logits[:, -1, no] = 5.0 * hit, 0.0
        return output

    model.register_forward_hook(judge, with_kwargs=True)
    return model


@pytest.fixture
def words(chat_tokenizer) -> Any:
    """The tokenizer, which knows the first words of the labelled answers."""
    first = {f"{answer.split()[0]} " for _, *answers in LABELLED for answer in answers}
    chat_tokenizer.add_tokens(sorted(first))
    return chat_tokenizer


@pytest.mark.parametrize("chats", [True, False])
def test_a_model_that_cannot_judge_is_said_to(chats, tiny, words):
    if not chats:
        words.chat_template = None
    blind = judging(tiny(vocab=len(words)), words, known=set())
    assert SelfCritique().separation(blind, words) == 0.5
    with pytest.warns(UserWarning, match=r"AUC of 0\.50 .* are not the bad ones"):
        pa.wrap(blind, words, SelfCritique())


@pytest.mark.parametrize("chats", [True, False])
def test_a_model_that_can_is_not(chats, tiny, words):
    """It knows what rude answers begin with; one harmless answer begins so too."""
    if not chats:
        words.chat_template = None
    known = {words(rude)["input_ids"][0] for _, _, rude in LABELLED}
    shared = sum(words(harmless)["input_ids"][0] in known for _, harmless, _ in LABELLED)
    knowing = judging(tiny(vocab=len(words)), words, known)
    expected = 1 - shared / 16
    assert 0 < shared < 4 and SelfCritique().separation(knowing, words) == expected
    pa.wrap(knowing, words, SelfCritique())  # warnings are errors here


def test_labelled_answers_are_asked_about_in_their_chats(tiny, chat_tokenizer):
    answers = labelled_answers(tiny(), chat_tokenizer)
    assert len(answers.ids) == 16
    prompts = [
        row[keep.bool()].tolist()
        for row, keep in zip(answers.prompt_ids, answers.prompt_mask, strict=True)
    ]
    assert all(ids[:2] == [83, 84] and ids[-3:] == REPLY for ids in prompts)
    assert all(one == other for one, other in zip(prompts[::2], prompts[1::2], strict=True))
    chat_tokenizer.chat_template = None
    assert all(
        84 not in row for row in labelled_answers(tiny(), chat_tokenizer).prompt_ids.tolist()
    )


def test_labelled_answers_stand_behind_one_begin_token(tiny):
    tokenizer = make_chat_tokenizer(bos=True)  # whose template writes none
    begin = tokenizer.bos_token_id
    answers = labelled_answers(tiny(), tokenizer)
    for row, keep in zip(answers.prompt_ids, answers.prompt_mask, strict=True):
        ids = row[keep.bool()].tolist()
        assert ids[:3] == [begin, 83, 84] and ids.count(begin) == 1


@pytest.mark.parametrize("settings", [WORDS, {"threshold": 0.0}, {"threshold": 1.0}])
def test_nothing_is_asked_where_it_would_say_nothing(settings, tiny, tokenizer):
    model, calls = tiny(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    SelfCritique(**settings).check(model, tokenizer)
    assert calls == []
