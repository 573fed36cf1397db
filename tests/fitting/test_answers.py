"""Fits on chats: guides see texts inside the assistant's turn, and learn nothing of its context."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ASSISTANT, CLOSE, OPEN, SYSTEM, USER, make_chat_model, make_chat_tokenizer

from plugalign.controllers.self_debias import SelfDebias
from plugalign.fitting.answers import PLAIN, REQUEST, Frame, followed, frame_of
from plugalign.fitting.command import describe, run_fit
from plugalign.fitting.data import Labelled
from plugalign.fitting.fudge import broken_off
from plugalign.fitting.labelled import Examples, encoded, end_tokens
from plugalign.fitting.prefix_student import Prefixes
from plugalign.fitting.settings import FitSettings
from plugalign.fitting.states import drawn_columns
from plugalign.fitting.student import Student

WORDS = make_chat_tokenizer()(REQUEST, add_special_tokens=False)["input_ids"]
CONTEXT = [OPEN, USER, *WORDS, CLOSE, OPEN, ASSISTANT]
DATA = Labelled(
    tuple(f"w{i % 7} w{20 + i % 2} w{i % 5}" for i in range(48)),
    tuple("01"[i % 2] for i in range(48)),
)
SMALL: dict[str, dict[str, Any]] = {
    "dexperts_lora": {"steps": 2, "rank": 2},
    "fudge": {"steps": 2, "width": 8, "layers": 1, "heads": 2},
    "fudge_head": {"steps": 2, "rank": 2},
    "prefix": {"steps": 2, "prefix_length": 2, "width": 4},
    "nullspace": {"positions": 2},
    "pplm": {"positions": 2},
    "rad": {"steps": 2, "rank": 2},
    "args": {"steps": 2, "rank": 2},
}


@pytest.fixture
def frame() -> Frame:
    return frame_of(make_chat_model(), make_chat_tokenizer(), FitSettings())


def seen_by(model: Any) -> list[list[int]]:
    """All rows of ids that a model reads, without padding behind them."""
    rows: list[list[int]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if "attention_mask" not in kwargs:  # of one token, to see a cache's shape
            return
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        mask = mask[:, -ids.shape[1] :]
        rows.extend(row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def test_a_text_is_an_answer_to_one_request(frame: Frame) -> None:
    assert list(frame.context) == CONTEXT and frame.first == len(CONTEXT) - 1
    learnt, held = encoded(
        make_chat_tokenizer(), (["w1 w2"] * 12, ["w3"] * 12), 1, 0, end=False, frame=frame
    )
    assert {tuple(r) for r in learnt.rows + held.rows} == {(*CONTEXT, 4), (*CONTEXT, 6)}
    ended, _ = encoded(make_chat_tokenizer(), (["w1"], ["w3 w4"]), 9, 0, end=True, frame=frame)
    assert ended.rows == [[*CONTEXT, 4, CLOSE], [*CONTEXT, 6, 7, CLOSE]]
    assert end_tokens(make_chat_model(), make_chat_tokenizer(), frame) == [1, CLOSE]


def test_a_system_message_and_what_is_off():
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    frame = frame_of(model, tokenizer, FitSettings(system="w9"))
    assert list(frame.context) == [OPEN, SYSTEM, 12, CLOSE, *CONTEXT]
    assert frame.record()["system"] == "w9"
    off = frame_of(model, tokenizer, FitSettings(chat="off"))
    assert (off.context, off.first, off.record()["used"]) == ((), 0, False)


def test_what_is_learnt_begins_with_the_first_token_of_the_answer(frame: Frame) -> None:
    examples = Examples([[*CONTEXT, 4, 5], [*CONTEXT, 6]], [], frame=frame)
    batch = examples.batch([0, 1], torch.device("cpu"))
    following = followed(batch.learnt)
    said = [ids[1:][keep.bool()].tolist() for ids, keep in zip(batch.ids, following, strict=True)]
    assert said == [[4, 5], [6]]
    assert batch.learnt.sum(1).tolist() == [3, 2]  # and the state in front of the first
    plain = Examples([[4, 5, 6], [7]], []).batch([0, 1], torch.device("cpu"))
    assert torch.equal(plain.learnt, plain.mask) and PLAIN.first == 0


def test_likelihoods_and_losses_are_of_the_answer_alone(frame: Frame) -> None:
    """Against the model's own log-probabilities, token by token."""
    model, rows = make_chat_model(), [[*CONTEXT, 4, 5], [*CONTEXT, 6]]
    student = Student(model, make_chat_tokenizer(), 2, 0, frame)
    wanted, ended = [], []
    for row in rows:
        with torch.no_grad():
            log_p = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        end = log_p[:, [1, CLOSE]].logsumexp(-1)
        going_on = torch.log1p(-end.exp())
        places = range(len(CONTEXT) - 1, len(row) - 1)
        wanted.append(sum(float(log_p[i, row[i + 1]] - going_on[i]) for i in places))
        ended.append(len(row) - len(CONTEXT))
    found = student.log_likelihoods(rows, 2)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    loss = student.held_loss(rows, 2)()
    assert loss == pytest.approx(-sum(wanted) / sum(ended), rel=1e-4)


