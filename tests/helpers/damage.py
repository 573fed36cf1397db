"""What happens to files on a disk: cut, emptied, bytes changed, lost, a folder of the same name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

DAMAGES = ("truncated", "emptied", "flipped", "a folder", "removed")


def damage(path: Path, how: str, rng: Random) -> None:
    """Damages a file in place."""
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: rng.randrange(1, max(2, len(content)))])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        changed = bytearray(content)
        for place in rng.sample(range(len(content)), min(len(content), rng.choice([1, 1, 8]))):
            changed[place] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()


def damaged(folder: Path, work: Path, rng: Random, count: int) -> Iterator[tuple[Path, Path, str]]:
    """Copies of a folder in ``work``, each with one damaged file: the copy, the file, and how.

    Every file is damaged in every way; ``count`` of these are drawn where there are more, and bytes
    are flipped elsewhere again where there are fewer.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    cases = [(file, how) for file in files for how in DAMAGES]
    more = [(rng.choice(files), "flipped") for _ in range(count - len(cases))]
    for file, how in [*cases, *more] if more else rng.sample(cases, count):
        copy = work / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if (copy / file).stat().st_size or how not in ("truncated", "emptied", "flipped"):
            damage(copy / file, how, rng)
            yield copy, file, how
