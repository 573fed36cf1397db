"""How much memory a model with two LoRA experts holds over the model alone.

Adapters are held as A and B and never merged, so beside the base there should be their own numbers
and little more, also once their rows have run in the base's forward. Counted are the tensors that
the process holds afterwards, not what a call has while it runs. The two adapters have the given
rank on all linear layers, as `plugalign fit dexperts_lora` makes them, and random weights.

    python benchmarks/adapter_memory.py MODEL --out memory.json
"""

from __future__ import annotations

import gc
import json
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model

from plugalign.controllers.dexperts import DExperts
from plugalign.generation.wrap import wrap
from plugalign.loading import load_model

MOST = 1.15  # of the base's memory


def main(
    model: Annotated[str, typer.Argument(help="hub id or folder")],
    rank: Annotated[int, typer.Option(min=1, help="of both adapters")] = 16,
    dtype: Annotated[str, typer.Option(help="of the weights")] = "bfloat16",
    out: Annotated[Path | None, typer.Option(help="a JSON file to write")] = None,
) -> None:
    """Prints the ratio, and fails where it is above 1.15."""
    found = measured(*load_model(model, getattr(torch, dtype)), rank)
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["ratio"] > MOST:
        raise typer.Exit(1)


def measured(base: Any, tokenizer: Any, rank: int) -> dict[str, float]:
    """Bytes of the base, and with two experts after a call in which their rows ran with its own."""
    before = held()
    with tempfile.TemporaryDirectory() as folder:
        adapters = [save_adapter(base, rank, Path(folder, str(seed)), seed) for seed in (1, 2)]
        steered = wrap(base, tokenizer, DExperts(*adapters))
    ids = torch.tensor([tokenizer("She said")["input_ids"]] * 2, device=base.device)
    steered.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)
    of_base = {t.untyped_storage().data_ptr() for t in (*base.parameters(), *base.buffers())}
    alone = sum(size for address, size in before.items() if address in of_base)
    added = sum(size for address, size in held().items() if address not in before)
    return {"rank": rank, "base": alone, "added": added, "ratio": 1 + added / alone}


def held() -> dict[int, int]:
    """The bytes of every storage that a tensor of this process holds, by address."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are looked at
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors]
    return {each.data_ptr(): each.nbytes() for each in storages}


def save_adapter(base: Any, rank: int, folder: Path, seed: int) -> Path:
    """An adapter with random weights; the base stays as it was."""
    conv = any(type(module).__name__ == "Conv1D" for module in base.modules())
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, target_modules="all-linear", fan_in_fan_out=conv
    )
    adapted = get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=draw)
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder


if __name__ == "__main__":
    typer.run(main)
