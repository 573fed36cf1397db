"""plugalign: plug-in alignment for Hugging Face language models.

Controllers steer ``generate`` while a model decodes and leave its weights alone::

    import plugalign as pa

    steered = pa.wrap(model, tokenizer, pa.DExperts(expert=good, antiexpert=bad, alpha=2.0))
    steered.generate(**inputs, max_new_tokens=40, do_sample=True, top_p=0.9)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plugalign.catalogue import EXPORTS

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it against the catalogue
    from plugalign.algebra.controller import Controller as Controller
    from plugalign.algebra.gates import FirstSteps as FirstSteps
    from plugalign.algebra.gates import Uncertain as Uncertain
    from plugalign.api import bench as bench
    from plugalign.api import fit as fit
    from plugalign.api import load as load
    from plugalign.controllers.args import ARGS as ARGS
    from plugalign.controllers.contrastive import ContrastiveDecoding as ContrastiveDecoding
    from plugalign.controllers.contrastive import proxy_tuning as proxy_tuning
    from plugalign.controllers.dexperts import DExperts as DExperts
    from plugalign.controllers.equilibrium import Equilibrium as Equilibrium
    from plugalign.controllers.equilibrium import Preferences as Preferences
    from plugalign.controllers.equilibrium import Principle as Principle
    from plugalign.controllers.equilibrium import TokenTable as TokenTable
    from plugalign.controllers.fudge import Fudge as Fudge
    from plugalign.controllers.fudge_head import FudgeHead as FudgeHead
    from plugalign.controllers.gedi import GeDi as GeDi
    from plugalign.controllers.lm_arithmetic import LMArithmetic as LMArithmetic
    from plugalign.controllers.lm_arithmetic import intersection as intersection
    from plugalign.controllers.lm_arithmetic import lm as lm
    from plugalign.controllers.lm_arithmetic import union as union
    from plugalign.controllers.mixing import MOD as MOD
    from plugalign.controllers.mixing import DeRA as DeRA
    from plugalign.controllers.nullspace import Nullspace as Nullspace
    from plugalign.controllers.pplm import PPLM as PPLM
    from plugalign.controllers.prefix_tuning import PrefixContrast as PrefixContrast
    from plugalign.controllers.prefix_tuning import PrefixTuning as PrefixTuning
    from plugalign.controllers.rad import RAD as RAD
    from plugalign.controllers.safe_decoding import SafeDecoding as SafeDecoding
    from plugalign.controllers.self_critique import SelfCritique as SelfCritique
    from plugalign.controllers.self_debias import SelfDebias as SelfDebias
    from plugalign.controllers.self_diagnosis import Diagnosis as Diagnosis
    from plugalign.controllers.self_diagnosis import diagnose as diagnose
    from plugalign.controllers.value_guide import ValueGate as ValueGate
    from plugalign.controllers.value_guide import ValueGuide as ValueGuide
    from plugalign.controllers.value_statement import ValueStatement as ValueStatement
    from plugalign.engine.speculative.drafts import Speculation as Speculation
    from plugalign.evaluation.comparison.compare import compare as compare
    from plugalign.evaluation.tuning import tune as tune
    from plugalign.generation.wrap import Steered as Steered
    from plugalign.generation.wrap import wrap as wrap
    from plugalign.trace import Trace as Trace

# The module of every public name. Names are imported when they are first used, so that
# `import plugalign` stays quick.
_MODULES = {
    **EXPORTS,
    "Controller": "plugalign.algebra.controller",
    "Speculation": "plugalign.engine.speculative.drafts",
    "Steered": "plugalign.generation.wrap",
    "Trace": "plugalign.trace",
    "bench": "plugalign.api",
    "compare": "plugalign.evaluation.comparison.compare",
    "fit": "plugalign.api",
    "load": "plugalign.api",
    "tune": "plugalign.evaluation.tuning",
    "wrap": "plugalign.generation.wrap",
}
__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'plugalign' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
