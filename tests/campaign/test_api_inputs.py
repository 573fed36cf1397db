"""Bad arguments of the library's constructors and calls: each is one error that names the value.

PLUGALIGN_CAMPAIGN says how many are tried: bad values of all calls by themselves, and where that is
more than there are, two at a time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from api_tables import Bad, calls, constructors
from api_values_tables import values_calls
from transformers import LlamaConfig, LlamaForSequenceClassification

import plugalign as pa

COUNT = int(os.environ.get("PLUGALIGN_CAMPAIGN", "300"))
SEED = int(os.environ.get("PLUGALIGN_CAMPAIGN_SEED", "0"))


def fault(call: Callable[..., Any], bad: dict[str, Any]) -> str | None:
    """What is wrong with the answer to bad values by argument, None if nothing is."""
    try:
        got = call(**bad)
    except (ValueError, TypeError) as error:
        message = str(error)
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    else:
        return f"accepted: {got!r:.80}"
    if "\n" in message.strip() or len(message) > 2100:
        return f"not one line: {message!r:.300}"
    named = [name for argument, value in bad.items() for name in names(argument, value)]
    return None if any(name in message for name in named) else f"does not name it: {message!r:.200}"


def names(argument: str, value: Any) -> list[str]:
    """What a message may name of a bad value."""
    kinds = [type(part).__name__ for part in (value if isinstance(value, tuple) else [value])]
    return [argument.rstrip("s"), *kinds, *map(shown, parts(value))]


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
    tried = cases({name: bad for name, (_, bad) in table.items()}, random.Random(SEED))
    wrong = []
    for name, given in tried:
        if found := fault(table[name][0], given):
            shown_all = ", ".join(f"{argument}={value!r:.40}" for argument, value in given.items())
            wrong.append(f"{name}({shown_all}): {found}")
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong)
    assert not out.exists(), "the work was begun"


def cases(table: dict[str, Bad], rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """So many calls by name with their bad arguments, as the campaign has."""
    found = [
        (name, {argument: value})
        for name, bad in table.items()
        for argument, values in bad.items()
        for value in values
    ]
    if len(found) >= COUNT:
        return rng.sample(found, COUNT)
    paired = {name: bad for name, bad in table.items() if len(bad) > 1}
    for _ in range(COUNT - len(found)):
        name, bad = rng.choice(list(paired.items()))
        both = rng.sample(list(bad), 2)
        found.append((name, {argument: rng.choice(bad[argument]) for argument in both}))
    return found
