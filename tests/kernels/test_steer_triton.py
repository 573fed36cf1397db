"""The fused kernels against the torch reference, token for token.

They run on a GPU, or in Triton's interpreter when TRITON_INTERPRET=1 stands before Triton is
imported; test_interpreted.py runs this file so.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import each_level, pairwise

from plugalign.kernels import steer
from plugalign.kernels.calls import Draw
from plugalign.kernels.mixture import Mixture, weighted
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.probability_mix import ProbabilityMix
from plugalign.kernels.terms.term import Term
from plugalign.kernels.truncation import Truncation, kept_mask

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # The interpreter computes in NumPy, which warns where a GPU says NaN or infinity.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

INF, NAN = math.inf, math.nan
ALL = Truncation()
NUCLEUS = Truncation(0.9)
CUTS = {
    "top-p": NUCLEUS,
    "small top-p": Truncation(0.2),
    "top-p 0": Truncation(0.0),
    "top-k": Truncation(top_k=3),
    "min-p": Truncation(min_p=0.1),
    "joint": Truncation(0.8, 5, 0.01, joint=True),
}


def logits(rows, vocab, seed=0, dtype=torch.float32, stride=None):
    """Rows whose padding would win every draw."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.full((rows, stride or vocab), 300.0, dtype=dtype)
    buffer[:, :vocab] = (torch.randn(rows, vocab, generator=generator) * 3).to(dtype)
    return buffer.to(DEVICE)[:, :vocab]


def mixture(rows, vocab, dtype=torch.float32, stride=None, kind="dexperts"):
    x = [logits(rows, vocab, seed, dtype, stride) for seed in range(4)]
    if kind == "dexperts":
        return weighted(x[:3], (1.0, 2.0, -2.0))
    if kind == "one":
        return Mixture(x[0])
    if kind in ("union", "intersection"):
        each = torch.linspace(0.5, 2, rows, device=DEVICE)
        mask = (torch.arange(vocab, device=DEVICE) % 5 != 3).expand(rows, -1)
        extreme = Extreme((x[0], x[1], x[2]), least=kind == "intersection", weight=each)
        return Mixture(x[0], (extreme,), mask, weight=2 - each)
    if kind == "probability mix":
        return Mixture(x[0], (ProbabilityMix(x[1], 3.0), LogSigmoid(x[3].float(), 0.5)))
    damping, attribute = Damping((x[1], x[2]), 20.0, 0.01), LogSigmoid(x[3].float(), 1.5)
    return Mixture(x[0], (Linear((x[2],), (-0.5,)), damping, attribute))


def draw(rows, temperature=(1.0, 0.0, 0.6, 2.5), seed=2**40 + 7, greedy=False):
    index = torch.arange(rows, device=DEVICE)
    temperature = torch.tensor(temperature, device=DEVICE)[:rows].clone()
    return Draw(seed, index + 2**31 - 1, index * 5, index * 0 + 17, temperature, greedy)


def spoil(launches):
    """Memory starts as rubbish; what a launch reads, an earlier one must have written."""
    for launch in launches:
        for name, value in launch.arguments.items():
            if name.startswith(("part_", "keys", "rest", "tops", "goals", "new_")):
                value.fill_(NAN if value.is_floating_point() else -77)


def run(m, d, before=ALL, after=ALL, **choices):
    from plugalign.kernels.steer_triton import plan

    tokens = torch.full((len(m.base),), -77, device=DEVICE)
    launches = plan(m, d, before, after, tokens, **({"fast": False} | choices))
    spoil(launches)
    for launch in launches:
        launch.run()
    return tokens


def torch_reference(m, d, before=ALL, after=ALL):
    address = {"seed": d.seed, "prompt": d.prompt, "sample": d.sample, "step": d.step}
    return steer.sample(
        m, **address, temperature=d.temperature, before=before, after=after, backend="torch"
    )


def assert_equal_to_the_reference(m, d, before=ALL, after=ALL, **choices):
    assert (
        run(m, d, before, after, **choices).tolist()
        == torch_reference(m, d, before, after).tolist()
    )


KINDS = {
    "one": torch.float16,
    "dexperts": torch.bfloat16,
    "all terms": torch.float32,
    "union": torch.bfloat16,
    "intersection": torch.float32,
    "probability mix": torch.float16,
}


ALWAYS, RARELY = ("dexperts", "all terms", "one"), ("union", "intersection", "probability mix")


