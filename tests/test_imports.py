"""Imports point one way: no circle of files, also no lazy one, and no layer knows one above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "plugalign": "plugalign",
    "kernels": "plugalign.kernels",
    "controllers": "plugalign.controllers",
}
LAYERS = (  # from the ground up; what stands in one line may know each other
    ("kernels",),
    ("catalogue", "errors", "files", "threads"),
    ("adapters", "algebra", "sampling", "trace"),
    ("engine",),
    ("generation",),
    ("controllers",),
    ("benchmarking", "evaluation", "fitting", "loading", "pocket", "testing", "values"),
    ("api",),
    ("cli", "commands"),
)


def modules() -> dict[str, Path]:
    """Every file of the package by its module's name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            if inside[0] not in FOLDERS:  # the links of a checkout
                name = ".".join((package, *inside))
                found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """What a file imports of the package when it runs, inside functions too."""
    names = set()
    for node in running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names & known.keys()


def running(node: ast.AST):
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from running(child)


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: imported(path, known) - {name} for name, path in known.items()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Some files that import each other in a circle, or none."""
    open_ones, done = [], set()

    def visit(name: str) -> list[str]:
        if name in open_ones:
            return [*open_ones[open_ones.index(name) :], name]
        if name in done:
            return []
        open_ones.append(name)
        for other in sorted(graph[name]):
            if found := visit(other):
                return found
        done.add(open_ones.pop())
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


def test_no_files_import_each_other_in_a_circle(graph):
    assert len(graph) > 200
    assert circle_in(graph) == []


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_a_lazy_import_counts_and_a_type_does_not(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "if TYPE_CHECKING:\n    from plugalign.trace import Trace\n"
        "def f():\n    from plugalign import errors\n"
    )
    assert imported(path, modules()) == {"plugalign.errors"}


def test_no_layer_knows_one_above_it(graph):
    floors = {name: floor for floor, names in enumerate(LAYERS) for name in names}
    floors |= {"__main__": len(LAYERS)}

    def floor(module: str) -> int:
        return floors[module.split(".")[1]]

    own = {name for name in graph if name != "plugalign"}
    upward = [
        f"{name} -> {other}"
        for name in own
        for other in graph[name] & own
        if floor(other) > floor(name)
    ]
    assert upward == []


FITTING, JUDGING = "plugalign.fitting", "plugalign.evaluation.judging"
DISCRIMINATOR = "plugalign.values.discriminator"
STATISTICS = "plugalign.evaluation.statistics"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("plugalign.fitting", (JUDGING, DISCRIMINATOR, STATISTICS)),
        ("plugalign.pocket", (FITTING, JUDGING)),
        (JUDGING, ("plugalign.evaluation", DISCRIMINATOR)),
        (DISCRIMINATOR, (JUDGING, STATISTICS, "plugalign.evaluation.metrics")),
    ],
)
def test_packages_of_one_layer_know_each_other_one_way(graph, package, allowed):
    layer = next(names for names in LAYERS if "fitting" in names)
    beside = tuple(f"plugalign.{name}" for name in layer if name != "loading")
    known = {
        f"{name} -> {other}"
        for name in graph
        for other in graph[name]
        if name.startswith(package)
        and other.startswith(beside)
        and not other.startswith((package, *allowed))
    }
    assert known == set()
