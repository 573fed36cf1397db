"""How often, how long and behind which caches the bench times its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plugalign.benchmarking.timed_call import CAPTURES
from plugalign.catalogue import UNTRAINED

PLAIN_STATIC = "plain_static"  # beside the methods that steer
CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class Settings:
    """See `plugalign.benchmarking.bench.run_bench`."""

    batches: tuple[int, ...]
    new_tokens: int
    prompt_tokens: int
    rounds: int
    draft: str | None
    draft_tokens: int
    cache: str
    plain_cache: str
    compiled: bool
    captures: tuple[str, ...]

    def check(self, methods: Sequence[str]) -> None:
        """Refuses what cannot be timed.

        Raises:
            ValueError: for an unknown method, cache or capture, a count below 1, nothing to time,
                or models that shall not be compiled where no call would compile them.
        """
        for name, given in (
            ("method", methods),
            ("batch size", self.batches),
            ("capture", self.captures),
        ):
            if not given:
                raise ValueError(f"there is no {name} to time; give at least one")
        counts = [(name, getattr(self, name)) for name in ("new_tokens", "prompt_tokens", "rounds")]
        for name, value in [*counts, *(("batch", size) for size in self.batches)]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        known = (*UNTRAINED, PLAIN_STATIC)
        for method in methods:
            if method not in known:
                raise ValueError(f"unknown method '{method}'; known are {', '.join(known)}")
        for name, chosen, possible in (
            ("cache", (self.cache, self.plain_cache), CACHES),
            ("capture", self.captures, tuple(CAPTURES)),
        ):
            if unknown := [each for each in chosen if each not in possible]:
                raise ValueError(f"{name} must be {' or '.join(possible)}, got '{unknown[0]}'")
        static = "static" in (self.cache, self.plain_cache) or "on" in self.captures
        if not self.compiled and not static:
            raise ValueError(
                "models are compiled behind a static cache alone, and no call has one; leave "
                "--no-compile out, or give --cache static or --plain-cache static"
            )

    def cache_of(self, capture: str | None) -> str:
        """The cache of a call: a step that is captured has a static one, and so has the plain
        ``generate`` that is no capture's."""
        return "static" if capture in ("on", None) else self.cache

    def compiled_of(self, capture: str | None) -> bool:
        """Whether the models of a call may be compiled, as those of the plain ``generate`` that is
        no capture's always may."""
        return self.compiled or capture is None

    @property
    def kept(self) -> dict[str, Any]:
        """Those that every row names."""
        names = ("new_tokens", "prompt_tokens", "rounds", "plain_cache")
        return {name: getattr(self, name) for name in names}
