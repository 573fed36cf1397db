"""DExperts: an expert pulls, an anti-expert pushes, inside the base's nucleus.

``log p' = log p + alpha (z_expert - z_antiexpert)`` on the tokens of the base's top-p set, which is
taken *before* mixing (Liu et al. 2021, equation 2 and section 3). An expert or anti-expert that is
missing is replaced by the base, which gives the anti-expert-only variant. Experts are separate
models with the base's tokenizer, or LoRA adapters of the base as PEFT saves them; those are held as
low-rank additions beside the base's weights (`plugalign.adapters`), and the base is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from plugalign.adapters.experts import adapter_folder, check_width, load_model
from plugalign.adapters.layers import is_lora
from plugalign.adapters.loading import with_adapter
from plugalign.adapters.peft_models import check_apart, transformers_model
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.sources import Logits
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopP

Expert = Any  # a causal language model, a folder of a model or an adapter, or a hub id
ROLES = ("expert", "antiexpert")


class DExpertsSettings(Settings):
    """Strength, support, which parts there are, and ids of those on the hub."""

    alpha: float
    top_p: float
    fitted_for: Identity | None
    parts: list[Literal["expert", "antiexpert"]] | None = None  # folders saved earlier do not say
    expert: str | None = None
    antiexpert: str | None = None


class DExperts(Controller):
    """Steers towards an expert and away from an anti-expert.

    Args:
        expert: a model, a folder or hub id of a model or of a LoRA adapter of the base, or None for
            the base itself.
        antiexpert: the same.
        alpha: strength; the paper takes 2.0 for toxicity and 3.2 for sentiment.
        top_p: the base's nucleus, taken before mixing; 1 keeps every token (proxy tuning).
        fitted_for: the base that the experts were made from, where they are adapters.
        trust_remote_code: whether code that comes with an expert's folder or hub id may run.

    Raises:
        ValueError: if both experts are missing, ``alpha`` is not finite, or ``top_p`` lies outside
            [0, 1].
    """

    name = "dexperts"
    settings = DExpertsSettings
    hub_parts = ROLES
    runs_models = True

    def __init__(
        self,
        expert: Expert | None = None,
        antiexpert: Expert | None = None,
        *,
        alpha: float = 2.0,
        top_p: float = 0.9,
        fitted_for: Identity | None = None,
        trust_remote_code: bool = False,
    ):
        if expert is None and antiexpert is None:
            raise ValueError("DExperts needs an expert, an anti-expert, or both")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        self.expert, self.antiexpert = expert, antiexpert
        self.alpha, self.support = float(alpha), TopP(top_p)
        self.fitted_for, self.trust_remote_code = fitted_for, trust_remote_code

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses experts that are not models of their own.

        Raises:
            ValueError: naming the roles.
        """
        given = {role: e for role, e in self._experts().items() if not isinstance(e, (str, Path))}
        check_apart({"base": model, **given})

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``alpha (z_expert - z_antiexpert)`` inside the base's top-p set.

        Raises:
            ValueError: if an expert cannot be loaded, or has another tokenizer or base; names it.
        """
        expert, anti = (self._source(role, model, tokenizer) for role in ROLES)
        shift = LogLinear(((1.0, expert), (-1.0, anti)), weight=self.alpha)
        return Steering((shift,), (self.support,) if self.support.p < 1 else ())

    def _source(self, role: str, base: Any, tokenizer: Any) -> Logits:
        expert = getattr(self, role)
        if expert is None:
            return Logits()
        if not isinstance(expert, (str, Path)):
            model = transformers_model(expert)
            check_width(model, base, tokenizer)
            return Logits(_named(role, model_name(model)), model)
        path = Path(expert)
        if (folder := adapter_folder(expert)) is not None:
            if self.fitted_for is not None:
                self.fitted_for.check(
                    base, tokenizer, needs="weights", what=f"the LoRA {role} in {path}"
                )
            loaded = with_adapter(base, folder)
        else:
            loaded = load_model(expert, base, tokenizer, trust_remote_code=self.trust_remote_code)
        identity = (str(path.resolve() if path.exists() else expert), id(base))
        return Logits(_named(role, path.name), loaded, identity=identity)

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        hub = {role: str(e) for role, e in self._experts().items() if _is_hub_id(e)}
        parts = [role for role in self._experts() if role not in hub]
        settings = {"alpha": self.alpha, "top_p": self.support.p, "fitted_for": fitted}
        return {**settings, "parts": parts, **hub}

    def saved_parts(self) -> dict[str, Any]:
        parts = {role: e for role, e in self._experts().items() if not _is_hub_id(e)}
        for role, expert in parts.items():
            if not isinstance(expert, (str, Path)) and any(map(is_lora, expert.modules())):
                raise ValueError(
                    f"the {role} is a LoRA adapter around the base's weights, which cannot be "
                    "saved without the base; give the adapter's folder as the expert"
                )
        return parts

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> list[str]:
        if (recorded := config["parts"]) is not None:
            return list(recorded)
        return [role for role in ROLES if (folder / role).is_dir()]

    def _experts(self) -> dict[str, Expert]:
        named = {role: getattr(self, role) for role in ROLES}
        return {role: expert for role, expert in named.items() if expert is not None}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        identity = None if fitted is None else Identity.from_dict(fitted)
        return cls(
            **parts,
            alpha=config["alpha"],
            top_p=config["top_p"],
            fitted_for=identity,
            trust_remote_code=config["trust_remote_code"],
        )


def _named(role: str, name: str) -> str:
    """How messages call an expert, whose folder is often named by its role."""
    return role if name == role else f"{role} {name}"


def _is_hub_id(expert: Expert) -> bool:
    return isinstance(expert, str) and not Path(expert).is_dir()
