"""The shipped controllers load, and each does to the pocket model what it is there for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plugalign import pocket, wrap
from plugalign.algebra.controller import Controller
from plugalign.pocket import world
from plugalign.pocket.jobs import JOBS

NAMES = (
    "dexperts",
    "dexperts_lora",
    "fudge",
    "fudge_head",
    "nullspace",
    "prefix",
    "self_critique",
    "self_debias",
)
# PEFT and transformers warn about each other's names here.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def controllers() -> dict[str, Controller]:
    return pocket.controllers()


def rudeness(controller: Controller | None) -> float:
    """The share of rude answers to 60 prompts at top-p 0.9."""
    model, tokenizer = pocket.load()
    steered: Any = model if controller is None else wrap(model, tokenizer, controller)
    encoded = tokenizer(world.prompts(60, world.PROMPT_SEED), return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = steered.generate(**encoded, max_new_tokens=20, do_sample=True, top_p=0.9)
    answers = out[:, encoded["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return float((pocket.judge()(texts) > 0.5).mean())


def test_there_is_one_controller_for_every_method(controllers: dict[str, Controller]) -> None:
    assert tuple(sorted(controllers)) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nullspace"])
def test_a_controller_makes_the_model_politer(
    name: str, controllers: dict[str, Controller]
) -> None:
    assert rudeness(controllers[name]) < 0.7 * rudeness(None)


def test_nullspace_parts_pronouns_from_jobs(controllers: dict[str, Controller]) -> None:
    model, tokenizer = pocket.load()
    texts = [(f"Our {job.name} {act} yesterday.", job.women) for job in JOBS for act in job.good]
    encoded = tokenizer([text for text, _ in texts], return_tensors="pt", padding=True)
    lean = torch.tensor([share - 0.5 for _, share in texts])
    he, she = (tokenizer(f" {word}")["input_ids"][0] for word in ("He", "She"))

    def stereotype(steered: Any) -> float:
        """How log P(She) - log P(He) goes with the share of women in the job."""
        out = steered.generate(
            **encoded,
            max_new_tokens=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        gap = out.scores[0][:, she] - out.scores[0][:, he]
        return float((gap * lean).mean())

    before, after = stereotype(model), stereotype(wrap(model, tokenizer, controllers["nullspace"]))
    assert before > 0.3
    assert abs(after) < 0.4 * before
