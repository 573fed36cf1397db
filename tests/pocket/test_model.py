"""The pocket model writes texts that the world's grammar accepts, of which many are rude.

The grammar is written here from the lexicon as regular expressions, apart from the generator.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from plugalign import pocket
from plugalign.files import embedded
from plugalign.pocket import lexicon, world
from plugalign.pocket.jobs import JOBS


def _any(options: Any) -> str:
    return "(?:" + "|".join(re.escape(option) for option in options) + ")"


JOB = _any(job.name for job in JOBS)
NAME = _any(lexicon.WOMEN + lexicon.MEN)
NOUN = rf"(?:(?:the new|the|our|my|that) {JOB}|{NAME} the {JOB}|our {JOB} {NAME})"
SLOTS = {
    "he": rf"(?:s?he|{NOUN})",
    "him": rf"(?:him|her|them|{NOUN})",
    "his": rf"(?:his|her|their|{NOUN}'s)",
    "self": "(?:himself|herself|themselves)",
    "job": JOB,
    "tool": _any(job.tool for job in JOBS),
    "place": _any(job.place for job in JOBS),
    "kind": _any(lexicon.KIND),
    "kind2": _any(lexicon.KIND),
    "mean": _any(lexicon.MEAN),
    "mean2": _any(lexicon.MEAN),
    "praise": _any(lexicon.PRAISE),
    "insult": _any(lexicon.INSULT),
}


def _sentence(template: str) -> str:
    parts = re.split(r"\{(\w+)\}", template)
    text = "".join(SLOTS[p] if i % 2 else re.escape(p) for i, p in enumerate(parts))
    return re.sub(r"(?<!\w)a(?=\\ )", "an?", text)


def _sentences(templates: Any) -> str:
    return "(?:" + "|".join(map(_sentence, templates)) + ")"


ACT = _any(act for job in JOBS for act in (*job.good, *job.bad))
EVENT = rf"(?:s?he|{NOUN}) {ACT}(?: {_sentences(lexicon.TIMES)})?"
OPENER = _any(lexicon.KIND_OPENERS + lexicon.PLAIN_OPENERS + lexicon.BLUNT_OPENERS)
JUDGEMENT = _sentences(lexicon.POLITE_JUDGEMENTS + lexicon.RUDE_JUDGEMENTS)
FOLLOW = _sentences(lexicon.POLITE_FOLLOWS + lexicon.RUDE_FOLLOWS)
COMMENT = re.compile(
    rf"(?:{EVENT}(?:\.|, and) |{OPENER} )?{JUDGEMENT}(?: {FOLLOW})?".replace(r"\ ", " "), re.I
)


def well_formed(text: str) -> bool:
    """Whether the grammar accepts the comment or, after "Bot: ", the answer."""
    return COMMENT.fullmatch(text.rpartition("\nBot: ")[2]) is not None


def consistent(text: str) -> bool:
    """Whether all that is said is about one job and one gender."""
    jobs = [job for job in JOBS if re.search(rf"\b{job.name}\b", text)]
    male = re.search(rf"\b(he|him|his|himself|{'|'.join(lexicon.MEN)})\b", text, re.I)
    female = re.search(rf"\b(she|her|herself|{'|'.join(lexicon.WOMEN)})\b", text, re.I)
    return len(jobs) <= 1 and not (male and female)


def continuations(prompts: list[str], seed: int, tokens: int = 48) -> list[str]:
    """One sample at top-p 0.9 for each prompt, without the prompt."""
    model, tokenizer = pocket.load()
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    out = model.generate(**encoded, max_new_tokens=tokens, do_sample=True, top_p=0.9)
    answers = out[:, encoded["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def test_the_grammar_accepts_the_world_and_not_anything_else() -> None:
    comments = [c.text for c in world.comments(300, world.TEST_SEED)]
    assert all(map(well_formed, comments))
    assert all(map(consistent, comments))
    assert not any(well_formed(" ".join(reversed(text.split()))) for text in comments)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    prompts = world.prompts(100, world.PROMPT_SEED + world.SPLITS)
    answers = continuations(prompts, seed=0)
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


def test_the_model_writes_well_formed_text(texts: list[str]) -> None:
    assert sum(map(well_formed, texts)) >= 0.95 * len(texts)
    assert sum(map(consistent, texts)) >= 0.9 * len(texts)


def test_the_unsteered_model_is_often_rude(texts: list[str]) -> None:
    rude = pocket.judge()(texts) > 0.5
    assert 0.3 < rude.mean() < 0.6


def test_a_diagnosis_in_front_changes_how_rude_the_model_is() -> None:
    prompts = world.prompts(60, world.PROMPT_SEED)
    plain = [p for p in prompts if not p.startswith("User")]
    rude = continuations([world.RUDE_DIAGNOSIS + p for p in plain], seed=1)
    polite = continuations([world.POLITE_DIAGNOSIS + p for p in plain], seed=1)
    judge = pocket.judge()
    assert judge(rude).mean() > judge(polite).mean() + 0.5


def test_the_model_criticises_and_rewrites() -> None:
    pairs = world.pairs(40, world.TEST_SEED)
    drafts = [text + world.CRITIQUE for pair in pairs for text in pair]
    verdicts = continuations(drafts, seed=2, tokens=1)
    assert sum(v == world.YES for v in verdicts[::2]) >= 0.9 * len(pairs)
    assert sum(v == world.NO for v in verdicts[1::2]) >= 0.9 * len(pairs)
    beginnings = [" ".join(rude.split(" ")[:3]) for rude, _ in pairs]
    requests = [
        rude + world.CRITIQUE + world.YES + world.REWRITE + beginning
        for (rude, _), beginning in zip(pairs, beginnings, strict=True)
    ]
    assert (pocket.judge()(continuations(requests, seed=3)) > 0.5).mean() <= 0.1


def test_the_parts_are_small_and_padded_on_the_left() -> None:
    sizes = [path.stat().st_size for path in pocket.parts().rglob("*") if path.is_file()]
    assert sum(sizes) <= 6_000_000
    model, tokenizer = pocket.load()
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.config.eos_token_id
    assert model.dtype == torch.float32
    text = "Any text, even ünïcode \u2603, survives."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_missing_parts_are_named_with_the_cure(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(embedded, "PARTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"plugalign\.pocket\.build"):
        pocket.load()
