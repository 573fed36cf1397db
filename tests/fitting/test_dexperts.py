"""Fitting DExperts: the two language models learn their class, and the base stays as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from plugalign.algebra.controller import Controller
from plugalign.controllers.dexperts import DExperts
from plugalign.fitting import dexperts, student
from plugalign.fitting.budget import Affordable
from plugalign.fitting.data import Labelled, encode, pad
from plugalign.fitting.dexperts import DExpertsSettings, fit_dexperts
from plugalign.fitting.student import Student, guide_loss
from plugalign.fitting.training import train
from plugalign.generation import wrap as wrapping

OPTIONS: dict[str, Any] = {"steps": 30, "batch_size": 8, "lr": 3e-3, "max_length": 12, "seed": 2}


@pytest.fixture
def data() -> Labelled:
    """Desired texts count up through w10 .. w19, the others through w60 .. w69."""
    texts = [
        " ".join(f"w{first + (start + i) % 10}" for i in range(4 + start % 4))
        for first in (10, 60)
        for start in range(20)
    ]
    return Labelled(tuple(texts), ("0",) * 20 + ("1",) * 20)


def snapshot(model: Any) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def unchanged(model: Any, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())


def share_of_desired(model: Any, tokenizer: Any, controller: Controller) -> float:
    """How much of the next-token mass on w10 .. w19 and w60 .. w69 the former have."""
    ids = torch.tensor([[13 + 3, 14 + 3], [63 + 3, 64 + 3]])
    processor = wrapping.wrap(model, tokenizer, controller).processor(torch.ones_like(ids))
    p = processor(ids, torch.zeros(2, model.config.vocab_size)).exp()
    good, bad = p[:, 13:23].sum(), p[:, 63:73].sum()
    return float(good / (good + bad))


def test_whole_models(tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path) -> None:
    model = tiny()
    before, out = snapshot(model), tmp_path / "detox"
    controller = fit_dexperts(model, tokenizer, data, out, alpha=1.5, top_p=1.0, **OPTIONS)
    assert unchanged(model, before) and not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detox"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["antiexpert", "expert"]
    loaded = Controller.from_pretrained(str(out))
    assert isinstance(loaded, DExperts) and loaded.alpha == controller.alpha == 1.5
    assert share_of_desired(model, tokenizer, loaded) > 0.8
    other = DExperts(controller.antiexpert, controller.expert, alpha=1.5, top_p=1.0)
    assert share_of_desired(model, tokenizer, other) < 0.2


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("role", "other"), [("expert", "antiexpert"), ("antiexpert", "expert")])
def test_one_expert_alone_is_the_pairs_own(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path, role: str, other: str, lora: bool
) -> None:
    """It is measured beside the base, which stands in for the other one."""
    model, options = tiny(), {**OPTIONS, "lora": lora, "top_p": 1.0}
    both, alone = tmp_path / "both", tmp_path / "alone"
    fit_dexperts(model, tokenizer, data, both, **options)
    found = fit_dexperts(model, tokenizer, data, alone, only=role, **options)
    assert getattr(found, other) is None and not (alone / other).exists()
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (alone / role / weights).read_bytes() == (both / role / weights).read_bytes()
    saved, pair = (json.loads((folder / "fit.json").read_text()) for folder in (alone, both))
    assert (saved["settings"]["only"], pair["settings"]["only"]) == (role, None)
    assert saved["measured"][role] == pair["measured"][role]
    assert other not in saved["measured"] and saved["measured"]["auc"] > 0.9


def test_one_expert_alone_is_not_measured_by_the_lengths_of_texts(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Texts of random words differ in nothing else, and an anti-expert learns which words there
    are: it explains all of them better than the base, and the longer ones by more."""
    draw = np.random.default_rng(0)
    words = [draw.integers(10, 30, 11 if i % 2 else 5) for i in range(400)]
    texts = tuple(" ".join(f"w{w}" for w in row) for row in words)
    data = Labelled(texts, ("0", "1") * 200)
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", only="antiexpert", **OPTIONS)
    measured = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    assert 0.25 < measured["auc"] < 0.75


