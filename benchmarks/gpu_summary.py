"""What `on_gpu.sh` found, in at most 40 lines, from whatever is there of its files.

    python benchmarks/gpu_summary.py OUT

The exit code is 0 if every step ended well and every test passed.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_LINES, MOST_NAMES, MOST_KERNELS, WIDTH = 40, 5, 10, 118
COLUMNS = (16, 4, 8, 9, 9, 9, 9, 12)  # of the kernels' table
Row = dict[str, Any]

# Times that are asked for: of the fused draw, over its floor and of others over it, and of methods
# with captured steps over plain generate, by batch size.
SIZE = {"operation": "dexperts_top_p", "batch": 64, "vocab": 128256}
KERNEL_GOALS = (("floor", 1.25), ("eager", 10.0), ("compiled", 3.0))
METHOD_GOALS = {
    "none": {1: 0.6, 8: 0.8},
    "nullspace": {1: 0.65, 8: 0.85},
    "fudge_head": {1: 0.65, 8: 0.85},
    "dexperts_lora": {1: 0.8, 8: 1.0},
    "self_debias_2": {1: 0.8, 8: 1.0},
}


def main(folder: Path) -> int:
    """Prints the summary and returns the exit code."""
    steps, tests = _steps(folder), _lines(folder / "tests.jsonl")
    kernels = [
        row
        for name in ("compiled.json", "kernels.json")
        for row in (_json(folder / name) or {}).get("results", [])
    ]
    methods = [row for n in ("methods.json", "static.json") for row in _json(folder / n) or []]
    found = [
        *_of_steps(steps),
        *_of_tests(tests),
        *_of_kernels(kernels),
        *_of_methods(methods),
        *_of_tuning(_json(folder / "tuning.json")),
    ]
    goals = [*_of_goals(kernels, methods)]
    shown = [*found[: MOST_LINES - len(goals)], *goals]
    print("\n".join(line[:WIDTH] for line in shown))
    failed = any(code not in ("0", "missing") for _, code, *_ in steps)
    broken = any(test["outcome"] == "failed" for test in tests)
    return int(failed or broken or not steps)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _lines(path: Path) -> list[Row]:
    """Of a file that may end in the middle of a line."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _steps(folder: Path) -> list[list[str]]:
    path = folder / "steps.tsv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split("\t") for line in lines]


def _of_steps(steps: Sequence[Sequence[str]]) -> Iterator[str]:
    words = {"0": "ok", "124": "cut", "137": "cut", "skipped": "no time", "missing": "no such tool"}
    shown = [f"{name} {words.get(code, f'FAILED ({code})')} {s} s" for name, code, s, _ in steps]
    yield f"steps: {', '.join(shown[:4])}"
    if shown[4:]:
        yield f"       {', '.join(shown[4:])}"


def _of_tests(tests: Sequence[Row]) -> Iterator[str]:
    count = Counter(test["outcome"] for test in tests)
    yield f"tests: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped"
    failed = [test for test in tests if test["outcome"] == "failed"]
    kinds: dict[str, list[Row]] = {}
    for test in failed:
        kinds.setdefault(_kind(test["test"]), []).append(test)
    for kind, of_kind in list(kinds.items())[:MOST_NAMES]:
        yield f"  {len(of_kind)} x {kind}: {of_kind[0].get('error', '')}"
    if len(kinds) > MOST_NAMES:
        yield f"  and {len(kinds) - MOST_NAMES} more, in tests.jsonl"


def _kind(test: str) -> str:
    """A test without its file's folder and all of its parameters but the first, a kernel's name."""
    return re.sub(r"\[([a-z0-9_]*).*\]$", r"[\1]", test.rsplit("/", 1)[-1])


def _of_kernels(rows: Sequence[Row]) -> Iterator[str]:
    wrong = sum(bool(row["wrong"]) for row in rows)
    yield f"kernels: {len(rows)} sizes, {wrong} wrong or failed; * not in a graph"
    head = ("operation", "B", "V", "us", "x floor", "host us", "x eager", "x compiled")
    yield _cells(head, COLUMNS)
    first = [row for row in rows if row["wrong"]]
    timed = [row for row in rows if not row["wrong"]]
    for row in [*first, *timed][:MOST_KERNELS]:
        size = (row["operation"], row["batch"], row["vocab"])
        if "ours" not in row:
            yield f"{_cells(size, COLUMNS[:3])}  {row.get('error', 'checked only')}"
            continue
        wrong_too = " WRONG" if row["wrong"] else ""
        cells = (
            f"{row['ours']['median']:.1f}",
            f"{row['times_floor']:.2f}",
            f"{row['host']:.0f}" if "host" in row else "-",
            _times(row, "eager"),
            _times(row, "compiled"),
        )
        yield _cells((*size, *cells), COLUMNS) + wrong_too


