"""A small judge without a neural network: hashed n-grams and a logistic regression.

Words with their neighbours carry the meaning, characters within words the spellings that dodge a
word list. Hashing needs no stored vocabulary, so the judge is two numbers per bucket at most and
loads without running foreign code (unlike a pickled pipeline).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from plugalign.evaluation.judging.files import WEIGHTS, kind_of, read_arrays
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.saved import writing_tensors
from plugalign.files.typed import read_config

WORD_NGRAMS = (1, 2)
CHARACTER_NGRAMS = (2, 5)


class _Config(BaseModel):
    """config.json"""

    model_config = ConfigDict(extra="forbid", strict=True)

    judge: Literal["linear"]
    n_features: int = Field(gt=0)
    intercept: float = Field(allow_inf_nan=False)


class LinearJudge:
    """P(toxic) of texts: word 1-2-grams and character 2-5-grams, hashed, times weights.

    Args:
        weights: ``(2 * n_features,)``, of the words' buckets and then of the characters'.
        intercept: added to every score.
    """

    KIND: ClassVar = "linear"

    def __init__(self, weights: NDArray[np.float32], intercept: float):
        self.weights = weights
        self.intercept = intercept
        self.n_features = len(weights) // 2

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[int],
        *,
        n_features: int = 2**18,
        strength: float = 4.0,
    ) -> Self:
        """Fits the weights; the same data give the same judge.

        Args:
            texts: what to learn from.
            labels: 1 for a toxic text, 0 for another.
            n_features: the number of buckets of each kind of n-gram.
            strength: the inverse of the L2 penalty (scikit-learn's C).

        Raises:
            ValueError: labels other than 0 and 1, one class only, or a number that differs.
        """
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts came with {len(labels)} labels")
        found = {int(label) for label in labels}
        if found != {0, 1}:
            raise ValueError(f"a judge needs texts of both labels, 0 and 1; got {sorted(found)}")
        regression = LogisticRegression(C=strength, solver="liblinear", random_state=0)
        regression.fit(_features(texts, n_features), np.asarray(labels, dtype=int))
        return cls(regression.coef_[0].astype(np.float32), float(regression.intercept_[0]))

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``."""
        if not len(texts):
            return np.zeros(0)
        scores = _features(texts, self.n_features) @ self.weights.astype(np.float64)
        return np.asarray(expit(scores + self.intercept), dtype=np.float64)

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors into ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {"judge": self.KIND, "n_features": self.n_features, "intercept": self.intercept}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with writing_tensors(target / WEIGHTS):
            save_file({"weights": self.weights}, target / WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: the folder holds something else, or is damaged; names the file.
        """
        path = Path(folder) / "config.json"
        if kind_of(path.parent) != cls.KIND:
            raise ValueError(f"{folder} holds no linear judge (see {path})")
        config = read_config(path, _Config)
        (weights,) = read_arrays(path.parent / WEIGHTS, {"weights": 2 * config.n_features})
        return cls(weights.astype(np.float32), config.intercept)


def _features(texts: Sequence[str], n_features: int) -> csr_matrix:
    """Which hashed n-grams occur, ``(n, 2 * n_features)``; each half of a row has length one."""
    shared = {"n_features": n_features, "binary": True}
    words = HashingVectorizer(ngram_range=WORD_NGRAMS, **shared)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=CHARACTER_NGRAMS, **shared)
    return hstack([words.transform(texts), characters.transform(texts)], format="csr")
