"""What all texts of a batch begin with is read once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_chat_model, make_chat_tokenizer, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from plugalign.fitting.answers import Frame
from plugalign.fitting.data import pad
from plugalign.fitting.labelled import Batch
from plugalign.fitting.prefix_student import Prefixes
from plugalign.fitting.reward import RADFitSettings, squared_error
from plugalign.fitting.reward_student import RewardStudent
from plugalign.fitting.shared_context import read_behind
from plugalign.fitting.states import keep_states
from plugalign.fitting.student import Student
from plugalign.fitting.training import recompute_activations

CONTEXT = [83, 84, 5, 86, 83, 85]
ROWS = [[*CONTEXT, *text] for text in ([7, 8, 9, 10], [11], [12, 13, 14])]
SHARED = len(CONTEXT) - 1
FRAME = Frame(context=tuple(CONTEXT), end=86)


@pytest.fixture
def shown() -> tuple[Tensor, Tensor]:
    """Ids and mask ``(3, 10)``."""
    ids, mask = pad(ROWS)
    return ids, mask


def windowed() -> Any:
    """Layers that attend to the last four columns, and one that attends to all."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return AutoModelForCausalLM.from_config(config).eval()


def sizes_read(model: Any) -> list[tuple[int, ...]]:
    """The shapes of the ids of all forwards to come."""
    found: list[tuple[int, ...]] = []

    def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        found.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return found


def gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def logits_of(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2-tied", "neox", "windows"])
def test_outputs_and_gradients_are_those_of_whole_rows(
    kind: str, shown: tuple[Tensor, Tensor]
) -> None:
    """Against a forward without a cache, where every column has a weight in the sum."""
    model = (windowed() if kind == "windows" else make_model(kind)).double()
    (ids, mask), parameters = shown, dict(model.named_parameters())
    seen = mask[:, SHARED:].bool()
    weights = torch.randn(*seen.shape, 120, dtype=torch.float64) * seen[..., None]
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, SHARED:]
    wanted = gradients((whole * weights).sum(), parameters)
    sizes = sizes_read(model)
    found = read_behind(model, ids, mask, SHARED, logits_of)
    assert sizes == [(1, SHARED), (3, 5)]
    torch.testing.assert_close(found[seen], whole[seen])
    for name, gradient in gradients((found * weights).sum(), parameters).items():
        size = wanted[name].abs().max()  # norms compute in float32
        torch.testing.assert_close(gradient / size, wanted[name] / size, rtol=0, atol=1e-4)


@pytest.mark.parametrize("why", ["no context", "a state", "checkpoints"])
def test_whole_rows_are_read_where_they_must_be(why: str, shown: tuple[Tensor, Tensor]) -> None:
    (ids, mask), shared, model = shown, SHARED, make_model()
    if why == "no context":
        shared = 0
    elif why == "a state":
        config = MambaConfig(vocab_size=120, hidden_size=16, state_size=4, num_hidden_layers=2)
        model = MambaForCausalLM(config).eval()
    else:
        recompute_activations(model)
        model.train()
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, shared:]
    sizes = sizes_read(model)
    found = read_behind(model, ids, mask, shared, logits_of)
    assert sizes == [(3, 10)]
    seen = mask[:, shared:].bool()
    torch.testing.assert_close(found[seen], whole[seen])


def test_a_model_that_recomputes_shares_where_it_does_not_train(
    shown: tuple[Tensor, Tensor],
) -> None:
    model = make_model()
    recompute_activations(model)
    sizes = sizes_read(model.eval())
    read_behind(model, *shown, SHARED, logits_of)
    assert sizes == [(1, SHARED), (3, 5)]


def behind_a_context(monkeypatch: pytest.MonkeyPatch, module: Any, found: Callable[[], Any]) -> Any:
    """What a function finds where a module's whole rows are read."""

    def whole(model: Any, ids: Tensor, mask: Tensor, shared: int, part: Any) -> Tensor:
        return part(model(input_ids=ids, attention_mask=mask, use_cache=False))[:, shared:]

    with monkeypatch.context() as patched:
        patched.setattr(module, "read_behind", whole)
        return found()


@pytest.mark.parametrize("rank", [None, 2])
def test_experts_learn_the_same(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from plugalign.fitting import student

    model = make_chat_model().double() if rank else make_chat_model()
    learner = Student(model, make_chat_tokenizer(), rank, 0, FRAME)
    for name, parameter in learner.learned.items():
        if "lora_B" in name:  # an adapter that changes nothing would show nothing
            torch.nn.init.normal_(parameter)

    def found() -> tuple[Any, ...]:
        loss = learner.loss_of(ROWS, 3, 0)(0)
        likelihoods = [learner.log_likelihoods(ROWS, 2, of_base=each) for each in (False, True)]
        return loss.detach(), gradients(loss, learner.learned), likelihoods

    wanted = behind_a_context(monkeypatch, student, found)
    sizes = sizes_read(model)
    torch.testing.assert_close(found(), wanted, rtol=1e-3, atol=1e-4)
    assert (1, SHARED) in sizes and max(width for _, width in sizes) == SHARED


def test_reward_models_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugalign.fitting import reward_student

    settings = RADFitSettings(rank=2)
    learner = RewardStudent(
        make_chat_model(), make_chat_tokenizer(), squared_error, settings, FRAME
    )
    for name, parameter in learner.learned.items():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids, mask = pad(ROWS)
    batch = Batch(ids, mask, FRAME.learnt(mask), torch.tensor([1.0, 0.0, 1.0]), torch.ones(3))

    def found() -> tuple[Any, ...]:
        rewards = learner._rewards(batch)
        total, count = squared_error(rewards, batch)
        loss = total / count
        return rewards[:, SHARED:].detach(), loss.detach(), gradients(loss, learner.learned)

    wanted = behind_a_context(monkeypatch, reward_student, found)
    sizes = sizes_read(learner.model.base_model)
    torch.testing.assert_close(found(), wanted, rtol=1e-4, atol=1e-5)
    assert sizes == [(1, SHARED), (3, 5)]
    assert not learner._rewards(batch)[:, :SHARED].any()


def test_prefixes_learn_the_same() -> None:
    model, tokenizer = make_chat_model(), make_chat_tokenizer()
    once, always = (
        Prefixes(model, tokenizer, ([[5]], [[6]]), 2, 4, 0, shared) for shared in (SHARED, 0)
    )
    ids, mask = pad(ROWS)
    learnt = FRAME.learnt(mask)
    parameters = [dict(each.encoders.named_parameters()) for each in (once, always)]
    for name, parameter in parameters[0].items():
        torch.nn.init.normal_(parameter, std=0.1)
        parameters[1][name].data.copy_(parameter)
    sizes = sizes_read(once.model)
    found, wanted = (each.nll(ids, mask, learnt) for each in (once, always))
    assert sizes == [(2, SHARED), (6, 5)]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        *(gradients(nll.sum(), p) for nll, p in zip((found, wanted), parameters, strict=True)),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("columns", [None, [[6, 9], [6], [5, 8]]])
def test_states_are_the_same(columns: Any, architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    whole = keep_states(model, ROWS, tmp_path / "whole", 3, columns=columns)
    sizes = sizes_read(model)
    kept = keep_states(model, ROWS, tmp_path / "kept", 3, columns=columns, shared=SHARED)
    assert sizes[1:] == [(1, SHARED), (3, 5)]
    torch.testing.assert_close(kept.values, whole.values, rtol=1e-4, atol=1e-4)