def small_vocabulary(vocab, kind, before):
    m = mixture(3, vocab, KINDS[kind], vocab + 5, kind)
    assert_equal_to_the_reference(m, draw(3), before, tile=256, parts=3)


@each_level(kind=ALWAYS, vocab=(1, 2, 7, 127, 257, 1000), before=(ALL, NUCLEUS))
def test_small_vocabularies(kind, vocab, before):
    small_vocabulary(vocab, kind, before)


@pairwise(kind=RARELY, vocab=(7, 257), before=(ALL, NUCLEUS))
def test_small_vocabularies_of_rare_terms(kind, vocab, before):
    small_vocabulary(vocab, kind, before)


@pytest.mark.parametrize("name", CUTS)
def test_truncations_of_the_base_and_of_the_result(name):
    m = mixture(2, 300, torch.float32 if "p" in name[-1] else torch.bfloat16)
    for before, after in ((CUTS[name], ALL), (ALL, CUTS[name])):
        assert_equal_to_the_reference(m, draw(2, (0.6, 2.5)), before, after, tile=256, parts=2)


@pytest.mark.parametrize("after", [NUCLEUS, Truncation(min_p=0.05), Truncation(0.9, 5)])
def test_both_truncations(after):
    m = mixture(2, 300, torch.bfloat16)
    assert_equal_to_the_reference(m, draw(2), Truncation(0.8), after, tile=256, parts=2)


def test_the_best_of_the_best():
    m = mixture(3, 300, torch.bfloat16)
    assert_equal_to_the_reference(m, draw(3), ALL, Truncation(0.9, 5), tile=256, parts=2)


@pytest.mark.parametrize("vocab", [32000, 50257, 128256])
def test_large_vocabularies(vocab):
    m = mixture(1, vocab, torch.bfloat16, kind="all terms")
    tile = 2**16 if INTERPRETED else 2048
    assert_equal_to_the_reference(m, draw(1), NUCLEUS, tile=tile)
    assert_equal_to_the_reference(m, draw(1), ALL, tile=tile)


@pairwise(vocab=(255, 256, 257), place=((272, 0), (261, 0), (288, 16), (288, 3)), parts=(1, 3))
def test_rows_of_every_alignment_that_end_anywhere_in_a_tile(vocab, place, parts):
    stride, first = place
    x = [logits(2, vocab + first, seed, torch.bfloat16, stride)[:, first:] for seed in range(3)]
    for x_k in x:
        x_k[1, vocab - 1] += 9  # where the row ends, something is drawn too
    m = weighted(x, (1.0, 2.0, -1.0))
    assert_equal_to_the_reference(m, draw(2), ALL, NUCLEUS, tile=128, parts=parts)


def test_seeds_of_64_bits_and_greedy_calls():
    m = mixture(2, 257)
    for seed in (0, 2**32 + 5, 2**64 - 1):
        assert_equal_to_the_reference(m, draw(2, seed=seed), tile=256)
    cold = draw(2, (0.0, 0.0), greedy=True)
    assert_equal_to_the_reference(m, cold, NUCLEUS, tile=256)
    assert_equal_to_the_reference(m, cold, ALL, NUCLEUS, tile=256)


def test_tiles_and_parts_change_nothing():
    m, d = mixture(2, 1003, torch.bfloat16), draw(2, (0.6, 2.5))
    want = torch_reference(m, d, NUCLEUS)
    for tile, parts in ((64, 5), (256, 1), (2048, 1)):
        assert torch.equal(run(m, d, NUCLEUS, tile=tile, parts=parts), want)


def test_a_row_does_not_depend_on_its_batch():
    m, d = mixture(5, 300), draw(5, (1.0,) * 5)
    together = run(m, d, NUCLEUS, tile=256)
    for row in (0, 4):
        one = slice(row, row + 1)
        alone = weighted([x[one] for _, x in m.inputs()], (1.0, 2.0, -2.0))
        mine = Draw(d.seed, d.prompt[one], d.sample[one], d.step[one], d.temperature[one])
        assert torch.equal(run(alone, mine, NUCLEUS, tile=256), together[one])


def test_an_expert_that_only_likes_what_is_cut_off():
    """All of the best noised scores fail the test, again and again."""
    base = torch.linspace(5, -5, 300, device=DEVICE).expand(2, 300).contiguous()
    m = weighted((base, -base), (1.0, 9.0))
    for cut in (NUCLEUS, Truncation(top_k=4), Truncation(min_p=0.5)):
        assert_equal_to_the_reference(m, draw(2), cut, tile=256, parts=2)


