"""Self-critique against a reference that encodes everything anew, one row at a time."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plugalign.algebra.revisions import Report
from plugalign.controllers.prefix_tuning import PrefixTuning
from plugalign.controllers.self_critique import SelfCritique
from plugalign.generation.revision import Answers
from plugalign.generation.transcript import Continuation

ENDS = (1, *range(3, 24))  # many end tokens, so that drafts differ in length
WORDS = {"critique": "w30 w31 w32", "fault": " w40 w41", "fine": " w50", "refine": " w60 w61"}
CRITIQUE, FAULT, FINE, REFINE = [33, 34, 35], [43, 44], [53], [63, 64]
NEW = 6


def make_answers(model: Any, tokenizer: Any, batch: Any, **more: Any) -> Answers:
    """Drafts as ``generate`` makes them, with their cache."""
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": list(ENDS)}
    fields = {k: more.pop(k) for k in ("cache", "context", "prefix", "continuation") if k in more}
    options |= more
    drafts = model.generate(**batch, **options, return_dict_in_generate=True)
    copies = len(drafts.sequences) // len(batch["input_ids"])
    return Answers(
        **{"cache": drafts.past_key_values, "continuation": Continuation(model, options)} | fields,
        tokenizer=tokenizer,
        prompt_ids=batch["input_ids"].repeat_interleave(copies, 0),
        prompt_mask=batch["attention_mask"].repeat_interleave(copies, 0),
        ids=drafts.sequences[:, batch["input_ids"].shape[1] :],
        pad_token_id=0,
        end_token_ids=ENDS,
    )


def rows_of(answers: Answers) -> list[tuple[list[int], list[int]]]:
    """Each prompt without its padding, and each draft up to its end."""
    rows = []
    for ids, mask, answer in zip(answers.prompt_ids, answers.prompt_mask, answers.ids, strict=True):
        rows.append((ids[mask.bool()].tolist(), until_end(answer.tolist())))
    return rows


def until_end(ids: list[int]) -> list[int]:
    """An answer without its end token, and without pad tokens at its end."""
    said = next((ids[:i] for i, token in enumerate(ids) if token in ENDS), ids)
    while said and said[-1] == 0:
        said = said[:-1]
    return said


def says_something(ids: list[int]) -> bool:
    """Whether an answer is more than no word (<unk> and <pad> are none), or a verdict alone."""
    words = [token for token in until_end(ids) if token not in (0, 2)]
    return bool(words) and words not in (FAULT, FINE)


@torch.no_grad()
def next_logits(model: Any, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def greedy(model: Any, ids: list[int], length: int) -> list[int]:
    new: list[int] = []
    while len(new) < length and not (new and new[-1] in ENDS):
        new.append(int(next_logits(model, ids + new).argmax()))
    return new


def reference(
    model: Any,
    prompt: list[int],
    draft: list[int],
    threshold: float,
    rounds: int = 1,
    words: int = 0,
) -> tuple[list[int] | None, list[float]]:
    """The refined answer of one row (None: the draft stays), and every P(fault)."""
    text, answer, faults = prompt + draft, None, []
    for _ in range(rounds):
        text = text + CRITIQUE
        logits = next_logits(model, text)
        faults.append(1 / (1 + math.exp(float(logits[FINE[0]] - logits[FAULT[0]]))))
        if faults[-1] <= threshold:
            break
        text = text + FAULT
        text = text + until_end(greedy(model, text, words)) + REFINE
        new = greedy(model, text, NEW)
        if not says_something(new):
            break
        answer, text = new, text + until_end(new)
    return answer, faults


def split_threshold(model: Any, answers: Answers) -> float:
    """A threshold that about half of the drafts pass."""
    faults = sorted(reference(model, *row, threshold=1.0)[1][0] for row in rows_of(answers))
    middle = len(faults) // 2
    return (faults[middle - 1] + faults[middle]) / 2


def assert_like_reference(
    revision: Any, model: Any, answers: Answers, rows: Any = None, **settings: Any
) -> None:
    for i, (prompt, draft) in enumerate(rows or rows_of(answers)):
        answer, faults = reference(model, prompt, draft, **settings)
        expected = answers.ids[i].tolist() if answer is None else answer
        found = revision.ids[i].tolist()
        assert found == expected + [0] * (len(found) - len(expected))
        seen = revision.faults[:, i]
        torch.testing.assert_close(seen[~seen.isnan()], torch.tensor(faults), atol=1e-5, rtol=1e-4)


class Columns:
    """Counts the columns of every forward of a model."""

    def __init__(self, model: Any):
        self.widths: list[int] = []
        model.register_forward_pre_hook(
            lambda _, args, inputs: self.widths.append(
                (*args, inputs.get("input_ids"))[0].shape[1]
            ),
            with_kwargs=True,
        )


def scripted(model: Any, *calls: list[float]) -> None:
    """Makes the model's verdicts the given probabilities, call by call; no revision is empty."""
    script = list(calls)

    def verdict(_: Any, args: Any, inputs: Any, output: Any) -> Any:
        if inputs["input_ids"].shape[1] == 1:
            return output
        if inputs["input_ids"][0, -1] == CRITIQUE[-1]:
            odds = torch.tensor(script.pop(0)).logit()
            output.logits[:, -1, FAULT[0]], output.logits[:, -1, FINE[0]] = odds, 0.0
        if inputs["input_ids"][0, -1] == REFINE[-1]:
            output.logits[:, -1, [0, *ENDS]] = -1e3
        return output

    model.register_forward_hook(verdict, with_kwargs=True)


