"""What the library's callers get wrong: for each constructor and call, bad values by argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import plugalign as pa

NAN, INF = math.nan, math.inf
NO_NUMBER = [NAN, INF, -INF, "abc", "", [1], {}, b"x", 1j, [None]]
NO_COUNT = [-1, -(10**30), 1.5, NAN, INF, "3", [], {}, b"2", None]
NO_SHARE = [*NO_NUMBER, -0.1, 1.001, 10**30]
NO_TEXT = [3, 1.5, [], {}, b"text", ["a"], True]
NO_TEXTS = [3, None, True, [3], ["a", None], [b"a"], {}, ""]
NO_FLAG = ["yes", 2, [], NAN]
NO_MODEL = [3, 1.5, [], {}, b"model", "", True]
NO_IDS = ["w1", [1], torch.ones(3).long(), torch.ones(0, 4).long(), torch.ones(1, 0).long()]
NO_OBJECT = [3, "x", b"x", 1.5, True]
# What `generate` takes beside prompts; None leaves a setting open, and stands in no list.
COUNTED = [-1, 1.5, NAN, INF, "3", [], {}, b"2", [1], True]
SETTINGS = {
    **{name: [0, *COUNTED] for name in ("max_new_tokens", "num_beams", "num_return_sequences")},
    **{name: COUNTED for name in ("min_new_tokens", "top_k", "max_length", "min_length")},
    "prompt_lookup_num_tokens": [0, *COUNTED],
    "temperature": [*NO_NUMBER, 0, -1],
    "top_p": [*NO_NUMBER, -0.1],  # above 1 it is off, as in transformers
    "min_p": [*NO_NUMBER, -0.1, 1.001],
    "typical_p": [*NO_NUMBER, -0.1],
    "repetition_penalty": [*NO_NUMBER, -1, 0],
    "length_penalty": NO_NUMBER,
    **{name: ["</s>", 1.5, b"x", [1, 2.5], {}, ["a"]] for name in ("pad_token_id", "eos_token_id")},
    **{name: NO_FLAG for name in ("do_sample", "use_cache", "return_dict_in_generate")},
    "cache_implementation": ["paged", "none", 3, []],
    "generation_config": [*NO_OBJECT, [], {}],
    "logits_processor": [*NO_OBJECT, [3], ["x"]],
    "stopping_criteria": [*NO_OBJECT, [3], ["x"]],
    "prefix_allowed_tokens_fn": [*NO_OBJECT, []],
    "assistant_model": [*NO_OBJECT, []],
    "past_key_values": [*NO_OBJECT, [], {}, ((1, 2),)],
    "inputs_embeds": [*NO_OBJECT, [], [[0.5]], torch.ones(1, 1, 8)],
    "streamer": [*NO_OBJECT, []],
    "attention_mask": [*NO_OBJECT, [], [[1, 1]], torch.ones(1, 9), torch.ones(9)],
    "stop_strings": [3, [3], [""], ""],
    "bad_words_ids": [3, "x", [], [[-1]], [["a"]]],
    "max_tokens": [3],  # the name of another library
}
UNKNOWN_IDS = [torch.full((1, 2), 10**6), -torch.ones(1, 2).long(), torch.ones(1, 2) / 2]
UNKNOWN_ROWS = [(ids, torch.ones(1, 2)) for ids in UNKNOWN_IDS]
UNKNOWN_ROWS += [(torch.ones(1, 2).long(), mask) for mask in (3, "x", torch.ones(2), torch.ones(1))]

Bad = dict[str, list[Any]]
# By name: how to call it with good values but for the changes, and the bad values of each argument.
Call = tuple[Callable[..., Any], Bad]


def constructors(expert: Any, reward: Any) -> dict[str, Call]:
    """Every controller and gate."""
    kinds: dict[str, tuple[Any, tuple[Any, ...], Bad]] = {
        "SelfDebias": (pa.SelfDebias, (["x"],), {"decay": NO_NUMBER, "floor": NO_SHARE}),
        "SelfCritique": (
            pa.SelfCritique,
            (),
            {"critique": NO_TEXT, "fault": NO_TEXT, "rounds": NO_COUNT, "threshold": NO_SHARE},
        ),
        "ValueStatement": (pa.ValueStatement, (), {"statement": NO_TEXT}),
        "DExperts": (pa.DExperts, (expert,), {"alpha": NO_NUMBER, "top_p": NO_SHARE}),
        "GeDi": (
            pa.GeDi,
            ("w5", "w6"),
            {
                "model": [3, [], {}, b"x"],
                "omega": [*NO_NUMBER, -1],
                "rho": NO_SHARE,
                "tau": NO_SHARE,
                "scale": NO_NUMBER,
                "bias": NO_NUMBER,
            },
        ),
        "SafeDecoding": (
            pa.SafeDecoding,
            (expert,),
            {
                "alpha": [*NO_NUMBER, -1],
                "first_steps": [*NO_COUNT, 0],
                "least_common": [*NO_COUNT, 0],
                "floor": [*NO_SHARE, 0.0],
            },
        ),
        "PPLM": (
            pa.PPLM,
            (["w5"],),
            {
                "label": NO_COUNT,
                "stepsize": [*NO_NUMBER, -1],
                "iterations": NO_COUNT,
                "gamma": NO_NUMBER,
                "gm": [*NO_NUMBER, -0.1],
                "kl": NO_NUMBER,
                "window": NO_COUNT,
                "horizon": NO_COUNT,
                "top_k": NO_COUNT,
                "variant": ["none", 3, None, []],
            },
        ),
        "RAD": (pa.RAD, (reward,), {"k": [*NO_COUNT, 0], "beta": NO_NUMBER, "invert": NO_FLAG}),
        "ARGS": (pa.ARGS, (reward,), {"k": [*NO_COUNT, 0], "weight": NO_NUMBER}),
        "ContrastiveDecoding": (
            pa.ContrastiveDecoding,
            (expert,),
            {"alpha": NO_SHARE, "beta": NO_NUMBER},
        ),
        "DeRA": (pa.DeRA, (expert,), {"weight": [*NO_NUMBER, None]}),
        "FirstSteps": (pa.FirstSteps, (), {"count": [*NO_COUNT, 0]}),
        "Uncertain": (pa.Uncertain, (), {"p": [*NO_SHARE, None]}),
        "Diagnosis": (
            pa.Diagnosis,
            (),
            {"attribute": [*NO_TEXT, ""], "threshold": NO_SHARE, "template": [*NO_TEXT, "none"]},
        ),
        "Speculation": (
            pa.Speculation,
            (),
            {"draft": [3, [], "", "none"], "tokens": [*NO_COUNT, 0], "ngram": [*NO_COUNT, 0]},
        ),
    }
    required = {"DeRA": {"weight": 1.0}, "FirstSteps": {"count": 1}, "Uncertain": {"p": 0.5}}
    required |= {"Diagnosis": {"attribute": "a threat"}}

    def calling(name: str) -> Callable[..., Any]:
        kind, given, _ = kinds[name]
        return lambda **changed: kind(*given, **{**required.get(name, {}), **changed})

    return {name: (calling(name), bad) for name, (_, _, bad) in kinds.items()}


def calls(steered: Any, batch: dict[str, Any], out: str) -> dict[str, Call]:
    """What is done with a controller, and `compare`."""
    compared: dict[str, Any] = {
        "model": steered.model,
        "tokenizer": steered.tokenizer,
        "controllers": {"debias": pa.SelfDebias(["w5"])},
        "prompts": ["w1 w2"],
        "judges": {"half": lambda texts: [0.5] * len(texts)},
        "out": out,
    }
    return {
        "wrap": (
            lambda controller: pa.wrap(steered.model, steered.tokenizer, controller),
            {"controller": [None, 3, "dexperts", [], {}, pa.SelfDebias]},
        ),
        "sum": (lambda other: steered.controller + other, {"other": [1, "x", None, [], 0.5]}),
        "times": (lambda other: other * steered.controller, {"other": [NAN, INF, None, 1j]}),
        "when": (steered.controller.when, {"gate": [None, 3, "first", []]}),
        "generate": (
            lambda **options: steered.generate(
                **{**batch, "max_new_tokens": 2, "do_sample": True, **options},
                tokenizer=steered.tokenizer,
            ),
            {
                "input_ids": [None, *NO_IDS, *UNKNOWN_IDS, 3, {}],
                **SETTINGS,
                "capture": ["yes", 2, [], None],
                "speculation": ["base", 3, []],
                "trace": [3, "x", []],
            },
        ),
        "log_probs": (
            lambda **changed: steered.log_probs(**{"texts": ["w1 w2"], **changed}),
            {
                "texts": [3, None, [], [3], ["w1", None], {}, [""], *UNKNOWN_ROWS],
                "prompts": [3, [], [3], ["a", "b"], {}],
                "batch_size": [*NO_COUNT, 0],
            },
        ),
        "compare": (
            lambda **changed: pa.compare(**{**compared, "methods": None, **changed}),
            {
                "methods": [["none"], 3, [3]],
                "controllers": [{"x": 3}, {"": pa.SelfDebias(["x"])}, 3, {"x": "/nowhere"}],
                "prompts": [3, [], [3], ["a", None], "/nowhere.txt", {}],
                "limit": [*NO_COUNT[:-1], 0],
                "judges": [3, [], {"x": 3}, {}, {"x": "/nowhere"}],
                "samples": [*NO_COUNT[:-1], 0],
                "max_new_tokens": [*NO_COUNT, 0],
                "min_new_tokens": NO_COUNT,
                "temperature": [*NO_NUMBER, 0, -1],
                "top_p": NO_SHARE,
                "top_k": NO_COUNT,
                "greedy": NO_FLAG,
                "num_beams": [*NO_COUNT, 0],
                "repetition_penalty": [*NO_NUMBER, 0, -1],
                "chat": [None, 3, "maybe", []],
                "system": [3, "", " ", []],
                "perplexity_model": [3, [], "/nowhere"],
                "batch_size": [*NO_COUNT[:-1], 0],
                "seed": [*NO_COUNT, 2**64],
                "out": ["", 3, [], "a\0b"],
            },
        ),
    }
