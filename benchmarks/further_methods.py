"""The methods that `plugalign fit` has no name for, made of what others were fitted to.

LoRA experts of DExperts serve four of them, and two prompts serve GeDi. A value discriminator
guides by itself. MOD mixes two experts, each tuned on the polite texts of one data set: both have
the same objective, so this shows the mixture and no trade between objectives. An equilibrium is
made of FUDGE's guides and of edits (taught_by_edits.py). Left out is what would say nothing new,
proxy tuning (DExperts without its support).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results_tools import EQUILIBRIUM, GUIDES, fit_methods, load_guides
from taught_by_edits import taught_equilibrium

from plugalign.algebra.controller import Controller
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.fudge import Fudge
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm, union
from plugalign.controllers.mixing import MOD, DeRA
from plugalign.controllers.safe_decoding import SafeDecoding
from plugalign.fitting.data import DESIRED, UNDESIRED, Labelled
from plugalign.fitting.progress import say
from plugalign.fitting.value import GUIDE, fit_value
from plugalign.values.discriminator.loading import load_reader

if TYPE_CHECKING:
    from real_models import Study

OF_A_LABEL = 2000  # texts that the value is learned from
STATEMENT = "It respects others."
POLITE = "The following text is polite and respectful:\n"
RUDE = "The following text is rude, disrespectful and toxic:\n"
UNION = 0.96  # of base - w union(toxic, base), as Dekoninck et al. 2024 detoxify
LORA = "dexperts_lora"
# What each is made of, of the methods that learn.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "contrastive": (LORA,),
    "dera": (LORA,),
    "equilibrium": ("fudge_head",),
    "gedi": (),
    "lm_arithmetic": (LORA,),
    "mod": (),
    "safe_decoding": (LORA,),
    "value_guide": (),
}
# The strength of each method, and the values that are tried; two have none.
STRENGTHS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "contrastive": ("beta", (0.25, 0.5, 1)),
    "dera": ("weight", (1, 1.5, 2, 4)),
    "equilibrium": ("strength", (1, 4, 16)),
    "gedi": ("omega", (5, 15, 30)),
    "safe_decoding": ("alpha", (1, 3)),
    "value_guide": ("weight", (5, 20, 60)),
}


@dataclass(frozen=True)
class Further:
    """What these methods are made from.

    Attributes:
        study: the model, the kind of its prompts, and the data.
        made: the methods that learn, by name, those that are needed at least.
        texts: what the value is learned from, the first 2,000 of each label.
        fits: has a folder for each fit, which is read where it is there.
    """

    study: Study
    made: Mapping[str, Controller]
    texts: Labelled
    fits: Path

    def controllers(self, names: Collection[str]) -> dict[str, Controller]:
        """Controllers by name, those of ``names`` that this file has."""
        ways: dict[str, Callable[[], Controller]] = {
            "contrastive": lambda: ContrastiveDecoding(self._expert("antiexpert")),
            "dera": lambda: DeRA(self._expert("expert"), weight=1.5),
            "equilibrium": self._equilibrium,
            "gedi": lambda: GeDi(POLITE, RUDE),
            "lm_arithmetic": self._lm_arithmetic,
            "mod": self._mod,
            "safe_decoding": lambda: SafeDecoding(self._expert("expert")),
            "value_guide": self._value_guide,
        }
        return {name: ways[name]() for name in NEEDS if name in names}

    def _expert(self, role: str) -> Any:
        return getattr(self.made[LORA], role)

    def _lm_arithmetic(self) -> Controller:
        return LMArithmetic(lm() - UNION * union(lm(self._expert("antiexpert")), lm()))

    def _mod(self) -> Controller:
        """Half an expert of each data set."""
        experts = []
        for path in GUIDES:
            folder = self.fits / "mod" / Path(path).stem
            found = self._fitted_on(path, LORA, folder, {"only": "expert"})
            assert isinstance(found, DExperts)
            experts.append(found.expert)
        return MOD(dict.fromkeys(experts, 1 / len(experts)))

    def _equilibrium(self) -> Controller:
        study, head = self.study, self.made["fudge_head"]
        feature = self._fitted_on(GUIDES[1], "fudge", self.fits / "civil")
        assert isinstance(head, FudgeHead) and isinstance(feature, Fudge)
        given = study.model, study.tokenizer, head, feature, study.data
        return taught_equilibrium(*given, self.fits / EQUILIBRIUM, study.ask, study.chat)

    def _fitted_on(
        self, path: str, method: str, fits: Path, settings: Mapping[str, Any] | None = None
    ) -> Controller:
        """A method fitted on the texts of one data set."""
        study = self.study
        texts = load_guides(study.data, study.limit, (path,))
        given = study.model, study.tokenizer, texts, fits, study.sizes.minutes
        return fit_methods(*given, study.chat, (method,), settings)[method]

    def _value_guide(self) -> Controller:
        study, out = self.study, self.fits / "value"
        name = str(study.model.name_or_path)
        good, bad = (part[:OF_A_LABEL] for part in self.texts.binary())
        labels = (DESIRED,) * len(good) + (UNDESIRED,) * len(bad)
        if not out.is_dir():
            say("fitting value")
            reader = load_reader("causal", name, model=study.model, tokenizer=study.tokenizer)
            learned = Labelled((*good, *bad), labels)
            fit_value(reader, name, learned, out, statement=STATEMENT, desired=DESIRED)
        return Controller.from_pretrained(str(out / GUIDE))
