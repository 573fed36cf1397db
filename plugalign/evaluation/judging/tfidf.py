"""A judge that is fitted in seconds: TF-IDF of words and characters, and a logistic regression.

What scikit-learn learns is kept as it is, in safetensors and JSON: loading runs no code from the
folder, as a pickled pipeline would.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from plugalign.evaluation.judging.files import CONFIG, WEIGHTS, kind_of, read_arrays
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.pretrained import loading
from plugalign.files.saved import writing_tensors
from plugalign.files.typed import read_config

VOCABULARY = "vocabulary.json"
SHARED: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float64}
WORDS: dict[str, Any] = {"ngram_range": (1, 2), **SHARED}
CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 5), **SHARED}
FEWEST = {"words": 2, "characters": 3}  # texts that an n-gram must occur in


class _Config(BaseModel):
    """config.json"""

    model_config = ConfigDict(extra="forbid", strict=True)

    judge: Literal["tfidf"]
    intercept: float = Field(allow_inf_nan=False)


class _Vocabulary(BaseModel):
    """vocabulary.json: the n-gram of each column."""

    model_config = ConfigDict(extra="forbid", strict=True)

    words: list[str] = Field(min_length=1)
    characters: list[str] = Field(min_length=1)


class TfidfJudge:
    """P(toxic) of texts: word 1-2-grams and character 2-5-grams, weighted by TF-IDF.

    Args:
        words: a fitted vectorizer of W word n-grams.
        characters: a fitted vectorizer of C character n-grams.
        weights: of all n-grams, ``(W + C,)``.
        intercept: added to every score.
    """

    KIND: ClassVar = "tfidf"

    def __init__(
        self,
        words: TfidfVectorizer,
        characters: TfidfVectorizer,
        weights: NDArray[np.float64],
        intercept: float,
    ):
        self.words = words
        self.characters = characters
        self.weights = weights
        self.intercept = intercept

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], *, strength: float = 4.0) -> Self:
        """Fits vocabulary and weights; the same data give the same judge.

        Args:
            texts: what to learn from.
            labels: 1 for a toxic text, 0 for another.
            strength: the inverse of the L2 penalty (scikit-learn's C).

        Raises:
            ValueError: labels other than 0 and 1, one class only, a number that differs, or too
                few texts to have an n-gram in common.
        """
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts came with {len(labels)} labels")
        found = {int(label) for label in labels}
        if found != {0, 1}:
            raise ValueError(f"a judge needs texts of both labels, 0 and 1; got {sorted(found)}")
        words = TfidfVectorizer(min_df=FEWEST["words"], **WORDS)
        characters = TfidfVectorizer(min_df=FEWEST["characters"], **CHARACTERS)
        try:
            features = hstack([v.fit_transform(texts) for v in (words, characters)], format="csr")
        except ValueError as error:  # scikit-learn speaks of pruning and of max_df
            raise ValueError(
                f"the {len(texts)} texts share too few words for a judge; give it more texts"
            ) from error
        regression = LogisticRegression(C=strength, solver="liblinear", random_state=0)
        regression.fit(features, np.asarray(labels, dtype=int))
        return cls(words, characters, regression.coef_[0], float(regression.intercept_[0]))

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``."""
        if not len(texts):
            return np.zeros(0)
        found = [v.transform(texts) for v in (self.words, self.characters)]
        features: csr_matrix = hstack(found, format="csr")
        return np.asarray(expit(features @ self.weights + self.intercept), dtype=np.float64)

    def save(self, folder: str | Path) -> None:
        """Writes config.json, vocabulary.json and model.safetensors into ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        parts = {"words": self.words, "characters": self.characters}
        names = {name: part.get_feature_names_out().tolist() for name, part in parts.items()}
        config = {"judge": self.KIND, "intercept": self.intercept}
        for file, content in ((CONFIG, config), (VOCABULARY, names)):
            text = json.dumps(content, indent=0, ensure_ascii=False)
            (target / file).write_text(text + "\n", encoding="utf-8")
        rarity = {f"idf_{name}": part.idf_ for name, part in parts.items()}
        with writing_tensors(target / WEIGHTS):
            save_file({"weights": self.weights, **rarity}, target / WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: the folder holds something else, or is damaged; names the file.
        """
        source = Path(folder)
        if kind_of(source) != cls.KIND:
            raise ValueError(f"{folder} holds no TF-IDF judge (see {source / CONFIG})")
        config = read_config(source / CONFIG, _Config)
        names = read_config(source / VOCABULARY, _Vocabulary)
        counts = (len(names.words), len(names.characters))
        lengths = {"weights": sum(counts), "idf_words": counts[0], "idf_characters": counts[1]}
        weights, *rarity = read_arrays(source / WEIGHTS, lengths)
        with loading("the vocabulary", source / VOCABULARY):  # an n-gram may stand there twice
            words = _vectorizer(names.words, rarity[0], WORDS)
            characters = _vectorizer(names.characters, rarity[1], CHARACTERS)
        return cls(words, characters, weights, config.intercept)


def _vectorizer(
    names: Sequence[str], rarity: NDArray[np.float64], options: dict[str, Any]
) -> TfidfVectorizer:
    vectorizer = TfidfVectorizer(vocabulary=list(names), **options)
    vectorizer.idf_ = rarity
    return vectorizer
