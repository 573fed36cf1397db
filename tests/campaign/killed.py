"""Kills commands of plugalign at their file events, goes on with them, and compares the ends.

    python tests/campaign/killed.py compare FOLDER POINTS SEED

A command runs in a fork of this process, which has imported everything before. An event is what
is about to happen to a file below FOLDER: it is opened to be written, synced, renamed or removed.
At the n-th one the fork kills itself, or first cuts what it wrote into the file to a half, as a
disk may that loses its power before a sync. The command is run again, in a third of the cases
killed once more, and must end as an undisturbed one did. Prints one JSON line for each point, with
what was wrong there or null.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plugalign as pa
from plugalign import cli, pocket

POCKET = pocket.parts() / pocket.MODEL
# Audit events, and which of their arguments is the descriptor of the folder, or -1.
CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHOWN = ("progress.log", "report.html", "table.tex")  # costs among the rest, in words
TIMED = ("seconds", "check", "measured", "conditions", "time", "cost_ratio")
RESUMED = ("compare", "tune", "values", "capabilities")


@dataclass
class Killer:
    """Counts the events below ``root``; before event ``at`` the process dies.

    Attributes:
        torn: whether what was written into the file that is to be synced is cut first.
        seen: the events so far, in words.
    """

    root: str
    at: int | None = None
    torn: bool = False
    seen: list[str] = field(default_factory=list)
    opened: dict[str, int] = field(default_factory=dict)

    def install(self) -> None:
        """For the rest of this process."""
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.event("sync", path)
            sync(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.audit)

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            if arguments[0].startswith(self.root):
                self.event("open", arguments[0])
                file = Path(arguments[0])
                self.opened[arguments[0]] = file.stat().st_size if file.is_file() else 0
        elif name in CHANGES:
            path, place = arguments[0], arguments[CHANGES[name]]
            inside = os.readlink(f"/proc/self/fd/{place}") if place != -1 else ""
            self.event(name, os.path.join(inside, path))

    def event(self, name: str, path: str) -> None:
        if not path.startswith(self.root):
            return
        self.seen.append(f"{name} {path.removeprefix(self.root)}")
        if len(self.seen) == self.at:
            if self.torn:
                before, size = self.opened.get(path, 0), os.stat(path).st_size
                os.truncate(path, before + max(0, size - before) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def forked(arguments: list[str], log: Path, killer: Killer) -> int | None:
    """The exit code of a command in a fork, None if it was killed. ``log`` gets what it says."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    code: Any = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        killer.install()
        sys.argv = ["plugalign", *arguments]
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if killer.at is None:
            log.with_suffix(".events").write_text(json.dumps(killer.seen))
        os._exit(int(code))


# --------------------------------------------------------------------------- what is run


def texts(folder: Path) -> str:
    """Sixty labelled texts of the pocket world's words."""
    rows = [
        {"text": f"{start} {word} number {i}", "label": label}
        for label, start in enumerate(("what a kind", "you stupid"))
        for i, word in enumerate(("person", "friend", "neighbour") * 10)
    ]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(name: str, out: Path) -> None:
    """What a command changes, and does not make."""
    controllers = pocket.parts() / "controllers"
    if name == "tune":
        shutil.copytree(controllers / "self_debias", out / "debias")
    if name == "feedback":
        model, tokenizer = pocket.load()
        kind, rude = (pa.TokenTable.of_words([w], model, tokenizer) for w in ("kind", "lazy"))
        parts = [pa.Principle("rude", rude)], pa.Preferences({"kind": kind})
        pa.Equilibrium(None, *parts, k=60).save_pretrained(out)


