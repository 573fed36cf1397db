"""jinja2's environment for the templates that lie in a package."""

from __future__ import annotations

from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    StrictUndefined,
    select_autoescape,
)

SHARED = "plugalign.evaluation.report"  # has page.css.j2, which pages include


def environment(package: str, **filters: Any) -> Environment:
    """An environment in which names that are missing raise, and HTML is escaped.

    Args:
        package: where the templates lie, before those of this package; what does not end in
            ``.html.j2`` is not escaped.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(each, ".") for each in (package, SHARED)]),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made
