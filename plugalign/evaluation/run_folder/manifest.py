"""The manifest: every model, controller, data file and version that a run depends on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plugalign.algebra.controller import Composition, Controller
from plugalign.algebra.identity import identify, model_name
from plugalign.fitting.training import fingerprint

VERSIONS = ("plugalign", "torch", "transformers")
PROBE = 64  # numbers of each parameter that go into a model's fingerprint


def describe_model(model: Any, tokenizer: Any) -> dict[str, Any]:
    """A model's name and fingerprints of its weights and its vocabulary."""
    identity = identify(model, tokenizer)
    return {
        "name": model_name(model),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": weights_fingerprint(model),
        "vocabulary": identity.vocabulary,
    }


def describe_controller(controller: Controller) -> dict[str, Any]:
    """A controller's class and settings, and a fingerprint of what it has learned.

    Of a sum, each of its controllers is described under "parts".
    """
    found: dict[str, Any] = {
        "class": type(controller).__name__,
        "config": controller.config(),
        "learned": controller_fingerprint(controller),
    }
    if isinstance(controller, Composition):
        found["parts"] = [
            {"weight": weight, **describe_controller(part)} for weight, part in controller.parts()
        ]
    return found


def run_name(manifest: Mapping[str, Any]) -> str:
    """A hash of all that a run's results depend on."""
    parts = {part: manifest[part] for part in ("settings", "versions")}
    return fingerprint(json.dumps(parts, sort_keys=True))[:16]


def with_agreements(
    manifest: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A manifest with what was found on further reference sets; a set that was there is renewed.

    "agreement" is the first of them.
    """
    new = {one["sha256"] for one in found}
    kept = [one for one in agreements(manifest) if one.get("sha256") not in new]
    every = [*kept, *found]
    return {**manifest, "agreement": every[0] if every else None, "agreements": every}


def agreements(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a manifest says of the judges' agreement with reference scores, set by set."""
    first = manifest.get("agreement")
    every: list[dict[str, Any]] = manifest.get("agreements") or ([first] if first else [])
    return every


def controller_fingerprint(controller: Controller) -> str:
    """A hash of a controller's tensors and, in turn, of all its parts."""
    parts = {name: _part(part) for name, part in controller.saved_parts().items()}
    return fingerprint(controller.tensors(), parts, repr(controller.config()))[:16]


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of every parameter's name, shape and some of its numbers: quick for large models."""
    probes = [
        (name, str(tuple(p.shape)), p.detach().flatten()[:: max(1, p.numel() // PROBE)].float())
        for name, p in module.named_parameters()
    ]
    return fingerprint(probes)[:16]


def conditions(device: torch.device) -> dict[str, Any]:
    """Where a run takes place: what its times, but not its results, depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "processor": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def versions(names: Iterable[str] = VERSIONS) -> Mapping[str, str]:
    """The installed versions that a run's results may depend on."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _part(part: Any) -> str:
    if isinstance(part, Controller):
        return controller_fingerprint(part)
    if isinstance(part, nn.Module):
        return weights_fingerprint(part)
    folder = Path(part)
    return fingerprint([(p.name, file_hash(p)) for p in sorted(folder.rglob("*")) if p.is_file()])


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
