"""The pocket judge tells rude from polite on texts that nobody has seen."""

from __future__ import annotations

import pytest
from sklearn.metrics import roc_auc_score

from plugalign import pocket
from plugalign.pocket import world


@pytest.mark.parametrize("seed", [world.TEST_SEED, world.TEST_SEED + world.SPLITS])
def test_the_judge_ranks_fresh_comments_and_pieces_of_them(seed):
    judge = pocket.judge()
    comments = world.comments(500, seed)
    rude = [comment.label == "rude" for comment in comments]
    assert roc_auc_score(rude, judge([comment.text for comment in comments])) > 0.99
    texts, labels = zip(*world.judge_sample(500, seed), strict=True)
    assert roc_auc_score([label == "rude" for label in labels], judge(texts)) > 0.97