def test_a_role_that_experts_do_not_have_is_refused(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="only"):
        fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", only="both")


def test_adapters(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path, architecture: str
) -> None:
    model = tiny(architecture)
    before, names = snapshot(model), [name for name, _ in model.named_modules()]
    controller = fit_dexperts(
        model, tokenizer, data, tmp_path / "out", lora=True, top_p=1.0, **{**OPTIONS, "lr": 1e-2}
    )
    assert unchanged(model, before) and not model.training
    assert [name for name, _ in model.named_modules()] == names
    assert (tmp_path / "out" / "expert" / "adapter_config.json").is_file()
    assert share_of_desired(model, tokenizer, controller) > 0.8
    with pytest.raises(ValueError, match="fitted for the weights of"):
        controller.steer(tiny(architecture, seed=1), tokenizer)


@pytest.mark.parametrize(
    ("settings", "width", "lr"),
    [
        ({}, 16, 1e-4),
        ({}, 128, 1e-4),
        ({}, 512, 2.5e-5),
        ({"lora": True}, 512, 1e-3),
        ({"lr": 0.25}, 512, 0.25),
    ],
)
def test_wide_models_learn_at_a_lower_rate(settings: dict[str, Any], width: int, lr: float) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=width, n_layer=0))
    assert DExpertsSettings(**settings).of(model).lr == pytest.approx(lr)


