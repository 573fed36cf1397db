"""Judges: anything that turns texts into P(toxic), called so that one bad text costs one score."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plugalign.evaluation.linear_judge import LinearJudge
from plugalign.evaluation.statistics import FloatArray
from plugalign.evaluation.text_classifier import TextClassifier, positive_index

Function = Callable[[Sequence[str]], ArrayLike]


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of n texts.

    Args:
        scores: P(toxic), ``(n,)``, NaN where the judge failed.
        failed: how many are NaN.
        first_error: why the first of these failed, None if none did.
    """

    scores: FloatArray
    failed: int
    first_error: str | None


@dataclass(frozen=True, eq=False)
class Judge:
    """A named function from texts to P(toxic) in [0, 1].

    A batch on which the function raises is tried again text by text; a text on which it raises
    then, or for which it returns NaN, has no score.

    Args:
        name: what tables and messages call it.
        function: texts to ``(n,)`` numbers.
        batch_size: how many texts it is given at a time.
    """

    name: str
    function: Function
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``, NaN where the judge failed."""
        return self.verdicts(texts).scores

    def verdicts(
        self, texts: Sequence[str], advance: Callable[[int], object] | None = None
    ) -> Verdicts:
        """P(toxic) of each text, and what went wrong.

        Args:
            advance: called with the number of texts done, for a progress bar.

        Raises:
            ValueError: naming the judge, if its answer is not n numbers in [0, 1].
        """
        scores, errors = np.full(len(texts), np.nan), []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            found, error = self._batch(batch)
            scores[start : start + len(batch)] = found
            errors += [error] if error is not None else []
            if advance is not None:
                advance(len(batch))
        return Verdicts(scores, int(np.isnan(scores).sum()), errors[0] if errors else None)

    def _batch(self, batch: list[str]) -> tuple[FloatArray, str | None]:
        """Scores ``(n,)`` and the first error, also after the texts were tried one by one."""
        try:
            answer = self.function(batch)
        # The function is the user's, or a whole library: it may raise anything, and hours of
        # generation must not be lost to one odd text. Nothing of ours runs inside this try.
        except Exception as error:
            if len(batch) == 1:
                return np.array([np.nan]), f"{type(error).__name__}: {error}"
            single = [self._batch([text]) for text in batch]
            errors = [e for _, e in single if e is not None]
            return np.concatenate([s for s, _ in single]), errors[0] if errors else None
        scores = self._checked(answer, len(batch))
        return scores, "the judge returned NaN" if np.isnan(scores).any() else None

    def _checked(self, answer: ArrayLike, count: int) -> FloatArray:
        try:
            scores = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"judge {self.name!r} must return numbers: {error}") from error
        if scores.shape != (count,):
            raise ValueError(
                f"judge {self.name!r} returned an array of shape {scores.shape} for {count} texts; "
                f"it must return one number per text"
            )
        outside = scores[(scores < 0) | (scores > 1)]
        if outside.size:
            raise ValueError(
                f"judge {self.name!r} returned {outside[0]:g}, which is no probability in [0, 1]"
            )
        return scores


def load_judges(specs: Mapping[str, Any] | Sequence[Any] | Any, **options: Any) -> dict[str, Judge]:
    """Several judges by name.

    Args:
        specs: a name for each of `load_judge`'s specs, or several specs, or one.
        options: passed to `load_judge`.

    Raises:
        ValueError: as `load_judge`, no judge at all, or two with one name.
    """
    if isinstance(specs, Mapping):
        judges = [load_judge(spec, name=name, **options) for name, spec in specs.items()]
    else:
        several = isinstance(specs, (list, tuple))
        judges = [load_judge(spec, **options) for spec in (specs if several else [specs])]
    if not judges:
        raise ValueError("there is no judge; name at least one, such as 'pocket'")
    names = [judge.name for judge in judges]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two judges are called {min(twice)!r}; give them names of their own")
    return {judge.name: judge for judge in judges}


def load_judge(
    spec: Any,
    *,
    name: str | None = None,
    positive_label: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> Judge:
    """Makes a judge of what a user has.

    Args:
        spec: one of

            * "pocket": the judge that comes with the package;
            * a ``.joblib`` file with a fitted scikit-learn classifier or pipeline. Loading one
              *runs code from the file*: open only files that you trust;
            * "module:function", something importable;
            * a folder: a saved `LinearJudge`, or a Hugging Face text-classification model;
            * the hub id of such a model;
            * a fitted classifier, a `Judge`, or a callable from texts to P(toxic).
        name: what to call it; by default what it is called where it comes from.
        positive_label: the label that counts as toxic, else see
            `plugalign.evaluation.text_classifier.positive_index`.
        batch_size: texts at a time.
        device: where a Hugging Face model runs, "cpu" by default.

    Raises:
        ValueError: naming the spec and what it may be.
    """
    if isinstance(spec, Judge):
        return spec if name is None else Judge(name, spec.function, spec.batch_size)
    if not isinstance(spec, (str, Path)):
        return Judge(name or _name_of(spec), _function(spec, positive_label), batch_size)
    text = str(spec)
    if text == "pocket":
        function = _pocket()
    elif text.endswith(".joblib"):
        function = _function(_unpickled(Path(text)), positive_label)
    elif ":" in text and not Path(text).exists():
        function = _function(_imported(text), positive_label)
    elif _is_linear(Path(text)):
        function = LinearJudge.load(text)
    else:
        function = TextClassifier.load(text, positive_label=positive_label, device=device)
    return Judge(name or _name_of_place(text), function, batch_size)


def _pocket() -> Function:
    from plugalign import pocket

    return pocket.judge()


def _function(thing: Any, positive_label: str | None) -> Function:
    """A classifier's probability of its toxic class, or a callable as it is."""
    if hasattr(thing, "predict_proba"):
        classes = getattr(thing, "classes_", None)
        if classes is None:
            raise ValueError(f"{type(thing).__name__} is not fitted; call fit(texts, labels) first")
        column = positive_index([str(c) for c in classes], positive_label)
        return lambda texts: thing.predict_proba(list(texts))[:, column]
    if not callable(thing):
        raise ValueError(
            f"a judge is 'pocket', a path, a hub id, a classifier with predict_proba or a callable "
            f"from texts to P(toxic); got {type(thing).__name__}"
        )
    function: Function = thing
    return function


def _name_of(thing: Any) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))


def _name_of_place(text: str) -> str:
    path = Path(text)
    if path.is_file():
        return path.stem
    return path.resolve().name if path.is_dir() else text


def _unpickled(path: Path) -> Any:
    import joblib  # type: ignore[import-untyped]

    if not path.is_file():
        raise ValueError(f"{path}: there is no such judge")
    return joblib.load(path)


def _imported(spec: str) -> Any:
    module, _, attribute = spec.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"judge {spec!r} cannot be imported: {error}") from error


def _is_linear(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "judge" in json.loads(path.read_text(encoding="utf-8"))