# --------------------------------------------------------------------------- the method


def test_cached_batch_equals_the_reference(architecture, tiny, tokenizer, prompts):
    model, batch = tiny(architecture, seed=3), prompts(rows=6, width=9)
    answers = make_answers(model, tokenizer, batch)
    lengths = {len(draft) for _, draft in rows_of(answers)}
    threshold = split_threshold(model, answers)
    revision = SelfCritique(**WORDS, threshold=threshold).revise(answers)
    assert len(lengths) > 1 and revision.report.faulted == 3
    assert_like_reference(revision, model, answers, threshold=threshold)


@pytest.mark.parametrize("cached", [True, False])
def test_rounds_and_written_critiques(cached, architecture, tiny, tokenizer, prompts):
    model, batch = tiny(architecture, seed=5), prompts(rows=5, width=8)
    answers = make_answers(model, tokenizer, batch, **({} if cached else {"cache": None}))
    threshold = split_threshold(model, answers)
    critic = SelfCritique(**WORDS, threshold=threshold, rounds=3, critique_tokens=4)
    revision = critic.revise(answers)
    settings = {"threshold": threshold, "rounds": 3, "words": 4}
    assert_like_reference(revision, model, answers, **settings)


def test_several_return_sequences(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    torch.manual_seed(0)
    answers = make_answers(
        model,
        tokenizer,
        prompts(rows=2),
        do_sample=True,
        num_return_sequences=3,
        continuation=Continuation(model, {"max_new_tokens": NEW, "eos_token_id": list(ENDS)}),
    )
    threshold = split_threshold(model, answers)
    revision = SelfCritique(**WORDS, threshold=threshold).revise(answers)
    assert len(revision.ids) == 6 and revision.report.faulted == 3
    assert_like_reference(revision, model, answers, threshold=threshold)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_modes_without_a_cache_to_go_on_from(how, tiny, tokenizer, prompts):
    model, batch = tiny("llama-gqa", seed=3), prompts(rows=4)
    answers = make_answers(model, tokenizer, batch, cache=None, **how, disable_compile=True)
    threshold = split_threshold(model, answers)
    critic = SelfCritique(**WORDS, threshold=threshold, rounds=2)
    revision = critic.revise(answers)
    alone = [
        critic.revise(make_answers(model, tokenizer, one, cache=None, **how, disable_compile=True))
        for one in split(batch)
    ]
    assert revision.report.refined and rows_equal(revision.ids, [a.ids[0] for a in alone])


def test_a_batch_is_its_rows(architecture, tiny, tokenizer, prompts):
    model, batch = tiny(architecture, seed=3), prompts(rows=5, width=9)
    answers = make_answers(model, tokenizer, batch)
    critic = SelfCritique(**WORDS, threshold=split_threshold(model, answers), rounds=2)
    whole = critic.revise(answers)
    alone = [critic.revise(make_answers(model, tokenizer, one)) for one in split(batch)]
    assert rows_equal(whole.ids, [revision.ids[0] for revision in alone])
    assert sum((r.report for r in alone), Report()).refined == whole.report.refined


def split(batch: Any) -> list[Any]:
    """One batch a row, without its padding."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    alone = [ids[mask.bool()][None] for ids, mask in rows]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in alone]


def rows_equal(batch: Tensor, rows: list[Tensor]) -> bool:
    found = [until_end(row.tolist()) for row in batch]
    return found == [until_end(row.tolist()) for row in rows]


def test_prompt_and_draft_are_not_encoded_again(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    scripted(model, [0.9, 0.1, 0.9, 0.9])
    answers = make_answers(model, tokenizer, prompts(rows=4, width=9))
    columns = Columns(model)
    report = SelfCritique(**WORDS).revise(answers).report
    last = 1  # the last token of a draft is the one that no cache holds yet
    assert columns.widths[:2] == [last + len(CRITIQUE), len(FAULT) + len(REFINE)]
    assert set(columns.widths[2:]) <= {1} and len(columns.widths) <= 1 + NEW
    assert report.encoded_tokens == 4 * (last + len(CRITIQUE)) + 3 * (len(FAULT) + len(REFINE))


def test_the_callers_cache_and_drafts_stay_as_they_were(tiny, tokenizer, prompts):
    model = tiny("gpt2-tied", seed=3)
    scripted(model, [0.9, 0.9, 0.9])
    answers = make_answers(model, tokenizer, prompts(rows=3))
    before = [keys.clone() for keys, *_ in answers.cache], answers.ids.clone()
    SelfCritique(**WORDS).revise(answers)
    assert all(torch.equal(x, y[0]) for x, y in zip(before[0], answers.cache, strict=True))
    assert torch.equal(before[1], answers.ids)


# --------------------------------------------------------------------------- scripted verdicts


def test_only_faulted_rows_change(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    scripted(model, [0.1, 0.8, 0.4, 0.9])
    answers = make_answers(model, tokenizer, prompts(rows=4))
    revision = SelfCritique(**WORDS).revise(answers)
    width = answers.ids.shape[1]
    assert torch.equal(revision.ids[[0, 2], :width], answers.ids[[0, 2]])
    assert not torch.equal(revision.ids[1], answers.ids[1])
    assert revision.report.critiqued == 4 and revision.report.faulted == 2
    torch.testing.assert_close(revision.faults[0], torch.tensor([0.1, 0.8, 0.4, 0.9]))


def test_rounds_stop_when_nothing_is_found(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    scripted(model, [0.9, 0.1, 0.9], [0.2, 0.7], [0.3])  # a fourth call would fail
    answers = make_answers(model, tokenizer, prompts(rows=3))
    revision = SelfCritique(**WORDS, rounds=9).revise(answers)
    assert revision.report.critiqued == 3 + 2 + 1 and revision.report.refined == 2 + 1
    nan = math.nan
    expected = torch.tensor([[0.9, 0.1, 0.9], [0.2, nan, 0.7], [nan, nan, 0.3]])
    torch.testing.assert_close(revision.faults, expected, equal_nan=True)


@pytest.mark.parametrize(("threshold", "faulted"), [(0.0, 3), (0.3, 2), (0.85, 1), (1.0, 0)])
def test_threshold(threshold, faulted, tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    scripted(model, [0.2, 0.6, 0.9])
    answers = make_answers(model, tokenizer, prompts(rows=3))
    report = SelfCritique(**WORDS, threshold=threshold).revise(answers).report
    assert report.faulted == faulted


def test_a_tie_is_no_fault(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    scripted(model, [0.5, 0.5])
    answers = make_answers(model, tokenizer, prompts(rows=2))
    assert SelfCritique(**WORDS).revise(answers).report.faulted == 0


def test_no_fault_means_the_same_ids(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    answers = make_answers(model, tokenizer, prompts(rows=3))
    revision = SelfCritique(**WORDS, threshold=1.0).revise(answers)
    assert torch.equal(revision.ids, answers.ids) and revision.report.refined == 0


def test_an_empty_revision_leaves_the_draft(tiny, tokenizer, prompts):
    model = tiny("llama-gqa", seed=3)
    answers = make_answers(model, tokenizer, prompts(rows=3))
    scripted(model, [0.9, 0.9, 0.9])

    def end(_: Any, args: Any, inputs: Any, output: Any) -> Any:
        if inputs["input_ids"][0, -1] == REFINE[-1]:
            output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(ENDS[0]), 120) * 1e3
        return output

    model.register_forward_hook(end, with_kwargs=True)
    revision = SelfCritique(**WORDS, rounds=2).revise(answers)
    assert torch.equal(revision.ids, answers.ids)
    assert revision.report.empty == 3 and revision.report.refined == 0


# --------------------------------------------------------------------------- limits, templates


def test_context_is_never_exceeded(tiny, tokenizer, prompts):
    model, batch = tiny("gpt2-tied", seed=3), prompts(rows=3, width=9)
    lengths = [
        len(prompt) + len(draft) for prompt, draft in rows_of(make_answers(model, tokenizer, batch))
    ]
    refining = len(CRITIQUE) + len(FAULT) + len(REFINE) + NEW
    for context, judged, refined in [
        (max(lengths) + refining, 3, 3),
        (max(lengths) + refining - 1, 3, 3 - lengths.count(max(lengths))),
        (min(lengths) + len(CRITIQUE), 0, 0),
    ]:
        answers = make_answers(model, tokenizer, batch, context=context)
        report = SelfCritique(**WORDS, threshold=0.0).revise(answers).report
        assert (report.critiqued, report.refined + report.empty) == (judged, refined)
        assert report.too_long == 3 - refined


def test_the_whole_context_can_be_used(tiny, tokenizer, prompts):
    """GPT-2 has 128 positions: a longer text would raise."""
    model, batch = tiny("gpt2-tied", seed=3), prompts(rows=2, width=100)
    answers = make_answers(model, tokenizer, batch, context=128)
    revision = SelfCritique(**WORDS, threshold=0.0, rounds=4).revise(answers)
    assert revision.report.refined and revision.report.too_long


def test_prompt_in_a_template(tiny, tokenizer, prompts):
    model, batch = tiny("qwen2-tied", seed=3), prompts(rows=4, width=9)
    answers = make_answers(model, tokenizer, batch)
    words = WORDS | {"refine": " w60 {prompt} w61"}
    revision = SelfCritique(**words, threshold=0.0).revise(answers)
    for i, (prompt, draft) in enumerate(rows_of(answers)):
        text = prompt + draft + CRITIQUE + FAULT + REFINE[:1] + prompt + REFINE[1:]
        new = greedy(model, text, NEW)
        expected = new if says_something(new) else answers.ids[i].tolist()
        assert revision.ids[i].tolist()[: len(expected)] == expected


def test_the_revision_runs_under_the_other_controllers(tiny, tokenizer, prompts):
    """A processor that bans all even tokens: revisions are odd, verdicts as without it."""
    model, batch = tiny("llama-gqa", seed=3), prompts(rows=4, width=9)
    seen: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def odd(text: Any) -> Any:
        def ban(ids: Tensor, scores: Tensor) -> Tensor:
            seen.append((text.ids, ids))
            scores[:, ::2] = -torch.inf
            return scores

        yield [ban]

    options = {"max_new_tokens": NEW, "do_sample": False}
    answers = make_answers(model, tokenizer, batch, continuation=Continuation(model, options, odd))
    revision = SelfCritique(**WORDS, threshold=0.0).revise(answers)
    plain = SelfCritique(**WORDS, threshold=0.0).revise(make_answers(model, tokenizer, batch))
    assert (revision.ids[:, :NEW] % 2 == 1).all() and len(seen) == NEW
    assert all(torch.equal(ids[:, : text.shape[1]], text) for text, ids in seen)
    torch.testing.assert_close(revision.faults, plain.faults)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2, "cache": None}])
@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2-tied"])
def test_behind_a_trained_prefix(how, architecture, tiny, tokenizer, prompts):
    """The keys and values of three words are those words, so the reference just reads them."""
    model, batch = tiny(architecture, seed=3), prompts(rows=4, width=9)
    with torch.no_grad():
        words = model(torch.tensor([[7, 8, 9]])).past_key_values
    prefix = PrefixTuning(torch.stack([torch.cat(layer[:2]) for layer in words]))
    with prefix.attach(model) as width:
        greedily = Continuation(model, {"max_new_tokens": NEW, "eos_token_id": list(ENDS)})
        answers = make_answers(model, tokenizer, batch, prefix=width, continuation=greedily, **how)
        columns = Columns(model)
        revision = SelfCritique(**WORDS, threshold=0.0, rounds=2).revise(answers)
    rows = [([7, 8, 9, *prompt], draft) for prompt, draft in rows_of(answers)]
    assert_like_reference(revision, model, answers, rows, threshold=0.0, rounds=2)
    assert how or columns.widths[0] == 1 + len(CRITIQUE)


# --------------------------------------------------------------------------- settings


def test_saved_and_loaded(tmp_path, tiny, tokenizer, prompts):
    from plugalign.algebra.controller import Controller

    critic = SelfCritique(**WORDS, rounds=2, threshold=0.25, critique_tokens=3, max_new_tokens=4)
    critic.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(tmp_path)
    assert isinstance(loaded, SelfCritique) and loaded.config() == critic.config()
    model = tiny("llama-gqa", seed=3)
    one, two = (c.revise(make_answers(model, tokenizer, prompts(rows=3))) for c in (critic, loaded))
    assert torch.equal(one.ids, two.ids) and one.report == two.report


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"threshold": 1.5}, "threshold"),
        ({"critique_tokens": -1}, "critique_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        SelfCritique(**setting)


def test_verdicts_that_begin_alike(tiny, tokenizer, prompts):
    """What both begin with is read first; the verdict is the first token in which they differ."""
    model = tiny("llama-gqa", seed=3)
    answers = make_answers(model, tokenizer, prompts(rows=3))
    critic = SelfCritique(**WORDS | {"fine": " w40 w42"}, threshold=0.0)
    revision = critic.revise(answers)
    for i, (prompt, draft) in enumerate(rows_of(answers)):
        logits = next_logits(model, prompt + draft + CRITIQUE + FAULT[:1])
        expected = (logits[44] - logits[45]).sigmoid().float()
        torch.testing.assert_close(revision.faults[0, i], expected, atol=1e-5, rtol=1e-4)
        new = greedy(model, prompt + draft + CRITIQUE + FAULT + REFINE, NEW)
        expected = new if says_something(new) else answers.ids[i].tolist()
        assert revision.ids[i].tolist()[: len(expected)] == expected


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"fine": " w40"}, "' w40 w41' and ' w40'"),
        ({"fine": " w40 w41"}, "neither may begin with the other"),
        ({"fault": "0"}, "end the critique at a word"),
    ],
)
def test_verdicts_that_cannot_be_distinct_names(words, named, tiny, tokenizer, prompts):
    answers = make_answers(tiny("llama-gqa"), tokenizer, prompts(rows=2))
    with pytest.raises(ValueError, match=named):
        SelfCritique(**WORDS | words).revise(answers)


@pytest.mark.parametrize("folder", ["tinystories-chat-3m", "stories260k"])
def test_default_words_on_real_models(folder, shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shared / "models" / folder
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    said = ["User: How are you today?\nBot:", "User: Tell me a story about a dog.\nBot:"]
    batch = tokenizer(said, return_tensors="pt", padding=True, return_token_type_ids=False)
    options = {"max_new_tokens": 12, "do_sample": False}
    drafts = model.generate(**batch, **options, return_dict_in_generate=True)
    answers = Answers(
        tokenizer=tokenizer,
        prompt_ids=batch["input_ids"],
        prompt_mask=batch["attention_mask"],
        ids=drafts.sequences[:, batch["input_ids"].shape[1] :],
        cache=drafts.past_key_values,
        pad_token_id=tokenizer.pad_token_id,
        end_token_ids=(tokenizer.eos_token_id,),
        continuation=Continuation(model, options),
        context=model.config.max_position_embeddings,
    )
    critic = SelfCritique(threshold=0.0)
    cached, fresh = critic.revise(answers), critic.revise(replace(answers, cache=None))
    assert cached.report.refined == 2 and torch.equal(cached.ids, fresh.ids)
    torch.testing.assert_close(cached.faults, fresh.faults, atol=1e-5, rtol=1e-4)
    assert cached.report.encoded_tokens < fresh.report.encoded_tokens
