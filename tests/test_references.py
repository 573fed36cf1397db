"""What docstrings and pages name by its full path is there."""

import pkgutil
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`(plugalign(?:\.\w+)+)`")
SOURCES = ("plugalign/**/*.py", "controllers/**/*.py", "kernels/**/*.py", "benchmarks/**/*.py")
PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/**/*.md")


def is_there(name: str) -> bool:
    """Whether a module, an attribute of it, or a field of a class has this name."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        owner, _, field = name.rpartition(".")
        try:
            return field in getattr(pkgutil.resolve_name(owner), "__annotations__", {})
        except (ImportError, AttributeError):
            return False
    return True


def test_names_in_docstrings_and_pages_are_there():
    named = {
        (name, str(path.relative_to(ROOT)))
        for pattern in (*SOURCES, *PAGES)
        for path in ROOT.glob(pattern)
        for name in NAMED.findall(path.read_text("utf-8"))
    }
    assert len(named) > 100  # the pattern finds what is written
    assert [pair for pair in sorted(named) if not is_there(pair[0])] == []
