"""What the compile gate compiles: every kernel as the inputs of every class would launch it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.kernels.compile_budgets import Budget, budget_of
from plugalign.kernels.launch import Launch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Vocabulary and row stride: Llama 3, GPT-2 in padded rows, GPT-2 as it comes.
VOCABULARIES = {"even": (128256, 128256), "padded": (50257, 50304), "odd": (50257, 50257)}
ROWS = 8
SHORT = {
    "gumbel.merge",
    "row_lse.merge",
    "merge",
    "topk.narrow",
    "topk.pick",
    "topk.arrange",
    "candidate.choose",
    "spec.accept",
    "spec.follow",
    "group_lora",
    "projection.solve",
}


@dataclass(frozen=True)
class Case:
    """One kernel as one kind of input would launch it.

    Args:
        kernel: its name in the budgets.
        entry: bytes that its main loop loads for one vocabulary entry, of all sources together.
        short: whether it reads no row of the vocabulary.
        listed: whether `occupancy.PROGRAMS` speaks of it: aligned rows of bfloat16.
    """

    name: str
    kernel: str
    launch: Launch
    entry: int
    budget: Budget
    short: bool
    listed: bool


def cases(nvidia: bool = True, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Iterator[Case]:
    """Every kernel of the package, for GPUs of NVIDIA or of AMD.

    Those that read no row of the vocabulary are the same for all classes, and stand in the first.
    """
    for dtype in dtypes:
        for kind, (vocab, stride) in VOCABULARIES.items():
            inputs = Inputs(dtype, kind, vocab, stride, nvidia)
            found = (case for group in GROUPS for case in group(inputs))
            yield from (case for case in found if kind == "even" or not case.short)


@dataclass(frozen=True)
class Inputs:
    """A class of inputs, without memory behind them."""

    dtype: torch.dtype
    kind: str
    vocab: int
    stride: int
    nvidia: bool

    def logits(self, rows: int = ROWS) -> Tensor:
        """``(rows, V)`` in rows of the stride."""
        return unreal(rows * self.stride, self.dtype).view(rows, self.stride)[:, : self.vocab]

    def case(self, name: str, launch: Launch, streams: int) -> Case:
        """A kernel whose main loop reads so many streams of entries."""
        from triton import __version__

        short = name.split()[0] in SHORT
        whole = f"{name} {str(self.dtype).removeprefix('torch.')} {self.kind}"
        entry, budget = streams * self.dtype.itemsize, budget_of(name, self.kind, __version__)
        listed = self.dtype == torch.bfloat16 and self.kind == "even"
        return Case(whole, name, launch, entry, budget, short, listed)


def unreal(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


NUMBER, TEMPERATURE = unreal(ROWS, torch.int64), unreal(ROWS, torch.float32)


def gumbel(inputs: Inputs) -> Iterator[Case]:
    """Sampling from one source."""
    from plugalign.kernels.gumbel_triton import plan

    launches = plan(
        inputs.logits(), 5, NUMBER, NUMBER, NUMBER, TEMPERATURE, NUMBER, fast=inputs.nvidia
    )
    yield inputs.case("gumbel.sweep", launches[0], 1)
    yield inputs.case("gumbel.merge", launches[1], 1)


def row_lse(inputs: Inputs) -> Iterator[Case]:
    """The normaliser of one source."""
    from plugalign.kernels.row_lse_triton import plan

    launches = plan((inputs.logits(),), TEMPERATURE.view(1, ROWS))
    yield inputs.case("row_lse.sweep", launches[0], 1)
    yield inputs.case("row_lse.merge", launches[1], 1)


def steer(inputs: Inputs) -> Iterator[Case]:
    """Sampling from three sources on the base's nucleus, greedily too, and from one on its own."""
    from plugalign.kernels.calls import Draw
    from plugalign.kernels.mixture import Mixture, weighted
    from plugalign.kernels.steer_triton import plan
    from plugalign.kernels.truncation import EVERYTHING, Truncation

    three = weighted([inputs.logits() for _ in range(3)], (1.0, 2.0, -2.0))
    one = Mixture(inputs.logits())
    sampled = Draw(5, NUMBER, NUMBER, NUMBER, TEMPERATURE)
    greedy = Draw(5, NUMBER, NUMBER, NUMBER, TEMPERATURE, greedy=True)
    nucleus, best = Truncation(0.9), Truncation(top_k=50)
    for name, mixture, draw, before, after in (
        ("K=3 top-p", three, sampled, nucleus, EVERYTHING),
        ("K=3 greedy", three, greedy, best, EVERYTHING),
        ("K=1 own top-p", one, sampled, EVERYTHING, nucleus),
        ("K=3 both", three, sampled, nucleus, Truncation(0.9, 50, joint=True)),
    ):
        launches = plan(mixture, draw, before, after, NUMBER, fast=inputs.nvidia)
        for launch in launches[-4:]:  # the search for a threshold has cases of its own
            kernel = launch.kernel.fn.__name__
            streams = len(list(mixture.inputs())) if kernel != "check" else 1
            yield inputs.case(f"{kernel} {name}", launch, streams)


