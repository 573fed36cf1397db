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
    from plugalign.algebra.gates import FirstSteps, Uncertain
    from plugalign.controller import Controller
    from plugalign.controllers.dexperts import DExperts
    from plugalign.controllers.fudge import Fudge
    from plugalign.controllers.fudge_head import FudgeHead
    from plugalign.controllers.nullspace import Nullspace
    from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
    from plugalign.controllers.self_critique import SelfCritique
    from plugalign.controllers.self_debias import SelfDebias
    from plugalign.controllers.self_diagnosis import Diagnosis, diagnose
    from plugalign.engine.drafting import Speculation
    from plugalign.evaluation.compare import compare
    from plugalign.trace import Trace
    from plugalign.wrapping import Steered, wrap

# Names are imported when they are first used, so that `import plugalign` stays quick.
_HOMES = {
    "Controller": "plugalign.controller",
    "DExperts": "plugalign.controllers.dexperts",
    "Diagnosis": "plugalign.controllers.self_diagnosis",
    "FirstSteps": "plugalign.algebra.gates",
    "Fudge": "plugalign.controllers.fudge",
    "FudgeHead": "plugalign.controllers.fudge_head",
    "Nullspace": "plugalign.controllers.nullspace",
    "PrefixContrast": "plugalign.controllers.prefix_tuning",
    "PrefixTuning": "plugalign.controllers.prefix_tuning",
    "SelfCritique": "plugalign.controllers.self_critique",
    "SelfDebias": "plugalign.controllers.self_debias",
    "Speculation": "plugalign.engine.drafting",
    "Steered": "plugalign.wrapping",
    "Trace": "plugalign.trace",
    "Uncertain": "plugalign.algebra.gates",
    "compare": "plugalign.evaluation.compare",
    "diagnose": "plugalign.controllers.self_diagnosis",
    "wrap": "plugalign.wrapping",
}
__all__ = [
    "Controller",
    "DExperts",
    "Diagnosis",
    "FirstSteps",
    "Fudge",
    "FudgeHead",
    "Nullspace",
    "PrefixContrast",
    "PrefixTuning",
    "SelfCritique",
    "SelfDebias",
    "Speculation",
    "Steered",
    "Trace",
    "Uncertain",
    "__version__",
    "compare",
    "diagnose",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plugalign' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