def test_rows_without_an_answer():
    base, other = logits(5, 50), logits(5, 50, 1)
    base[0], base[1, 3], base[2, 4] = -INF, NAN, INF
    other[3, base[3].argmax()] = NAN
    m, d = weighted((base, other), (1.0, 1.0)), draw(5, (1.0,) * 5)
    for before in (ALL, NUCLEUS, Truncation(top_k=4)):
        assert_equal_to_the_reference(m, d, before, tile=64)
    for after in (NUCLEUS, Truncation(0.9, 4)):
        assert_equal_to_the_reference(m, d, NUCLEUS, after, tile=64)
    assert run(m, d, tile=64)[:4].tolist() == [-1] * 4


@given(
    values=st.lists(st.sampled_from([-INF, -2.0, 0.0, -0.0, 1.0]), min_size=1, max_size=30),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    top_k=st.integers(0, 40),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=12, deadline=None)
def test_ties_and_impossible_tokens(values, top_p, top_k, seed):
    base = torch.tensor([values], device=DEVICE)
    m = weighted((base, torch.arange(len(values), device=DEVICE)[None] % 3 * 1.0), (1.0, 2.0))
    assert_equal_to_the_reference(
        m, draw(1, seed=seed), Truncation(top_p, top_k, joint=True), tile=64
    )


def kept_by_threshold(x, cut, **choices):
    from plugalign.kernels.threshold_triton import threshold_plan

    (least, last), launches = threshold_plan(x, cut, **choices)
    spoil(launches)
    for launch in launches:
        launch.run()
    token = torch.arange(x.shape[1], device=DEVICE)
    value = x.float()
    tied = (value == least[:, None]) & (token <= last[:, None])
    return (value > least[:, None]) | tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_are_exact(dtype):
    x = logits(2, 319, 5, dtype, stride=320)
    for cut in (NUCLEUS, Truncation(0.5, 7, joint=True), Truncation(min_p=0.03)):
        found = kept_by_threshold(x, cut, tile=256, parts=2)
        assert torch.equal(found & (x > -INF), kept_mask(x, cut))


@pytest.mark.parametrize("cut", [Truncation(0.4), Truncation(top_k=123)], ids=str)
def test_a_threshold_among_ties_keeps_the_smaller_tokens(cut):
    x = torch.zeros(2, 512, dtype=torch.bfloat16, device=DEVICE)
    x[1, ::3] = -1.0
    found = kept_by_threshold(x, cut, tile=64, parts=3)
    assert torch.equal(found, kept_mask(x, cut))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one"])
@pytest.mark.parametrize("before", [ALL, NUCLEUS], ids=["all", "top-p"])
def test_scores_are_those_of_the_reference(kind, before):
    from plugalign.kernels.scores_triton import plan

    m = mixture(3, 257, torch.bfloat16, 272, kind)
    *_, (_, last) = m.inputs()
    last[2, m.base[2].argmax()] = NAN
    found = torch.full((3, 257), 7.0, device=DEVICE)
    launches = plan(m, before, found, tile=256, fast=False)
    spoil(launches)
    for launch in launches:
        launch.run()
    want = steer.scores(m, before=before, backend="torch")
    # A mixture of probabilities may cancel all but its floor.
    close = 1e-4 if kind == "probability mix" else 2e-5
    torch.testing.assert_close(found, want, rtol=0, atol=close, equal_nan=True)


def test_the_public_functions_take_triton_and_say_so():
    m, d = mixture(2, 64), draw(2)
    address = {"seed": d.seed, "prompt": d.prompt, "sample": d.sample, "step": d.step}
    tokens = steer.sample(m, **address, before=NUCLEUS, backend="triton")
    hot = Draw(d.seed, d.prompt, d.sample, d.step, torch.ones(2, device=DEVICE))
    assert torch.equal(tokens, torch_reference(m, hot, NUCLEUS))
    said = steer.explain(m, before=NUCLEUS, backend="triton")
    assert said == "Triton: sweep, merge, check, finish"
    assert steer.explain(m, backend="triton") == "Triton: sweep, merge"
    chained = steer.explain(m, after=Truncation(0.9, 5), backend="triton")
    assert chained == "Triton: write, sweep, narrow, pick, arrange, choose"
    scores = steer.scores(m, before=NUCLEUS, backend="triton")
    torch.testing.assert_close(scores, steer.scores(m, before=NUCLEUS, backend="torch"))
    kept = steer.kept(m.base, NUCLEUS, backend="triton")
    assert torch.equal(kept, kept_mask(m.base, NUCLEUS))


