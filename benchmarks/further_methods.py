"""The methods that no fit of their own stands behind, made of what others were fitted to.

LoRA experts of DExperts serve four more methods, and two prompts serve GeDi. A value discriminator
guides by itself. MOD mixes two experts, each tuned on the polite texts of one data set; an
equilibrium is made of FUDGE's two guides and of edits (taught_by_edits.py). Left out is what would
say nothing new, proxy tuning (DExperts without its support).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_tools import GUIDES, fit_methods, load_guides
from taught_by_edits import taught_equilibrium

from plugalign.algebra.controller import Controller
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm, union
from plugalign.controllers.mixing import MOD, DeRA
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
LORA = "dexperts_lora"
# What each is made of, of the methods that learn.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "contrastive": (LORA,),
    "dera": (LORA,),
    "equilibrium": ("fudge", "fudge_head"),
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
        made: the methods that learn, by name, those that are needed at least.
        texts: what the value is learned from, the first 2,000 of each label.
        data: the folder of `results_tools`. limit: at most so many of its texts.
        fits: has a folder for each fit, which is read where it is there.
        minutes: of a fit.
        chat: "on" where prompts are a user's turn. ask: the prompt to go on with a text.
    """

    model: Any
    tokenizer: Any
    made: Mapping[str, Controller]
    texts: Labelled
    data: Path
    limit: int | None
    fits: Path
    minutes: float
    chat: str
    ask: Callable[[str], Any]

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
            texts, fits = load_guides(self.data, self.limit, (path,)), self.fits / "mod"
            given = self.model, self.tokenizer, texts, fits / Path(path).stem, self.minutes
            found = fit_methods(*given, self.chat, (LORA,))[LORA]
            assert isinstance(found, DExperts)
            experts.append(found.expert)
        return MOD(dict.fromkeys(experts, 1 / len(experts)))

    def _equilibrium(self) -> Controller:
        out = self.fits / "equilibrium"
        given = self.model, self.tokenizer, self.made, self.data, out
        return taught_equilibrium(*given, self.ask, self.chat)

    def _value_guide(self) -> Controller:
        out, name = self.fits / "value", str(self.model.name_or_path)
        good, bad = (part[:OF_A_LABEL] for part in self.texts.binary())
        labels = (DESIRED,) * len(good) + (UNDESIRED,) * len(bad)
        if not out.is_dir():
            say("fitting value")
            reader = load_reader("causal", name, model=self.model, tokenizer=self.tokenizer)
            learned = Labelled((*good, *bad), labels)
            fit_value(reader, name, learned, out, statement=STATEMENT, desired=DESIRED)
        return Controller.from_pretrained(str(out / GUIDE))
