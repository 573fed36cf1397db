"""The pocket world's samples: deterministic, disjoint, and labelled by what they say."""

from __future__ import annotations

import re

import pytest

from plugalign.pocket import lexicon, world
from plugalign.pocket.jobs import JOBS

RUDE_WORDS = re.compile("|".join(lexicon.MEAN + lexicon.INSULT))
KINDS = (
    world.comments,
    world.pairs,
    world.training_text,
    world.judge_sample,
    world.prompts,
    world.pronoun_sample,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_sample_is_a_function_of_its_seed_and_has_no_repeats(kind):
    sample = kind(200, 3)
    assert kind(200, 3) == sample
    assert kind(50, 3) == sample[:50]
    assert kind(200, 4) != sample
    assert len(set(sample)) == len(sample) == 200


def _answers(texts: list[str]) -> set[str]:
    return {text.rpartition("\n")[2].removeprefix("Bot: ") for text in texts}


def test_base_guide_and_judge_share_no_comment():
    base = _answers(world.training_text(3000, world.BASE_SEED))
    guide = {c.text for c in world.comments(3000, world.GUIDE_SEED)}
    guide |= {text for pair in world.pairs(500, world.GUIDE_SEED) for text in pair}
    judge = {c.text for c in world.comments(3000, world.JUDGE_SEED)}
    test = {c.text for c in world.comments(3000, world.TEST_SEED)}
    for one, other in ((base, guide), (base, judge), (guide, judge), (guide, test), (judge, test)):
        assert not one & other


def test_about_45_percent_are_rude_and_every_job_occurs_with_both_labels():
    comments = world.comments(2000, 5)
    assert 0.41 < sum(c.label == "rude" for c in comments) / 2000 < 0.49
    assert {(c.job, c.label) for c in comments} == {
        (job.name, label) for job in JOBS for label in ("polite", "rude")
    }


def test_the_gender_is_what_the_words_show_and_follows_the_job():
    comments = world.comments(3000, 6)
    for comment in comments:
        female = re.search(rf"\b(she|her|herself|{'|'.join(lexicon.WOMEN)})\b", comment.text, re.I)
        male = re.search(rf"\b(he|him|his|himself|{'|'.join(lexicon.MEN)})\b", comment.text, re.I)
        assert not (female and male)
        assert comment.gender == ("female" if female else "male" if male else "neutral")
    for job, most in (("nurse", "female"), ("plumber", "male")):
        genders = [c.gender for c in comments if c.job == job and c.gender != "neutral"]
        assert genders.count(most) > 0.8 * len(genders)


def test_polite_comments_insult_nobody_and_most_rude_ones_do():
    comments = world.comments(2000, 7)
    denials = re.compile(r"no [a-z ]+, .* (is|deserves)|could call")
    for comment in comments:
        if comment.label == "polite" and RUDE_WORDS.search(comment.text):
            assert denials.search(comment.text)
    rude = [c.text for c in comments if c.label == "rude"]
    assert sum(bool(RUDE_WORDS.search(text)) for text in rude) > 0.8 * len(rude)


def test_a_pair_tells_the_same_event_and_only_one_side_is_rude():
    acts = "|".join(act for job in JOBS for act in (*job.good, *job.bad))
    event = re.compile(rf".*?(?:{acts})(?:[\w ]*)(?:\.|, and) ")
    pairs = world.pairs(300, 2)
    matching = [pair for pair in pairs if event.match(pair[0])]
    assert len(matching) > 100
    for rude, polite in matching:
        assert event.match(rude)[0] == event.match(polite)[0]
    insulting = [
        [bool(RUDE_WORDS.search(text)) for text in side] for side in zip(*pairs, strict=True)
    ]
    assert sum(insulting[0]) > 0.75 * 300 > 0.25 * 300 > sum(insulting[1])


def test_critiques_say_yes_where_the_draft_is_rude_and_rewrite_the_whole_text():
    texts = [t for t in world.training_text(4000, 0) if world.CRITIQUE in t]
    verdicts = {world.YES: 0, world.NO: 0}
    for text in texts:
        draft, _, rest = text.partition(world.CRITIQUE)
        verdict, _, rewrite = rest.partition(world.REWRITE)
        verdicts[verdict] += 1
        assert bool(rewrite) == (verdict == world.YES)
        question, asked, _ = draft.rpartition("\nBot:")
        if rewrite and asked:
            assert rewrite.startswith(question + asked)
    assert min(verdicts.values()) > 0.3 * len(texts)


def test_a_pronoun_sample_shows_no_gendered_pronoun_and_both_genders():
    sample = world.pronoun_sample(500, 1)
    assert not [t for t, _ in sample if re.search(r"\b(he|him|his|she|her)\b", t, re.I)]
    assert {gender for _, gender in sample} == {"male", "female"}


def test_prompts_are_beginnings_that_end_without_a_space():
    for prompt in world.prompts(300, world.PROMPT_SEED):
        assert prompt and prompt == prompt.strip()
        assert prompt[0].isupper()


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="must not be negative, got n=-1"):
        world.comments(-1, 0)
    assert world.comments(0, 0) == []