def command(name: str, out: Path, data: str) -> list[str]:
    """The command line; the same again goes on where a killed one was."""
    if name == "compare":
        small = "--methods self_debias,self_critique --limit 4 --samples 2 --max-new-tokens 4"
        return ["compare", *small.split(), "--batch-size", "4", "--out", str(out)]
    if name == "tune":
        small = f"tune it={out / 'debias'} --set it.decay=1,50 --limit 4 --max-perplexity 100"
        small += " --samples 2 --max-new-tokens 4 --batch-size 4 --max-length-change 100"
        return [*small.split(), "--out", str(out / "run")]
    if name in ("values", "capabilities"):
        small = f"{name} {POCKET} --controllers it={pocket.parts() / 'controllers' / 'self_debias'}"
        if name == "values":
            small += " --formats options --no-refusals"
        else:
            rows = Path(data).read_text().splitlines(keepends=True)
            few = Path(data).with_name("few.jsonl")
            few.write_text("".join(rows[:2] + rows[-2:]))
            small += f" --judgements {few} --prompts {few} --judge pocket --max-new-tokens 4"
        return [*small.split(), "--out", str(out)]
    if name == "feedback":
        pairs = Path(data).with_name("pairs.jsonl")
        row = {"prompt": "The nurse was", "chosen": " kind", "rejected": " lazy"}
        pairs.write_text(json.dumps(row) + "\n")
        return ["feedback", str(out), "--add", str(pairs)]
    fit = ["fit", name, "--data", data, "--out", str(out)]
    if name == "judge":
        return fit
    steps = {"fudge_head": 120, "dexperts": 4, "prefix": 4, "fudge": 4}.get(name)
    settings = [] if steps is None else ["--set", f"steps={steps}"]
    return [*fit, "--model", str(POCKET), "--minutes", "1000", *settings]


def result(out: Path) -> dict[str, Any]:
    """The files of a result by name, without what times and addresses change."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir() or path.name in (".lock", *SHOWN):
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = data.splitlines() if path.suffix == ".jsonl" else [data]
            found[str(path.relative_to(out))] = [untimed(json.loads(line)) for line in lines]
        elif path.suffix == ".csv":
            rows = csv.DictReader(data.decode().splitlines())
            found[str(path.relative_to(out))] = [untimed(row) for row in rows]
        else:
            found[str(path.relative_to(out))] = data
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in TIMED}
        return {k: untimed(v) for k, v in kept.items() if not k.startswith(("ms_per_", "ratio_"))}
    return [untimed(one) for one in value] if isinstance(value, list) else value


# --------------------------------------------------------------------------- the campaign


def fault(
    run: Callable[..., int | None],
    anew: Callable[[], None],
    out: Path,
    want: Any,
    points: list[Any],
) -> Any:
    """What is wrong behind kills at ``points``, one after the other; None if nothing is."""
    anew()
    for at, torn in points:
        if run(at, torn) is not None:
            break  # it ended before that event
    code = run(None, False)
    said = (out.parent.parent / "log").read_text(errors="replace")
    if "Traceback" in said:
        return f"traceback: {said[-600:]}"
    # It was killed behind its last change.
    finished = "is not empty" in said or "was learned already" in said
    if code and not finished:
        return f"code {code}: {said[-600:]}"
    if result(out) != want:
        got = result(out)
        return f"another result: {[n for n in {**want, **got} if want.get(n) != got.get(n)]}"
    left = sorted(path.name for path in out.parent.iterdir() if path != out)
    return f"left behind: {left}" if left and not finished else None


def campaign(name: str, folder: Path, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The points with what was wrong there."""
    folder.mkdir(parents=True)
    out, log, data = folder / "there" / "out", folder / "log", texts(folder)
    line = command(name, out, data)

    def run(at: int | None, torn: bool) -> int | None:
        began = name in RESUMED and any(out.rglob("manifest.json"))
        again = ["--resume"] if began else []
        return forked([*line, *again], log, Killer(f"{out.parent}/", at, torn))

    def anew() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        prepare(name, out)

    anew()
    if run(None, False):
        raise SystemExit(f"the undisturbed {name} failed: {log.read_text()[-2000:]}")
    want, events = result(out), json.loads(log.with_suffix(".events").read_text())
    places = [(i, False) for i in range(1, len(events) + 1)]
    places += [(i, True) for i, event in enumerate(events, 1) if event.startswith("sync")]
    for place in places if len(places) <= count else rng.sample(places, count):
        second = [(rng.randint(1, len(events)), False)] if rng.random() < 1 / 3 else []
        wrong = fault(run, anew, out, want, [place, *second])
        yield {"at": [place, *second], "event": events[place[0] - 1], "fault": wrong}


def main() -> None:
    name, folder, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    pocket.load()  # and with it what transformers imports late
    for point in campaign(name, folder.resolve(), count, random.Random(f"{name} {seed}")):
        print(json.dumps(point), flush=True)


if __name__ == "__main__":
    main()
