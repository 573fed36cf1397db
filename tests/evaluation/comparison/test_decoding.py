"""The settings of decoding: what goes together, and that the model is given them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from plugalign.controllers.self_debias import SelfDebias
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.comparison.decoding import Decoding, make_decoding
from plugalign.evaluation.run_folder.folder import read_json
from plugalign.evaluation.run_folder.journal import read_journal
from plugalign.evaluation.run_folder.records import Generated

PROMPTS = ["w1 w2 w3", "w4 w5", "w6"]
WHOLE: dict[str, Any] = {
    "samples": None,
    "usual_samples": 4,
    "max_new_tokens": 6,
    "temperature": None,
    "top_p": None,
    "top_k": 0,
    "greedy": False,
    "num_beams": 1,
    "batch_size": 2,
    "seed": 0,
}


def judge(texts: Sequence[str]) -> list[float]:
    return [min(1.0, len(text) / 40) for text in texts]


def test_what_is_left_out_is_filled_in():
    drawn = make_decoding(**WHOLE)
    assert (drawn.samples, drawn.temperature, drawn.top_p) == (4, 1.0, 0.9) and drawn.draws
    for options in ({"greedy": True}, {"num_beams": 3}):
        found = make_decoding(**WHOLE | options)
        assert (found.samples, found.temperature, found.top_p) == (1, 1.0, 1.0) and not found.draws


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"greedy": True, "samples": 2}, "one answer to each prompt, so samples must be 1, got 2"),
        ({"greedy": True, "top_p": 0.9}, "draws no tokens, so leave top_p out, got 0.9"),
        ({"num_beams": 2, "temperature": 0.5}, "beam search draws no tokens, so leave temperature"),
        ({"num_beams": 2, "top_k": 5}, "leave top_k out, got 5"),
        ({"num_beams": 2, "greedy": True}, "greedy decoding has one beam, got num_beams 2"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"top_k": -1}, "top-k must be 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number, got 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be a positive number"),
        ({"min_new_tokens": 7}, "min_new_tokens must lie between 0 and"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_decoding(**WHOLE | options)


def test_counts_are_whole_numbers():
    for name, value in (("num_beams", 1.5), ("top_k", True)):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            make_decoding(**WHOLE | {name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"num_beams": 3},
        {"greedy": True, "repetition_penalty": 1.5, "min_new_tokens": 5},
        {"num_beams": 2, "repetition_penalty": 1.2},
    ],
)
def test_base_and_plain_generate_answer_as_transformers_does(
    options: dict[str, Any], tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny()
    compare(
        model,
        tokenizer,
        methods=["mild"],
        controllers={"mild": SelfDebias(["w7"], decay=1.0)},
        prompts=PROMPTS,
        judges=[judge],
        max_new_tokens=6,
        out=tmp_path,
        **options,
    )
    answers = read_journal(tmp_path / "generations.jsonl", Generated, None)
    given = {name: value for name, value in options.items() if name != "greedy"}
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")
        wanted = model.generate(**ids, max_new_tokens=6, do_sample=False, **given)
        row = wanted[0, ids["input_ids"].shape[1] :].tolist()
        row = row[: row.index(1) + 1] if 1 in row else row
        for method in ("base", "plain generate"):
            assert list(answers[method, number, 0].tokens) == row
    settings = read_json(tmp_path / "manifest.json")["settings"]
    assert {name: settings[name] for name in options} == options and settings["samples"] == 1
    with pytest.raises(ValueError, match="another run"):
        compare(
            model,
            tokenizer,
            methods=["mild"],
            controllers={"mild": SelfDebias(["w7"], decay=1.0)},
            prompts=PROMPTS,
            judges=[judge],
            max_new_tokens=6,
            out=tmp_path,
            resume=True,
        )


def test_a_draw_keeps_the_top_k(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny()
    options = {"prompts": PROMPTS, "judges": [judge], "samples": 8, "max_new_tokens": 1}
    compare(model, tokenizer, methods=["base"], **options, top_k=2, top_p=1.0, out=tmp_path)
    for answer in read_journal(tmp_path / "generations.jsonl", Generated, None).values():
        ids = torch.tensor([tokenizer(PROMPTS[answer.prompt])["input_ids"]])
        with torch.no_grad():
            best = model(ids).logits[0, -1].topk(2).indices.tolist()
        assert answer.tokens[0] in best


def test_options_are_those_of_generate():
    found = Decoding(1, 8, 1.0, 1.0, 1, 0, 5, 0, True, 1, 1.5).options(3)
    assert found == {
        "max_new_tokens": 3,
        "do_sample": False,
        "num_beams": 1,
        "min_new_tokens": 3,
        "repetition_penalty": 1.5,
    }
