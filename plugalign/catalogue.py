"""The catalogue: every method and every gate of the package, once.

What the command line lists, what saved folders name, what ``fit`` fits, what ``bench`` times and
what ``import plugalign`` exports follow from it. It loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Fitter:
    """Where a method's fit function is.

    Attributes:
        module, function: names.
        fixed: settings that make the function fit this method.
    """

    module: str
    function: str
    fixed: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: what commands call it, and what a saved folder's config.json says.
        module, kind: where its class is.
        surface: where it acts: steer, attach, revise or prompt.
        paper: where it comes from.
        needs: what it must be given or fitted.
        fitters: what fits it, by the names that ``fit`` knows; several are variants.
        untrained: what makes it with random parts, as ``module:function``, by the names that
            ``bench`` knows; several are variants.
        exports: what ``plugalign`` exports of its module beside the class.
        alone: whether it works with settings alone.
    """

    name: str
    module: str
    kind: str
    surface: str
    paper: str
    needs: str
    fitters: Mapping[str, Fitter] = field(default_factory=lambda: MappingProxyType({}))
    untrained: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    exports: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        name: what a saved controller's config.json calls it.
        module, kind: where its class is.
        exports: what ``plugalign`` exports of its module beside the class.
    """

    name: str
    module: str
    kind: str
    exports: tuple[str, ...] = ()


def _fitter(name: str, function: str, **options: object) -> Fitter:
    return Fitter(f"plugalign.fitting.{name}", function, options)


def _untrained(*names: str) -> dict[str, str]:
    return {name: f"plugalign.benchmarking.untrained:{name}" for name in names}


METHODS = (
    Method(
        "args",
        "plugalign.controllers.args",
        "ARGS",
        "steer",
        "Khanov et al. 2024",
        "a Bradley-Terry reward model",
        {"args": _fitter("reward", "fit_args")},
        untrained=_untrained("args"),
    ),
    Method(
        "contrastive",
        "plugalign.controllers.contrastive",
        "ContrastiveDecoding",
        "steer",
        "Li et al. 2023",
        "a weaker model",
        untrained=_untrained("contrastive"),
        exports=("proxy_tuning",),
    ),
    Method(
        "dera",
        "plugalign.controllers.mixing",
        "DeRA",
        "steer",
        "Liu et al. 2024 (DeRA)",
        "the aligned version of the base, or a LoRA adapter of it",
        untrained=_untrained("dera"),
    ),
    Method(
        "dexperts",
        "plugalign.controllers.dexperts",
        "DExperts",
        "steer",
        "Liu et al. 2021 (DExperts), 2024 (proxy tuning)",
        "an expert, an anti-expert or both: models or LoRA adapters",
        {
            "dexperts": _fitter("dexperts", "fit_dexperts", lora=False),
            "dexperts_lora": _fitter("dexperts", "fit_dexperts", lora=True),
        },
        untrained=_untrained("dexperts", "dexperts_lora"),
    ),
    Method(
        "equilibrium",
        "plugalign.controllers.equilibrium",
        "Equilibrium",
        "steer",
        "after Rawls 1971; Csiszar 1975 for the projection",
        "principles and features as scorers of candidates, and people's feedback",
        untrained=_untrained("equilibrium"),
        exports=("Preferences", "Principle", "TokenTable"),
    ),
    Method(
        "fudge",
        "plugalign.controllers.fudge",
        "Fudge",
        "steer",
        "Yang and Klein 2021",
        "a small causal classifier of beginnings of texts",
        {"fudge": _fitter("fudge", "fit_fudge")},
        untrained=_untrained("fudge"),
    ),
    Method(
        "fudge_head",
        "plugalign.controllers.fudge_head",
        "FudgeHead",
        "steer",
        "after Yang and Klein 2021",
        "a linear head on the model's own hidden states",
        {"fudge_head": _fitter("fudge_head", "fit_fudge_head")},
        untrained=_untrained("fudge_head"),
    ),
    Method(
        "gedi",
        "plugalign.controllers.gedi",
        "GeDi",
        "steer",
        "Krause et al. 2021",
        "a class-conditional model or LoRA adapter, or two prompts",
        untrained=_untrained("gedi"),
    ),
    Method(
        "lm_arithmetic",
        "plugalign.controllers.lm_arithmetic",
        "LMArithmetic",
        "steer",
        "Dekoninck et al. 2024",
        "models or prompts",
        untrained=_untrained("lm_arithmetic"),
        exports=("intersection", "lm", "union"),
    ),
    Method(
        "mod",
        "plugalign.controllers.mixing",
        "MOD",
        "steer",
        "Shi et al. 2024",
        "models aligned with one objective each",
        untrained=_untrained("mod"),
    ),
    Method(
        "nullspace",
        "plugalign.controllers.nullspace",
        "Nullspace",
        "steer",
        "Ravfogel et al. 2020 (INLP), Liang et al. 2021 (A-INLP), Belrose et al. 2023 (LEACE)",
        "a subspace of the hidden states",
        {"nullspace": _fitter("nullspace", "fit_nullspace")},
        untrained=_untrained("nullspace"),
    ),
    Method(
        "pplm",
        "plugalign.controllers.pplm",
        "PPLM",
        "steer",
        "Dathathri et al. 2019",
        "a bag of words, or a linear discriminator of hidden states",
        {"pplm": _fitter("pplm", "fit_pplm")},
        untrained=_untrained("pplm"),
    ),
    Method(
        "prefix",
        "plugalign.controllers.prefix_tuning",
        "PrefixTuning",
        "attach",
        "Qian et al. 2022 (contrastive prefixes)",
        "trained keys and values in front of the prompt",
        {"prefix": _fitter("prefix", "fit_prefix", contrast=False)},
        untrained=_untrained("prefix"),
    ),
    Method(
        "prefix_contrast",
        "plugalign.controllers.prefix_tuning",
        "PrefixContrast",
        "steer",
        "Qian et al. 2022, as a contrast pair",
        "the same prefixes, of both classes",
        {"prefix_contrast": _fitter("prefix", "fit_prefix", contrast=True)},
        untrained=_untrained("prefix_contrast"),
    ),
    Method(
        "rad",
        "plugalign.controllers.rad",
        "RAD",
        "steer",
        "Deng and Raffel 2023",
        "a reward model in [0, 1]",
        {"rad": _fitter("reward", "fit_rad")},
        untrained=_untrained("rad"),
    ),
    Method(
        "safe_decoding",
        "plugalign.controllers.safe_decoding",
        "SafeDecoding",
        "steer",
        "Xu et al. 2024",
        "a safety expert: a model or LoRA adapter",
        untrained=_untrained("safe_decoding"),
    ),
    Method(
        "self_critique",
        "plugalign.controllers.self_critique",
        "SelfCritique",
        "revise",
        "Saunders et al. 2022",
        "nothing",
        untrained=_untrained("self_critique"),
        alone=True,
    ),
    Method(
        "self_debias",
        "plugalign.controllers.self_debias",
        "SelfDebias",
        "steer",
        "Schick et al. 2021",
        "nothing",
        untrained=_untrained("self_debias", "self_debias_2"),
        alone=True,
    ),
    Method(
        "value_guide",
        "plugalign.controllers.value_guide",
        "ValueGuide",
        "steer",
        "after Yang and Klein 2021",
        "a value discriminator that was fitted on the model (fit value)",
        untrained=_untrained("value_guide"),
    ),
    Method(
        "value_statement",
        "plugalign.controllers.value_statement",
        "ValueStatement",
        "prompt",
        "Ganguli et al. 2023",
        "nothing",
        untrained=_untrained("value_statement"),
        alone=True,
    ),
)
GATED_BY = (
    Gate("diagnosis", "plugalign.controllers.self_diagnosis", "Diagnosis", ("diagnose",)),
    Gate("first_steps", "plugalign.algebra.gates", "FirstSteps"),
    Gate("uncertain", "plugalign.algebra.gates", "Uncertain"),
    Gate("value", "plugalign.controllers.value_guide", "ValueGate"),
)

FITTERS = {name: fitter for method in METHODS for name, fitter in method.fitters.items()}
ALONE = tuple(method.name for method in METHODS if method.alone)
CLASSES = {method.name: (method.module, method.kind) for method in METHODS}
GATES = {gate.name: (gate.module, gate.kind) for gate in GATED_BY}
UNTRAINED = {
    **_untrained("none"),  # the decoding loop alone, which the others are compared with
    **{name: place for method in METHODS for name, place in method.untrained.items()},
}
EXPORTS = {
    name: each.module for each in (*METHODS, *GATED_BY) for name in (each.kind, *each.exports)
}
