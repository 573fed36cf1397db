"""What callers get wrong with values: equilibria, questionnaires, traces and maxims."""

from __future__ import annotations

from typing import Any

from api_tables import INF, NAN, NO_COUNT, NO_FLAG, NO_NUMBER, NO_SHARE, Call

import plugalign as pa
from plugalign.values.account.accounting import account
from plugalign.values.account.tracing import trace
from plugalign.values.questionnaire.measurement import measure
from plugalign.values.universalising.universalise import universalise

NO_SEED = [-1, 2**64, 1.5, NAN, "3", [], None]
NO_PARTS = [3, "x", [], {}]


def values_calls(table: Any, model: Any, tokenizer: Any, out: str) -> dict[str, Call]:
    """Calls by name, with the bad values of each argument.

    Args:
        table: a `pa.TokenTable`.
        out: a folder that no call may make.
    """
    preferences = pa.Preferences({"kind": table})
    equilibrium = {"reference": None, "principles": [pa.Principle("rude", table)]}
    traced: dict[str, Any] = {
        "controllers": {"debias": pa.SelfDebias(["w5"])},
        "model": model,
        "tokenizer": tokenizer,
        "prompts": ["w1"],
        "out": out,
    }
    return {
        "Principle": (
            lambda **changed: pa.Principle(**{"name": "rude", "scorer": table, **changed}),
            {
                "name": ["", " ", 3, None],
                "scorer": [None, *NO_PARTS],
                "epsilon": [*NO_NUMBER, -1],
                "priority": [0, -1, 1.5, NAN, "1", [], True],
                "controller": NO_PARTS,
            },
        ),
        "Preferences": (
            lambda **changed: pa.Preferences(**{"features": {"kind": table}, **changed}),
            {
                "features": [None, 3, {}, [], {"": table}, {"a": 3}],
                "theta": [3, "x", [1.0], {}],
                "covariance": [3, "x", [[1.0]]],
            },
        ),
        "Equilibrium": (
            lambda **changed: pa.Equilibrium(
                **{**equilibrium, "preferences": preferences, **changed}
            ),
            {
                "reference": NO_PARTS,
                "principles": [None, 3, "x", [], [3]],
                "preferences": [None, *NO_PARTS],
                "epsilon": [*NO_NUMBER, -1],
                "kappa": [NAN, -INF, "abc", [1], {}, 1j, -1],
                "strength": NO_NUMBER,
                "confidence": NO_SHARE,
                "k": [*NO_COUNT, 0],
            },
        ),
        "MOD": (
            lambda weights: pa.MOD(weights),
            {"weights": [None, 3, "x", [], {}, {model: 0.5}, {model: NAN}, {model: "1"}]},
        ),
        "universalise": (
            lambda **changed: universalise(**{"maxim": "lie", "runs": 2, **changed}),
            {
                "maxim": [3, None, "", "gossip"],
                "agents": [[]],
                "worlds": [[]],
                "runs": [*NO_COUNT, 0, 1],
                "seed": NO_SEED,
            },
        ),
        "measure": (
            lambda **changed: measure(**{"models": [(model, tokenizer)], "out": out, **changed}),
            {
                "models": [[], ["/nowhere"]],
                "instrument": [3, None, "/nowhere", ""],
                "controllers": [3, {"x": 3}, {"x": "/nowhere"}],
                "formats": [[], "options", ["words"], ["options", "options"]],
                "chat": [None, 3, "maybe"],
                "system": ["", "x", 3],
                "refusals": NO_FLAG,
            },
        ),
        "trace": (
            lambda **changed: trace(**{**traced, **changed}),
            {
                "controllers": [{}, 3, {"x": 3}, {"x": "/nowhere"}],
                "prompts": [3, [], [3], "/nowhere.txt"],
                "limit": [*NO_COUNT[:-1], 0],
                "risk": ["/nowhere", 3],
                "cuts": [[0.5]],
                "samples": [*NO_COUNT, 0],
                "max_new_tokens": [*NO_COUNT, 0],
                "temperature": [*NO_NUMBER, 0, -1],
                "top_p": [*NO_SHARE, 0],
                "batch_size": [*NO_COUNT, 0],
                "seed": NO_SEED,
            },
        ),
        "account": (
            lambda **changed: account(**{"runs": ["/nowhere"], "out": out, **changed}),
            {"runs": [[], ["/nowhere"]]},
        ),
    }