def self_debias(inputs: Inputs) -> Iterator[Case]:
    """Sampling from the base, two biased prompts and an attribute on the base's nucleus."""
    from plugalign.kernels.calls import Draw
    from plugalign.kernels.mixture import Mixture
    from plugalign.kernels.steer_triton import plan
    from plugalign.kernels.terms.damping import Damping
    from plugalign.kernels.terms.log_sigmoid import LogSigmoid
    from plugalign.kernels.truncation import EVERYTHING, Truncation

    x = [inputs.logits() for _ in range(4)]
    mixture = Mixture(x[0], (Damping((x[1], x[2]), 50.0, 0.01), LogSigmoid(x[3])))
    draw = Draw(5, NUMBER, NUMBER, NUMBER, TEMPERATURE)
    lse, _, sweep, _, _, finish = plan(
        mixture, draw, Truncation(0.9), EVERYTHING, NUMBER, fast=inputs.nvidia
    )
    yield inputs.case("row_lse.sweep K=3", lse, 1)
    yield inputs.case("sweep debias", sweep, 4)
    yield inputs.case("finish debias", finish, 4)


def thresholds(inputs: Inputs) -> Iterator[Case]:
    """Where a nucleus ends."""
    from plugalign.kernels.threshold_triton import threshold_plan
    from plugalign.kernels.truncation import Truncation

    for name, cut in (("", Truncation(0.9)), (" joint", Truncation(0.9, 50, joint=True))):
        _, launches = threshold_plan(inputs.logits(), cut)
        first, later, *_, edge, settle = launches[2:]
        yield inputs.case(f"threshold.first{name}", first, 1)
        yield inputs.case(f"threshold.ladder{name}", later, 1)
        yield inputs.case(f"threshold.edge{name}", edge, 1)
        yield inputs.case(f"threshold.settle{name}", settle, 1)


def scores(inputs: Inputs) -> Iterator[Case]:
    """Log-probabilities of three sources."""
    from plugalign.kernels.mixture import weighted
    from plugalign.kernels.scores_triton import plan
    from plugalign.kernels.truncation import EVERYTHING, Truncation

    mixture = weighted([inputs.logits() for _ in range(3)], (1.0, 2.0, -2.0))
    out = unreal(ROWS * inputs.vocab, torch.float32).view(ROWS, inputs.vocab)
    launches = plan(mixture, EVERYTHING, out, fast=inputs.nvidia)
    yield inputs.case("scores.write", launches[0], 3)
    kept = plan(mixture, Truncation(0.9), out, fast=inputs.nvidia)[-2]
    yield inputs.case("scores.write kept", kept, 3)
    if inputs.dtype == torch.float32:  # what it reads is float32 whatever the sources are
        yield inputs.case("scores.normalise", launches[1], 1)


