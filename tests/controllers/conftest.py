"""Fixtures of the controllers' tests; what they hold controllers against is in helpers/paper.py."""

from __future__ import annotations

import pytest
from paper import MODES


@pytest.fixture(params=MODES)
def mode(request):
    """Every way to decode."""
    return request.param
