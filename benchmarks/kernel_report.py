"""What a run of `bench_kernels` depended on, its file, and its table."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

Result = dict[str, Any]


def machine(device: torch.device) -> Result:
    """The device and the software on it."""
    cuda = device.type == "cuda"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    described = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output(described),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "driver": _output(query) if cuda else None,
        "cuda": torch.version.cuda,
        "attention": attention(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "triton", "transformers", "numpy")},
        "load_at_start": os.getloadavg(),
    }


def attention() -> dict[str, bool]:
    """Which of torch's attention kernels may be chosen."""
    kinds = ("flash", "mem_efficient", "math", "cudnn")
    return {kind: bool(getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()) for kind in kinds}


def _output(command: list[str]) -> str | None:
    """The first line of what a command prints, or None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else platform.processor()}".strip()


def save(report: Result, out: Path) -> None:
    """Writes the report as JSON, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


CAPTION = (
    "floor: least traffic at a copy's speed, which below batch 8 is less than a launch; host: wall "
    "time of a call outside a graph; * not captured in a graph, as a whole ratio is then"
)


def table(results: Sequence[Result]) -> Table:
    """One row an operation and size, medians [and quartiles]."""
    title = "microseconds of a call, and how many times as long as ours others take"
    grid = Table(title=title, caption=CAPTION)
    grid.add_column("operation")
    columns = (
        "B",
        "V",
        "ours",
        "floor",
        "/ floor",
        "host",
        "eager",
        "x eager",
        "x compiled",
        "= torch",
    )
    for column in columns:
        grid.add_column(column, justify="right")
    for row in results:
        size = (row["operation"], str(row["batch"]), str(row["vocab"]))
        style = "red" if row["wrong"] else None
        if "ours" not in row:
            grid.add_row(*size, "failed" if "error" in row else "checked", style=style)
            continue
        host = f"{row['host']:.1f}" if "host" in row else "-"
        grid.add_row(
            *size,
            _median(row["ours"]),
            f"{row['floor']:.1f}",
            f"{row['times_floor']:.2f}",
            host,
            _median(row["eager"]),
            ratio(row, "eager"),
            ratio(row, "compiled"),
            f"{row['equal_to_twin']:.3f}, {row['gap_to_twin']:.0e}",
            style=style,
        )
    return grid


def _median(found: Result) -> str:
    if "error" in found:
        return "failed"
    return f"{found['median']:.1f}{_mark(found)}"


def ratio(row: Result, name: str) -> str:
    """How many times as long as ours another takes, with quartiles; marked where one of the two
    was launched by the host."""
    if (times := row.get(f"times_{name}")) is None:
        return "-"
    mark = _mark(row[name]) or _mark(row["ours"])
    return f"{times['median']:.2f}{mark} [{times['low']:.2f}, {times['high']:.2f}]"


def _mark(found: Result) -> str:
    return "*" if found["captured"] is False else ""
