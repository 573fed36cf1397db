"""The launches of every operation, for the shapes that differ to Triton, in memory of the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.kernels import (
    candidate_sample_triton,
    group_lora_triton,
    gumbel_triton,
    projection_triton,
    row_lse_triton,
    scores_triton,
    spec_verify_triton,
    steer_triton,
    topk_select_triton,
)
from plugalign.kernels.calls import BoundedShift, CandidateDraw, Draw, Verification
from plugalign.kernels.launch import Launch
from plugalign.kernels.mixture import Mixture, weighted
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.probability_mix import ProbabilityMix
from plugalign.kernels.truncation import EVERYTHING, Truncation

Plans = Iterator[tuple[str, list[Launch]]]
SEED = 2**64 - 1
NUCLEUS, BEST = Truncation(0.9), Truncation(top_k=50)
DEPTH = 4096


@dataclass(frozen=True)
class Shape:
    """Rows as an operation gets them.

    Args:
        vocab, stride: entries of a row, and from one row to the next.
    """

    dtype: torch.dtype
    rows: int
    vocab: int
    stride: int

    def logits(self, count: int | None = None) -> Tensor:
        """``(count, V)``, or ``(B, V)``."""
        rows = self.rows if count is None else count
        return torch.empty(rows, self.stride, dtype=self.dtype)[:, : self.vocab]

    def temperature(self) -> Tensor:
        return torch.ones(self.rows)

    def numbers(self) -> Tensor:
        return torch.arange(self.rows)


# Rows that are loaded 16 bytes at once, by single entries, and with a surplus.
EVEN = Shape(torch.bfloat16, 8, 128256, 128256)
ODD = Shape(torch.bfloat16, 1, 50257, 50257)
PADDED = Shape(torch.float32, 3, 50257, 50304)


def launches() -> Plans:
    """Every operation with even rows of bfloat16, and the usual ones with the others."""
    for name, shape in (("even", EVEN), ("odd", ODD), ("padded", PADDED)):
        whole = shape is EVEN
        for plans in (steered(shape, whole), listed(shape, whole), changed(shape, whole)):
            yield from ((f"{name}: {what}", plan) for what, plan in plans)


def steered(shape: Shape, whole: bool) -> Plans:
    """Mixtures by their terms, truncations before and after, greedily, and as scores."""
    x = [shape.logits() for _ in range(5)]
    damping = Damping((x[1], x[2]), 50.0, 0.01)
    one, three = Mixture(x[0]), weighted(x[:3], (1.0, 2.0, -2.0))
    debias = Mixture(x[0], (damping,))
    union = Mixture(x[0], (Extreme((x[1], x[2])),))
    drawn = [
        ("three sources on a nucleus", three, NUCLEUS, EVERYTHING, False),
        ("one source on its own nucleus", one, EVERYTHING, NUCLEUS, False),
        ("debiased on a nucleus", debias, NUCLEUS, EVERYTHING, False),
        ("union on a nucleus", union, NUCLEUS, EVERYTHING, False),
        ("chained top-k and top-p", three, EVERYTHING, Truncation(0.9, 50), False),
    ]
    if whole:
        each, mask = torch.ones(shape.rows), torch.ones(shape.rows, shape.vocab).bool()
        by_row = weighted(x[:3], each[:, None].repeat(1, 3))
        attribute = LogSigmoid(x[4].float(), 1.5)
        all_terms = Mixture(x[0], (Linear((x[3],), (-0.5,)), damping, attribute))
        mixed = Mixture(x[0], (ProbabilityMix(x[1], 3.0, weight=each),), mask, each)
        joint = Truncation(0.9, 50, joint=True)
        drawn += [
            ("three sources, all tokens", three, EVERYTHING, EVERYTHING, False),
            ("weights by row", by_row, NUCLEUS, NUCLEUS, False),
            ("masked mix of probabilities", mixed, NUCLEUS, EVERYTHING, False),
            ("all terms", all_terms, NUCLEUS, EVERYTHING, False),
            ("greedy on a nucleus", three, NUCLEUS, EVERYTHING, True),
            ("greedy", one, EVERYTHING, EVERYTHING, True),
            ("top-k", three, BEST, EVERYTHING, False),
            ("min-p", three, Truncation(min_p=0.1), EVERYTHING, False),
            ("joint", three, joint, joint, False),
        ]
    for name, mixture, before, after, greedy in drawn:
        number = shape.numbers()
        draw = Draw(SEED, number, number, number, shape.temperature(), greedy)
        yield name, steer_triton.plan(mixture, draw, before, after, number.clone(), fast=True)
    for name, cut in (("scores", EVERYTHING), ("scores on a nucleus", NUCLEUS))[: 1 + whole]:
        out = torch.empty(shape.rows, shape.vocab)
        yield name, scores_triton.plan(three, cut, out, fast=True)


def listed(shape: Shape, whole: bool) -> Plans:
    """Plain draws, normalisers, the best tokens, candidates and drafts."""
    x, number, temperature, rows = shape.logits(), shape.numbers(), shape.temperature(), shape.rows
    yield (
        "gumbel",
        gumbel_triton.plan(x, SEED, number, number, number, temperature, number, fast=True),
    )
    yield "row_lse", row_lse_triton.plan((x,), torch.empty(1, rows))
    for k in (50, 200, 1024) if whole else (50,):
        values = torch.empty(rows, k)
        yield f"top {k}", topk_select_triton.plan(x, values, values.long())
    values, ids = shape.logits()[:, :200], torch.zeros(rows, 200, dtype=torch.int64)
    call = CandidateDraw(
        values, ids, values, temperature, temperature, temperature, number, number, number, SEED
    )
    yield "candidates", candidate_sample_triton.plan(call, number, torch.empty(rows, 200))
    if whole:
        log_rho, g = torch.empty(rows, 200).double(), torch.empty(rows, 3, 200).double()
        bounded = BoundedShift(log_rho, log_rho, g, torch.empty(rows, 3), log_rho[:, 0].clone())
        fields = projection_triton.fields(bounded)
        yield "projection", projection_triton.plan(bounded, fields, nvidia=True)
    for places in (1, 4) if whole else (3,):
        target = shape.logits(rows * (places + 1)).view(rows, places + 1, -1)
        draft = shape.logits(rows * places).view(rows, places, -1)
        tokens = torch.zeros(rows, places, dtype=torch.int64)
        rest = (tokens, number, number, number, number, temperature, temperature, SEED)
        for name, scores in (("draft", draft), ("certain draft", None)):
            call = Verification(target, scores, *rest)
            yield f"{name} of {places}", spec_verify_triton.plan(call, number, number, fast=True)


def changed(shape: Shape, whole: bool) -> Plans:
    """What changes layers' outputs in place."""
    rows, width = shape.rows, DEPTH if shape is not ODD else DEPTH + 1
    y = torch.empty(2, rows, width, dtype=shape.dtype)
    a, b = (torch.empty(2, *size, dtype=shape.dtype) for size in ((width, 16), (16, width)))
    lora = group_lora_triton.plan(y, y.clone(), a, b, 1.0, None, fast=True, upcast=False)
    yield "LoRA", lora
