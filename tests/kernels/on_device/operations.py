"""One call of every operation, for `test_on_device.py`: its inputs, and what it must agree in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from plugalign.kernels import gumbel, steer
from plugalign.kernels.calls import CandidateDraw, Draw
from plugalign.kernels.candidate_sample import candidate_sample
from plugalign.kernels.group_lora import group_lora
from plugalign.kernels.mixture import Mixture, mix, weighted
from plugalign.kernels.projection import project
from plugalign.kernels.row_lse import row_lse
from plugalign.kernels.spec_verify import _checked, spec_verify
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.probability_mix import ProbabilityMix
from plugalign.kernels.topk_select import topk_select
from plugalign.kernels.truncation import EVERYTHING, Truncation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
INF, NAN = float("inf"), float("nan")
SEED = 2**63 + 12345
NUCLEUS = Truncation(0.9)
TIE = 2e-5  # of scores, relative: what the GPU's own logarithm and fused operations may change
EDGE = 1e-4  # of probability: what sums in another order may change where a nucleus ends
SCRATCH = ("part_", "new_", "norm_", "keys", "rest", "tops", "goals", "chosen")


def sizes() -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Batches, vocabularies, and the width of hidden states."""
    return ((2,), (64, 257), 80) if INTERPRETED else ((1, 8, 64), (32000, 50257, 128256), 4096)


