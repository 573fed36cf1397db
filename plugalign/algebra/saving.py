"""Saving and loading by the Hugging Face Hub's conventions.

A saved controller is a folder: config.json (the controller's name, its settings, what it was
fitted for), model.safetensors (its learned tensors), and a subfolder for each nested controller
or model. Its README.md is a data sheet (`plugalign.algebra.data_sheet`).
``Controller.from_pretrained`` reads the name and builds the right class: one of the package's, or
any that has been imported. Nothing outside of the folder is read but models on the hub that the
caller allows.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from plugalign.algebra import data_sheet as sheets
from plugalign.algebra.class_names import CONTROLLERS, check_named, class_of
from plugalign.files.saved import (
    check_dimensions,
    check_inside,
    copy_model,
    read_settings,
    read_tensors,
    remove_weights,
    writing_tensors,
)

CONFIG, TENSORS = "config.json", "model.safetensors"
AGAIN = "save or fit the controller again"


class Settings(BaseModel):
    """What a controller's config.json says, typed. Each class of controllers has its own."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    controller: str


class _Named(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    controller: Any = None


class Saveable(ModelHubMixin, library_name="plugalign", tags=["plug-in alignment"]):
    """Something with settings and tensors that can be saved, loaded and pushed.

    Subclasses implement `config`, `tensors`, `saved_parts` as needed, and `build`.

    Attributes:
        name: of the class, in config.json.
        settings: the types of what `config` gives.
        learned: the dimensions of each tensor that a saved one must have.
        optional: the same of those that it may have.
        hub_parts: parts that may be models on the hub; `config` then has the id under that name.
        runs_models: whether parts are models, which may come with code.
        provenance: where it comes from, for its data sheet.
    """

    name: ClassVar[str] = ""
    settings: ClassVar[type[Settings]] = Settings
    learned: ClassVar[Mapping[str, int]] = {}
    optional: ClassVar[Mapping[str, int]] = {}
    hub_parts: ClassVar[Sequence[str]] = ()
    runs_models: ClassVar[bool] = False
    provenance: sheets.Provenance = sheets.Provenance()

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
    def on_hub(cls, config: dict[str, Any]) -> Mapping[str, str | None]:
        """The ids of parts that may be models on the hub, by part; None for one that is not. The
        settings that `build` is given lack what is taken out of ``config``."""
        return {name: config.pop(name) for name in cls.hub_parts}

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> Sequence[str]:
        """The subfolders of a saved one: of nested controllers, or of models (`runs_models`)."""
        return ()

    @classmethod
    def check_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Refuses learned tensors that are not those of a saved one.

        Raises:
            ValueError: naming the tensor.
        """
        check_dimensions(tensors, cls.learned, cls.optional)

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        """The inverse of `config`, `tensors` and `saved_parts`.

        Args:
            config: as `settings` has checked it.
            tensors: as `check_tensors` has checked them.
            parts: by subfolder, a loaded controller, or the path or hub id of a model.

        Raises:
            ValueError: if they do not fit together.
        """
        return cls(**config)

    def _save_pretrained(self, save_directory: Path) -> None:
        check_named(self)
        parts = self.saved_parts()
        config = {"controller": self.name, **self.config()}
        text = json.dumps(config, indent=2, sort_keys=True)
        (save_directory / CONFIG).write_text(text + "\n", encoding="utf-8")
        if tensors := self.tensors():
            contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            with writing_tensors(save_directory / TENSORS):
                save_file(contiguous, save_directory / TENSORS)
        else:  # those of a controller that was saved there before
            (save_directory / TENSORS).unlink(missing_ok=True)
        if (fit := self.provenance.fit) is not None:
            text = json.dumps(fit, indent=2, sort_keys=True)
            (save_directory / sheets.FIT).write_text(text + "\n", encoding="utf-8")
        else:
            (save_directory / sheets.FIT).unlink(missing_ok=True)
        for folder, part in parts.items():
            if isinstance(part, (str, Path)):
                copy_model(Path(part), save_directory / folder)
            else:
                if not isinstance(part, Saveable):
                    remove_weights(save_directory / folder)
                part.save_pretrained(save_directory / folder)

    def data_sheet(self) -> sheets.DataSheet:
        """What it was made of, how well it did, and what it is for."""
        fitted, parts = self.config().get("fitted_for"), self.saved_parts().values()
        return sheets.DataSheet(
            controller=self.name,
            kind=getattr(self, "display_name", type(self).__name__),
            summary=" ".join((type(self).__doc__ or "").partition("\n\n")[0].split()),
            fitted_for=fitted.get("name") if isinstance(fitted, Mapping) else None,
            provenance=self.provenance,
            parts=tuple((weight, part.data_sheet()) for weight, part in self.sheet_parts()),
            learned=bool(self.tensors()) or any(not isinstance(p, Saveable) for p in parts),
        )

    def sheet_parts(self) -> Sequence[tuple[float, Saveable]]:
        """The weighted parts that have data sheets of their own."""
        return [(1.0, part) for part in self.saved_parts().values() if isinstance(part, Saveable)]

    def generate_model_card(self, *args: Any, **stated: Any) -> ModelCard:
        """The data sheet as a model card: README.md, where there is none.

        Args:
            stated: ``model_card_kwargs`` of ``save_pretrained`` and ``push_to_hub``: what
                `plugalign.algebra.data_sheet.Notes` has.

        Raises:
            TypeError: for one that is unknown.
            ValueError: for one that is no text.
        """
        sheet = self.data_sheet()
        if stated:
            notes = replace(sheet.provenance.notes, **stated)
            sheet = replace(sheet, provenance=replace(sheet.provenance, notes=notes))
        return ModelCard(sheet.markdown())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # takes no arguments for a constructor
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        allow_hub_parts: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """A saved controller.

        Args:
            pretrained_model_name_or_path: its folder or hub id. The next five arguments say how the
                hub is asked.
            allow_hub_parts: whether it may name models on the hub, which are then loaded.
            trust_remote_code: whether code that comes with its models may run.

        Raises:
            ValueError: if it holds none of this class, or is damaged; names the file and the cure.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                validate_repo_id(str(pretrained_model_name_or_path))
            except HFValidationError as error:
                raise ValueError(f"{folder} is no folder, and no id of the hub") from error
            downloaded = snapshot_download(
                str(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            folder = Path(downloaded)
        return cls._load(folder, allow_hub_parts, trust_remote_code)

    @classmethod
    def _load(cls, folder: Path, allow_hub_parts: bool, trust_remote_code: bool) -> Self:
        path = folder / CONFIG
        if not path.is_file():
            raise ValueError(f"{folder} holds no config.json, so it is not a saved controller")
        check_inside(path, folder)
        name = read_settings(path, _Named, AGAIN).controller
        target = class_of(name, Saveable, CONTROLLERS, f"{path} names the controller")
        if not issubclass(target, cls):
            raise ValueError(f"{folder} holds a {target.__name__}, not a {cls.__name__}")
        config = read_settings(path, target.settings, AGAIN).model_dump(exclude={"controller"})
        parts = _hub_parts(target, config, folder, allow_hub_parts)
        for name in target.part_names(config, folder):
            if name in parts:
                raise ValueError(f"{path} names its part '{name}' twice; {AGAIN}")
            parts[name] = part = folder / name
            if not part.is_dir():
                raise ValueError(f"{folder} lacks its part '{name}'; {AGAIN}")
            check_inside(part, folder)
            if not target.runs_models:
                parts[name] = Saveable._load(part, allow_hub_parts, trust_remote_code)
        if target.runs_models:
            config["trust_remote_code"] = trust_remote_code
        tensors = _learned(target, config, folder)
        try:
            loaded: Self = target.build(config, tensors, parts)
        except ValueError as error:
            raise ValueError(f"{folder} is damaged: {error}; {AGAIN}") from error
        # A controller may be a frozen dataclass, and where it comes from is none of its settings.
        object.__setattr__(loaded, "provenance", sheets.known_provenance(folder))
        return loaded


def _hub_parts(
    target: type[Saveable], config: dict[str, Any], folder: Path, allowed: bool
) -> dict[str, Any]:
    """Takes the models on the hub out of the settings.

    Raises:
        ValueError: for one that the caller did not allow, or that lies elsewhere.
    """
    named = {name: part for name, part in target.on_hub(config).items() if part is not None}
    for name, part in named.items():
        if not _is_on_hub(part):
            raise ValueError(
                f"{folder}/{CONFIG} names {reprlib.repr(part)} as its {name}; a part lies in the "
                f"folder, in {name}/, or on the hub, and nowhere else; {AGAIN}"
            )
        if not allowed:
            raise ValueError(
                f"{folder}/{CONFIG} names the model '{part}' on the hub as its {name}; if it may "
                "be loaded from there, give from_pretrained allow_hub_parts=True"
            )
    return named


def _is_on_hub(part: str) -> bool:
    """Whether a name can only be an id of the hub."""
    try:
        validate_repo_id(part)
    except HFValidationError:
        return False
    return not Path(part).exists()


def _learned(target: type[Saveable], config: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """The learned tensors, checked."""
    path, tensors = folder / TENSORS, {}
    if path.exists():
        check_inside(path, folder)
        tensors = read_tensors(path, AGAIN)
    try:
        for name, tensor in tensors.items():
            if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                raise ValueError(f"the tensor '{name}' is not made of finite numbers")
        target.check_tensors(config, tensors)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {AGAIN}") from error
    return tensors
