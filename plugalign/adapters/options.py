"""The options of a LoRA adapter, as PEFT saves them: read, of no effect, or refused by name.

Which options there are is PEFT's to say (`peft.LoraConfig`). One that changes what a trained
adapter computes and is not read here must be at its default.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plugalign.files.saved import read_settings

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MERGE = (
    "merge it into its base with peft (merge_and_unload), save that model and give it as the expert"
)
AGAIN = "save the adapter again with peft's save_pretrained"

# They say how an adapter was trained, or where.
WITHOUT_EFFECT = {
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "fan_in_fan_out",
}
# The options that are refused, each with the default that switches it off.
REFUSED: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "monteclora_config": None,
    "qalora_group_size": 16,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}
# What switches off an option that a newer PEFT has added.
OFF: tuple[Any, ...] = (None, False, "", [], {})
# Others change the base when an adapter is loaded.
INITIALISATIONS = (True, False, "gaussian", "orthogonal")

Rank = Annotated[int, Field(ge=1)]


class LoraOptions(BaseModel):
    """The options that decide what an adapter's tensors mean."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    peft_type: str
    task_type: str | None = None
    r: Rank = 8
    lora_alpha: float = 8
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: bool | str | None = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None

    def rank(self, module: str) -> int:
        """The rank of the addition to a layer."""
        return int(_of(self.rank_pattern or {}, module, self.r))

    def scale(self, module: str) -> float:
        """What the product ``B A`` of a layer is multiplied by."""
        alpha, rank = _of(self.alpha_pattern or {}, module, self.lora_alpha), self.rank(module)
        return float(alpha / (rank**0.5 if self.use_rslora else rank))

    def saves(self, parameter: str) -> bool:
        """Whether a parameter is of a module that the adapter has of its own."""
        parts = parameter.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        return any(m.endswith(name) for m in modules for name in self.modules_to_save or ())

    def adapts(self, module: str) -> bool:
        """Whether the options say, without further conditions, that a layer is adapted."""
        if self.exclude_modules or self.layers_to_transform is not None:
            return False
        names = self.target_modules if isinstance(self.target_modules, list) else ()
        return any(f".{module}".endswith(f".{name}") for name in names)

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _check_patterns(cls, patterns: dict[str, Any] | None) -> dict[str, Any] | None:
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return patterns


def _of(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, by PEFT's rule."""
    found = (p for p in patterns if re.match(rf"(.*\.)?({p})$", module))
    return next((patterns[p] for p in found), default)


def read_options(folder: Path) -> LoraOptions:
    """The options of the adapter in a folder.

    Raises:
        ValueError: if it is no LoRA adapter of a causal language model, or an option that is not
            read is switched on; names the folder and the option.
    """
    options = read_settings(folder / CONFIG, LoraOptions, AGAIN)
    if options.peft_type != "LORA":
        raise ValueError(
            f"{folder} is a {options.peft_type} adapter, and only LoRA adapters are read; if peft "
            f"can, {MERGE}"
        )
    if options.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{folder} is an adapter with task_type={options.task_type!r}; an expert is a causal "
            "language model (CAUSAL_LM)"
        )
    extra = options.model_extra or {}
    on = {name: value for name, value in extra.items() if _is_on(name, value)}
    if options.init_lora_weights not in (*INITIALISATIONS, None):
        on["init_lora_weights"] = options.init_lora_weights
    if on:
        named = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in sorted(on.items()))
        raise ValueError(f"{folder} is a LoRA adapter with {named}, which is not read; {MERGE}")
    return options


def _is_on(name: str, value: Any) -> bool:
    """Whether an option that is not read is switched on."""
    if name in WITHOUT_EFFECT:
        return False
    return value not in OFF and (name not in REFUSED or value != REFUSED[name])