@dataclass(frozen=True)
class At:
    """Inputs of one size, random but for each size the same."""

    dtype: torch.dtype
    rows: int
    vocab: int

    def normal(self, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    def logits(self, seed: int) -> torch.Tensor:
        """``(B, V)``, a few of each row at -inf."""
        x = self.normal(self.rows, self.vocab, seed=seed) * 3
        x[:, seed::97] = -INF
        return x.to(self.dtype)

    def temperature(self) -> torch.Tensor:
        return torch.tensor([1.0, 0.6, 0.0, 2.5], device=DEVICE).repeat(self.rows)[: self.rows]

    def address(self) -> dict[str, Any]:
        number = torch.arange(self.rows, device=DEVICE)
        numbers = {"prompt": number + 2**31 - 1, "sample": number * 5, "step": number * 7 + 3}
        return numbers | {"seed": SEED}

    def draw(self, greedy: bool = False) -> Draw:
        return Draw(**self.address(), temperature=self.temperature() * (not greedy), greedy=greedy)

    def tokens(self) -> torch.Tensor:
        return torch.full((self.rows,), -77, device=DEVICE)


def same_tokens(found: Any, expected: Any) -> None:
    """Token for token the same."""
    found, expected = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
    assert found.tolist() == expected.tolist()


@dataclass(frozen=True)
class Operation:
    """One call.

    Attributes:
        run: the public function, by backend.
        same: asserts that its first result is as good as the second, the torch reference's.
        exact: where sampling has a mode without approximations, its result.
        exactly: asserts the same of that.
    """

    run: Callable[[str], Any]
    same: Callable[[Any, Any], None]
    exact: Callable[[], Any] | None = None
    exactly: Callable[[Any, Any], None] = same_tokens


def launched(launches: list[Any], *results: torch.Tensor) -> Any:
    """The results of planned launches, from scratch memory that starts as rubbish."""
    for launch in launches:
        for name, x in launch.arguments.items():
            if name.startswith(SCRATCH) and isinstance(x, torch.Tensor):
                x.fill_(NAN if x.is_floating_point() else -77)
    for launch in launches:
        launch.run()
    return results if len(results) > 1 else results[0]


def near(found: torch.Tensor, expected: torch.Tensor, rtol: float = 0.0, atol: float = 2e-5):
    torch.testing.assert_close(found.float(), expected.float(), rtol=rtol, atol=atol)


def equal(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def same_draw(z: torch.Tensor, draw: Draw, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal tokens, or tokens of scores that only rounding tells apart."""
    assert ((found >= 0) & (found < z.shape[1])).all(), found.tolist()
    pair = torch.stack((found, expected), 1)
    step, prompt, sample = (x[:, None] for x in (draw.step, draw.prompt, draw.sample))
    noise = gumbel.gumbel_noise(pair, step, prompt, sample, draw.seed)
    one, other = (z.gather(1, pair) + draw.temperature[:, None] * noise).unbind(1)
    tied = (one - other).abs() <= TIE * (1 + other.abs())
    assert ((found == expected) | tied).all(), (found.tolist(), expected.tolist())


def same_edge(base: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal masks, but for a little probability where the nucleus ends."""
    differs = (found != expected) * base.float().softmax(-1)
    assert (differs.sum(-1) <= EDGE).all(), differs.sum(-1).tolist()
    assert found.any(-1).all()


def plain(at: At) -> Operation:
    from plugalign.kernels.gumbel_triton import plan

    x, draw, tokens = at.logits(0), at.draw(), at.tokens()
    address = (draw.seed, draw.prompt, draw.sample, draw.step, draw.temperature)
    return Operation(
        lambda backend: gumbel.sample(
            x, **at.address(), temperature=draw.temperature, backend=backend
        ),
        partial(same_draw, x.float(), draw),
        lambda: launched(plan(x, *address, tokens, fast=False), tokens),
    )


def mixture(at: At, kind: str) -> Mixture:
    x = [at.logits(seed) for seed in range(4)]
    x[1:] = [torch.where(y == -INF, 0, y) for y in x[1:]]  # an anti-expert's -inf is +inf in z
    if kind == "one":
        return Mixture(x[0])
    if kind == "three":
        return weighted(x[:3], (1.0, 2.0, -2.0))
    if kind == "union":
        return Mixture(x[0], (Extreme((x[1], x[2]), weight=at.temperature()),))
    if kind == "mask":
        mask = (torch.arange(at.vocab, device=DEVICE) % 5 != 3).expand(at.rows, -1)
        return Mixture(x[0], (ProbabilityMix(x[1], 3.0, 1e-4),), mask)
    return Mixture(x[0], (Damping((x[1], x[2]), 50.0, 0.01), LogSigmoid(x[3])))


def steered(kind: str, before: Truncation, after: Truncation, greedy: bool, at: At) -> Operation:
    from plugalign.kernels.steer_triton import plan

    m, draw, tokens = mixture(at, kind), at.draw(greedy), at.tokens()
    temperature = 0.0 if greedy else draw.temperature
    return Operation(
        lambda backend: steer.sample(
            m, **at.address(), temperature=temperature, before=before, after=after, backend=backend
        ),
        partial(same_draw, mix(m), draw),
        lambda: launched(plan(m, draw, before, after, tokens, fast=False), tokens),
    )


def scored(at: At) -> Operation:
    m = mixture(at, "three")

    def same(found: torch.Tensor, expected: torch.Tensor) -> None:
        same_edge(m.base, found > -INF, expected > -INF)
        both = (found > -INF) & (expected > -INF)
        near(found[both], expected[both], atol=EDGE)

    return Operation(lambda backend: steer.scores(m, before=NUCLEUS, backend=backend), same)


def kept(at: At) -> Operation:
    x = at.logits(0)
    return Operation(lambda backend: steer.kept(x, NUCLEUS, backend=backend), partial(same_edge, x))


def of_logits(function: Callable[..., Any], same: Callable[[Any, Any], None], at: At) -> Operation:
    """A function of one source's logits."""
    x = at.logits(0)
    return Operation(lambda backend: function(x, backend=backend), same)


def candidates(at: At) -> Operation:
    from plugalign.kernels.candidate_sample_triton import plan

    values, ids = topk_select(at.logits(0), 50, backend="torch")
    values, added = values.to(at.dtype), at.normal(at.rows, 50, seed=1, dtype=at.dtype)
    draw, weight, tokens = at.draw(), at.temperature() + 1, at.tokens()
    top_p = (at.temperature() / 3).clamp(0.3, 0.8)
    call = CandidateDraw(
        values,
        ids,
        added,
        weight,
        draw.temperature,
        top_p,
        draw.prompt,
        draw.sample,
        draw.step,
        SEED,
    )
    z = torch.full((at.rows, at.vocab), -INF, device=DEVICE)
    z.scatter_(1, ids, values.float() + weight[:, None] * added.float())

    def same(found: Any, expected: Any) -> None:
        same_draw(z, draw, found[0], expected[0])
        near(found[1], expected[1])

    log_p = torch.full(values.shape, NAN, device=DEVICE)
    return Operation(
        lambda backend: candidate_sample(**vars(call), backend=backend),
        same,
        lambda: launched(plan(call, tokens, log_p, fast=False), tokens, log_p),
    )


def verified(certain: bool, at: At) -> Operation:
    """Three drafted tokens; sums in another order may, rarely, judge one in another way."""
    from plugalign.kernels.spec_verify_triton import plan

    target = at.normal(at.rows, 4, at.vocab, seed=0) * 3
    noise = at.normal(at.rows, 3, at.vocab, seed=1) * 0.3
    target, draft = target.to(at.dtype), (target[:, :-1] + noise).to(at.dtype)
    address, temperature = at.address(), at.temperature()
    drafted = [
        gumbel.sample(
            x.contiguous(), **address | {"step": step}, temperature=temperature, backend="torch"
        )
        for x, step in zip(draft.unbind(1), (address["step"] + i for i in range(3)), strict=True)
    ]
    call = address | {
        "target": target,
        "tokens": torch.stack(drafted, 1),
        "temperature": temperature,
    }
    call["draft"] = None if certain else draft

    def same(found: Any, expected: Any) -> None:
        differs = (found[0] != expected[0]) | (found[1] != expected[1])
        assert int(differs.sum()) <= at.rows // 32, (found, expected)

    def exact() -> Any:
        accepted, following = at.tokens(), at.tokens()
        checked = _checked(**{"lengths": None, "draft_temperature": 1.0} | call)
        return launched(plan(checked, accepted, following, fast=False), accepted, following)

    return Operation(lambda backend: spec_verify(**call, backend=backend), same, exact, same)


def adapted(at: At) -> Operation:
    """Two adapters; sums in another order may round the product with ``a`` the other way."""
    width, rank, rows = sizes()[2], 16, 3 * at.rows
    y, x = (at.normal(rows, width, seed=seed, dtype=at.dtype) for seed in (0, 1))
    a = (at.normal(2, width, rank, seed=2) / width**0.5).to(at.dtype)
    b = (at.normal(2, rank, width, seed=3) / rank**0.5).to(at.dtype)
    eps = torch.finfo(at.dtype).eps
    return Operation(
        lambda backend: group_lora(y.clone(), x, a, b, scaling=1.5, backend=backend),
        partial(near, rtol=eps, atol=8 * eps + 2e-5),
    )


def projected(at: At) -> Operation:
    """Three bounds on the best candidates, and a budget."""
    count = min(at.vocab, 8 if INTERPRETED else 200)
    log_rho = topk_select(at.logits(0), count, backend="torch")[0].double().log_softmax(-1)
    shift = at.normal(at.rows, count, seed=1, dtype=at.dtype) * 3
    g = at.normal(at.rows, 3, count, seed=2).sigmoid().to(at.dtype)
    bounds = (g.double() @ log_rho.exp()[..., None])[..., 0] + 0.01

    def same(found: Any, expected: Any) -> None:
        near(found.log_q, expected.log_q, rtol=1e-6, atol=1e-6)
        assert float((found.expected - bounds).max()) <= 1e-9

    return Operation(lambda backend: project(log_rho, shift, g, bounds, 0.1, backend=backend), same)


OPERATIONS: dict[str, Callable[[At], Operation]] = {
    "gumbel.sample": plain,
    "row_lse": partial(of_logits, row_lse, near),
    "steer.sample": partial(steered, "three", EVERYTHING, EVERYTHING, False),
    "steer.sample-top_p": partial(steered, "three", NUCLEUS, EVERYTHING, False),
    "steer.sample-own_top_p": partial(steered, "one", EVERYTHING, NUCLEUS, False),
    "steer.sample-debias": partial(steered, "all", NUCLEUS, EVERYTHING, False),
    "steer.sample-union": partial(steered, "union", NUCLEUS, EVERYTHING, False),
    "steer.sample-mask": partial(steered, "mask", NUCLEUS, EVERYTHING, False),
    "steer.sample-greedy": partial(steered, "three", NUCLEUS, EVERYTHING, True),
    "steer.sample-joint": partial(
        steered, "three", Truncation(0.9, 50, 0.01, joint=True), EVERYTHING, False
    ),
    "steer.sample-both": partial(steered, "three", NUCLEUS, NUCLEUS, False),
    "steer.sample-chained": partial(steered, "three", EVERYTHING, Truncation(0.9, 50), False),
    "steer.scores": scored,
    "steer.kept": kept,
    "topk_select": partial(of_logits, partial(topk_select, k=50), equal),
    "candidate_sample": candidates,
    "spec_verify": partial(verified, False),
    "spec_verify-certain": partial(verified, True),
    "group_lora": adapted,
    "projection": projected,
}
