"""Who changed which token: every controller's contribution to every chosen token."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plugalign.algebra.revisions import Revision
from plugalign.files.versions import versions


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What is known of a step before its token is.

    Attributes:
        base: the base's log-probabilities ``(R, V)``.
        alone: of each controller, its shift alone on the base ``(R, V)``.
        together: all shifts together on the base, without supports ``(R, V)``.
        final: the shifts on the intersection of the supports ``(R, V)``, -inf elsewhere.
        alive: the rows that had not ended, bool ``(R,)``.
        certificates: by controller, what it can prove of the step, see
            `plugalign.algebra.shifts.Shift.certificate`.
    """

    base: Tensor
    alone: list[Tensor]
    together: Tensor
    final: Tensor
    alive: Tensor
    certificates: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass
class Trace:
    """Filled while ``steered.generate(..., trace=trace)`` runs; make one for each call.

    The lists have one entry a step, of R rows. A row that has ended goes on being stepped until
    all have: `alive` marks its real tokens, and a count must go by it. Probabilities
    are those of the controllers, before temperature, top-k and top-p of the call.

    Attributes:
        names: the steering controllers, in the order of the columns below.
        contributions: per step ``(R, K)``: each controller's weighted ``log p'`` change at the
            chosen token, after renormalising that controller's shift alone on the base. Shifts
            that meet in one normaliser need not add up, see `joint`.
        changed: per step ``(R,)`` bool: whether the most probable token is not the base's.
        revisions: per revising controller what it did to the finished answers.
        tokens: per step the chosen token ids, int64 ``(R,)``; padding where a row has ended.
        base: per step the base's log p of the chosen token ``(R,)``.
        final: per step the log q of the chosen token ``(R,)``, under all shifts and supports.
        joint: per step ``(R,)``: what all shifts together change in the log-probability of the
            chosen token, without supports.
        support: per step how many tokens stayed possible, int64 ``(R,)``.
        kl: per step KL(q || p) in nats ``(R,)``, of the controllers' distribution from the base's.
        alive: per step bool ``(R,)``: whether the row had not ended before this token.
        certificates: per step, by controller and name, what it can prove of the step ``(R,)``.
        times: per step when its token was known, in seconds since 1970.
        prompts: of each prompt, the SHA-256 of its token ids (see `hash_of`). Row r continues
            prompt ``r // (R // B)``.
        fingerprints: by controller, whatever it acts on, a hash of its settings, tensors and parts;
            None where there is no such hash, as of an adapter in memory.
        versions: of plugalign, torch and transformers.
        seed: of the noise that tokens were drawn with, where the decoding loop drew them with noise
            of its own or of a `plugalign.sampling.CoupledSampler`; None elsewhere.
    """

    names: tuple[str, ...] = ()
    contributions: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)
    revisions: list[Revision] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    base: list[Tensor] = field(default_factory=list)
    final: list[Tensor] = field(default_factory=list)
    joint: list[Tensor] = field(default_factory=list)
    support: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)
    certificates: list[Mapping[str, Mapping[str, Tensor]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prompts: tuple[str, ...] = ()
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    _pending: tuple[int, StepRecord] | None = field(default=None, repr=False)

    def record(self, length: int, step: StepRecord) -> None:
        """Notes a step after texts of so many columns; `chosen` completes it."""
        self._pending = (length, step)

    def chosen(self, ids: Tensor) -> None:
        """Completes the last step once its token is known; ``ids`` ``(R, T)`` hold it."""
        if self._pending is None or ids.shape[1] <= self._pending[0]:
            return
        length, step = self._pending
        if len(step.base) != len(ids):
            return
        self._pending, token = None, ids[:, length, None]

        def at_token(log_p: Tensor) -> Tensor:
            return log_p.gather(-1, token)[:, 0]

        base = at_token(step.base)
        if step.alone:
            alone = [at_token(log_p) - base for log_p in step.alone]
            self.contributions.append(torch.stack(alone, dim=-1))
        self.changed.append(step.base.argmax(-1) != step.final.argmax(-1))
        self.tokens.append(token[:, 0].clone())
        self.base.append(base)
        self.final.append(at_token(step.final))
        self.joint.append(at_token(step.together) - base)
        self.support.append(step.final.isfinite().sum(-1))
        self.kl.append(divergence(step.final, step.base))
        self.alive.append(step.alive)
        self.certificates.append(step.certificates)
        self.times.append(time.time())

    def begin(self, ids: Tensor, mask: Tensor, fingerprints: Mapping[str, str | None]) -> None:
        """Notes the prompts ``(B, T)`` of a call, and under what it runs."""
        rows = zip(ids, mask.bool(), strict=True)
        self.prompts = tuple(hash_of(row[keep].tolist()) for row, keep in rows)
        self.fingerprints, self.versions = fingerprints, versions()

    def forget(self, steps: int) -> None:
        """Forgets the last steps, which were made after all rows had ended."""
        for recorded in (
            self.contributions,
            self.changed,
            self.tokens,
            self.base,
            self.final,
            self.joint,
            self.support,
            self.kl,
            self.alive,
            self.certificates,
            self.times,
        ):
            del recorded[max(0, len(recorded) - steps) :]


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) of each row ``(R,)`` in nats, for log-probabilities ``(R, V)``; at least 0."""
    inside = log_q.isfinite()
    each = torch.where(inside, log_q.exp() * (log_q - log_p).masked_fill(~inside, 0), 0)
    return each.sum(-1).clamp_min(0)


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which equal ones are numbered from the second on."""
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    pairs = zip(names, counts, strict=True)
    return tuple(name if count == 1 else f"{name} ({count})" for name, count in pairs)


def hash_of(ids: list[int]) -> str:
    """The SHA-256 of a text's token ids, as they are written with commas between."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
