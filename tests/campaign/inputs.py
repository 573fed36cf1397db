"""What people get wrong on the command line, in specs and in data: drawn from a seed.

Tables below are texts: what the message must say, a bar, and the bad value, with Python's escapes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from plugalign.files.shown import printable

ODD = ["\ud800", "a\ud83d", "\udcff", "a\0b"]  # what no text, name or path can hold
UNPRINTABLE = ["a\x1b[31mb", "two\nlines", "\x07", "a\u202eb", "\x9b2J", "x" * 300]


def table(text: str) -> list[tuple[str, str]]:
    """Rows of ``says | value`` (`value` alone says itself)."""
    rows = [line.split(" | ") for line in text.strip().split("\n")]
    values = [row[1] if len(row) > 1 else row[0].strip() for row in rows]
    escaped = [value.encode().decode("unicode_escape") for value in values]
    return [(row[0].strip(), value) for row, value in zip(rows, escaped, strict=True)]


@dataclass(frozen=True)
class World:
    """A folder with a model, a judge, a controller and data, all good; cases change one thing."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def command(self, name: str, **changes: str | None) -> list[str]:
        """A good command line, but for the changes; None leaves an option out."""
        options: dict[str, str | None] = {"out": self.path("out")}
        if name != "judge":
            options |= {"model": self.path("model")}
        if name == "compare":
            options |= {"prompts": self.path("data.jsonl"), "judge": self.path("judge")}
        if name in ("fit", "judge"):
            options |= {"data": self.path("data.jsonl")}
        if name == "bench":
            options |= {"rounds": "1", "new-tokens": "2", "methods": "self_debias"}
        options |= {option.replace("_", "-"): value for option, value in changes.items()}
        given = [part for o, v in options.items() if v is not None for part in (f"--{o}", v)]
        return [*{"fit": ["fit", "dexperts"], "judge": ["fit", "judge"]}.get(name, [name]), *given]


@dataclass(frozen=True)
class Case:
    """A bad command line, and what its message must say."""

    kind: str
    arguments: list[str]
    says: str


# --------------------------------------------------------------------------- single options

NO_COUNT = ["-1", "0", "-99999999", "abc", "1.5", "1e3", "nan", "", " ", "1,2", "0x10", "10" * 30]
NO_NUMBER = ["nan", "inf", "-inf", "abc", "-1", "0", "", "1,5", "0.5.5"]
COUNTS = {
    "compare": ["samples", "max-new-tokens", "batch-size", "limit"],
    "bench": ["new-tokens", "prompt-tokens", "rounds", "threads"],
    "fit": ["limit"],
}
TEXTS = {
    "compare": [
        "model",
        "prompts",
        "judge",
        "methods",
        "controllers",
        "scorer",
        "agreement",
        "out",
        "spec",
    ],
    "fit": ["model", "data", "out", "text", "label", "pairs", "desired"],
    "bench": ["model", "methods", "batch", "draft", "cache", "plain-cache", "out"],
}


def counts(rng: Random, world: World) -> Case:
    command = rng.choice(list(COUNTS))
    option, value = rng.choice(COUNTS[command]), rng.choice(NO_COUNT)
    if option in ("limit", "rounds") and value == "10" * 30:
        value = "-7"  # more than there is is allowed, and many rounds only take long
    return Case("count", world.command(command, **{option: value}), value.strip()[:10])


def numbers(rng: Random, world: World) -> Case:
    option, value = rng.choice(["temperature", "top-p"]), rng.choice(NO_NUMBER)
    if option == "top-p":
        value = rng.choice([value, "1.0001", "2"])
    return Case("number", world.command("compare", **{option: value}), value[:10])


def seeds(rng: Random, world: World) -> Case:
    value = rng.choice(["-1", "abc", "1.5", "", str(2**64), str(10**30)])
    return Case("seed", world.command("compare", seed=value), value[:10])


def odd_characters(rng: Random, world: World) -> Case:
    command = rng.choice(list(TEXTS))
    option, value = rng.choice(TEXTS[command]), rng.choice(ODD)
    return Case("odd", world.command(command, **{option: value}), printable(value)[:6])


def blanks(rng: Random, world: World) -> Case:
    command = rng.choice(list(TEXTS))
    option, value = rng.choice(TEXTS[command]), rng.choice(["", " "])
    return Case("blank", world.command(command, **{option: value}), "")


LISTS = {
    "methods": table("""
        ' | \x20
        ',' | ,
        base,,base
        self_debias,
        ,base
        'base' | base,base
        shout
        'x' | self_debias,x"""),
    "judge": table("""
        =
        =pocket
        x=
        ..:x
        :
        os:
        :x
        a b:c
        nobody:knows
        math:nix
        /nowhere/judge
        words.joblib
        words.joblib | x=words.joblib
        no/such/judge/there
        a:b:c"""),
    "controllers": table("""
        oops
        =x
        x=
        /nowhere/x | x=/nowhere/x
        'a' | a=1,a=2
        base | base=x
        ' | ,
        y=z | x=y=z
        =a"""),
}


