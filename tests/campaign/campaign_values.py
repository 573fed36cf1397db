"""What people get wrong with the commands that measure, teach, trace and choose.

A line is a command as it is typed, with names in capitals for what lies in the world's folder.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from campaign_inputs import Case, Kind, World
from campaign_tables import NO_NUMBER, ODD, table

from plugalign.files.shown import printable

PLACES = {
    "MODEL": "model",
    "DATA": "data.jsonl",
    "JUDGE": "judge",
    "DEBIAS": "debias",
    "EQUILIBRIUM": "equilibrium",
    "PAIRS": "pairs.jsonl",
    "TASKS": "tasks.jsonl",
    "VALUE": "value",
    "TRACED": "traced",
    "OUT": "out",
}

# Good command lines; a case changes one thing.
GOOD = {
    "values": "values MODEL --out OUT",
    "capabilities": "capabilities MODEL --tasks TASKS --out OUT",
    "judge": "judge w1 --value kind=VALUE",
    "feedback": "feedback EQUILIBRIUM --add PAIRS --model MODEL",
    "maxim": "maxim lie --runs 2",
    "trace": "trace --model MODEL --prompts DATA --controllers d=DEBIAS --out OUT",
    "account": "account TRACED --out OUT",
    "tune": "tune d=DEBIAS --set d.decay=1,2 --model MODEL --prompts DATA --judge JUDGE --out OUT",
    "fit": "fit value --statement x --model MODEL --data DATA --out OUT",
}

COUNTED = {
    "capabilities": ["limit", "max-new-tokens", "threads"],
    "judge": ["threads"],
    "feedback": ["threads"],
    "maxim": ["runs"],
    "trace": ["limit", "samples", "max-new-tokens", "batch-size", "threads"],
    "tune": ["limit", "samples", "max-new-tokens", "num-beams", "batch-size", "threads"],
    "values": ["threads"],
    "fit": ["limit", "threads"],
}
NO_COUNT = ["-1", "0", "-99999999", "abc", "1.5", "1e3", "nan", "1,2", "0x10"]

NUMBERED = {
    "feedback": ["ridge", "keep"],
    "trace": ["temperature", "top-p"],
    "tune": [
        "temperature",
        "top-p",
        "repetition-penalty",
        "max-perplexity",
        "max-perplexity-cut-alike",
    ],
    "fit": ["level"],
}

SEEDED = ["capabilities", "maxim", "trace", "tune"]

WORDED = {
    "values": ["instrument", "controllers", "set", "formats", "chat", "system", "out", "dtype"],
    "capabilities": ["judgements", "prompts", "judge", "texts", "tasks", "fault", "chat", "out"],
    "judge": ["value", "file"],
    "feedback": ["add", "model", "texts", "learner", "dtype"],
    "maxim": ["model", "controller", "dtype"],
    "trace": ["controllers", "model", "prompts", "set", "stratum", "risk", "cuts", "out"],
    "account": ["prompts", "stratum", "risk", "cuts", "judge", "incident", "override", "by", "out"],
    "tune": ["set", "model", "prompts", "chat", "judge", "scorer", "out"],
    "fit": ["statement", "model", "encoder", "licence", "data", "text", "label", "desired", "out"],
}

ROWS = {  # by option: fields that a row lacks, or has wrong
    "capabilities --judgements": ({"text": "a", "label": 1}, {"text": 3, "label": "maybe"}),
    "capabilities --tasks": (
        {"question": "a", "choices": ["b", "c"], "answer": 1},
        {"question": None, "choices": "b", "answer": 2},
    ),
    "feedback --add": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": 3, "chosen": "c", "rejected": ""},
    ),
    "judge --file": ({"text": "a"}, {"text": []}),
    "trace --prompts": ({"text": "a"}, {"text": {}}),
}

WRONG = table("""
    nowhere | values nowhere
    nowhere | values MODEL --instrument nowhere
    scale | values MODEL --instrument TASKS
    words | values MODEL --formats words
    options | values MODEL --formats options,options
    maybe | values MODEL --chat maybe
    template | values MODEL --chat on
    'x' | values MODEL --controllers x
    x=nowhere | values MODEL --controllers x=nowhere
    d.decay | values MODEL --set d.decay=1
    inf | values MODEL --controllers d=DEBIAS --set d.decay=inf
    int8 | values MODEL --dtype int8
    nothing | capabilities MODEL
    judge | capabilities MODEL --prompts DATA
    choices | capabilities MODEL --tasks DATA
    scenario | capabilities MODEL --judgements TASKS
    are right | capabilities MODEL --judgements DATA --limit 1
    8026 | capabilities MODEL --prompts DATA --judge JUDGE --max-new-tokens 4000
    nowhere | capabilities MODEL --prompts DATA --judge nowhere
    kind | judge w1 --value kind=VALUE --value kind=VALUE
    discriminator | judge w1 --value kind=JUDGE
    no text | judge --value kind=VALUE
    model | feedback EQUILIBRIUM --add PAIRS --model MODEL --texts MODEL
    SelfDebias | feedback DEBIAS
    nowhere | feedback nowhere
    pocket | feedback EQUILIBRIUM --add PAIRS
    magic | feedback EQUILIBRIUM --add PAIRS --learner magic
    --ridge | feedback EQUILIBRIUM --ridge 2
    --texts | feedback EQUILIBRIUM --texts TRACED
    gossip | maxim gossip
    --dtype | maxim lie --dtype float32
    --controller | maxim lie --controller DEBIAS
    refused | maxim lie --model MODEL
    no controller | trace --model MODEL --prompts DATA
    prompts | trace --model MODEL --controllers d=DEBIAS
    nofield | trace --model MODEL --prompts DATA --controllers d=DEBIAS --stratum nofield
    nan | trace --model MODEL --prompts DATA --controllers d=DEBIAS --risk JUDGE --cuts nan
    0.2 | trace --model MODEL --prompts DATA --controllers d=DEBIAS --risk JUDGE --cuts 0.5,0.2
    cuts | trace --model MODEL --prompts DATA --controllers d=DEBIAS --cuts 0.5
    one value | trace --model MODEL --prompts DATA --controllers d=DEBIAS --set d.decay=1,2
    another run | trace --model MODEL --prompts DATA --controllers d=DEBIAS --resume --out TRACED
    data.jsonl | trace --verify DATA
    --seed | trace --verify DATA --seed 3
    --replay | trace --verify DATA --replay DATA
    data.jsonl | trace --replay DATA
    model | account MODEL
    twice | account TRACED TRACED
    label | account TRACED --stratum label
    hashes | account TRACED --risk JUDGE
    by | account TRACED --by me
    other | account TRACED --controllers other=DEBIAS
    cuts | account TRACED --cuts 0.5
    data.jsonl | account TRACED --out DATA
    nowhere | tune d=nowhere --set d.decay=1,2
    'x.decay' | tune d=DEBIAS --set x.decay=1,2 --model MODEL --prompts DATA --judge JUDGE
    none | tune d=DEBIAS --set d.none=1,2 --model MODEL --prompts DATA --judge JUDGE
    decay | tune d=DEBIAS --set d.decay=1,1 --model MODEL --prompts DATA --judge JUDGE
    one controller | tune d=DEBIAS,e=DEBIAS --set d.decay=1,2
    choose from | tune d=DEBIAS --set d.decay=1 --model MODEL --prompts DATA --judge JUDGE
    --statement | fit value --model MODEL --data DATA --out OUT
    128 | fit value --statement x --model MODEL --data DATA --out OUT
    --encoder | fit value --statement x --model MODEL --encoder MODEL --out OUT
    --minutes | fit value --statement x --model MODEL --minutes 3 --out OUT
    --level | fit judge --data DATA --level 0.5 --out OUT
    --licence | fit value --statement x --model MODEL --licence y --out OUT""")


def line(world: World, typed: str) -> list[str]:
    """A command line with the paths of the world."""

    def word(given: str) -> str:
        name, sign, place = given.rpartition("=")
        return f"{name}{sign}{world.path(PLACES[place])}" if place in PLACES else given

    return [",".join(map(word, part.split(","))) for part in typed.split(" ")]


def changed(world: World, command: str, option: str, value: str) -> list[str]:
    """A good command line with another value of an option."""
    words = line(world, GOOD[command])
    if f"--{option}" in words:
        words[words.index(f"--{option}") + 1] = value
        return words
    return [*words, f"--{option}", value]


def counted(rng: Random, world: World) -> Case:
    command = rng.choice(list(COUNTED))
    option, value = rng.choice(COUNTED[command]), rng.choice(NO_COUNT)
    return Case(f"{command}: count", changed(world, command, option, value), value[:10])


def numbered(rng: Random, world: World) -> Case:
    command = rng.choice(list(NUMBERED))
    value = rng.choice([each for each in NO_NUMBER if each])
    option = rng.choice(NUMBERED[command])
    return Case(f"{command}: number", changed(world, command, option, value), value[:10])


def seeded(rng: Random, world: World) -> Case:
    command, value = rng.choice(SEEDED), rng.choice(["-1", "abc", "1.5", str(2**64), str(10**30)])
    return Case(f"{command}: seed", changed(world, command, "seed", value), value[:10])


def blank(rng: Random, world: World) -> Case:
    command = rng.choice(list(WORDED))
    option, value = rng.choice(WORDED[command]), rng.choice(["", " ", "\t"])
    return Case(f"{command}: blank", changed(world, command, option, value), f"--{option}")


def odd(rng: Random, world: World) -> Case:
    command, value = rng.choice(list(WORDED)), rng.choice(ODD)
    option = rng.choice(WORDED[command])
    return Case(f"{command}: odd", changed(world, command, option, value), printable(value)[:6])


def wrong(rng: Random, world: World) -> Case:
    says, typed = rng.choice(WRONG)
    return Case(f"{typed.split(' ')[0]}: wrong", line(world, typed), says)


def rows(rng: Random, world: World) -> Case:
    """A data file whose second row lacks a field, or has one that is wrong."""
    place = rng.choice(list(ROWS))
    command, _, option = place.partition(" --")
    good, bad = ROWS[place]
    field = rng.choice(list(good))
    row: dict[str, Any] = {**good, field: bad[field]}
    if rng.random() < 0.5:
        del row[field]
    name = f"rows-{rng.randrange(10**9)}.jsonl"
    path = world.write(name, "".join(json.dumps(each) + "\n" for each in (good, row)))
    return Case(f"{place}: row", changed(world, command, option, path), f"{name}, line 2")


KINDS: list[Kind] = [counted, numbered, seeded, blank, odd, wrong, wrong, wrong, rows]
