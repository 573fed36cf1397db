"""Making a judge of what a user has: a name, a folder, a hub id, a file, a function."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.evaluation.judging.files import kind_of
from plugalign.evaluation.judging.judge import Function, Judge, Verdicts, check_judges
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.evaluation.judging.text_classifier import TextClassifier, positive_index
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.files.embedded import parts
from plugalign.files.folders import there
from plugalign.files.pretrained import loading
from plugalign.files.shown import one_line, shown, shown_path
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.discriminator import ValueDiscriminator

__all__ = ["Function", "Judge", "Trusted", "Verdicts", "check_judges", "load_judge", "load_judges"]

PICKLE = ".joblib"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # "name" or "owner/name"
FITTED: Mapping[str, Any] = {
    kind.KIND: kind for kind in (LinearJudge, TfidfJudge, ValueDiscriminator, ValueContrast)
}


class Trusted(str):
    """The path of a judge that may run code as it is loaded: ``Trusted("words.joblib")``."""


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
        raise ValueError(f"two judges are called {shown(min(twice))}; give them names of their own")
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
            * a folder: what ``plugalign fit judge`` made (`TfidfJudge`), a saved `LinearJudge`,
              what ``plugalign fit value`` made, of which the score is P(breaks the value), or a
              Hugging Face text-classification model;
            * the hub id of such a model;
            * "module:function", something importable;
            * a ``.joblib`` file with a fitted scikit-learn classifier or pipeline. It is a pickle:
              loading it *runs code from the file*, so it must be a `Trusted` path;
            * a fitted classifier, a `Judge`, or a callable from texts to P(toxic).
        name: what to call it; by default what it is called where it comes from.
        positive_label: the label that counts as toxic, else see
            `plugalign.evaluation.judging.text_classifier.positive_index`.
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
    if is_pickle(text):
        function = _function(_unpickled(text, isinstance(spec, Trusted)), positive_label)
    else:
        function = _load(text, positive_label, device)
    return Judge(name or _name_of_place(text), function, batch_size)


def trusted(specs: list[str] | dict[str, str] | None) -> list[str] | dict[str, str] | None:
    """The same specs, allowed to run code as they are loaded."""
    if isinstance(specs, dict):
        return {name: Trusted(spec) for name, spec in specs.items()}
    return None if specs is None else [Trusted(spec) for spec in specs]


def is_pickle(spec: str) -> bool:
    """Whether a judge is a file that runs code when it is loaded."""
    return spec.lower().endswith(PICKLE)


def is_code(spec: str) -> bool:
    """Whether a judge is code: a pickle, or something importable."""
    return is_pickle(spec) or (":" in spec and not there(spec))


def _load(text: str, positive_label: str | None, device: str | None) -> Function:
    """What a name, a folder or a hub id stands for."""
    if text == "pocket":
        return LinearJudge.load(parts() / "judge")
    if is_code(text):
        return _function(_imported(text), positive_label)
    if not there(text) and HUB_ID.fullmatch(text) is None:
        raise ValueError(
            f"{shown_path(text)}: there is no such judge; it is 'pocket', a folder, a hub id, "
            f"module:function or a {PICKLE} file"
        )
    own = kind_of(Path(text)) if there(text) else None
    if own is not None and own not in FITTED:
        known = ", ".join(FITTED)
        raise ValueError(f"{shown_path(text)} is a judge of kind {shown(own)}; known are {known}")
    if own is not None:
        function: Function = FITTED[own].load(text)
        return function
    return TextClassifier.load(text, positive_label=positive_label, device=device)


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
    if not there(text):
        return text
    path = Path(text)
    return path.stem if path.is_file() else path.resolve().name


def _unpickled(text: str, trust: bool) -> Any:
    import joblib  # type: ignore[import-untyped]

    if not trust:
        raise ValueError(
            f"judge {shown_path(text)} is a pickle: loading it runs code from the file. If you "
            f"know who made it, say --trust, in Python Trusted(…); plugalign fit judge makes "
            f"judges that hold no code"
        )
    if not Path(text).is_file():
        raise ValueError(f"{shown_path(text)}: there is no such judge")
    with loading("the judge", text):
        return joblib.load(text)


def _imported(spec: str) -> Any:
    module, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"judge {shown(spec)} must be module:function, a path or a hub id")
    try:
        return getattr(importlib.import_module(module), attribute)
    # The module is the user's, and may raise anything as it is imported.
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"judge {shown(spec)} cannot be imported: {reason}") from error
