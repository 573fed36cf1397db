"""The pocket world: a small model, controllers and a judge that ship with the package.

They show the machinery on a computer that reaches no model hub. The rudeness is mild and
invented; ``python -m plugalign.pocket.build`` rebuilds every part from `plugalign.pocket.world`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from plugalign.algebra.controller import Controller
from plugalign.files.embedded import MODEL, PARTS, parts

if TYPE_CHECKING:
    from plugalign.evaluation.judging.linear import LinearJudge

__all__ = ["MODEL", "PARTS", "controllers", "judge", "load", "parts"]


def load(folder: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The pocket model in float32, in eval mode, and its tokenizer (left padding).

    Args:
        folder: the parts of another build; by default the embedded ones.
    """
    path = (parts() if folder is None else folder) / MODEL
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False
    ).eval()
    return model, AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def judge() -> LinearJudge:
    """The pocket judge: texts to P(rude), from a sample that no controller has seen."""
    from plugalign.evaluation.judging.linear import LinearJudge

    return LinearJudge.load(parts() / "judge")


def controllers() -> dict[str, Controller]:
    """Every controller that was fitted for the pocket model, by name."""
    folders = sorted(path for path in (parts() / "controllers").iterdir() if path.is_dir())
    return {folder.name: Controller.from_pretrained(str(folder)) for folder in folders}