def test_prefixes_explain_the_answer_alone(frame: Frame) -> None:
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    prefixes = Prefixes(model, tokenizer, ([[5]], [[6]]), length=2, width=4, seed=0)
    batch = Examples([[*CONTEXT, 4, 5]], [], frame=frame).batch([0], torch.device("cpu"))
    with torch.no_grad():
        whole = prefixes.nll(batch.ids, batch.mask)
        before = prefixes.nll(batch.ids[:, :-2], batch.mask[:, :-2])
        own = prefixes.nll(batch.ids, batch.mask, batch.learnt)
    torch.testing.assert_close(own, whole - before, rtol=1e-4, atol=1e-4)


def test_ends_are_broken_off_behind_the_context_alone(frame: Frame) -> None:
    rows = [[*CONTEXT, *[4] * (1 + i % 4)] for i in range(2000)]
    batch = Examples(rows, [], frame=frame).batch(range(2000), torch.device("cpu"))
    torch.manual_seed(0)
    broken = broken_off(batch, [1], 0.4, frame)
    places = (broken.ids == 1).nonzero()[:, 1]
    assert len(places) and int(places.min()) == len(CONTEXT)
    assert torch.equal(broken.learnt, frame.learnt(broken.mask))


def test_states_are_taken_inside_the_answer():
    for text in range(20):
        drawn = drawn_columns(len(CONTEXT) + 4, 3, 0, text, len(CONTEXT) - 1)
        assert drawn[0] >= len(CONTEXT) - 1 and drawn[-1] == len(CONTEXT) + 3
        assert len(set(drawn)) == 4


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.filterwarnings("ignore:.*Liblinear failed")
def test_every_fit_reads_answers_and_says_so(method: str, tmp_path: Path) -> None:
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    rows = seen_by(model)
    settings = SMALL[method] | {"system": "w9"}
    run_fit(method, model, tokenizer, DATA, tmp_path / "out", settings=settings)
    context = [OPEN, SYSTEM, 12, CLOSE, *CONTEXT]
    if method not in ("fudge", "rad", "args"):  # which train models of their own
        texts = [row for row in rows if len(row) > 2]  # prefixes start from two tokens
        fronts = [row for row in texts if row == context[:-1]]  # which is read once for all
        answers = [row for row in texts if row != context[:-1]]
        assert fronts and answers
        assert all(row[0] == context[-1] and OPEN not in row for row in answers)
    record = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert record["chat"]["used"] and record["chat"]["request"] == REQUEST
    assert record["measured"]
    with pytest.raises(ValueError, match="not empty"):
        run_fit(method, model, tokenizer, DATA, tmp_path / "out", settings=SMALL[method])


def test_a_chat_that_cannot_be_is_refused_before_any_work(tokenizer: Any, tmp_path: Path) -> None:
    for method, small in SMALL.items():
        for settings, message in (
            ({"chat": "on"}, "has no chat template, which --chat on needs"),
            ({"system": "w1"}, "--system is a message of a chat"),
            ({"chat": "perhaps"}, "chat: .*got 'perhaps'"),
        ):
            with pytest.raises(ValueError, match=message):
                run_fit(
                    method,
                    make_chat_model(),
                    tokenizer,
                    DATA,
                    tmp_path / "out",
                    settings=small | settings,
                )
    assert not list(tmp_path.iterdir())


def test_the_command_that_tries_a_guide_of_chats_asks_in_a_chat(tmp_path: Path) -> None:
    SelfDebias(["w1"]).save_pretrained(tmp_path)
    for used, shown in ((True, "apply_chat_template"), (False, "I think that")):
        (tmp_path / "fit.json").write_text(json.dumps({"chat": {"used": used}}))
        said = describe(SelfDebias(["w1"]), make_chat_model(), "some/model", tmp_path)
        assert shown in said
        compile(shlex.split(said.split("\npython -c ")[1])[0], "trial", "exec")
