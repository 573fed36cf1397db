"""The Triton kernels of spec_verify against the torch reference, on a GPU or in the interpreter.

test_interpreted.py runs this file where there is no GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import each_level

from plugalign.kernels.gumbel import sample
from plugalign.kernels.spec_verify import _checked, spec_verify

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in the interpreter or on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    # NumPy, which interprets the kernels, warns of -inf - -inf and of what is too large to be one.
    pytest.mark.filterwarnings("ignore:(invalid|overflow) .*encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def padded(scores, dtype, stride, poison):
    """``scores`` ``(B, G, V)`` in rows of ``stride`` whose padding would win every draw."""
    buffer = torch.full((*scores.shape[:2], stride), poison, dtype=dtype)
    buffer[..., : scores.shape[2]] = scores.to(dtype)
    return buffer.to(DEVICE)[..., : scores.shape[2]]


def make_call(
    rows, places, vocab, dtypes=(torch.float32,) * 2, seed=2**40 + 7, strides=None, poison=300.0
):
    """Masked targets with a draft of scores like them, and rows at all sorts of temperatures."""
    generator = torch.Generator().manual_seed(1000 * vocab + places)
    target = torch.randn(rows, places + 1, vocab, generator=generator) * 3
    draft = target[:, :-1] + torch.randn(rows, places, vocab, generator=generator) * 0.3
    target[..., 1:][torch.rand(target[..., 1:].shape, generator=generator) < 0.1] = -INF
    strides = strides or (vocab, vocab)
    numbers = torch.arange(rows, device=DEVICE)
    call = {
        "target": padded(target, dtypes[0], strides[0], poison),
        "draft": padded(draft, dtypes[1], strides[1], poison),
        "seed": seed,
        "prompt": numbers + 2**31 - 1,
        "sample": numbers * 5,
        "step": numbers * 7 + 3,
        "temperature": torch.tensor([1.0, 0.6, 0.0], device=DEVICE).repeat(rows)[:rows],
        "draft_temperature": torch.tensor([1.1, 0.7], device=DEVICE).repeat(rows)[:rows],
        "lengths": torch.where(numbers % 3 == 0, numbers % (places + 1), places),
    }
    address = {name: call[name] for name in ("seed", "prompt", "sample")}
    temperature = call["draft_temperature"] * (call["temperature"] > 0)
    drafted = [
        sample(scores, step=call["step"] + i, temperature=temperature, backend="torch", **address)
        for i, scores in enumerate(call["draft"].unbind(1))
    ]
    return call | {"tokens": torch.stack(drafted, 1)}


def run(call, **choices):
    """Both results of the planned launches, from memory that starts as rubbish."""
    from plugalign.kernels.spec_verify_triton import plan

    accepted, following = (torch.full_like(call["prompt"], -77) for _ in range(2))
    launches = plan(_checked(**call), accepted, following, fast=False, **choices)
    scratch = {"part_top", "part_sum", "norm_top", "norm_inverse", "part_score"}
    for launch in launches:
        for name in scratch & launch.arguments.keys():
            launch.arguments[name].fill_(NAN)
    for launch in launches:
        launch.run()
    return accepted, following


def assert_equal_to_the_reference(call, **choices):
    found, expected = run(call, **choices), spec_verify(**call, backend="torch")
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]


@each_level(vocab=[1, 2, 7, 127, 257, 1000], dtype=DTYPES, drafted=[True, False])
def test_small_vocabularies(vocab, dtype, drafted):
    call = make_call(3, 2, vocab, (dtype, dtype))
    draft = call["draft"] if drafted else None
    assert_equal_to_the_reference(call | {"draft": draft}, tile=512, parts=2)


@pytest.mark.parametrize("dtypes", [(x, y) for x in DTYPES for y in DTYPES if x != y])
def test_two_dtypes(dtypes):
    assert_equal_to_the_reference(make_call(3, 1, 700, dtypes), tile=512, parts=2)


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_many_rows_of_the_public_function(temperature):
    call = make_call(16, 2, 30) | {"temperature": temperature}
    pair = [spec_verify(**call, backend=backend) for backend in ("triton", "torch")]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    assert len(pair[0][0].unique()) == 3


@each_level(vocab=[32000, 50257, 128256], dtype=DTYPES)
def test_real_vocabularies(vocab, dtype):
    tile = 2**15 if INTERPRETED else 2**11
    assert_equal_to_the_reference(make_call(2, 1, vocab, (dtype, dtype)), tile=tile, parts=2)


@pytest.mark.parametrize("strides", [(1031, 1040), (1040, 1031), (1008, 1008)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_looked_at(strides, dtype):
    for poison in (300.0, NAN):
        call = make_call(3, 2, 1001, (dtype, torch.float32), strides=strides, poison=poison)
        beyond = torch.arange(2, device=DEVICE) >= call["lengths"][:, None]
        call["draft"][beyond] = poison
        call["tokens"][beyond] = -7
        assert_equal_to_the_reference(call, tile=512, parts=1)


def test_batches_whose_rows_have_no_common_stride():
    call = make_call(4, 2, 300)
    wide = torch.full((4, 7, 300), 300.0, device=DEVICE)
    wide[:, 1:4], wide[:, 4:6] = call["target"], call["draft"]
    whole = run(call, tile=128)
    found = run(call | {"target": wide[:, 1:4], "draft": wide[:, 4:6]}, tile=128)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


def test_more_places_than_are_judged_together():
    call = make_call(3, 19, 11) | {"lengths": torch.tensor([19, 19, 12], device=DEVICE)}
    call["draft"][:] = call["target"][:, :-1]
    call["tokens"] = call["draft"].argmax(-1)
    assert_equal_to_the_reference(call | {"draft_temperature": 0.6}, tile=64)
    assert_equal_to_the_reference(call | {"draft": None}, tile=64)
    assert run(call | {"draft_temperature": 0.6})[0][1:].tolist() == [19, 12]


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_seeds_of_all_sizes(seed):
    assert_equal_to_the_reference(make_call(3, 1, 300, seed=seed), tile=512)


def test_tiles_and_parts_change_nothing():
    call = make_call(3, 1, 2003, (torch.bfloat16, torch.float32))
    whole = run(call)
    for tile, parts in ((256, 3), (512, 128), (4096, 1)):
        found = run(call, tile=tile, parts=parts)
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


def test_a_row_does_not_see_its_batch():
    call = make_call(3, 2, 700)
    for draft in (call["draft"], None):
        whole = run(call | {"draft": draft})
        for row in range(3):
            one = {
                name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
                for name, value in (call | {"draft": draft}).items()
            }
            assert [x.tolist() for x in run(one)] == [[x[row]] for x in whole]


def test_without_a_residual_the_token_comes_from_the_target():
    call = make_call(10, 1, 500) | {"draft_temperature": 1.0, "temperature": 1.0, "lengths": 1}
    call["target"][..., 9] = -INF
    call |= {"draft": call["target"][:, :1].clone(), "tokens": torch.full_like(call["tokens"], 9)}
    accepted, following = run(call, tile=512)
    assert not accepted.any()
    assert torch.equal(following, spec_verify(**call, backend="torch")[1])
    assert len(following.unique()) > 5


def test_ties_and_places_without_an_answer():
    call = make_call(8, 2, 600) | {"lengths": 2}
    call["target"][0] = -INF
    call["target"][1, :, [599, 37, 400]] = 50.0
    call["tokens"][1] = torch.tensor([37, 400], device=DEVICE)
    call["tokens"][0], call["tokens"][3] = 0, 411
    call["target"][2, 1, 300], call["target"][3, 0, 411] = NAN, INF
    call["draft"][4, 0, 300], call["draft"][5, 0, 411], call["draft"][7, 0] = NAN, INF, -INF
    for temperature in (0.0, 1.0):
        now = call | {"temperature": torch.full((8,), temperature, device=DEVICE)}
        for parts, draft in ((1, None), (2, call["draft"])):
            accepted, following = run(now | {"draft": draft}, tile=512, parts=parts)
            expected = spec_verify(**now | {"draft": draft}, backend="torch")
            assert torch.equal(accepted, expected[0]) and torch.equal(following, expected[1])
            assert accepted[[0, 3]].tolist() == [0, 0] and following[[0, 3]].tolist() == [-1, -1]
            if temperature == 0:
                assert accepted[1] == 1 and following[1] == 37
        assert (following[[4, 5, 7]] == -1).all() == (temperature > 0)


score = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([-INF, 0.0, 1.0, 88.0, 3e4, -3e4]))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_odd_scores(data):
    places, vocab = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 40))
    size = (2 * places + 1) * vocab
    scores = torch.tensor(data.draw(st.lists(score, min_size=size, max_size=size)), device=DEVICE)
    draft, target = scores.view(1, -1, vocab).tensor_split([places], 1)
    token = st.lists(st.integers(0, vocab - 1), min_size=places, max_size=places)
    call = make_call(1, places, vocab, seed=data.draw(st.integers(0, 2**64 - 1)))
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(2)]
    call |= {"target": target.to(dtypes[0]), "draft": draft.to(dtypes[1]), "lengths": places}
    call |= {"tokens": torch.tensor([data.draw(token)], device=DEVICE)}
    call |= {"temperature": data.draw(st.sampled_from([0.0, 0.7, 40.0]))}
    assert_equal_to_the_reference(call, tile=32, parts=data.draw(st.integers(1, 3)))


def test_empty_batches_and_drafts():
    whole = make_call(4, 2, 9)
    for rows, places in ((0, 2), (3, 0)):
        call = {k: v[:rows] if isinstance(v, torch.Tensor) else v for k, v in whole.items()}
        call |= {name: call[name][:, :places] for name in ("draft", "tokens")}
        call |= {"target": call["target"][:, : places + 1], "lengths": None}
        for draft in (call["draft"], None):
            pair = [spec_verify(**call | {"draft": draft}, backend=b) for b in ("triton", "torch")]
            assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="values on a GPU are not read")
def test_tokens_outside_the_vocabulary_are_rejected():
    call = make_call(8, 2, 600) | {"lengths": torch.full((8,), 9, device=DEVICE)}
    for token in (-5, 600, 2**40):
        tokens = torch.full_like(call["tokens"], token)
        for draft in (call["draft"], None):
            accepted, following = spec_verify(**call | {"tokens": tokens, "draft": draft})
            assert not accepted.any() and (following >= 0).all()


@pytest.mark.skipif(INTERPRETED, reason="the GPU's own logarithm")
def test_fast_arithmetic_draws_the_same_tokens():
    call, different = make_call(8, 3, 50257), 0
    for step in range(64):
        now = call | {"step": step}
        pair = [spec_verify(**now, backend=backend)[1] for backend in ("triton", "torch")]
        different += int((pair[0] != pair[1]).sum())
    assert different <= 2


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_new_steps():
    call = make_call(4, 3, 50257)
    for draft in (call["draft"], None):
        now = call | {"draft": draft}
        spec_verify(**now)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = spec_verify(**now)
        for step in (3, 4):
            call["step"].fill_(step)
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(found, spec_verify(**now), strict=True))
