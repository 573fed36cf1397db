"""What people get wrong on the command line, in specs and in data: drawn from a seed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from campaign_tables import (
    CONFIGS,
    COSTS,
    COUNTS,
    FIELDS,
    FILES,
    FITTED,
    LABELS,
    LINES,
    LISTS,
    NO_COUNT,
    NO_NUMBER,
    ODD,
    RAW_SPECS,
    SCORES,
    SPECS,
    TABLES,
    TEXTS,
    UNKNOWN,
    UNPRINTABLE,
)

from plugalign.files.shown import printable


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
            options |= {} if "controllers" in changes else {"methods": "base"}
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


def lists(rng: Random, world: World) -> Case:
    option = rng.choice(list(LISTS))
    says, value = rng.choice(LISTS[option])
    return Case("list", world.command("compare", **{option: value}), says)


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
        "agreement": f"{name}={world.path('data.jsonl')}",
    }
    option = rng.choice(list(places))
    return Case("name", world.command("compare", **{option: places[option]}), printable(name)[:8])


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


def folders(rng: Random, world: World) -> Case:
    """A judge's or a controller's folder with a damaged configuration."""
    name = f"damaged-{rng.randrange(10**9)}"
    world.write(f"{name}/config.json", rng.choice(CONFIGS))
    option, before = rng.choice([("judge", ""), ("controllers", "x=")])
    return Case("folder", world.command("compare", **{option: before + world.path(name)}), name)


# --------------------------------------------------------------------------- files


def specs(rng: Random, world: World) -> Case:
    says, content = rng.choice([*SPECS, *RAW_SPECS])
    path = world.write(f"spec-{rng.randrange(10**9)}.yaml", content)
    return Case("spec", world.command("compare", spec=path), says)


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
