"""Nullspace projection: the low-rank shift against a full second pass of the head."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import identify
from plugalign.algebra.shifts import Adaptive, LowRank
from plugalign.controllers.nullspace import Nullspace, output_embedding

WIDTH = 32


def orthonormal(rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator, dtype=torch.float64))[0]


def oblique(rank, seed=1):
    """A pair with read^T removed = I that is not orthogonal, as LEACE's is."""
    removed, other = orthonormal(rank, seed), orthonormal(rank, seed + 1)
    return removed, other @ torch.linalg.inv(removed.T @ other)


def second_pass(model, ids, project):
    """Logits ``(V,)`` of the model's own head on the projected state of an unpadded row."""
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        base = model(input_ids=torch.tensor([ids])).logits[0, -1]
        handle.remove()
        return base, head(project(seen[0][0, -1]))


def shift_of(shift, hidden):
    """delta = -(1 - alpha) left right^T (h - center), in float64."""
    offset = hidden if shift.center is None else hidden - shift.center.double()
    return -(1 - shift.alpha) * shift.left.double() @ (shift.right.double().T @ offset)


@pytest.fixture
def biased(tiny):
    """A float64 model whose head has a bias, which a projection must not touch."""
    model = tiny("llama-gqa").double()
    head = torch.nn.Linear(WIDTH, 120, bias=True, dtype=torch.float64)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


def projections():
    removed = orthonormal(3)
    obliquely, read = oblique(3)
    center = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    return {
        "inlp": (Nullspace(removed), lambda h: h - removed @ (removed.T @ h)),
        "half": (Nullspace(removed, strength=0.5), lambda h: h - 0.5 * removed @ (removed.T @ h)),
        "leace": (
            Nullspace(obliquely, read, center),
            lambda h: h - obliquely @ (read.T @ (h - center)),
        ),
    }


@pytest.mark.parametrize("kind", ["inlp", "half", "leace"])
def test_the_low_rank_form_is_a_second_pass_of_the_head(kind, biased, tokenizer):
    controller, project = projections()[kind]
    (shift,) = controller.steer(biased, tokenizer).shifts
    assert isinstance(shift, LowRank) and shift.left.shape == (120, 3)
    base, expected = second_pass(biased, [5, 6, 7], project)
    seen = []
    second_pass(biased, [5, 6, 7], lambda h: seen.append(h) or h)
    got = base + shift.weight * shift_of(shift, seen[0])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["inlp", "half", "leace"])
def test_generate_chooses_what_the_projected_state_says(
    kind, architecture, tiny, tokenizer, prompts
):
    model, inputs = tiny(architecture), prompts()
    model.generation_config.eos_token_id = None
    controller, project = projections()[kind]
    output = pa.wrap(model, tokenizer, controller).generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for row, mask in enumerate(inputs["attention_mask"]):
        ids = output.sequences[row].tolist()[int((mask == 0).sum()) :]
        for step, scores in enumerate(output.scores):
            end = len(ids) - 4 + step
            _, logits = second_pass(model, ids[:end], lambda h: project(h.double()).float())
            torch.testing.assert_close(scores[row], logits.log_softmax(-1), rtol=1e-3, atol=2e-3)


def test_strength_zero_is_the_identity(tiny, tokenizer, prompts):
    model, inputs = tiny(), prompts()
    plain = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    steered = pa.wrap(model, tokenizer, Nullspace(orthonormal(8), strength=0.0))
    assert torch.equal(steered.generate(**inputs, max_new_tokens=5, do_sample=False), plain)


