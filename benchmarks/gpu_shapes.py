"""Two models without weights: FOLDER/base, a Llama 3.1 8 B, and FOLDER/expert, a Llama 3.2 1 B.

    python benchmarks/gpu_shapes.py FOLDER [--tiny]

The tokenizer beside them is small and knows words of its own: it only has to read the prompts of
self-debiasing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from transformers import LlamaConfig

from plugalign import pocket

SHAPES = {
    "base": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "expert": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}
VOCAB = 128256
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def main(folder: Path, tiny: Annotated[bool, typer.Option(help="for a rehearsal")] = False) -> None:
    """Writes the configurations and the tokenizer."""
    tokenizer = pocket.load()[1]
    for name, shape in SHAPES.items():
        smaller = TINY if tiny else {}
        config = LlamaConfig(
            vocab_size=len(tokenizer) if tiny else VOCAB,
            max_position_embeddings=8192,
            pad_token_id=0,
            dtype="bfloat16",
            **(shape | smaller),
        )
        config.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    typer.run(main)
