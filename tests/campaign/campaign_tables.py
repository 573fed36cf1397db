"""The tables of the campaign: what the message must say, a bar, and the bad value.

Values have Python's escapes; a row without a bar says itself.
"""

from __future__ import annotations

from typing import Any


def table(text: str) -> list[tuple[str, str]]:
    """Rows of ``says | value`` (`value` alone says itself)."""
    rows = [line.split(" | ") for line in text.strip().split("\n")]
    values = [row[1] if len(row) > 1 else row[0].strip() for row in rows]
    escaped = [value.encode().decode("unicode_escape") for value in values]
    return [(row[0].strip(), value) for row, value in zip(rows, escaped, strict=True)]


ODD = ["\ud800", "a\ud83d", "\udcff", "a\0b"]  # what no text, name or path can hold

UNPRINTABLE = ["a\x1b[31mb", "two\nlines", "\x07", "a\u202eb", "\x9b2J", "x" * 300]

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
    "agreement": table("""
        =
        'x=' | x=
        '=a.jsonl' | =a.jsonl
        nowhere.jsonl | x=nowhere.jsonl"""),
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

CONFIGS = ["", "{", "[]", "null", '"x"', "[" * 20_000, "{}", '{"judge": "new"}', '{"judge": null}']

CONFIGS += ['{"judge": "linear"}', '{"controller": "new"}', '{"controller": "self_debias", "x": 1}']

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
    99999 | max_new_tokens: 99999999999
    3 | agreement: 3
    [] | agreement: [[]]
    '' | agreement: {'': a.jsonl}
    x1b | agreement: {"a\\e[1mb": a.jsonl}""")

SPECS += [("deep", "model: " + "[" * 20_000), ("digits", "seed: " + "9" * 5000)]

RAW_SPECS = [("UTF-8", b"model: caf\xe9"), ("UTF-8", b"\xff\xfe\x00"), ("NUL", b"a\x00")]

FIELDS: list[Any] = [None, "", "  ", 3, [], {}, ["a"], True, {"text": None}, {"text": 3}]

FIELDS += [{"toxicity": 0.5}, "{'toxicity': 0.5}", "{'text': array([1])}", "{'text': 'cut"]

FIELDS += ["['a' 'b']", "['a', 'b']", "{}", "\ud800", "so \udc00"]

LABELS = [None, 0.5, "", [], {}, float("nan"), 1e999]

SCORES = [None, -0.1, 1.5, "high", True, "", [], float("nan")]

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
