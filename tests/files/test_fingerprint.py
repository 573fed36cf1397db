"""Fingerprints: equal for equal values, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plugalign.files.fingerprint import file_hash, fingerprint, weights_fingerprint


def test_fingerprints_tell_values_apart() -> None:
    same = fingerprint("a", 1, (2.0, None), {"w": torch.ones(2)})
    assert same == fingerprint("a", 1, [2.0, None], {"w": torch.ones(2)})
    others = [("ab",), ("a", "b"), (1,), ("1",), (torch.ones(2),), (torch.ones(2, 1),), ((), "a")]
    assert len({fingerprint(*parts) for parts in others}) == len(others)
    with pytest.raises(TypeError, match="fingerprint of a set"):
        fingerprint({1})


def test_weights_are_known_by_their_values_and_names() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    assert weights_fingerprint(first) == weights_fingerprint(first)
    assert weights_fingerprint(first) != weights_fingerprint(second)
    assert weights_fingerprint(nn.Sequential(first)) != weights_fingerprint(first)


def test_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert file_hash(path).startswith("e3b0c44298fc1c14")
