"""Builds the pocket world's parts from the repository alone.

``python -m plugalign.pocket.build`` writes ``pocket/`` (the model), ``judge/`` and
``controllers/<name>/`` below ``plugalign/pocket/parts``. Seeds are fixed and one thread computes,
so the same machine with the same versions writes the same bytes again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from plugalign import pocket
from plugalign.evaluation.judging.linear import LinearJudge
from plugalign.pocket import world
from plugalign.pocket.guides import fit_guides
from plugalign.pocket.model import make_model, make_tokenizer, train_model
from plugalign.threads import torch_threads

PARTS = (pocket.MODEL, "judge", "controllers")
console = Console(stderr=True)


@dataclass(frozen=True)
class Sizes:
    """How much is trained on how much; the defaults are what ships."""

    texts: int = 20000
    vocabulary: int = 1280
    width: int = 96
    steps: int = 1000
    judge_texts: int = 8000
    judge_features: int = 2**14
    guide_texts: int = 4000
    guide_share: float = 1.0  # of the steps of each fit


def build_base(out: Path, sizes: Sizes) -> None:
    """The model and its tokenizer."""
    with console.status(f"writing {sizes.texts} texts"):
        texts = world.training_text(sizes.texts, world.BASE_SEED)
    tokenizer = make_tokenizer(texts, sizes.vocabulary)
    torch.manual_seed(world.BASE_SEED)
    model = make_model(tokenizer, sizes.width)
    train_model(model, tokenizer, texts, steps=sizes.steps, title="pocket model")
    folder = _fresh(out / pocket.MODEL)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_judge(out: Path, sizes: Sizes) -> None:
    """The judge, from a sample that neither the model nor the controllers see."""
    with console.status(f"fitting the judge on {sizes.judge_texts} texts"):
        sample = world.judge_sample(sizes.judge_texts, world.JUDGE_SEED)
        texts, labels = zip(*sample, strict=True)
        rude = [label == "rude" for label in labels]
        LinearJudge.fit(texts, rude, n_features=sizes.judge_features).save(_fresh(out / "judge"))


def build_controllers(out: Path, sizes: Sizes) -> None:
    """Every controller, fitted for the model in ``out``."""
    model, tokenizer = pocket.load(out)
    model.name_or_path = pocket.MODEL  # else the folder of this build would be written down
    folder = _fresh(out / "controllers")
    fit_guides(model, tokenizer, folder, texts=sizes.guide_texts, share=sizes.guide_share)


STAGES: dict[str, Callable[[Path, Sizes], None]] = {
    "base": build_base,
    "judge": build_judge,
    "controllers": build_controllers,
}


def build(out: Path, only: tuple[str, ...] = tuple(STAGES), sizes: Sizes | None = None) -> None:
    """Builds the named stages into ``out``, each in place of what was there.

    Raises:
        ValueError: for an unknown stage.
    """
    if unknown := [stage for stage in only if stage not in STAGES]:
        raise ValueError(f"unknown stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    with _deterministic():
        for stage in STAGES:
            if stage in only:
                STAGES[stage](out, sizes or Sizes())
    for path in (p for part in PARTS for p in (out / part).rglob("*.safetensors")):
        path.chmod(0o644)  # they are written for the owner alone


@contextmanager
def _deterministic() -> Iterator[None]:
    strict = torch.are_deterministic_algorithms_enabled()
    parallel = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.use_deterministic_algorithms(True)
    try:
        with torch_threads(1), torch.random.fork_rng(), threadpool_limits(1):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        os.environ["TOKENIZERS_PARALLELISM"] = parallel


def _fresh(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def main(
    out: Annotated[Path, typer.Option(help="where the parts go")] = pocket.PARTS,
    only: Annotated[str, typer.Option(help="stages to build")] = ",".join(STAGES),
) -> None:
    """Builds the parts of the pocket world."""
    build(out, tuple(only.split(",")))


if __name__ == "__main__":
    typer.run(main)