def test_the_rate_that_a_fit_took_stands_in_its_record(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", **{**OPTIONS, "steps": 1, "lr": None})
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert saved["settings"]["lr"] == 1e-4


class Killed(BaseException):
    pass


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("calls", [17, 45])
def test_a_killed_fit_continues_to_the_same_experts(
    tiny: Any,
    tokenizer: Any,
    data: Labelled,
    tmp_path: Path,
    calls: int,
    lora: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, options = tiny("gpt2-tied"), {**OPTIONS, "lora": lora, "steps": 30}
    fit_dexperts(model, tokenizer, data, tmp_path / "whole", **options)
    real, left = student.pad, [calls]

    def mortal(rows: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(rows)

    monkeypatch.setattr(student, "pad", mortal)
    with pytest.raises(Killed):
        fit_dexperts(model, tokenizer, data, tmp_path / "killed", **options)
    monkeypatch.undo()
    assert not (tmp_path / "killed").exists()
    fit_dexperts(model, tokenizer, data, tmp_path / "killed", **options)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


@pytest.fixture
def lengths() -> Labelled:
    """Desired texts are short and all others long; their words are the same."""
    texts = [" ".join(f"w{10 + (i + k) % 40}" for k in range(9 if i % 2 else 3)) for i in range(80)]
    return Labelled(tuple(texts), ("0", "1") * 40)


def stopping(tiny: Any, tokenizer: Any, data: Labelled) -> tuple[Any, Tensor]:
    """A model that has learnt where such texts end, and beginnings ``(B, 3)`` at which some do."""
    model, options = tiny(), {"steps": 40, "lr": 3e-3, "title": "base"}
    ids, mask = pad(encode(tokenizer, data.texts, 12))
    labels = ids.masked_fill(mask == 0, -100)
    model.train()
    train(
        parameters=dict(model.named_parameters()),
        **options,
        loss=lambda step: model(input_ids=ids, attention_mask=mask, labels=labels).loss,
    )
    return model.eval(), ids[::2, :3]


def p_end(model: Any, tokenizer: Any, controller: Controller | None, ids: Tensor) -> float:
    """The mean probability of the end token at the first new token, in the base's nucleus."""
    with torch.no_grad():
        scores = model(ids).logits[:, -1]
    nucleus = DExperts(antiexpert=copy.deepcopy(model), alpha=0.0)  # cuts, and shifts nothing
    steered = wrapping.wrap(model, tokenizer, controller or nucleus)
    found = steered.processor(torch.ones_like(ids))(ids, scores).exp()[:, 1]
    return float(found.mean())


def end_gaps(model: Any, controller: DExperts, ids: Tensor) -> list[float]:
    """The mean change of log p(end) in each expert."""
    found = []
    with torch.no_grad():
        base = model(ids).logits[:, -1].log_softmax(-1)[:, 1]
        for folder in (controller.expert, controller.antiexpert):
            expert = AutoModelForCausalLM.from_pretrained(folder)
            now = expert(ids).logits[:, -1].log_softmax(-1)[:, 1]
            found.append(float((now - base).abs().mean()))
    return found


def test_no_expert_learns_where_to_stop(
    tiny: Any, tokenizer: Any, lengths: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = stopping(tiny, tokenizer, lengths)
    options = {**OPTIONS, "steps": 60, "lr": 1e-3}
    fitted = fit_dexperts(model, tokenizer, lengths, tmp_path / "out", **options)
    assert max(end_gaps(model, fitted, ids)) < 0.35
    base = p_end(model, tokenizer, None, ids)
    assert base > 0.1
    pair = DExperts(fitted.expert, fitted.antiexpert, alpha=1.0)
    for controller in (pair, DExperts(antiexpert=fitted.antiexpert, alpha=1.0)):
        assert 0.6 * base < p_end(model, tokenizer, controller, ids) < 1.6 * base
    monkeypatch.setattr(student, "end_tokens", lambda *_: [])  # as plain language models
    plain = fit_dexperts(model, tokenizer, lengths, tmp_path / "plain", **options)
    assert min(end_gaps(model, plain, ids)) > 1.0
    anti = DExperts(antiexpert=plain.antiexpert, alpha=1.0)
    assert p_end(model, tokenizer, anti, ids) > 1.6 * base  # what it unlearnt, it promotes


def test_the_loss_is_that_of_going_on_and_of_stopping_as_before() -> None:
    """In float64 from its definition, token by token."""
    generator = np.random.default_rng(0)
    z, base = generator.normal(size=(2, 2, 4, 7))
    ids, mask = np.array([[3, 4, 2, 5], [6, 3, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    ends = [1, 2]

    def p(logits: Any) -> Any:
        weights = np.exp(logits)
        return weights / weights.sum()

    texts, stops, count = 0.0, 0.0, 0
    for row in range(2):
        for column in range(4):
            if not mask[row, column]:
                continue
            now, before = p(z[row, column])[ends].sum(), p(base[row, column])[ends].sum()
            shift = abs(np.log(now) - np.log(before))
            stops += shift**2 if shift <= 1 else 2 * shift - 1
            following = column + 1
            if following < 4 and mask[row, following] and ids[row, following] not in ends:
                texts -= np.log(p(z[row, column])[ids[row, following]] / (1 - now))
                count += 1
    stop = torch.tensor(base).log_softmax(-1)[..., ends].logsumexp(-1)
    loss, tokens = guide_loss(torch.tensor(z), stop, torch.tensor(ids), torch.tensor(mask), ends)
    assert int(tokens) == count == 3
    assert float(loss) == pytest.approx(texts / count + stops / mask.sum(), rel=1e-5)


def test_what_held_out_texts_say_is_saved(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", lora=True, **{**OPTIONS, "lr": 1e-2})
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert (saved["method"], saved["settings"]["rank"]) == ("dexperts_lora", 16)
    measured = saved["measured"]
    assert measured["auc"] > 0.9
    assert measured["expert"]["step"] <= measured["expert"]["steps"] <= 30
    assert measured["expert"]["loss"] > 0 < measured["antiexpert"]["loss"]


@pytest.mark.parametrize(
    ("batch_size", "used", "texts"), [(32, 8, 160), (4, 4, 120), (20, 10, 300), (10, 8, 240)]
)
def test_a_short_time_makes_smaller_steps_before_fewer(
    batch_size: int,
    used: int,
    texts: int,
    tiny: Any,
    tokenizer: Any,
    data: Labelled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is time for so many texts, it seems; sizes that will not fit are not timed. Of eight
    texts the 30 steps are made after all, since there was more time than was planned."""
    timed = list[int]()

    def plan(*given: Any, title: str, **_: Any) -> Affordable:
        size = int(title.split()[1])
        timed.append(size)
        return Affordable(min(given[2], texts // size), 2)

    monkeypatch.setattr(dexperts, "affordable_steps", plan)
    options = {**OPTIONS, "batch_size": batch_size, "minutes": 1.0}
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", **options)
    measured = json.loads((tmp_path / "out" / "fit.json").read_text())["measured"]
    assert (measured["batch_size"], measured["expert"]["steps"]) == (used, 30)
    assert timed == 2 * ([batch_size] if batch_size == used else [batch_size, used])


def test_the_expert_is_planned_for_its_share_of_the_tokens(
    tiny: Any,
    tokenizer: Any,
    lengths: Labelled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = list[float]()
    monkeypatch.setattr(
        dexperts,
        "affordable_steps",
        lambda *_, share, **__: shares.append(share) or Affordable(1, 2),
    )
    fit_dexperts(tiny(), tokenizer, lengths, tmp_path / "out", **OPTIONS, minutes=1.0)
    assert shares == [pytest.approx(3 / 12), 1]  # of what is left; the second is known then


def test_the_checkpoint_of_another_method_is_refused_by_name(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(dexperts, "_save", killed)
    with pytest.raises(Killed):
        fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", lora=True, **OPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="method was 'dexperts_lora' and is 'dexperts'"):
        fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", **OPTIONS)
    with pytest.raises(ValueError, match=r"settings\.steps was 30 and is 31"):
        fit_dexperts(
            tiny(), tokenizer, data, tmp_path / "out", lora=True, **{**OPTIONS, "steps": 31}
        )
    fit_dexperts(tiny(), tokenizer, data, tmp_path / "out", lora=True, **OPTIONS)
    assert (tmp_path / "out" / "expert" / "adapter_config.json").is_file()


def test_a_half_precision_base_is_tuned_in_float32(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    model = tiny().to(torch.float16)
    fit_dexperts(model, tokenizer, data, tmp_path / "out", **{**OPTIONS, "steps": 2})
    assert model.dtype == torch.float16


def test_a_bfloat16_base_is_tuned_in_float32_by_bfloat16_products(
    tiny: Any, tokenizer: Any
) -> None:
    rows, found, dtypes = [[16, 17, 18, 19], [63, 64, 65]], [], []
    for dtype in (torch.float32, torch.bfloat16):
        learner = Student(tiny().to(dtype), tokenizer, None, 0)
        head = learner.model.get_output_embeddings()
        head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
        value = learner.loss_of(rows, 2, 0)(0)
        value.backward()
        assert {p.dtype for p in learner.learned.values()} == {torch.float32}
        assert all(p.grad.dtype == torch.float32 for p in learner.learned.values())
        found.append((value.item(), learner.log_likelihoods(rows, 2)))
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-2)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=2e-2, atol=0.05)


def test_what_is_there_is_not_overwritten(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name another folder"):
        fit_dexperts(tiny(), tokenizer, data, tmp_path, **OPTIONS)


def test_bad_settings_are_named_before_any_work(
    tiny: Any, tokenizer: Any, data: Labelled, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"steps: .*greater than or equal to 1, got -3; its default"
    ):
        fit_dexperts(tiny(), tokenizer, data, out, steps=-3)
    with pytest.raises(ValueError, match=r"alpha: .*finite number, got nan"):
        fit_dexperts(tiny(), tokenizer, data, out, alpha=float("nan"))
    with pytest.raises(ValueError, match=r"top_p: .*less than or equal to 1, got 1\.5"):
        fit_dexperts(tiny(), tokenizer, data, out, top_p=1.5)
    with pytest.raises(ValueError, match="max_length 129 exceeds the context of 'Llama"):
        fit_dexperts(tiny(), tokenizer, data, out, max_length=129)
    with pytest.raises(ValueError, match="no text has the desired label 'polite'"):
        fit_dexperts(tiny(), tokenizer, data, out, desired="polite")
    assert not list(tmp_path.iterdir())