def lists(rng: Random, world: World) -> Case:
    option = rng.choice(list(LISTS))
    says, value = rng.choice(LISTS[option])
    return Case("list", world.command("compare", **{option: value}), says)


COSTS = table("""
    nothing_such | methods nothing_such
    fudge,, | methods fudge,,
    0 | batch 0
    -3 | batch -3
    1,,2 | batch 1,,2
    x | batch x
    1.5 | batch 1.5
    999999999999 | batch 999999999999
    model | draft model
    0 | draft-tokens 0
    paged | cache paged
    none | plain-cache none
    100016 | new-tokens 100000
    100002 | prompt-tokens 100000
    -1 | threads -1
    99999 | threads 99999""")


def costs(rng: Random, world: World) -> Case:
    says, pair = rng.choice(COSTS)
    option, value = pair.split(" ")
    return Case("bench", world.command("bench", **{option: value}), says)


def names(rng: Random, world: World) -> Case:
    name = rng.choice(UNPRINTABLE)
    places = {
        "judge": f"{name}={world.path('judge')}",
        "controllers": f"{name}={world.path('debias')}",
        "methods": f"base,{name}",
    }
    option = rng.choice(list(places))
    return Case("name", world.command("compare", **{option: places[option]}), printable(name)[:8])


UNKNOWN = table("""
    frobnicate
    --nope
    method | fit
    extra | compare extra
    --seed | compare --seed
    x | methods x
    --rounds | bench --rounds
    comp
    --random-weights | bench --random-weights
    shout | fit shout FIT
    self_debias | fit self_debias FIT
    --nope | compare COMPARE --nope""")


def unknown(rng: Random, world: World) -> Case:
    says, line = rng.choice(UNKNOWN)
    rest = {"FIT": world.command("fit")[2:], "COMPARE": world.command("compare")[1:]}
    arguments = [part for word in line.split(" ") for part in rest.get(word, [word])]
    return Case("unknown", arguments, says)


def missing(rng: Random, world: World) -> Case:
    command, option = rng.choice([("compare", "prompts"), ("compare", "judge"), ("fit", "data")])
    return Case("missing", world.command(command, **{option: None}), option)


def fitted(rng: Random, world: World) -> Case:
    says, pair = rng.choice(FITTED)
    option, value = pair.split(" ")
    return Case("fit", world.command("fit", **{option: value}), says)


FITTED = table("""
    'a' | pairs a
    ',' | pairs ,
    'a,' | pairs a,
    a,b,c | pairs a,b,c
    a,a | pairs a,a
    'no' | pairs no,such
    body | text body
    'y' | label y
    polite | desired polite
    0.5 | desired 0.5
    1 | limit 1""")


# --------------------------------------------------------------------------- folders


def outs(rng: Random, world: World) -> Case:
    command = rng.choice(["compare", "fit", "bench"])
    file = world.write("a-file", "x")
    bad = {f"{file}/below": "a-file", "x" * 5000: "xxxx", "/proc/nothing/below": "/proc"}
    bad |= {world.path("model"): "model"} if command == "bench" else {file: "a-file"}
    value = rng.choice(list(bad))
    return Case("out", world.command(command, out=value), bad[value])


def models(rng: Random, world: World) -> Case:
    """A model's folder with one damaged file."""
    name = f"broken-{rng.randrange(10**9)}"
    for file in Path(world.path("model")).iterdir():
        world.write(f"{name}/{file.name}", file.read_bytes())
    file = rng.choice(["config.json", "model.safetensors", "tokenizer.json"])
    damage = [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"model_type": "odd"}']
    world.write(f"{name}/{file}", rng.choice(damage))
    command, option = rng.choice([("compare", "model"), ("compare", "scorer"), ("fit", "model")])
    return Case("model", world.command(command, **{option: world.path(name)}), name)


CONFIGS = ["", "{", "[]", "null", '"x"', "[" * 20_000, "{}", '{"judge": "new"}', '{"judge": null}']
CONFIGS += ['{"judge": "linear"}', '{"controller": "new"}', '{"controller": "self_debias", "x": 1}']


def folders(rng: Random, world: World) -> Case:
    """A judge's or a controller's folder with a damaged configuration."""
    name = f"damaged-{rng.randrange(10**9)}"
    world.write(f"{name}/config.json", rng.choice(CONFIGS))
    option, before = rng.choice([("judge", ""), ("controllers", "x=")])
    return Case("folder", world.command("compare", **{option: before + world.path(name)}), name)


# --------------------------------------------------------------------------- files