def topk_select(inputs: Inputs) -> Iterator[Case]:
    """The 200 best tokens."""
    from plugalign.kernels.topk_select_triton import plan

    values = unreal(ROWS * 200, torch.float32).view(ROWS, 200)
    launches = plan(inputs.logits(), values, values.long())
    for launch in launches:
        name = f"topk.{launch.kernel.fn.__name__}"
        yield inputs.case(name, launch, 1)


def candidate_sample(inputs: Inputs) -> Iterator[Case]:
    """A draw among 200 candidates."""
    from plugalign.kernels.calls import CandidateDraw
    from plugalign.kernels.candidate_sample_triton import plan

    values = unreal(ROWS * 200, inputs.dtype).view(ROWS, 200)
    call = CandidateDraw(
        values,
        values.long(),
        values,
        TEMPERATURE,
        TEMPERATURE,
        TEMPERATURE,
        NUMBER,
        NUMBER,
        NUMBER,
        5,
    )
    (launch,) = plan(call, NUMBER, values.float(), fast=inputs.nvidia)
    yield inputs.case("candidate.choose", launch, 1)


def spec_verify(inputs: Inputs) -> Iterator[Case]:
    """Verification of a draft of four tokens; `draw` loads target and draft of each token."""
    from plugalign.kernels.calls import Verification
    from plugalign.kernels.spec_verify_triton import plan

    places = 4
    target, draft = (
        unreal(ROWS * n * inputs.stride, inputs.dtype).view(ROWS, n, inputs.stride)
        for n in (places + 1, places)
    )
    target, draft = target[..., : inputs.vocab], draft[..., : inputs.vocab]
    tokens = unreal(ROWS * places, torch.int64).view(ROWS, places)
    rest = (tokens, NUMBER, NUMBER, NUMBER, NUMBER, TEMPERATURE, TEMPERATURE, 5)
    launches = plan(Verification(target, draft, *rest), NUMBER, NUMBER, fast=inputs.nvidia)
    follow = plan(Verification(target, None, *rest), NUMBER, NUMBER, fast=inputs.nvidia)[-1]
    for name, launch, streams in (
        ("weigh", launches[0], 1),
        ("accept", launches[1], 1),
        ("draw", launches[2], 2),
        ("follow", follow, 1),
    ):
        yield inputs.case(f"spec.{name}", launch, streams)


def group_lora(inputs: Inputs) -> Iterator[Case]:
    """Two adapters of rank 16 beside square layers, for eight rows each."""
    from plugalign.kernels.group_lora_triton import plan

    kind = " float32" if inputs.dtype == torch.float32 else ""  # three products in place of one
    for name, width in (("group_lora", 4096), ("group_lora odd", 4097)):
        rows = unreal(2 * ROWS * width, inputs.dtype).view(2, ROWS, width)
        factor = unreal(2 * 16 * width, inputs.dtype)
        a, b = factor.view(2, width, 16), factor.view(2, 16, width)
        (launch,) = plan(rows, rows, a, b, 1.0, None, fast=inputs.nvidia, upcast=False)
        yield inputs.case(f"{name}{kind}", launch, 1)


def projection(inputs: Inputs) -> Iterator[Case]:
    """Bounds on 200 candidates; the arithmetic is float64 whatever the sources are."""
    from plugalign.kernels.calls import BoundedShift
    from plugalign.kernels.projection_triton import fields, plan

    if inputs.dtype != torch.bfloat16:
        return
    log_rho = unreal(ROWS * 200, torch.float64).view(ROWS, 200)
    for count in (2, 4):
        g = unreal(ROWS * count * 200, torch.float64).view(ROWS, count, 200)
        call = BoundedShift(log_rho, log_rho, g, g[..., 0].contiguous(), log_rho[:, 0].contiguous())
        (launch,) = plan(call, fields(call), nvidia=inputs.nvidia)
        yield inputs.case(f"projection.solve J={count}", launch, 1)


GROUPS = (
    gumbel,
    row_lse,
    steer,
    self_debias,
    thresholds,
    scores,
    topk_select,
    candidate_sample,
    spec_verify,
    group_lora,
    projection,
)