def test_the_adaptive_strength_is_the_papers(tiny, tokenizer):
    """Liang et al. 2021, section 4.2, in plain NumPy: P(h), b, alpha and the head once more."""
    model = tiny().double()
    with torch.no_grad():  # milder, so that the nucleus holds several tokens
        model.lm_head.weight.mul_(0.2)
    removed = orthonormal(4).numpy()
    embedding = model.lm_head.weight.detach().numpy()
    guide = embedding[5:20].mean(0) - embedding[30:45].mean(0)
    settings = {"top_p": 0.7, "low": -0.05, "high": 0.05, "floor": 0.94}
    controller = Nullspace(torch.tensor(removed), guide=torch.tensor(guide), **settings)
    rule = controller.steer(model, tokenizer).shifts[0].alpha
    assert isinstance(rule, Adaptive) and (rule.low, rule.high) == (-0.05, 0.05)
    steered, kept = pa.wrap(model, tokenizer, controller), set()
    for first in range(3, 60):
        ids = torch.tensor([[first, 7, 100 - first]])
        seen = []
        second_pass(model, ids[0].tolist(), lambda h, seen=seen: seen.append(h) or h)
        hidden = seen[0].numpy()
        logits = embedding @ hidden
        p = np.exp(logits - logits.max())
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), 0.7)) + 1]
        p /= p[nucleus].sum()  # the softmax of the filtered logits
        direction = guide / np.sqrt((guide**2).sum())
        bias = sum(
            p[t] * (embedding[t] @ direction) / np.sqrt((embedding[t] ** 2).sum()) for t in nucleus
        )
        alpha = 1.0 if -0.05 <= bias <= 0.05 else max(1 - abs(bias), 0.94)
        projected = hidden - removed @ (removed.T @ hidden)
        mixed = embedding @ (alpha * hidden + (1 - alpha) * projected)
        expected = mixed - mixed.max() - np.log(np.exp(mixed - mixed.max()).sum())
        output = steered.generate(
            ids, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        np.testing.assert_allclose(output.scores[0][0].numpy(), expected, atol=1e-4)
        kept.add("all" if alpha == 1 else "floor" if alpha == 0.94 else "between")
    assert kept == {"all", "floor", "between"}  # every branch of the rule was taken


@pytest.mark.parametrize("kind", ["inlp", "leace", "adaptive"])
def test_saved_and_loaded(kind, tiny, tokenizer, tmp_path):
    model = tiny()
    origin = identify(model, tokenizer)
    removed, read = (x.float() for x in oblique(2))
    tensors = {
        "inlp": {"removed": orthonormal(2).float()},
        "leace": {"removed": removed, "read": read, "center": torch.ones(WIDTH)},
        "adaptive": {"removed": orthonormal(2).float(), "guide": torch.ones(WIDTH)},
    }[kind]
    saved = Nullspace(**tensors, strength=0.8, low=-0.2, fitted_for=origin)
    saved.save_pretrained(tmp_path)
    loaded = Controller.from_pretrained(tmp_path)
    assert isinstance(loaded, Nullspace) and loaded.config() == saved.config()
    assert loaded.tensors().keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors()[key], value) for key, value in tensors.items())
    loaded.steer(model, tokenizer)


# ------------------------------------------------------------------ bad input


def test_what_is_no_projection_is_refused():
    removed, read = oblique(2)
    for wrong in [(removed[:, 0],), (removed * 1.5,), (removed, read * 2), (removed, read[:, :1])]:
        with pytest.raises(ValueError, match=r"basis|read\^T removed must be the identity"):
            Nullspace(*wrong)
    with pytest.raises(ValueError, match="the center must be"):
        Nullspace(removed, read, torch.zeros(5))
    for guide in (torch.zeros(WIDTH), torch.full((WIDTH,), 1e-30)):  # whose norm is 0 in float32
        with pytest.raises(ValueError, match=r"the guide must be a direction, got .* length 0"):
            Nullspace(removed, read, guide=guide)
    for name, number in (("guide", math.nan), ("center", math.inf)):
        with pytest.raises(ValueError, match=f"the {name} must be finite"):
            Nullspace(removed, read, **{name: torch.full((WIDTH,), number)})


def test_settings_out_of_range_are_refused():
    removed = orthonormal(2)
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength must"):
            Nullspace(removed, strength=strength)
    for wrong in ({"top_p": 0.0}, {"floor": 1.5}, {"low": 1.0, "high": 0.0}):
        with pytest.raises(ValueError, match="A-INLP needs"):
            Nullspace(removed, **wrong)


def test_another_model_is_refused(tiny, tokenizer):
    fitted = Nullspace(orthonormal(2), fitted_for=identify(tiny(seed=1), tokenizer))
    with pytest.raises(ValueError, match="this nullspace was fitted for the weights of"):
        fitted.steer(tiny(seed=2), tokenizer)
    with pytest.raises(ValueError, match="width 8"):
        Nullspace(torch.eye(8)[:, :1]).steer(tiny(), tokenizer)


def test_logits_that_are_not_linear_are_refused(tokenizer):
    shape = {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    capped = Gemma2Config(**shape, head_dim=8, final_logit_softcapping=5.0)
    for config in (capped, CohereConfig(**shape, logit_scale=0.5)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(50)
        with pytest.raises(ValueError, match="scales or caps its logits"):
            output_embedding(model)
