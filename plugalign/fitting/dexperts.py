"""Trains the expert and the anti-expert of DExperts (Liu et al. 2021).

Both start from the base and are tuned as plain language models, the expert on desired and the
anti-expert on all other texts: as whole models, or as LoRA adapters of the base. No text is closed
by an end token, so that one class being shorter does not become a wish to stop.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.supports import TopP
from plugalign.controllers.dexperts import DExperts
from plugalign.fitting.data import Labelled, encode, pad
from plugalign.fitting.training import (
    batches,
    check_context,
    check_finite,
    check_settings,
    fingerprint,
    train,
    working_folder,
)
from plugalign.identity import Identity


def fit_dexperts(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    lora: bool = False,
    rank: int = 16,
    steps: int = 300,
    batch_size: int = 32,
    lr: float | None = None,
    max_length: int = 64,
    seed: int = 0,
    alpha: float = 2.0,
    top_p: float = 0.9,
) -> DExperts:
    """Trains both experts and saves the controller in ``out``, with one subfolder each.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        lora: adapters of the base on all linear layers instead of whole models (needs peft).
        rank: of the adapters.
        lr: by default 1e-4 for whole models and 1e-3 for adapters. Experts that drift far from the
            base differ in much besides the attribute, and the difference of two of them is noise.
        max_length: of a training text, in tokens; longer ones are cut.
        alpha: strength of the controller that is returned and saved. top_p: its base's support.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if ``lora`` is asked for and peft is missing.
    """
    lr = lr if lr is not None else (1e-3 if lora else 1e-4)
    check_settings(steps=steps, batch_size=batch_size, lr=lr, max_length=max_length, rank=rank)
    check_context(model, max_length)
    check_finite(alpha=alpha)
    TopP(top_p)
    sides = dict(zip(("expert", "antiexpert"), data.binary(desired), strict=True))
    origin = Identity.of(model, tokenizer)
    with working_folder(out) as work:
        for name, texts in sides.items():
            rows = encode(tokenizer, texts, max_length, end=False)
            student = _adapted(model, rank, seed) if lora else copy.deepcopy(model).float()
            made_of = fingerprint(rows, batch_size, rank if lora else 0, origin.to_dict())
            _tune(student, rows, steps, batch_size, lr, seed, f"{name} ({len(rows)} texts)",
                  work / f"{name}.checkpoint", made_of)  # fmt: skip
            _save(student, tokenizer, work / name)
        DExperts(
            expert=work / "expert", antiexpert=work / "antiexpert", alpha=alpha, top_p=top_p,
            fitted_for=origin,
        ).save_pretrained(out)  # fmt: skip
    return DExperts.from_pretrained(out)


def _adapted(model: Any, rank: int, seed: int) -> Any:
    """A copy of the model with fresh LoRA adapters on all its linear layers."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA experts need peft: pip install 'plugalign[train]'") from error
    conv = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear",
        fan_in_fan_out=conv,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(copy.deepcopy(model).float(), config)


def _tune(
    student: Any,
    rows: Sequence[Sequence[int]],
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    title: str,
    checkpoint: Path,
    made_of: str,
) -> None:
    """Minimises the mean token loss of the texts."""
    batch = batches(len(rows), batch_size, seed, [len(row) for row in rows])

    def loss(step: int) -> Tensor:
        ids, mask = (x.to(student.device) for x in pad([rows[i] for i in batch(step)]))
        labels = ids.masked_fill(mask == 0, -100)
        output = student(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        value: Tensor = output.loss
        return value

    student.train()
    learned = {name: p for name, p in student.named_parameters() if p.requires_grad}
    train(
        parameters=learned, loss=loss, steps=steps, lr=lr, title=title, checkpoint=checkpoint,
        seed=seed, run=made_of,
    )  # fmt: skip
    student.eval()


def _save(student: Any, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face model folder, or the adapter alone if it is one."""
    if hasattr(student, "peft_config"):
        student.save_pretrained(folder, save_embedding_layers=False)
        return
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
