"""The methods that no fit of their own stands behind, made of what others were fitted to.

LoRA experts of DExperts serve four more methods, and two prompts serve GeDi. A value discriminator
guides by itself. Left out is what would say nothing new, MOD of one model (DeRA) and proxy tuning
(DExperts without its support), and what needs parts that are not fitted here: reward models for RAD
and ARGS, a classifier for PPLM.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm, union
from plugalign.controllers.mixing import DeRA
from plugalign.controllers.safe_decoding import SafeDecoding
from plugalign.fitting.data import DESIRED, UNDESIRED, Labelled
from plugalign.fitting.progress import say
from plugalign.fitting.value import GUIDE, fit_value
from plugalign.values.discriminator.loading import load_reader

OF_A_LABEL = 2000  # texts that the value is learned from
STATEMENT = "It respects others."
POLITE = "The following text is polite and respectful:\n"
RUDE = "The following text is rude, disrespectful and toxic:\n"
UNION = 0.96  # of base - w union(toxic, base), as Dekoninck et al. 2024 detoxify
OF_EXPERTS = ("contrastive", "dera", "lm_arithmetic", "safe_decoding")
NAMES = (*OF_EXPERTS, "gedi", "value_guide")
# The strength of each method, and the values that are tried; the formula has none.
STRENGTHS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "contrastive": ("beta", (0.25, 0.5, 1)),
    "dera": ("weight", (1, 1.5, 2, 4)),
    "gedi": ("omega", (5, 15, 30)),
    "safe_decoding": ("alpha", (1, 3)),
    "value_guide": ("weight", (5, 20, 60)),
}


def further_methods(
    names: Collection[str],
    experts: Controller | None,
    model: Any,
    tokenizer: Any,
    texts: Labelled,
    fits: Path,
) -> dict[str, Controller]:
    """Controllers by name, those of ``names`` that this file has.

    Args:
        experts: a DExperts of adapters of the model, an expert and an anti-expert; it may be
            missing where no method takes it.
        texts: what the value is learned from, the first 2,000 of each label.
        fits: has a folder for the value, which is read where it is there.
    """
    made: dict[str, Controller] = {}
    if isinstance(experts, DExperts):
        expert, anti = experts.expert, experts.antiexpert
        made = {
            "contrastive": ContrastiveDecoding(anti),
            "dera": DeRA(expert, weight=1.5),
            "lm_arithmetic": LMArithmetic(lm() - UNION * union(lm(anti), lm())),
            "safe_decoding": SafeDecoding(expert),
        }
    made["gedi"] = GeDi(POLITE, RUDE)
    if "value_guide" in names:
        made["value_guide"] = _value_guide(model, tokenizer, texts, fits / "value")
    return {name: made[name] for name in NAMES if name in names}


def _value_guide(model: Any, tokenizer: Any, texts: Labelled, out: Path) -> Controller:
    good, bad = (part[:OF_A_LABEL] for part in texts.binary())
    labels = (DESIRED,) * len(good) + (UNDESIRED,) * len(bad)
    name = str(model.name_or_path)
    reader = load_reader("causal", name, model=model, tokenizer=tokenizer)
    learned = Labelled((*good, *bad), labels)
    if not out.is_dir():
        say("fitting value")
        fit_value(reader, name, learned, out, statement=STATEMENT, desired=DESIRED)
    return Controller.from_pretrained(str(out / GUIDE))
