"""Folders that somebody else may have written: what is read from them, and what is copied.

Everything that is wrong with a file gives one ``ValueError`` that names it and the cure. Nothing is
read or copied that lies outside a folder, also not through a link.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Settings = TypeVar("Settings", bound=BaseModel)

SHOWN = 3  # faults of a file that its error names
# The files of models, adapters and tokenizers. Others in their folders may be anybody's.
COPIED = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.safetensors",
    "*.tiktoken",
    "*.txt",
    "pytorch_model*.bin",
)
# Those of them that decide which weights are read.
WEIGHTS = ("adapter_config.json", "*.safetensors", "*.index.json", "pytorch_model*.bin")


def read_settings(path: Path, kind: type[Settings], cure: str) -> Settings:
    """A JSON file as typed settings.

    Args:
        cure: what to do about a file that is damaged.

    Raises:
        ValueError: if it cannot be read, is no JSON object, or a setting is missing, unknown or of
            another type; names the file and the settings.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {cure}") from error
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {described(error)}; {cure}") from error


def described(error: ValidationError) -> str:
    """The first faults that were found, each with the setting's name."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    named = [
        f"'{'.'.join(map(str, fault['loc']))}': {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in faults[:SHOWN]
    ]
    return ", ".join(named) + (" and more" if len(faults) > SHOWN else "")


def read_tensors(path: Path, cure: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        cure: what to do about a file that is damaged.

    Raises:
        ValueError: if it cannot be read; names the file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); {cure}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error
    return tensors


@contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """A block in which safetensors writes a file.

    Raises:
        OSError: if it cannot be written, as on a full disk; names the file and the cure.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); free some space there") from error


def check_dimensions(
    tensors: Mapping[str, Tensor], learned: Mapping[str, int], optional: Mapping[str, int]
) -> None:
    """Refuses tensors that are missing, unknown or of other dimensions.

    Args:
        learned: the dimensions of each tensor that must be there.
        optional: of each that may be.

    Raises:
        ValueError: naming the tensor.
    """
    known = {**learned, **optional}
    for name in sorted(learned.keys() - tensors.keys()):
        raise ValueError(f"the tensor '{name}' is missing")
    for name, tensor in tensors.items():
        if name not in known:
            raise ValueError(f"the tensor '{name}' is unknown")
        if tensor.ndim != known[name]:
            raise ValueError(f"the tensor '{name}' has {tensor.ndim} dimensions, not {known[name]}")


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a file or folder that is, or has at any depth, a link to something outside.

    Args:
        folder: what all of it must lie in.

    Raises:
        ValueError: naming the link and what it points to.
    """
    roots = (folder.resolve(), *_blobs(folder))
    for each in (path, *path.rglob("*")):
        target = each.resolve()
        if not any(target.is_relative_to(root) for root in roots):
            raise ValueError(
                f"{each} leads to {target}, outside of {folder}; nothing outside is read or "
                "copied: put the file itself there"
            )


def _blobs(folder: Path) -> list[Path]:
    """Where a snapshot in the hub's cache keeps its files, which it links to."""
    parents = [p for p in folder.resolve().parents if p.name == "snapshots"]
    return [blobs for p in parents if (blobs := p.parent / "blobs").is_dir()]


def remove_weights(folder: Path, kept: Container[str] = ()) -> None:
    """Removes what another model or adapter left where one is to be saved: a library that finds
    the weights of both may read those of the other.

    Args:
        kept: the names of files that stay.
    """
    for path in _files(folder, WEIGHTS) if folder.is_dir() else []:
        if path.name not in kept:
            path.unlink()


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """What lies in a folder under a name of one of these forms, in a fixed order."""
    return [p for p in sorted(folder.iterdir()) if any(fnmatch(p.name, name) for name in names)]


def copy_model(source: Path, target: Path) -> None:
    """Copies the files of a model, an adapter and a tokenizer, nothing else that lies there. Of
    what lies in ``target`` already, weights and adapters of another model go.

    Raises:
        ValueError: if there is no such folder, or one of them is a link to something outside.
    """
    if not source.is_dir():
        raise ValueError(f"'{source}' is no folder, so there is nothing to save of it")
    files = _files(source, COPIED)
    for path in files:
        check_inside(path, source)
    target.mkdir(parents=True, exist_ok=True)
    remove_weights(target, {path.name for path in files})
    for path in files:
        if path.is_file() and path.resolve() != (target / path.name).resolve():
            shutil.copyfile(path, target / path.name)