class Squared(Term):
    """A term that has no kernel."""

    def __init__(self, logits):
        self.logits = logits

    def inputs(self):
        yield "logits", self.logits

    def delta(self, base):
        return -(self.logits.float() ** 2) / 10


def test_terms_without_a_kernel_enter_as_logits():
    base, other, third = (logits(3, 300, seed, torch.bfloat16) for seed in range(3))
    m = Mixture(base, (Squared(other), Linear((third,), (0.5,))))
    assert_equal_to_the_reference(m, draw(3), NUCLEUS, tile=256)
    dampings = Damping((other,), 20.0, 0.1), Damping((third,), 50.0, 0.01)
    assert_equal_to_the_reference(Mixture(base, dampings), draw(3), NUCLEUS, tile=256)


def test_a_mask_that_allows_nothing_leaves_no_answer():
    m = Mixture(logits(2, 300), mask=torch.zeros(2, 300, dtype=torch.bool, device=DEVICE))
    assert run(m, draw(2), tile=256).tolist() == [-1, -1]
    assert_equal_to_the_reference(m, draw(2), ALL, NUCLEUS, tile=256)


def test_weights_by_row():
    x = [logits for _, logits in mixture(3, 300).inputs()]
    weights = torch.tensor([[1.0, 2.0, -2.0], [0.5, 0.0, 1.0], [1.0, -3.0, 0.0]], device=DEVICE)
    assert_equal_to_the_reference(weighted(x, weights), draw(3), NUCLEUS, tile=256)
    assert_equal_to_the_reference(weighted(x, weights[0]), draw(3), NUCLEUS, tile=256)


def test_a_search_among_ties_and_neighbours_ends():
    """Between two neighbouring floats, or among ties, there is nothing to halve but the tokens."""
    base = torch.ones(3, 64, device=DEVICE)
    base[:, 0] = math.nextafter(1.0, 2.0) + 2**-23
    base[1] = torch.where(torch.arange(64, device=DEVICE) % 2 == 0, 1.0, -1.0)
    base[2, 5:] = -0.0
    m = weighted((base, torch.arange(64.0, device=DEVICE).expand(3, 64)), (1.0, 1.0))
    for cut in (Truncation(top_k=10), Truncation(0.4), Truncation(min_p=0.9)):
        assert_equal_to_the_reference(m, draw(3), cut, tile=64)


def test_many_numbers_that_are_none():
    base = logits(1, 600)
    base[0, ::2] = NAN
    for cut in (Truncation(top_k=4), Truncation(min_p=0.1), NUCLEUS):
        assert run(Mixture(base), draw(1), cut, tile=256).tolist() == [-1]


def test_temperatures_at_the_ends_of_float32():
    m = mixture(2, 100)
    for temperature in (1e38, 1e-38):
        for cut in (ALL, Truncation(0.9)):
            assert_equal_to_the_reference(m, draw(2, (temperature, temperature)), cut, tile=128)
            assert_equal_to_the_reference(
                m, draw(2, (temperature, temperature)), ALL, cut, tile=128
            )


@pytest.mark.parametrize("kind", ["linear", "log sigmoid", "damping", "extreme", "probability mix"])
def test_a_row_of_weight_zero_adds_nothing(kind):
    """As in the torch reference: the row stays the base's, whatever the sources give there."""
    base, other = logits(3, 257), logits(3, 257, seed=1)
    other[0, 3:7] = torch.tensor([-INF, INF, NAN, 2.0], device=DEVICE)
    weight = torch.tensor([0.0, 1.0, 2.0], device=DEVICE)
    term = {
        "linear": lambda: Linear((other,), weight[:, None]),
        "log sigmoid": lambda: LogSigmoid(other, weight),
        "damping": lambda: Damping((other,), 50.0, 0.01, weight),
        "extreme": lambda: Extreme((other,), weight=weight),
        "probability mix": lambda: ProbabilityMix(other, 2.0, weight=weight),
    }[kind]()
    got, d = run(Mixture(base, (term,)), draw(3)), draw(3)
    assert got[0] == run(Mixture(base), d)[0]
    assert_equal_to_the_reference(Mixture(base, (term,)), d)
