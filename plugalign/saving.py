"""Saving and loading by the Hugging Face Hub's conventions.

A saved controller is a folder: config.json (the controller's name, its settings, what it was
fitted for), model.safetensors (its learned tensors), and a subfolder for each nested controller
or model. ``Controller.from_pretrained`` reads the name and builds the right class.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

CONTROLLERS: dict[str, tuple[str, str]] = {
    "composition": ("plugalign.controller", "Composition"),
    "dexperts": ("plugalign.controllers.dexperts", "DExperts"),
    "fudge": ("plugalign.controllers.fudge", "Fudge"),
    "fudge_head": ("plugalign.controllers.fudge_head", "FudgeHead"),
    "gedi": ("plugalign.controllers.gedi", "GeDi"),
    "nullspace": ("plugalign.controllers.nullspace", "Nullspace"),
    "pplm": ("plugalign.controllers.pplm", "PPLM"),
    "prefix": ("plugalign.controllers.prefix_tuning", "PrefixTuning"),
    "prefix_contrast": ("plugalign.controllers.prefix_tuning", "PrefixContrast"),
    "safe_decoding": ("plugalign.controllers.safe_decoding", "SafeDecoding"),
    "self_critique": ("plugalign.controllers.self_critique", "SelfCritique"),
    "self_debias": ("plugalign.controllers.self_debias", "SelfDebias"),
}


class Saveable(ModelHubMixin, library_name="plugalign", tags=["plug-in alignment"]):
    """Something with settings and tensors that can be saved, loaded and pushed.

    Subclasses implement `config`, `tensors`, `saved_parts` as needed, and `build`.
    """

    name: ClassVar[str] = ""

    def config(self) -> dict[str, Any]:
        """The settings, as JSON values."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The learned tensors by name."""
        return {}

    def saved_parts(self) -> dict[str, Any]:
        """Nested objects by subfolder: with ``save_pretrained``, or a folder that is copied."""
        return {}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        """The inverse of `config`, `tensors` and `saved_parts`.

        Args:
            parts: by subfolder, a loaded controller, or the folder's path for anything else.
        """
        return cls(**config)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"controller": self.name, **self.config()}
        text = json.dumps(config, indent=2, sort_keys=True)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")
        if tensors := self.tensors():
            contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(contiguous, save_directory / "model.safetensors")
        for folder, part in self.saved_parts().items():
            if isinstance(part, (str, Path)):
                shutil.copytree(part, save_directory / folder, dirs_exist_ok=True)
            else:
                part.save_pretrained(save_directory / folder)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            keep = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            folder = Path(snapshot_download(model_id, **{k: options[k] for k in keep}))
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no config.json, so it is not a saved controller")
        config = json.loads(path.read_text(encoding="utf-8"))
        target = _class_of(config.pop("controller", None), folder)
        if not issubclass(target, cls):
            raise ValueError(f"{folder} holds a {target.__name__}, not a {cls.__name__}")
        weights = folder / "model.safetensors"
        tensors = load_file(weights) if weights.is_file() else {}
        loaded: Self = target.build(config, tensors, _load_parts(folder))
        return loaded


def _class_of(name: str | None, folder: Path) -> type[Any]:
    if name not in CONTROLLERS:
        known = ", ".join(sorted(CONTROLLERS))
        raise ValueError(f"{folder}/config.json names the controller {name!r}; known are {known}")
    module, attribute = CONTROLLERS[name]
    target: type[Any] = getattr(importlib.import_module(module), attribute)
    return target


def _load_parts(folder: Path) -> dict[str, Any]:
    """Subfolders: controllers are loaded, anything else is handed on as a path."""
    parts: dict[str, Any] = {}
    for child in sorted(p for p in folder.iterdir() if p.is_dir()):
        config = child / "config.json"
        is_controller = config.is_file() and "controller" in json.loads(config.read_text())
        parts[child.name] = Saveable.from_pretrained(str(child)) if is_controller else child
    return parts
