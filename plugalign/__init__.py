"""plugalign: plug-in alignment for Hugging Face language models.

Controllers steer ``generate`` while a model decodes and leave its weights alone::

    import plugalign as pa

    steered = pa.wrap(model, tokenizer, pa.DExperts(expert=good, antiexpert=bad, alpha=2.0))
    steered.generate(**inputs, max_new_tokens=40, do_sample=True, top_p=0.9)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plugalign.algebra.controller import Controller
    from plugalign.algebra.gates import FirstSteps, Uncertain
    from plugalign.controllers.args import ARGS
    from plugalign.controllers.contrastive import ContrastiveDecoding, proxy_tuning
    from plugalign.controllers.dexperts import DExperts
    from plugalign.controllers.fudge import Fudge
    from plugalign.controllers.fudge_head import FudgeHead
    from plugalign.controllers.gedi import GeDi
    from plugalign.controllers.lm_arithmetic import LMArithmetic, intersection, lm, union
    from plugalign.controllers.mixing import MOD, DeRA
    from plugalign.controllers.nullspace import Nullspace
    from plugalign.controllers.pplm import PPLM
    from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
    from plugalign.controllers.rad import RAD
    from plugalign.controllers.safe_decoding import SafeDecoding
    from plugalign.controllers.self_critique import SelfCritique
    from plugalign.controllers.self_debias import SelfDebias
    from plugalign.controllers.self_diagnosis import Diagnosis, diagnose
    from plugalign.engine.speculative.drafts import Speculation
    from plugalign.evaluation.comparison.compare import compare
    from plugalign.generation.wrap import Steered, wrap
    from plugalign.trace import Trace

# Names are imported when they are first used, so that `import plugalign` stays quick.
_HOMES = {
    "ARGS": "plugalign.controllers.args",
    "ContrastiveDecoding": "plugalign.controllers.contrastive",
    "Controller": "plugalign.algebra.controller",
    "DExperts": "plugalign.controllers.dexperts",
    "DeRA": "plugalign.controllers.mixing",
    "Diagnosis": "plugalign.controllers.self_diagnosis",
    "FirstSteps": "plugalign.algebra.gates",
    "Fudge": "plugalign.controllers.fudge",
    "FudgeHead": "plugalign.controllers.fudge_head",
    "GeDi": "plugalign.controllers.gedi",
    "LMArithmetic": "plugalign.controllers.lm_arithmetic",
    "MOD": "plugalign.controllers.mixing",
    "Nullspace": "plugalign.controllers.nullspace",
    "PPLM": "plugalign.controllers.pplm",
    "PrefixContrast": "plugalign.controllers.prefix_tuning",
    "PrefixTuning": "plugalign.controllers.prefix_tuning",
    "RAD": "plugalign.controllers.rad",
    "SafeDecoding": "plugalign.controllers.safe_decoding",
    "SelfCritique": "plugalign.controllers.self_critique",
    "SelfDebias": "plugalign.controllers.self_debias",
    "Speculation": "plugalign.engine.speculative.drafts",
    "Steered": "plugalign.generation.wrap",
    "Trace": "plugalign.trace",
    "Uncertain": "plugalign.algebra.gates",
    "compare": "plugalign.evaluation.comparison.compare",
    "diagnose": "plugalign.controllers.self_diagnosis",
    "intersection": "plugalign.controllers.lm_arithmetic",
    "lm": "plugalign.controllers.lm_arithmetic",
    "proxy_tuning": "plugalign.controllers.contrastive",
    "union": "plugalign.controllers.lm_arithmetic",
    "wrap": "plugalign.generation.wrap",
}
__all__ = [
    "ARGS",
    "MOD",
    "PPLM",
    "RAD",
    "ContrastiveDecoding",
    "Controller",
    "DExperts",
    "DeRA",
    "Diagnosis",
    "FirstSteps",
    "Fudge",
    "FudgeHead",
    "GeDi",
    "LMArithmetic",
    "Nullspace",
    "PrefixContrast",
    "PrefixTuning",
    "SafeDecoding",
    "SelfCritique",
    "SelfDebias",
    "Speculation",
    "Steered",
    "Trace",
    "Uncertain",
    "__version__",
    "compare",
    "diagnose",
    "intersection",
    "lm",
    "proxy_tuning",
    "union",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plugalign' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