def _times(row: Row, name: str) -> str:
    if (found := row.get(f"times_{name}")) is None:
        return "failed" if "error" in row.get(name, {}) else "-"
    mark = "*" if False in (row[name]["captured"], row["ours"]["captured"]) else ""
    return f"{found['median']:.1f}{mark}"


def _cells(values: Sequence[Any], widths: Sequence[int]) -> str:
    first, *others = values
    rest = (f"{value!s:>{w}}" for value, w in zip(others, widths[1:], strict=True))
    return f"{first!s:<{widths[0]}}" + "".join(rest)


def _of_methods(rows: Sequence[Row]) -> Iterator[str]:
    batches = sorted({row["batch"] for row in rows})
    if not batches:
        yield "methods: none was timed"
        return
    device = next((row["device"] for row in rows if "device" in row), "?")
    yield f"methods on {device}: ms a token, x plain generate, share of the floor; with and without"
    heads = (f"batch {batch}, {how}" for batch in batches for how in ("captured", "not"))
    yield _cells(("", *heads), (15, *[25] * (2 * len(batches))))
    for method in dict.fromkeys(row["method"] for row in rows):
        found = {(r["batch"], r["capture"]): r for r in rows if r["method"] == method}
        cells = []
        for batch in batches:
            plain = found.get((batch, None))
            cells += [found.get((batch, "on"), plain), found.get((batch, "off"))]
        yield _cells((method, *map(_cost, cells)), (15, *[25] * len(cells)))
    for row in [row for row in rows if "error" in row][:3]:
        yield f"  {row['method']}, batch {row['batch']}, {row['capture']}: {row['error']}"


def _cost(row: Row | None) -> str:
    if row is None:
        return "-"
    if "error" in row:
        return "failed"
    share = "" if row["floor_share"] is None else f" {row['floor_share']:.0%}"
    path = "" if row["path"] in ("graph", "generate") or row["capture"] == "off" else "!"
    return f"{row['ms_per_token']:.2f} {row['ratio_to_plain']:.2f}x{share}{path}"


def _of_tuning(found: Any) -> Iterator[str]:
    if found is not None:
        entries = tuple(found["programs"].values())
        failed = f"; failed: {', '.join(found['failed'])}" if found["failed"] else ""
        timed = f"{len(found['microseconds'])} timed{failed}"
        yield f"launch table: {found['architecture']} {entries}, {timed}"


def _of_goals(kernels: Sequence[Row], methods: Sequence[Row]) -> Iterator[str]:
    """Which goals are met, missed or open."""
    goals_by: dict[str, list[str]] = {"met": [], "missed": [], "not measured": []}
    for name, value, limit, below in (*_kernel_goals(kernels), *_method_goals(methods)):
        if value is None:
            goals_by["not measured"].append(name)
            continue
        met = value <= limit if below else value >= limit
        sign = "<=" if below else ">="
        goals_by["met" if met else "missed"].append(f"{name} {value:.2f} ({sign} {limit:g})")
    for verdict, goals in goals_by.items():
        lines = _wrapped(goals) or ["-"]
        yield f"goals {verdict}: {lines[0]}"
        yield from (f"    {line}" for line in lines[1:])


Goal = tuple[str, float | None, float, bool]


def _kernel_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    there = [r for r in rows if SIZE.items() <= r.items() and "ours" in r and not r["wrong"]]
    for name, limit in KERNEL_GOALS:
        if name == "floor":
            value = next((row["times_floor"] for row in there), None)
        else:
            timed = (row[f"times_{name}"] for row in there if f"times_{name}" in row)
            value = next((found["median"] for found in timed), None)
        yield f"draw of 3 with top-p x {name}", value, limit, name == "floor"


def _method_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    graphs = [row for row in rows if row["capture"] == "on" and row.get("path") == "graph"]
    found = {(row["method"], row["batch"]): row for row in graphs}
    for method, limits in METHOD_GOALS.items():
        for batch, limit in limits.items():
            value = found.get((method, batch), {}).get("ratio_to_plain")
            yield f"{method} batch {batch}", value, limit, True


def _wrapped(words: Sequence[str], width: int = WIDTH - 20) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
