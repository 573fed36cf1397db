"""Where the files of the embedded model, its judge and its controllers lie."""

from __future__ import annotations

from pathlib import Path

PARTS = Path(__file__).resolve().parents[1] / "pocket" / "parts"
MODEL = "pocket"  # the folder of the model


def parts() -> Path:
    """The folder of the embedded parts: pocket/ (the model), judge/ and controllers/<name>/.

    Raises:
        FileNotFoundError: if the installation lacks them.
    """
    if not (PARTS / MODEL / "config.json").is_file():
        raise FileNotFoundError(
            f"the pocket parts are missing at {PARTS}; build them with "
            "`python -m plugalign.pocket.build`, or install the package again"
        )
    return PARTS
