"""Records that stand in a text field, as pandas and datasets write nested columns into CSV.

``"{'text': 'The weather', 'toxicity': nan}"`` is such a field of RealToxicityPrompts: the ``str``
of a dict. It is read as the record that it is, and never taken for a text.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any

# A record, a list of records, a list of strings, or an empty one of these.
RECORD = re.compile(r"""\s*(\[\s*)?\{\s*(['"]).*?\2\s*:|\s*(\{\s*\}|\[\s*\])\s*$""", re.DOTALL)
STRINGS = re.compile(r"""\s*\[\s*['"]""")
MISSING = {"nan": None, "inf": None, "null": None, "true": True, "false": False}
LONGEST = 1_000_000  # characters; Python's parser takes about a hundred times that in bytes


class NotReadable(ValueError):
    """It looks like a serialised record and cannot be read as one."""


def unpacked(text: str) -> Any:
    """The record or list that a text is the JSON or the Python form of, else the text itself.

    Raises:
        NotReadable: the text begins like a record, and is none.
    """
    strings = STRINGS.match(text)
    if not (strings or RECORD.match(text)):
        return text
    closed = text.rstrip().endswith(("}", "]"))
    for parse in (_json, _python):
        found = parse(text) if closed and len(text) <= LONGEST else None
        if isinstance(found, (dict, list)):
            return found
    if strings and not (closed and _only_strings(text)):
        return text  # such as "['quoted'] or so", which begins like a list and is a text
    raise NotReadable


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python(text: str) -> Any:
    """The value of a Python literal, in which nan and inf are missing values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = _Missing().visit(ast.parse(text.strip(), mode="eval"))
        if _strings(text) != sum(_is_string(node) for node in ast.walk(tree)):
            return None  # NumPy writes "['one' 'two']", which Python would read as one string
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None


class _Missing(ast.NodeTransformer):
    """Puts None in the place of the names that a missing or a JSON value has."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in MISSING:
            return node
        return ast.copy_location(ast.Constant(MISSING[node.id]), node)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _strings(text: str) -> int:
    """How many string literals the source has."""
    tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    return sum(token.type == tokenize.STRING for token in tokens)


def _only_strings(text: str) -> bool:
    """Whether a bracketed text is quoted strings with nothing but spaces or commas between."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
    except (SyntaxError, tokenize.TokenError):
        return False
    layout = (tokenize.STRING, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    return all(token.type in layout or token.string in "[]," for token in tokens)
