"""``plugalign.load``, ``fit`` and ``bench``: what the commands of these names do, as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.benchmarking.bench import run_bench
from plugalign.benchmarking.costs import Cost, Failed
from plugalign.fitting.command import fitter, run_fit
from plugalign.fitting.data import Labelled, load_data
from plugalign.loading import resolve_model


def load(
    folder: str | Path, *, allow_hub_parts: bool = False, trust_remote_code: bool = False
) -> Controller:
    """A controller that was saved or fitted, of whatever method it is.

    Args:
        folder: its folder or hub id.
        allow_hub_parts: whether it may name models on the hub, which are then loaded.
        trust_remote_code: whether code that comes with its models may run.

    Raises:
        ValueError: if it holds no controller, or is damaged; names the file and the cure.
    """
    return Controller.from_pretrained(
        folder, allow_hub_parts=allow_hub_parts, trust_remote_code=trust_remote_code
    )


def fit(
    method: str,
    model: Any,
    tokenizer: Any,
    data: Labelled | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    desired: str | None = None,
    minutes: float | None = None,
    dtype: str = "auto",
    **settings: Any,
) -> Controller:
    """Trains what a method needs and saves the controller. Killed and called again, it continues.

    Args:
        method: a name that ``plugalign fit`` knows.
        model: the model to steer, or its hub id or folder.
        tokenizer: its tokenizer; None for a hub id or a folder loads the one there.
        data: labelled texts, or the JSONL or CSV files that hold them.
        out: the folder to save in; it must not hold something else.
        columns: of the files, see `plugalign.fitting.data.load_data`.
        limit: at most so many texts of the files.
        desired: the label of the desired class, for methods that go by one.
        minutes: what it may take; None is no bound.
        dtype: the precision of a model that is given by name: "auto", "bfloat16", "float16" or
            "float32".
        settings: of the method's fit function, such as ``steps=300``.

    Raises:
        ValueError: for bad data or settings, before any work.
    """
    fitter(method)  # refuses what cannot be fitted before anything is read
    if isinstance(data, Labelled):
        if columns or limit is not None:
            raise ValueError("columns and limit are of files; leave them out with labelled texts")
        labelled = data
    else:
        labelled = load_data(data, limit=limit, **(columns or {}))
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    return run_fit(
        method,
        model,
        tokenizer,
        labelled,
        Path(out),
        desired=desired,
        minutes=minutes,
        settings=settings,
    )


def bench(
    model: Any = None,
    tokenizer: Any = None,
    methods: Sequence[str] | None = None,
    *,
    dtype: str = "auto",
    **options: Any,
) -> list[Cost | Failed]:
    """Times every method beside plain ``generate``; nothing needs to be fitted for it.

    Args:
        model: a causal language model, a hub id or a folder; by default the pocket model.
        tokenizer: its tokenizer; for a hub id or a folder it is loaded.
        methods: names that ``plugalign bench`` knows, by default all of them.
        dtype: see `fit`.
        options: see `plugalign.benchmarking.bench.run_bench`.

    Raises:
        ValueError: for an unknown method or option.
    """
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    return run_bench(model, tokenizer, methods, **options)
