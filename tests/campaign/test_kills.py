"""Commands that are killed at their file events and run again end as if nothing had been.

PLUGALIGN_CAMPAIGN says how many kills there are (a 75th of it for each command), see `killed`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(os.environ.get("PLUGALIGN_CAMPAIGN", "300"))
SEED = os.environ.get("PLUGALIGN_CAMPAIGN_SEED", "0")
FITTED = ("judge", "dexperts", "fudge", "fudge_head", "nullspace", "prefix")
PROGRAM = Path(__file__).with_name("killed.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [*FITTED, "compare", "tune", "values", "capabilities", "feedback"]
)
def test_a_killed_command_goes_on_to_the_same_end(command: str, tmp_path: Path) -> None:
    if COUNT < 1000 and command not in ("compare", "fudge_head"):
        pytest.skip("in the campaign: PLUGALIGN_CAMPAIGN=5000")
    points = str(COUNT // 75 if COUNT >= 1000 else 3)
    line = [sys.executable, str(PROGRAM), command, str(tmp_path / "work"), points, SEED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 3
    faults = [point for point in found if point["fault"] is not None]
    assert not faults, json.dumps(faults, indent=1)
