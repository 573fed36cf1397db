"""Which precision is taken: what was asked for, or what the machine computes well."""

from __future__ import annotations

import pytest
import torch

from plugalign.files import precision
from plugalign.files.precision import chosen_dtype, explained


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_what_was_asked_for_is_taken(name: str) -> None:
    assert chosen_dtype(name) == getattr(torch, name)


@pytest.mark.parametrize("able", [True, False])
def test_auto_takes_what_the_processor_multiplies(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: able)
    assert chosen_dtype("auto") == (torch.bfloat16 if able else torch.float32)
    said = ("bfloat16", "multiplies bfloat16") if able else ("float32", "does not multiply")
    assert all(part in explained("auto") for part in said)
    assert explained("float16") == "float16, as asked for"


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_is_asked_where_there_is_one(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return able

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert chosen_dtype("auto") == (torch.bfloat16 if able else torch.float32)
    assert "this GPU" in explained("auto") and not any(asked)


@pytest.mark.parametrize(("avx", "amx"), [(True, False), (False, True), (False, False)])
def test_the_processor_is_asked(avx: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert precision.multiplies_bfloat16() is (avx or amx)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of auto, bfloat16, .* got 'half'"):
        chosen_dtype("half")
