"""Bad arguments of the library's constructors and calls: each is one error that names the value.

PLUGALIGN_CAMPAIGN says how many are tried (a half of it), of all calls in turn.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from api_tables import calls, constructors
from api_values_tables import values_calls
from transformers import LlamaConfig, LlamaForSequenceClassification

import plugalign as pa

COUNT = int(os.environ.get("PLUGALIGN_CAMPAIGN", "300"))
SEED = int(os.environ.get("PLUGALIGN_CAMPAIGN_SEED", "0"))


def fault(call: Callable[..., Any], argument: str, value: Any) -> str | None:
    """What is wrong with the answer to a bad value, None if nothing is."""
    try:
        got = call(**{argument: value})
    except (ValueError, TypeError) as error:
        message = str(error)
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    else:
        return f"accepted: {got!r:.80}"
    if "\n" in message.strip() or len(message) > 2100:
        return f"not one line: {message!r:.300}"
    kinds = [type(part).__name__ for part in (value if isinstance(value, tuple) else [value])]
    named = [argument.rstrip("s"), *kinds, *map(shown, parts(value))]
    return None if any(name in message for name in named) else f"does not name it: {message!r:.200}"


def shown(value: Any) -> str:
    """How a message may begin to name a value."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype if value.is_floating_point() else tuple(value.shape))
    return repr(value)[:10].strip("'")


def parts(value: Any) -> list[Any]:
    """A value, and what is in it."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    return [value, *inside] if isinstance(value, (dict, list, tuple)) else [value]


def reward() -> LlamaForSequenceClassification:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 120}
    config = LlamaConfig(**sizes, num_attention_heads=1, num_labels=1, pad_token_id=0)
    return LlamaForSequenceClassification(config)


def test_a_bad_argument_is_one_error_that_names_it(
    tiny: Any, tokenizer: Any, prompts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steered = pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"]))
    out = tmp_path / "out"
    table = constructors(tiny(seed=1), reward()) | calls(steered, prompts(rows=1), str(out))
    words = pa.TokenTable.of_words(["w6"], steered.model, tokenizer)
    table |= values_calls(words, steered.model, tokenizer, str(out))
    cases = [
        (name, argument, value)
        for name, (_, bad) in table.items()
        for argument, values in bad.items()
        for value in values
    ]
    rng = random.Random(SEED)
    tried = cases if len(cases) <= COUNT // 2 else rng.sample(cases, COUNT // 2)
    wrong = []
    for name, argument, value in tried:
        if found := fault(table[name][0], argument, value):
            wrong.append(f"{name}({argument}={value!r:.40}): {found}")
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong)
    assert not out.exists(), "the work was begun"
