"""The operations that `bench_kernels` times: their inputs, eager formula, least memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import eager_formulas as eager
import torch
from kernel_cases import Case
from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.kernels import gumbel, steer
from plugalign.kernels.backend import Backend
from plugalign.kernels.candidate_sample import candidate_sample
from plugalign.kernels.group_lora import group_lora
from plugalign.kernels.mixture import Mixture, weighted
from plugalign.kernels.row_lse import row_lse
from plugalign.kernels.spec_verify import spec_verify
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.topk_select import topk_select
from plugalign.kernels.truncation import EVERYTHING, Truncation

ALPHA, TOP_P = 2.0, 0.9
DECAY, FLOOR = 50.0, 0.01
RANK, SCALING = 16, 2.0
ADAPTERS, DRAFTED = 2, 4


@dataclass(frozen=True, eq=False)
class Call:
    """One set of inputs: the operation on it, and what the eager formula takes of it."""

    ours: Callable[[Backend], Any]
    eager: tuple[Any, ...]


@dataclass(frozen=True)
class Operation:
    """One row of the report.

    Attributes:
        build: inputs of a case, drawn from its generator.
        eager: the formula on ``Call.eager``.
        traffic: the least bytes that a call moves, each input that is needed twice counted twice.
        draws: whether the eager formula is random, so that only its law can be compared.
        by_vocab: whether the vocabulary matters.
        capture: whether a CUDA graph can hold the eager formula.
        alike: what of a result the eager formula has too.
    """

    name: str
    build: Callable[[Case], Call]
    eager: Callable[..., Any]
    traffic: Callable[[Case], int]
    draws: bool = True
    by_vocab: bool = True
    capture: bool = True
    alike: Callable[[Any], Any] = lambda found: found


def _dexperts(before: Truncation, **draw: float) -> Callable[[Case], Call]:
    def build(case: Case) -> Call:
        sources, weights, how = _experts(case), _weights(case), case.address() | draw

        def ours(backend: Backend) -> Tensor:
            mixture = weighted(sources, weights)
            return steer.sample(mixture, before=before, backend=backend, **how)

        return Call(ours, sources)

    return build


def _dexperts_scores(case: Case) -> Call:
    sources, weights, before = _experts(case), _weights(case), Truncation(TOP_P)
    return Call(
        lambda backend: steer.scores(weighted(sources, weights), before=before, backend=backend),
        sources,
    )


def _experts(case: Case) -> tuple[Tensor, ...]:
    base = case.logits()
    return base, case.near(base), case.near(base)


def _weights(case: Case) -> Tensor:
    # A tensor, as numbers would be copied to the device in every step.
    return torch.tensor([1.0, ALPHA, -ALPHA], device=case.device).repeat(case.batch, 1)


def _self_debias(prompts: int) -> Callable[[Case], Call]:
    def build(case: Case) -> Call:
        base, how = case.logits(), case.address()
        biased = tuple(case.near(base) for _ in range(prompts))

        def ours(backend: Backend) -> Tensor:
            mixture = Mixture(base, (Damping(biased, DECAY, FLOOR),))
            return steer.sample(mixture, backend=backend, **how)

        return Call(ours, (base, *biased))

    return build


def _top_p(case: Case) -> Call:
    base, how = case.logits(), case.address()

    def ours(backend: Backend) -> Tensor:
        after = Truncation(TOP_P)
        return steer.sample(Mixture(base), after=after, backend=backend, **how)

    return Call(ours, (base,))


def _plain(case: Case) -> Call:
    logits, how = case.logits(), case.address()
    return Call(lambda backend: gumbel.sample(logits, backend=backend, **how), (logits,))


def _row_lse(case: Case) -> Call:
    logits = case.logits()
    return Call(lambda backend: row_lse(logits, backend=backend), (logits,))


def _topk_select(case: Case) -> Call:
    logits, k = case.logits(), case.width
    return Call(lambda backend: topk_select(logits, k, backend=backend), (logits, k))


def _candidate_sample(case: Case) -> Call:
    values, ids = topk_select(case.logits(), case.width, backend="torch")
    added, how = logsigmoid(case.rows(case.width)), case.address()
    return Call(
        lambda backend: candidate_sample(values, ids, added, backend=backend, **how),
        (values, ids, added),
    )


def _fudge(case: Case) -> Call:
    logits, how = case.logits(), case.address()
    added = logsigmoid(case.rows(case.width))

    def ours(backend: Backend) -> tuple[Tensor, Tensor]:
        values, ids = topk_select(logits, case.width, backend=backend)
        return candidate_sample(values, ids, added, backend=backend, **how)

    return Call(ours, (logits, added))


def _group_lora(case: Case) -> Call:
    rows, width = (ADAPTERS + 1) * case.batch, case.hidden
    x, y = case.normal(rows, width).to(case.dtype), case.normal(rows, width).to(case.dtype)
    a = case.normal(ADAPTERS, width, RANK).mul_(width**-0.5).to(case.dtype)
    b, written = case.normal(ADAPTERS, RANK, width).mul_(0.01).to(case.dtype), y.clone()
    return Call(
        lambda backend: group_lora(written, x, a, b, scaling=SCALING, backend=backend),
        (y, x, a, b),
    )


def _spec_verify(case: Case) -> Call:
    target = torch.stack([case.logits() for _ in range(DRAFTED + 1)], 1)
    draft = case.near(target[:, :-1])
    tokens, how = case.drawn(draft), case.address()
    return Call(
        lambda backend: spec_verify(target, draft, tokens, backend=backend, **how),
        (target, draft, tokens),
    )


OPERATIONS = (
    Operation(
        "dexperts_top_p",
        _dexperts(Truncation(TOP_P)),
        lambda *x: eager.draw(eager.dexperts(*x, alpha=ALPHA, top_p=TOP_P)),
        lambda case: 4 * case.matrix,  # three sources, and the base's mass above the token
    ),
    Operation(
        "dexperts",
        _dexperts(EVERYTHING),
        lambda *x: eager.draw(eager.dexperts(*x, alpha=ALPHA)),
        lambda case: 3 * case.matrix,
    ),
    Operation(
        "dexperts_greedy",
        _dexperts(EVERYTHING, temperature=0.0),
        lambda *x: eager.dexperts(*x, alpha=ALPHA).argmax(-1),
        lambda case: 3 * case.matrix,
        draws=False,
    ),
    Operation(
        "dexperts_scores",
        _dexperts_scores,
        lambda *x: eager.dexperts(*x, alpha=ALPHA, top_p=TOP_P).log_softmax(-1),
        lambda case: 4 * case.matrix + 4 * case.batch * case.vocab,
        draws=False,
    ),
    Operation(
        "self_debias_2",
        _self_debias(2),
        lambda *x: eager.draw(eager.self_debiased(*x, decay=DECAY, floor=FLOOR)),
        lambda case: 6 * case.matrix,  # every normaliser comes before the first difference
    ),
    Operation(
        "self_debias_6",
        _self_debias(6),
        lambda *x: eager.draw(eager.self_debiased(*x, decay=DECAY, floor=FLOOR)),
        lambda case: 14 * case.matrix,
    ),
    Operation(
        "top_p",
        _top_p,
        lambda x: eager.draw(eager.nucleus(x.float(), TOP_P)),
        lambda case: 2 * case.matrix,
    ),
    Operation("plain", _plain, lambda x: eager.draw(x.float()), lambda case: case.matrix),
    Operation(
        "row_lse",
        _row_lse,
        lambda x: x.float().logsumexp(-1),
        lambda case: case.matrix,
        draws=False,
    ),
    Operation(
        "topk_select",
        _topk_select,
        lambda x, k: tuple(x.float().topk(k)),
        lambda case: 2 * case.matrix + 12 * case.batch * case.width,
        draws=False,
        alike=lambda found: found[0],  # among equal values torch's order is its own
    ),
    Operation(
        "fudge",
        _fudge,
        eager.fudge,
        lambda case: 2 * case.matrix + 20 * case.batch * case.width,
    ),
    Operation(
        "candidate_sample",
        _candidate_sample,
        eager.reweighted,
        lambda case: 20 * case.batch * case.width,
        by_vocab=False,
    ),
    Operation(
        "group_lora",
        _group_lora,
        lambda *x: eager.lora_by_index(*x, scaling=SCALING),
        lambda case: case.dtype.itemsize * ADAPTERS * case.hidden * (3 * case.batch + 2 * RANK),
        draws=False,
        by_vocab=False,
        capture=False,  # its lists of indices come from the host
    ),
    Operation(
        "spec_verify",
        _spec_verify,
        eager.verified,
        # Both normalisers of each drafted place, then both rows of the place that is drawn from.
        lambda case: (2 * DRAFTED + 2) * case.matrix,
    ),
)
