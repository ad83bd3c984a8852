"""Every part of the package stands on a floor and imports nothing from above, nor in circles.

Imports inside functions and for type checkers count as well.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import trajmatch

#: From the ground up. Parts on one floor may use each other, but not in circles.
FLOORS = (
    "_extension _torchvision block children device errors files importing interruption "
    "lock memory pictures progress random recording run_folder run_options schema",
    "networks ops parallel protocol reference",
    "data images inference out_of_memory training",
    "artifact experts snapshots",
    "zoo",
    "evaluate",
    "distill",
    "exchange recipes report",
    "pipeline",
    "__main__ cli",
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts.split()}

ROOT = Path(trajmatch.__file__).parent
MODULES = {
    ".".join(["trajmatch", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): file
    for file in ROOT.rglob("*.py")
}


def imported(source: str) -> Iterator[str]:
    """Yield the modules and names of the package that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def module_of(name: str) -> str:
    """Return the module that an imported name of the package is or stands in."""
    return name if name in MODULES else module_of(name.rpartition(".")[0])


def part_of(module: str) -> str:
    return module.split(".")[1]


EDGES = {
    module: {
        used
        for name in imported(file.read_text())
        if name.startswith("trajmatch.") and (used := module_of(name)) not in (module, "trajmatch")
    }
    for module, file in MODULES.items()
    if module != "trajmatch"
}
PARTS: dict[str, set[str]] = {part_of(module): set() for module in EDGES}
for user, used in EDGES.items():
    PARTS[part_of(user)] |= {*map(part_of, used)} - {part_of(user)}


def test_imports_inside_functions_are_found() -> None:
    source = "if TYPE_CHECKING:\n    import a.b\ndef f():\n    from trajmatch.cli import main"
    assert [*imported(source)] == ["a.b", "trajmatch.cli.main"]


def test_every_part_has_a_floor() -> None:
    assert PARTS.keys() == FLOOR.keys()


def test_no_import_goes_up() -> None:
    up = {
        f"{user} imports {each}"
        for user, used in EDGES.items()
        for each in used
        if FLOOR[part_of(each)] > FLOOR[part_of(user)]
    }
    assert not up


def test_no_circles() -> None:
    graphlib.TopologicalSorter(EDGES).prepare()  # raises CycleError
    graphlib.TopologicalSorter(PARTS).prepare()
