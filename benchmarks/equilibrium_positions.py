"""What a model, a reference and the scorers say at fixed prefixes, once for every theta.

None of it depends on theta, so a search asks the model once and then projects. `Positions.found`
goes on in the engine's float32: what it says of a theta is what the engine draws from, and
`direct` asks the engine itself, by a call of ``generate``, whether that is so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.sources import Step
from plugalign.algebra.steering import Steering
from plugalign.controllers.equilibrium import Equilibrium
from plugalign.controllers.equilibrium_top_down import Situation, Situations
from plugalign.generation.wrap import wrap
from plugalign.kernels.projection import project
from plugalign.kernels.terms.linear import Linear
from plugalign.values.preferences_evidence import Watched

Prefixes = Sequence[Mapping[str, Tensor]]  # batches of input_ids and attention_mask


@dataclass(frozen=True, eq=False)
class Found:
    """What one theta does at R positions.

    Attributes:
        q: what the engine draws from, float64 of its float32 scores ``(R, K)``.
        excess: of the projection's expectations over their bounds ``(R, J)``.
        engine_excess: the same of ``q``.
        kl: KL(q || rho) in nats ``(R,)``.
        change: E_q - E_rho ``(R,)`` of the last scorer, which is no principle.
        pressure: what theta alone, free of bounds and budget, does to the principles:
            ``E - b`` ``(R, J)``.
    """

    q: Tensor
    excess: Tensor
    engine_excess: Tensor
    kl: Tensor
    change: Tensor
    pressure: Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """R positions of K candidates.

    Attributes:
        at: what an equilibrium starts from; the last row of its g is no principle's.
        base: the base's scores of the candidates, float32 ``(R, K)``.
        reference: what the top-down controllers add to them, float32 ``(R, K)``.
    """

    at: Situation
    base: Tensor
    reference: Tensor

    def found(self, theta: Tensor, kappa: float, *, bounded: bool = True) -> Found:
        """What theta ``(F,)`` does within a budget, and within the bounds unless lifted."""
        at, delta = self.at, (theta[:, None] * self.at.phi).sum(-2)
        g, f, bounds = at.g[:, :-1], at.g[:, -1], at.bounds[:, :-1]
        result = project(at.log_rho, delta, g, bounds if bounded else bounds + 1, kappa)
        # The engine adds in this order, in float32; see EquilibriumShift.terms.
        z = self.base + -at.scores.float() + result.log_q.float() + self.reference
        q, rho = z.double().softmax(-1), at.log_rho.exp()
        free = (at.log_rho + delta).softmax(-1)
        return Found(
            q=q,
            excess=result.expected - bounds,
            engine_excess=expected(g, q) - bounds,
            kl=result.kl,
            change=(f * (q - rho)).sum(-1),
            pressure=expected(g, free) - bounds,
        )


def expected(g: Tensor, q: Tensor) -> Tensor:
    """E_q[g] ``(R, J)`` of g ``(R, J, K)``."""
    return (g * q[:, None]).sum(-1)


def joined(parts: Sequence[Positions]) -> Positions:
    """Batches of positions in one."""
    at = {f.name: torch.cat([getattr(p.at, f.name) for p in parts]) for f in fields(Situation)}
    base, reference = (torch.cat([getattr(p, n) for p in parts]) for n in ("base", "reference"))
    return Positions(Situation(**at), base, reference)


# ------------------------------------------------------------------ asking the model


class _Watching(Controller):
    """The base, with an eye on the candidates of an equilibrium."""

    def __init__(self, equilibrium: Equilibrium):
        self._equilibrium, self.seen = equilibrium, list[Positions]()

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        top_down = self._equilibrium.top_down(model, tokenizer)

        def show(step: Step, at: Situation) -> None:
            row = torch.arange(len(at.ids)).repeat_interleave(at.ids.shape[1])
            token, added = at.ids.flatten(), torch.zeros(at.ids.numel())
            terms = step.alone(top_down.shifts).terms
            assert not any(isinstance(term, Linear) for term in terms)  # would be added earlier
            for term in terms:
                term.add_at(added, step.base, row, token)
            base = step.base[row, token].float()
            parts = (x.view(at.ids.shape).clone() for x in (base, added))
            self.seen.append(Positions(replace(at), *parts))

        return Steering((Watched(Situations(top_down=top_down), show),))


def recorded(
    model: Any, tokenizer: Any, equilibrium: Equilibrium, prefixes: Prefixes
) -> list[Positions]:
    """The positions behind each batch of prefixes, under an equilibrium's top-down controllers."""
    watching = _Watching(equilibrium)
    steered, found = wrap(model, tokenizer, watching), list[Positions]()
    for batch in prefixes:
        steered.generate(**batch, do_sample=False, max_new_tokens=1)
        found.append(watching.seen[-1])
        watching.seen.clear()
    return found


def prefixes_of(
    model: Any, tokenizer: Any, top_down: Controller, prompts: Sequence[str], tokens: int
) -> list[dict[str, Tensor]]:
    """Prompts alone and behind them 1, 2, ... ``tokens - 1`` tokens of an answer under the top-down
    controllers; each of these is a batch."""
    ids = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
    torch.manual_seed(3)
    made = wrap(model, tokenizer, top_down).generate(
        **ids, do_sample=True, top_k=0, max_new_tokens=tokens
    )
    start, found = ids["input_ids"].shape[1], list[dict[str, Tensor]]()
    ended = torch.zeros(len(made), dtype=torch.bool, device=made.device)
    for width in range(start, start + tokens):
        if width > start:
            ended = ended | (made[:, width - 1] == tokenizer.eos_token_id)
        mask = torch.cat([ids["attention_mask"], torch.ones_like(made[:, start:width])], 1)
        found.append({"input_ids": made[~ended, :width], "attention_mask": mask[~ended]})
    return found


def direct(
    model: Any,
    tokenizer: Any,
    equilibrium: Equilibrium,
    prefixes: Prefixes,
    positions: Sequence[Positions],
) -> tuple[float, float]:
    """What ``generate`` itself draws from behind the prefixes, by a call for each batch.

    Returns:
        The largest difference of a token's probability from `Positions.found`, any token of the
        vocabulary; and the largest excess of a bound.
    """
    steered = wrap(model, tokenizer, equilibrium)
    theta = equilibrium.strength * equilibrium.preferences.bounded(equilibrium.confidence)
    apart, most = 0.0, -1.0
    for batch, here in zip(prefixes, positions, strict=True):
        output = steered.generate(
            **batch,
            do_sample=False,
            max_new_tokens=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        q = output.scores[0].double().softmax(-1)
        known = here.found(theta, equilibrium.kappa)
        rest = torch.zeros_like(q).scatter_(-1, here.at.ids, known.q)
        excess = expected(here.at.g[:, :-1], q.gather(-1, here.at.ids)) - here.at.bounds[:, :-1]
        apart, most = max(apart, float((q - rest).abs().max())), max(most, float(excess.max()))
    return apart, most
