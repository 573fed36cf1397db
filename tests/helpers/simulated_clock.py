"""A clock that a test sets, in the place of the machine's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugalign.fitting import clock


class Simulated:
    """What the clock of fits shows.

    Attributes:
        time: seconds; the test moves it on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.time = 0.0
        monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: self.time))
