"""Equilibrium alignment: people's learned preferences, within bounds that principles set.

Top-down, controllers give a distribution rho, and principles in order of priority bound how
probable their violation may be; bottom-up, weights that feedback teaches move it inside the bounds
(after Rawls's reflective equilibrium)::

    q = argmin KL(q || rho e^delta)  subject to  E_q[g_j] <= E_rho[g_j] + epsilon_j for all j,
                                                 KL(q || rho) <= kappa
    log q = log rho + s delta - sum_j lambda_j g_j + const,    0 <= s <= 1,  lambda_j >= 0

    g_j(t)   = P(violates v_j | x, t)     delta(t) = theta . phi(t)

so the bounds are a sum of shifts. They hold at every prefix and for every theta, also one that was
learned from feedback in bad faith; over a text the expected violations are at most the sum of the
bounds at the prefixes that it visits. What no g sees is held by the budget: by Pinsker's inequality
``|E_q f - E_rho f| <= sqrt(kappa / 2)`` for every f in [0, 1] (Csiszar 1975 for the projection).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.equilibrium_saving import (
    EquilibriumSettings,
    folders,
    loaded,
    placed,
    settings_of,
    tables,
)
from plugalign.controllers.equilibrium_step import Balances, EquilibriumShift
from plugalign.controllers.equilibrium_top_down import BoundPrinciple, Situations, TopDown
from plugalign.controllers.principles import Preferences as Preferences
from plugalign.controllers.principles import Principle as Principle
from plugalign.controllers.principles import check_epsilon, in_order
from plugalign.controllers.principles_scorers import (
    Scorer,
    bound,
    check_one_tokenizer,
    check_reference,
    declared,
)
from plugalign.controllers.principles_scorers import TokenTable as TokenTable
from plugalign.files.saved import check_dimensions
from plugalign.kernels.projection import MOST_BOUNDS, MOST_CANDIDATES

NUMBERS = ("epsilon", "kappa", "strength", "confidence", "k")


class Equilibrium(Controller):
    """Steers by learned preferences, as far as principles and a KL budget allow.

    It is made of fitted parts, and taught afterwards::

        civil, warm = plugalign.load("civil"), plugalign.load("warm")  # of plugalign fit fudge_head
        rule = plugalign.Principle("civil", civil)
        learned = plugalign.Preferences({"warm": warm})
        plugalign.Equilibrium(civil, [rule], learned).save_pretrained("mine")
        # plugalign feedback mine --add pairs.jsonl --model ...

    With theta 0 it is the top-down reference on its candidates, bit for bit. The bounds hold of
    this controller's own distribution, and not of what is drawn after a call's temperature, top-k
    or top-p. What is added to it in a sum and a weight other than 1 act on that distribution too,
    so what must be bounded belongs into ``reference``. A principle that is added below others
    leaves their bounds as they are; it may raise what is expected of one above, up to its bound
    and no further. Controllers that act on prompts, caches or finished answers are added beside it.

    Args:
        reference: the top-down controllers, one or a sum; None for the base itself.
        principles: at most 8, the highest first unless they have priorities.
        preferences: the features, and what is known of their weights.
        epsilon: how much ``E_q[g]`` may lie above the reference's at a step, for principles
            without an epsilon of their own.
        kappa: the KL budget of a step in nats, None for none.
        strength: multiplies theta.
        confidence: theta acts at its confidence bound nearest to 0 (one side); 0.5 is theta itself.
        k: the base's best tokens that stay possible, at most 1024.

    Raises:
        ValueError: for principles that contradict each other, parts that read the token ids of
            different tokenizers, or a number out of its range.
        TypeError: for a reference, principle or preferences that are none.
    """

    name = "equilibrium"
    settings = EquilibriumSettings

    def __init__(
        self,
        reference: Controller | None,
        principles: Iterable[Principle],
        preferences: Preferences,
        *,
        epsilon: float = 0.0,
        kappa: float | None = 0.05,
        strength: float = 1.0,
        confidence: float = 0.95,
        k: int = 200,
    ):
        check_epsilon("the equilibrium", epsilon)
        self.kappa = math.inf if kappa is None else float(kappa)
        if not self.kappa >= 0:
            raise ValueError(f"the KL budget kappa must be at least 0 nats, got {kappa}")
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be finite and not negative, got {strength}")
        if not 0.5 <= confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), got {confidence}")
        if k > MOST_CANDIDATES:
            raise ValueError(f"k must be at most {MOST_CANDIDATES} candidates, got {k}")
        if not isinstance(preferences, Preferences):
            raise TypeError(f"preferences must be Preferences, got {type(preferences).__name__}")
        self.reference, self.principles = reference, in_order(principles)
        if len(self.principles) > MOST_BOUNDS:
            raise ValueError(
                f"an equilibrium holds at most {MOST_BOUNDS} principles, got {len(self.principles)}"
            )
        self.preferences, self.support = preferences, TopK(k)
        self.epsilon, self.strength = float(epsilon), float(strength)
        self.confidence = float(confidence)
        self._check_parts()

    def _check_parts(self) -> None:
        parts: dict[str, Controller] = {}
        if self.reference is not None:
            parts["the reference"] = self.reference
        for each in self.principles:
            if each.controller is not None:
                parts[f"the controller of '{each.name}'"] = each.controller
        for what, part in parts.items():
            check_reference(what, part)
        named = {f"the principle '{p.name}'": p.scorer for p in self.principles}
        named |= {f"the feature '{n}'": s for n, s in self.preferences.features.items()}
        for what, part in parts.items():
            named |= {f"{what} ({p.display_name})": p for _, p in part.parts()}
        check_one_tokenizer(named)

    def taught(self, preferences: Preferences) -> Equilibrium:
        """The same with preferences that were learned anew."""
        return Equilibrium(
            self.reference,
            self.principles,
            preferences,
            epsilon=self.epsilon,
            kappa=self.kappa,
            strength=self.strength,
            confidence=self.confidence,
            k=self.support.k,
        )

    # ------------------------------------------------------------------ steering

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuses a model that a part cannot work with.

        Raises:
            ValueError: naming what does not fit.
        """
        stages = [self.reference, *(p.controller for p in self.principles)]
        for part in stages:
            for weight, each in () if part is None else part.parts():
                if weight != 0:
                    each.check(model, tokenizer)

    def top_down(self, model: Any, tokenizer: Any) -> TopDown:
        """Principles, features and top-down controllers, bound to this model.

        Raises:
            ValueError: if one of them cannot work with this model or tokenizer; names it.
        """

        def scored(scorer: Scorer, what: str) -> Any:
            return bound(scorer, what, model, tokenizer, self.support.k)

        principles = tuple(
            BoundPrinciple(
                p.name,
                scored(p.scorer, f"the principle '{p.name}'"),
                isinstance(p.scorer, TokenTable),
                self.epsilon if p.epsilon is None else p.epsilon,
                declared(p.controller, model, tokenizer),
            )
            for p in self.principles
        )
        features = self.preferences.features.items()
        return TopDown(
            declared(self.reference, model, tokenizer),
            principles,
            tuple(scored(scorer, f"the feature '{name}'") for name, scorer in features),
            self.support.k,
        )

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """The top-down controllers' shifts and supports on the base's k best tokens, and ``log q -
        log rho``.

        Raises:
            ValueError: see `top_down`.
        """
        top_down = self.top_down(model, tokenizer)
        theta = self.strength * self.preferences.bounded(self.confidence)
        shifts, supports = top_down.shifts, (*top_down.supports, self.support)
        if not (bool(theta.any()) or top_down.binds_a_stage):
            return Steering(shifts, supports)  # bit for bit
        balances = Balances(situations=Situations(top_down=top_down), theta=theta, kappa=self.kappa)
        return Steering((*shifts, EquilibriumShift(balances)), supports)

    # ------------------------------------------------------------------ saving

    def config(self) -> dict[str, Any]:
        parts = settings_of(self._places(), self.reference, self.principles, self.preferences)
        return {
            "epsilon": self.epsilon,
            "kappa": None if math.isinf(self.kappa) else self.kappa,
            "strength": self.strength,
            "confidence": self.confidence,
            "k": self.support.k,
            **parts,
        }

    def _places(self) -> dict[str, Scorer]:
        return placed(self.reference, self.principles, self.preferences)

    def tensors(self) -> dict[str, Tensor]:
        places, learned = self._places().items(), self.preferences
        tables = {name: part.values for name, part in places if isinstance(part, TokenTable)}
        own = {"theta": learned.theta, "covariance": learned.covariance}
        return {**{name: tensor for name, tensor in own.items() if tensor is not None}, **tables}

    def saved_parts(self) -> dict[str, Any]:
        places = self._places().items()
        return {name: part for name, part in places if isinstance(part, Controller)}

    @classmethod
    def part_names(cls, config: Mapping[str, Any], folder: Path) -> list[str]:
        return folders(config)

    @classmethod
    def check_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        check_dimensions(tensors, {"theta": 1, **tables(config)}, {"covariance": 2})

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        reference = parts.get(config["reference"] or "")
        principles, preferences = loaded(config, tensors, parts)
        numbers = {name: config[name] for name in NUMBERS}
        return cls(reference, principles, preferences, **numbers)
