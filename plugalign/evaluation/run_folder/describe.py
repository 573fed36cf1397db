"""What a manifest says of models, controllers and the machine."""

from __future__ import annotations

import platform
from typing import Any

import torch

from plugalign.algebra.controller import Composition, Controller
from plugalign.algebra.fingerprints import controller_fingerprint as controller_fingerprint
from plugalign.algebra.identity import identify, model_name
from plugalign.evaluation.run_folder.manifest import (
    ChatRecord,
    Conditions,
    ControllerRecord,
    ModelRecord,
    WeightedRecord,
)
from plugalign.files.fingerprint import weights_fingerprint
from plugalign.files.versions import versions as versions
from plugalign.generation.chat_format import ChatChoice


def describe_model(model: Any, tokenizer: Any) -> ModelRecord:
    """A model's name and fingerprints of its weights and its vocabulary."""
    return ModelRecord(
        name=model_name(model),
        kind=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        weights=weights_fingerprint(model),
        vocabulary=identify(model, tokenizer).vocabulary,
    )


def describe_controller(controller: Controller) -> ControllerRecord:
    """A controller's class and settings, and a fingerprint of what it has learned."""
    return ControllerRecord.model_validate(_described(controller))


def describe_chat(choice: ChatChoice) -> ChatRecord:
    """Whether prompts are put into a chat template, and into which."""
    used = choice.format
    return ChatRecord(
        asked=choice.asked,
        used=used is not None,
        why=choice.why,
        system=None if used is None else used.system,
        template=None if used is None else used.template,
    )


def _described(controller: Controller) -> dict[str, Any]:
    found: dict[str, Any] = {
        "class": type(controller).__name__,
        "config": controller.config(),
        "learned": controller_fingerprint(controller),
    }
    if isinstance(controller, Composition):
        found["parts"] = [
            WeightedRecord.model_validate({"weight": weight, **_described(part)})
            for weight, part in controller.parts()
        ]
    return found


def conditions(device: torch.device) -> Conditions:
    """Where a run takes place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return Conditions(
        device=device.type,
        processor=name or platform.machine(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
    )
