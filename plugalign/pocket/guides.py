"""Fits every controller for the pocket model, on the guide sample.

The guide sample is apart from the judge's, so what steers is never what scores. Nullspace
projection takes gender out of the states in front of a pronoun: it is a method against bias, and
has nothing to say about rudeness.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plugalign.algebra.controller import Controller
from plugalign.algebra.data_sheet import FIT, README
from plugalign.controllers.self_critique import SelfCritique
from plugalign.controllers.self_debias import SelfDebias
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import Labelled
from plugalign.pocket import world

ASKED = 0.3
ALPHA = 1.0  # of DExperts: such plain text needs less than the paper's 2
FUDGE = {"weight": 1.0, "k": 20}  # Bayes' rule on few candidates: each of them costs
POLITENESS: dict[str, dict[str, Any]] = {
    "dexperts": {"steps": 50, "alpha": ALPHA},
    "dexperts_lora": {"steps": 50, "rank": 8, "alpha": ALPHA},
    "fudge": {"steps": 300, "batch_size": 32, "width": 64, **FUDGE},
    "fudge_head": {"steps": 300, "batch_size": 32, "rank": 16, "lr": 3e-3, **FUDGE},
    "prefix": {"steps": 150},
}
SELF_DEBIAS = SelfDebias((world.RUDE_DIAGNOSIS,), decay=50)
SELF_CRITIQUE = SelfCritique(
    critique=world.CRITIQUE, fault=world.YES, fine=world.NO, refine=world.REWRITE + "{prompt}"
)

STATED = {
    "license": "apache-2.0",
    "intended_use": "To show and to test plugalign on its embedded model, and nothing else.",
    "limitations": "The pocket world's rudeness is mild and invented. How well a method does there "
    "does not say how well it does on other models and texts.",
}
DATA = "sentences that plugalign.pocket.world makes up, about nobody who exists"


def fit_guides(
    model: Any, tokenizer: Any, out: Path, *, texts: int = 4000, share: float = 1.0
) -> None:
    """Fits and saves each controller in a subfolder of ``out``, which must not exist yet.

    Args:
        texts: how many labelled texts each controller learns from.
        share: of the steps that are shipped, for a quick trial.
    """
    comments = world.comments(texts, world.GUIDE_SEED, asked=ASKED)
    data = Labelled(tuple(c.text for c in comments), tuple(c.label for c in comments))
    for method, settings in POLITENESS.items():
        steps = max(1, round(share * settings["steps"]))
        run_fit(
            method,
            model,
            tokenizer,
            data,
            out / method,
            desired="polite",
            settings={**settings, "steps": steps},
        )
    beginnings, genders = zip(*world.pronoun_sample(texts, world.GUIDE_SEED), strict=True)
    # Gender matters where the beginnings end, in front of the pronoun.
    run_fit(
        "nullspace",
        model,
        tokenizer,
        Labelled(beginnings, genders),
        out / "nullspace",
        settings={"positions": 0},
    )
    SELF_DEBIAS.save_pretrained(out / "self_debias")
    SELF_CRITIQUE.save_pretrained(out / "self_critique")
    _slim(out)
    write_data_sheets(out)


def write_data_sheets(out: Path) -> None:
    """Writes the data sheet of every controller in ``out``, as every saved one has it."""
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        stated = STATED | ({"training_data": DATA} if (folder / FIT).is_file() else {})
        card = Controller.from_pretrained(folder).generate_model_card(**stated)
        card.save(folder / README)


def _slim(out: Path) -> None:
    """Halves the weights of networks, whose rounding does not matter, and drops PEFT's cards.

    PEFT writes a set in whatever order it has; sorted, a rebuild gives the same bytes.
    """
    for role in ("expert", "antiexpert"):
        expert = AutoModelForCausalLM.from_pretrained(out / "dexperts" / role, dtype=torch.float16)
        expert.save_pretrained(out / "dexperts" / role)
    predictor = out / "fudge" / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(predictor).items()}, predictor)
    for path in out.rglob("adapter_config.json"):
        config = json.loads(path.read_text("utf-8"))
        config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for card in out.rglob(README):
        card.unlink()
