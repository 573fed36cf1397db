"""DExperts: an expert pulls, an anti-expert pushes, inside the base's nucleus.

``log p' = log p + alpha (z_expert - z_antiexpert)`` on the tokens of the base's top-p set, which is
taken *before* mixing (Liu et al. 2021, equation 2 and section 3). An expert or anti-expert that is
missing is replaced by the base, which gives the anti-expert-only variant. Experts are separate
models with the base's tokenizer, or LoRA adapters of the base (a folder that PEFT wrote); those
share all weights with the base but the adapted ones, and the base is never touched.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.sources import Logits
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopP
from plugalign.controller import Controller
from plugalign.engine.group_leaves import Change
from plugalign.identity import Identity, model_name, vocabulary_hash

Expert = Any  # a causal language model, a folder of a model or an adapter, or a hub id
ROLES = ("expert", "antiexpert")


class DExperts(Controller):
    """Steers towards an expert and away from an anti-expert.

    Args:
        expert: a model, a folder (or hub id) of a model, a folder of a LoRA adapter of the base,
            or None for the base itself.
        antiexpert: the same.
        alpha: strength; the paper takes 2.0 for toxicity and 3.2 for sentiment.
        top_p: the base's nucleus, taken before mixing; 1 keeps every token (proxy tuning).
        fitted_for: the base that the experts were made from, where they are adapters.

    Raises:
        ValueError: if both experts are missing, or ``top_p`` lies outside [0, 1].
    """

    name = "dexperts"

    def __init__(
        self,
        expert: Expert | None = None,
        antiexpert: Expert | None = None,
        *,
        alpha: float = 2.0,
        top_p: float = 0.9,
        fitted_for: Identity | None = None,
    ):
        if expert is None and antiexpert is None:
            raise ValueError("DExperts needs an expert, an anti-expert, or both")
        self.expert, self.antiexpert = expert, antiexpert
        self.alpha, self.support = float(alpha), TopP(top_p)
        self.fitted_for = fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``alpha (z_expert - z_antiexpert)`` inside the base's top-p set.

        Raises:
            ValueError: if an expert has another tokenizer than the base; names both.
        """
        expert, anti = (
            logits_of(getattr(self, role), role, model, tokenizer, self.fitted_for)
            for role in ROLES
        )
        shift = LogLinear(((1.0, expert), (-1.0, anti)), weight=self.alpha)
        return Steering((shift,), (self.support,) if self.support.p < 1 else ())

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        hub = {role: str(e) for role, e in self._experts().items() if is_hub_id(e)}
        return {"alpha": self.alpha, "top_p": self.support.p, "fitted_for": fitted, **hub}

    def saved_parts(self) -> dict[str, Any]:
        return {role: e for role, e in self._experts().items() if not is_hub_id(e)}

    def _experts(self) -> dict[str, Expert]:
        named = {role: getattr(self, role) for role in ROLES}
        return {role: expert for role, expert in named.items() if expert is not None}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config.pop("fitted_for", None)
        identity = None if fitted is None else Identity.from_dict(fitted)
        return cls(**{**config, **parts, "fitted_for": identity})


def logits_of(
    expert: Expert | None, role: str, base: Any, tokenizer: Any, fitted_for: Identity | None = None
) -> Logits:
    """The logits of an expert; of the base where there is none.

    Args:
        expert: a model, a folder (or hub id) of a model, or a folder of a LoRA adapter of the base.
        role: what it is called in messages.
        fitted_for: the base that the expert was made from, where it is an adapter.

    Raises:
        ValueError: if it has another tokenizer than the base, or is an adapter of another model.
    """
    if expert is None:
        return Logits()
    if not isinstance(expert, (str, Path)):
        check_width(expert, base, tokenizer)
        return Logits(f"{role} {model_name(expert)}", expert)
    path = Path(expert)
    if (path / "adapter_config.json").is_file():
        if fitted_for is not None:
            who = f"the LoRA {role} in {path}"
            fitted_for.check(base, tokenizer, needs="weights", who=who)
        loaded = with_adapter(base, path)
    else:
        check_tokenizer(expert, base, tokenizer)
        loaded = AutoModelForCausalLM.from_pretrained(expert, dtype=base.dtype)
        check_width(loaded, base, tokenizer)
        loaded = loaded.to(base.device).eval()
    identity = (str(path.resolve() if path.exists() else expert), id(base))
    return Logits(f"{role} {path.name}", loaded, identity=identity)


def is_hub_id(expert: Expert) -> bool:
    """Whether an expert is saved as a name, not as a folder."""
    return isinstance(expert, str) and not Path(expert).is_dir()


def check_tokenizer(expert: str | Path, base: Any, tokenizer: Any) -> None:
    """Refuses an expert whose own tokenizer has another vocabulary than the base's."""
    other = AutoTokenizer.from_pretrained(expert)
    if vocabulary_hash(other) != vocabulary_hash(tokenizer):
        raise ValueError(
            f"'{expert}' and '{model_name(base)}' have different tokenizers ({len(other)} and "
            f"{len(tokenizer)} tokens), so their logits cannot be added; take an expert made "
            "with the base's tokenizer"
        )


def check_width(expert: Any, base: Any, tokenizer: Any) -> None:
    """Refuses an expert whose head is too narrow for the base's vocabulary. Heads that are
    padded to different widths are aligned by the engine."""
    width = expert.get_output_embeddings().weight.shape[0]
    own = base.get_output_embeddings().weight.shape[0]
    if width != own and width < len(tokenizer):
        raise ValueError(
            f"'{model_name(expert)}' scores {width} tokens but '{model_name(base)}' has "
            f"{len(tokenizer)}; they have different tokenizers, so their logits cannot be added"
        )


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with a LoRA adapter that PEFT saved, merged in: ``W + s B A``. The result shares
    every other weight with the base.

    Raises:
        ValueError: if the folder holds something else than plain LoRA; names it.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    _check_plain(config, folder)
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    learned = load_file(folder / "adapter_model.safetensors")
    merged = shared_copy(base)
    for key in [key for key in learned if key.endswith("lora_A.weight")]:
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = scale * learned[key.replace("lora_A", "lora_B")].float().T
        adapt(merged.get_submodule(name), learned[key].float().T, up)
    return merged.eval()


def adapt(module: Any, down: Tensor, up: Tensor) -> None:
    """Merges a low-rank change into a linear layer of a `shared_copy`, which remembers it:
    ``x W`` becomes ``x W + (x down) up``.

    Args:
        down: ``(i, r)``. up: ``(r, o)``, scaled; both float32.
    """
    origin = module.weight
    down, up = down.to(origin.device), up.to(origin.device)
    change = down @ up if isinstance(module, Conv1D) else (down @ up).T
    module.weight = nn.Parameter((origin.float() + change).to(origin.dtype), requires_grad=False)
    module.change = Change(origin, down.to(origin.dtype), up.to(origin.dtype))


def _check_plain(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    beyond = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
    extra = [name for name in beyond if config.get(name)]
    if kind != "LORA" or extra or config.get("bias", "none") != "none":
        what = ", ".join(extra) or f"peft_type {kind}, bias {config.get('bias')}"
        raise ValueError(
            f"{folder} is no plain LoRA adapter ({what}); merge it into a model with peft and give "
            "that model as the expert"
        )


def shared_copy(model: Any) -> Any:
    """A copy of the modules around the same storage: its parameters are frozen ones of its own."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, memo)