SPECS = table(r"""
    sample | sample: 3
    many | samples: many
    1.5 | samples: 1.5
    -1 | seed: -1
    True | samples: true
    1.5 | top_p: 1.5
    nan | top_p: .nan
    [] | methods: []
    inf | temperature: .inf
    1 | methods: [1]
    a | methods: [[[[a]]]]
    a | - a
    b | judges: {a: [b]}
    '' | judges: {'': pocket}
    [] | judges: []
    3 | 3
    ud800 | model: "\\ud800"
    x00 | out: "a\\0b"
    2026 | prompts: 2026-01-01
    x07 | model: x\x07y
    malformed | model: [
    line 2 | a: 1\n  b: 2
    malformed | \t
    seed | seed: 1\nseed: 2
    python/name | model: !!python/name:os.system x
    malformed | ? {a: 1}\n: 2
    maybe | resume: maybe
    repeats | a: &a [x, x]\nb: [*a, *a]
    x1b | judges: {"a\\e[1mb": pocket}
    0 | limit: 0
    trust | trust: true
    os:system | judges: ['os:system']
    w.joblib | judges: {x: w.joblib}
    out | out: ''
    None | methods:\n  -
    a | controllers: [a]
    99999 | max_new_tokens: 99999999999""")
SPECS += [("deep", "model: " + "[" * 20_000), ("digits", "seed: " + "9" * 5000)]
RAW_SPECS = [("UTF-8", b"model: caf\xe9"), ("UTF-8", b"\xff\xfe\x00"), ("NUL", b"a\x00")]


def specs(rng: Random, world: World) -> Case:
    says, content = rng.choice([*SPECS, *RAW_SPECS])
    path = world.write(f"spec-{rng.randrange(10**9)}.yaml", content)
    return Case("spec", world.command("compare", spec=path), says)


FIELDS: list[Any] = [None, "", "  ", 3, [], {}, ["a"], True, {"text": None}, {"text": 3}]
FIELDS += [{"toxicity": 0.5}, "{'toxicity': 0.5}", "{'text': array([1])}", "{'text': 'cut"]
FIELDS += ["['a' 'b']", "['a', 'b']", "{}", "\ud800", "so \udc00"]
LABELS = [None, 0.5, "", [], {}, float("nan"), 1e999]
SCORES = [None, -0.1, 1.5, "high", True, "", [], float("nan")]


def fields(rng: Random, world: World) -> Case:
    """JSON lines whose second row has a field that is wrong."""
    command, option = rng.choice(FILES)
    row: dict[str, Any] = {"text": rng.choice(FIELDS), "label": 0, "score": 0.5}
    if option != "prompts" and rng.random() < 0.4:
        row = {"text": "fine", "label": rng.choice(LABELS), "score": rng.choice(SCORES)}
    name = f"data-{rng.randrange(10**9)}.jsonl"
    rows = ({"text": "w1", "label": 1, "score": 0.1}, row)
    path = world.write(name, "".join(json.dumps(one) + "\n" for one in rows))
    return Case(f"{option}: fields", world.command(command, **{option: path}), f"{name}, line 2")


FILES = [("compare", "prompts"), ("compare", "agreement"), ("fit", "data"), ("judge", "data")]
LINES = [
    value.encode("latin-1")
    for _, value in table(r"""
    \n
    \n\n
    \xff\xfe
    {"text": "caf\xe9"}
    {"text": "a\x00"}
    [1]
    {
    null
    {"text": "a", "text": "b"}
    {"words": "a"}
    {"text": "a"}}
    text""")
]
LINES += [b"[" * 20_000, b'{"a":' * 20_000, b'{"text": ' + b"9" * 5000 + b"}"]
TABLES = [
    value.encode("latin-1")
    for _, value in table(r"""
    \n
    text,label,score\n
    text,text\na,b\n
    text,label\n"a,0\n
    text,label\na\n
    words\na\n
    text,label\na,0,1\n
    text\ncaf\xe9\n
    text\na\x00\n
    text\n"a"b\n
    text;label\na;0\n""")
]


def contents(rng: Random, world: World) -> Case:
    command, option = rng.choice(FILES)
    suffix, bad = rng.choice([("jsonl", LINES), ("csv", TABLES)])
    name = f"data-{rng.randrange(10**9)}.{suffix}"
    path = world.write(name, rng.choice(bad))
    return Case(f"{option}: {suffix}", world.command(command, **{option: path}), name)


def places(rng: Random, world: World) -> Case:
    command, option = rng.choice(FILES)
    name = f"data-{rng.randrange(10**9)}"
    os.makedirs(world.path(f"{name}.jsonl"))
    bad = [world.path(f"{name}.jsonl"), f"{name}.parquet", name, f"/nowhere/{name}.csv"]
    return Case(f"{option}: place", world.command(command, **{option: rng.choice(bad)}), name)


Kind = Callable[[Random, World], Case]
OPTIONS: list[Kind] = [counts, numbers, seeds, odd_characters, blanks, lists, costs, names]
OPTIONS += [unknown, missing, fitted]
KINDS: list[Kind] = [*OPTIONS, outs, models, folders, specs, specs, fields, contents, places]
