"""What a judge *is*, beyond its name, so that a resumed run is scored by the one that began it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import torch

from plugalign.algebra.identity import vocabulary_hash
from plugalign.controllers.self_diagnosis import diagnose
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.judging.text_classifier import TextClassifier
from plugalign.evaluation.judging.tfidf import TfidfJudge
from plugalign.evaluation.run_folder.manifest import JudgeRecord
from plugalign.files.embedded import parts
from plugalign.files.fingerprint import file_hash, fingerprint, weights_fingerprint
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.discriminator import ValueDiscriminator

SIMPLE = (str, int, float, bool, type(None))


def specs_of(specs: Mapping[str, Any] | Sequence[Any] | Any) -> list[Any]:
    """The specs in the order in which `load_judges` names them."""
    if isinstance(specs, Mapping):
        return list(specs.values())
    return list(specs) if isinstance(specs, (list, tuple)) else [specs]


def judge_source(spec: Any) -> str | None:
    """Where a judge came from, None for an object."""
    return str(spec) if isinstance(spec, (str, Path)) else None


def describe_judge(judge: Judge, spec: Any, dtype: torch.dtype | None = None) -> JudgeRecord:
    """A judge's kind and a hash of what its scores depend on.

    The hash is of the judge's files where it has some, else of its weights or its source. None
    where nothing is known of it: an object of foreign code that cannot be serialised.

    Args:
        dtype: of the model that answers, in which a contrast or a diagnosis is known to read
            with that model.
    """
    function = judge.function
    sha256 = _of_spec(spec)
    if sha256 is None:
        sha256 = _of_object(spec if hasattr(spec, "predict_proba") else function)
    if (asked := _diagnosis(function)) is not None:
        reads = weights_fingerprint(asked["model"], dtype)
        return JudgeRecord(kind=diagnose.__name__, sha256=sha256, reads=reads)
    found = JudgeRecord(kind=type(function).__name__, sha256=sha256)
    if isinstance(function, TextClassifier):
        return found.model_copy(update={"label": function.positive})
    if isinstance(function, (ValueContrast, ValueDiscriminator)):
        rounded = dtype if isinstance(function, ValueContrast) else None
        return found.model_copy(
            update={"reads": weights_fingerprint(function.reader.model, rounded)}
        )
    return found


def _diagnosis(function: Any) -> dict[str, Any] | None:
    """What `diagnose` is called with, where a judge is it but for the texts."""
    if not isinstance(function, partial) or function.func is not diagnose:
        return None
    given = inspect.signature(diagnose).bind_partial(*function.args, **function.keywords).arguments
    return given if {"model", "tokenizer", "attribute"} <= set(given) else None


def _of_spec(spec: Any) -> str | None:
    """A hash of the files behind a path or a name."""
    if not isinstance(spec, (str, Path)):
        return None
    text = str(spec)
    path = parts() / "judge" if text == "pocket" else Path(text)
    if path.exists():
        return _of_files(path)
    module = importlib.util.find_spec(text.partition(":")[0]) if ":" in text else None
    origin = None if module is None else module.origin
    return _of_files(Path(origin)) if origin and Path(origin).is_file() else None


def _of_files(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    root = path.parent if path.is_file() else path
    named = [(str(p.relative_to(root)), p) for p in files]
    shown = [(name, p) for name, p in named if not any(s[:1] == "." for s in Path(name).parts)]
    return fingerprint([(name if path.is_dir() else "", file_hash(p)) for name, p in shown])


def _of_object(thing: Any) -> str | None:
    if (asked := _diagnosis(thing)) is not None:
        model, tokenizer = weights_fingerprint(asked["model"]), vocabulary_hash(asked["tokenizer"])
        template = getattr(asked["tokenizer"], "chat_template", None)
        settings = {name: value for name, value in asked.items() if isinstance(value, SIMPLE)}
        return fingerprint(model, tokenizer, template, settings)
    if isinstance(thing, TextClassifier):
        return fingerprint(weights_fingerprint(thing.model), vocabulary_hash(thing.tokenizer))
    if isinstance(thing, LinearJudge):
        return fingerprint(joblib.hash(thing.weights), thing.intercept)
    if isinstance(thing, TfidfJudge):  # a vectorizer's own state is another in each process
        learned = [
            (part.get_feature_names_out().tolist(), joblib.hash(part.idf_))
            for part in (thing.words, thing.characters)
        ]
        return fingerprint(learned, joblib.hash(thing.weights), thing.intercept)
    if isinstance(thing, (ValueContrast, ValueDiscriminator)):
        return _of_value(thing)
    if inspect.isroutine(thing):
        return _of_function(thing)
    try:
        return f"{type(thing).__qualname__}:{joblib.hash(thing)}"
    # joblib pickles, and a foreign object may answer that with anything.
    except Exception:
        return None


def _of_value(thing: ValueContrast | ValueDiscriminator) -> str:
    """A hash of what is asked, and of the model that reads: a model's own state is another in each
    process."""
    if isinstance(thing, ValueContrast):
        asked: tuple[Any, ...] = (thing.statement, thing.negation)
    else:
        head = (joblib.hash(thing.head.weights), thing.head.offset)
        asked = (thing.statement, *head, asdict(thing.calibration))
    reader = thing.reader
    how = (reader.kind, reader.layers, reader.max_tokens, reader.identity.to_dict())
    return fingerprint(asked, how, weights_fingerprint(reader.model))


def _of_function(function: Any) -> str | None:
    """A hash of a function's source, and of the plain values that it was made with."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed into an interpreter, or built in
        return None
    cells = [_content(cell) for cell in getattr(function, "__closure__", None) or ()]
    values = [*(getattr(function, "__defaults__", None) or ()), *cells]
    return fingerprint(source, [v if isinstance(v, SIMPLE) else type(v).__name__ for v in values])


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
