"""jinja2's environment for the templates that lie in a package."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def environment(package: str, **filters: Any) -> Environment:
    """An environment in which names that are missing raise, and HTML is escaped.

    Args:
        package: where the templates lie; those that do not end in ``.html.j2`` are not escaped.
    """
    made = Environment(
        loader=PackageLoader(package, "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made
